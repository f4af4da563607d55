"""Guides that are Gaussians bent by flows: exact posteriors, bent ones, and what they are never worse than."""

import math
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.data import Data
from pyro_lvm.flows import IAF, MAF
from pyro_lvm.guides import FlowGuide
from pyro_lvm.svi.best import Best

from .. import zuko_flows

Y = torch.tensor([1.0, 2.5, 3.0, 4.5])


def small(num_features):
    return IAF(num_features, 1, (8,))


def regression(y):
    """A normal posterior with a correlation."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a + b * torch.arange(len(y)), 1.0), obs=y)


def evidence():
    design = torch.stack([torch.ones(4), torch.arange(4.0)], -1)
    covariance = 4 * design @ design.mT + torch.eye(4)
    return torch.distributions.MultivariateNormal(torch.zeros(4), covariance).log_prob(Y).item()


def elbo(model, guide, result, *data, num_draws=2_000, seed=123):
    """The ELBO of a fit on fresh draws, and its standard error."""
    terms = lvm.to_arviz(result, num_draws=num_draws, seed=seed)["sample_stats"]
    weights = torch.as_tensor((terms["lp"] - terms["log_q"]).values[0])
    return weights.mean().item(), weights.std().item() / num_draws**0.5


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.3))


@pytest.mark.parametrize("base", [pytest.param("mean_field", marks=pytest.mark.slow), "full_rank"])
def test_normal_posteriors_are_found(base):
    guide = FlowGuide(regression, small, base=base)
    result = lvm.fit(regression, guide, Y, num_steps=600, optim=0.02, progress=False)
    value, error = elbo(regression, guide, result, Y)
    assert value > evidence() - 0.05 - 3 * error
    draws = result.sample(4_000)
    exact = torch.distributions.Normal(Y.mean(), 1.0)  # of the line in the middle, but for the prior
    assert (draws["a"] + 1.5 * draws["b"]).mean().item() == pytest.approx(exact.mean.item(), abs=0.2)
    assert torch.corrcoef(torch.stack([draws["a"], draws["b"]]))[0, 1] < -0.6


def test_flow_is_better_than_the_gaussian_where_the_posterior_bends():
    guide = FlowGuide(banana, small)
    result = lvm.fit(banana, guide, num_steps=600, optim=0.02, progress=False)
    gaussian = guide.gaussian()
    before = lvm.fit(banana, gaussian, num_steps=600, optim=0.02, progress=False)
    bent, error = elbo(banana, guide, result)
    straight, other = elbo(banana, gaussian, before)
    assert bent > straight + 0.2 + 3 * math.hypot(error, other)  # the evidence is 0
    draws = result.sample(4_000)
    assert (draws["y"] - draws["x"] ** 2).std() < 0.5


def test_a_fit_that_goes_astray_ends_where_it_began():
    """The Gaussian is kept when no parameters after it are better: here all are far worse."""
    guide = FlowGuide(regression, small, base="full_rank")
    gaussian = lvm.fit(regression, guide.gaussian(), Y, num_steps=600, optim=0.02, progress=False)
    start = {f"FlowGuide.{name.split('.')[-1]}": value for name, value in gaussian.params.items()}
    before = lvm.fit(regression, guide, Y, num_steps=1, optim=1e-9, init=start, progress=False)
    result = lvm.fit(regression, guide, Y, num_steps=40, optim=3.0, init=start, progress=False)
    assert -result.losses[-10:].mean() < evidence() - 5
    (found, error), (expected, other) = (elbo(regression, guide, r, Y) for r in (result, before))
    assert found > expected - 2 * math.hypot(error, other)


def test_flow_by_name_leaves_enumerated_sites_alone():
    x = torch.cat([torch.randn(30) - 3, torch.randn(30) + 3])

    def mixture(x):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 5.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], scale), obs=x)

    result = lvm.fit(mixture, "flow", x, num_steps=300, optim=0.03, progress=False)
    draws = result.sample(500)
    assert set(draws) == {"locs", "scale", "z"}
    locs = draws["locs"].mean(0).sort().values  # components have no order
    torch.testing.assert_close(locs, torch.tensor([-3.0, 3.0]), rtol=0, atol=0.5)
    assert (draws["scale"] > 0).all()


def test_parameters_of_the_model_move_too():
    def model(y):
        scale = pyro.param("scale", torch.tensor(5.0), constraint=constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    y = 3 + 0.5 * torch.randn(200)
    result = lvm.fit(model, FlowGuide(model, small), y, num_steps=300, optim=0.03, progress=False)
    assert result.params["scale"].item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("flow", [lambda D: zuko_flows.MAF(D, transforms=1, hidden_features=(8,)), MAF(2, 1, (8,))])
def test_any_flow_will_do(flow):
    result = lvm.fit(regression, FlowGuide(regression, flow), Y, num_steps=20, progress=False)
    assert result.losses.isfinite().all()
    assert result.sample(3)["a"].shape == (3,)


def test_a_fit_goes_on_from_a_checkpoint(tmp_path):
    def fit(stop=(), path=None):
        torch.manual_seed(0)
        guide = FlowGuide(regression, small)
        options = {"num_steps": 40, "every": 10, "progress": False}
        return lvm.fit(regression, guide, Y, callbacks=stop, checkpoint=path, **options)

    whole = fit()
    seen = []

    def abort(state):
        seen.append(state.step)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit([abort], tmp_path / "fit.pt")
    again = fit(path=tmp_path / "fit.pt")
    assert torch.equal(again.losses, whole.losses)
    for name, value in whole.params.items():
        torch.testing.assert_close(again.params[name], value, rtol=0, atol=0)


def test_the_best_parameters_before_a_checkpoint_are_not_lost(tmp_path):
    """After it, the steps are so long that all is worse."""

    def bolt(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 20 else 300.0)

    def fit(stop=(), path=None):
        torch.manual_seed(0)
        options = {"num_steps": 60, "every": 20, "scheduler": bolt, "progress": False}
        return lvm.fit(regression, FlowGuide(regression, small), Y, callbacks=stop, checkpoint=path, **options)

    def abort(state):
        if state.step == 40:
            raise KeyboardInterrupt

    whole = fit()
    assert -whole.losses[-10:].mean() < -whole.losses[10:20].mean() - 5
    with pytest.raises(KeyboardInterrupt):
        fit([abort], tmp_path / "fit.pt")
    again = fit(path=tmp_path / "fit.pt")
    for name, value in whole.params.items():
        torch.testing.assert_close(again.params[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "flow, base, error, message",
    [
        (None, "diagonal", ValueError, "base: expected one of 'mean_field', 'full_rank', got 'diagonal'"),
        (3, "mean_field", TypeError, "flow: expected a flow of pyro_lvm or of zuko, got int"),
        (lambda D: torch.nn.Linear(D, D), "mean_field", TypeError, "flow: expected a flow"),
        (IAF(3), "mean_field", ValueError, "flow: expected 2 features, the number of latents of the model"),
    ],
)
def test_wrong_flows_are_refused(flow, base, error, message):
    with pytest.raises(error, match=message):
        lvm.fit(regression, FlowGuide(regression, flow, base=base), Y, num_steps=2, progress=False)


# Which parameters are kept -----------------------------------------------------------------------------------------


def location(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def test_rows_without_weight_have_no_say():
    y = torch.cat([torch.full((20,), -5.0), torch.full((20,), 5.0)])
    weight = torch.cat([torch.zeros(20), torch.ones(20)])
    guide = FlowGuide(location, small)
    result = lvm.fit(location, guide, y, sample_weight=weight, num_steps=300, optim=0.05, progress=False)
    exact = torch.distributions.Normal(100 / 20.01, 20.01**-0.5)
    assert abs(result.sample(2_000)["loc"].mean() - exact.mean) < 0.5 * exact.stddev


@pytest.mark.parametrize("weighted", [False, True])
def test_of_many_rows_some_from_everywhere_are_looked_at(monkeypatch, weighted):
    """Rows in order; the estimate for all is right within four standard errors of the rows that are drawn."""
    y = torch.cat([torch.full((500,), -1.0), torch.full((1_500,), 3.0)])
    weight = torch.tensor([0.5, 1.5]).repeat(1_000) if weighted else None
    objective = lvm.Objective(location, "mean_field")
    objective.prepare(Data((y,)), (y,), weighted=weighted)
    values = objective.program.parameters.start()

    def loss(most_rows, rows=slice(None)):
        monkeypatch.setattr("pyro_lvm.svi.best.MOST_ROWS", most_rows)
        part = None if weight is None else weight[rows]
        best = Best(objective, Data((y[rows],)), part, len(y[rows]), seed=0)
        best.see(values)
        return best.loss

    ends = loss(500, slice(0, 500)) / 500, loss(500, slice(1_500, 2_000)) / 500
    each = torch.tensor(ends).repeat_interleave(torch.tensor([500, 1_500])) * (1.0 if weight is None else weight)
    assert abs(loss(200) - loss(2_000)) < 4 * 2_000 * each.std() / 200**0.5


def test_a_minibatch_fit_is_judged_by_all_rows():
    y = torch.cat([torch.full((20,), -1.0), torch.full((60,), 3.0)])
    guide = FlowGuide(location, small)
    result = lvm.fit(location, guide, y, batch_size=8, num_steps=400, optim=0.05, progress=False)
    assert abs(result.sample(2_000)["loc"].mean() - 160 / 80.01) < 0.7 * 80.01**-0.5


def test_an_elbo_that_is_never_finite_leaves_some_parameters(monkeypatch):
    objective = lvm.Objective(location, "mean_field")
    objective.prepare(Data((Y,)), (Y,))
    best = Best(objective, Data((Y,)), None, 4, seed=0)
    monkeypatch.setattr(type(best.objective), "value", lambda *args: math.nan)
    values = objective.program.parameters.start()
    best.see(values)
    assert best.params.keys() == values.keys()


# What the guide is ----------------------------------------------------------------------------------------------


def test_a_full_base_is_the_gaussian_of_its_matrix():
    """With all of its flow at zero, the guide is N(loc, S L L' S), at its draws and at any other points."""
    guide = FlowGuide(regression, base="full_rank")
    with pyro.get_param_store().scope():
        guide(Y)
    with torch.no_grad():
        for parameter in guide.flow.parameters():
            parameter.zero_()
        guide.loc.copy_(torch.tensor([1.0, -2.0]))
        guide.scale, guide.scale_tril = torch.tensor([0.5, 3.0]), torch.tensor([[1.0, 0.0], [-0.7, 1.0]])
    factor = torch.tensor([[0.5, 0.0], [-0.7 * 3.0, 3.0]])
    exact = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0]), scale_tril=factor)
    posterior = guide.get_posterior()
    x = 3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(posterior.log_prob(x), exact.log_prob(x))
    draws, log_prob = posterior.rsample_and_log_prob((20,))
    torch.testing.assert_close(log_prob, exact.log_prob(draws))


# Fits after fits -----------------------------------------------------------------------------------------------


def test_a_guide_that_is_fitted_again_goes_on(tmp_path):
    guide = FlowGuide(banana, small)
    first = lvm.fit(banana, guide, num_steps=600, optim=0.02, progress=False)
    reached, error = elbo(banana, guide, first)
    again = lvm.fit(banana, guide, num_steps=2, optim=1e-6, progress=False)
    assert elbo(banana, guide, again)[0] > reached - 4 * error
    first.save(tmp_path / "fit.pt")
    other = FlowGuide(banana, small)
    lvm.load(tmp_path / "fit.pt", banana, other)
    third = lvm.fit(banana, other, num_steps=2, optim=1e-6, progress=False)
    assert elbo(banana, other, third)[0] > reached - 4 * error


def test_a_resumed_fit_fits_no_gaussian(tmp_path, monkeypatch):
    path, options = tmp_path / "c", {"num_steps": 40, "every": 10, "progress": False}
    stop = [lambda state: state.step >= 20]
    lvm.fit(banana, FlowGuide(banana, small), checkpoint=path, callbacks=stop, **options)

    def refuse(*args):
        raise AssertionError("the Gaussian was fitted again")

    monkeypatch.setattr("pyro_lvm.svi.once.fitted_gaussian", refuse)
    result = lvm.fit(banana, FlowGuide(banana, small), checkpoint=path, callbacks=stop, **options)
    assert result.num_steps == 20


def test_ctrl_c_while_the_gaussian_is_fitted_ends_the_fit():
    runs = []

    def model():
        runs.append(None)
        if len(runs) == 60:
            signal.raise_signal(signal.SIGINT)
        banana()

    result = lvm.fit(model, FlowGuide(model, small), num_steps=400, compile=False, progress=False)
    assert result.num_steps == 0
    assert len(runs) < 150
    assert result.sample(10)["x"].isfinite().all()
