"""Gradients along the draws alone run the guide a second time on the same draws: for which guides, and what they do."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import nn
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.diagnostics.gradients import draw_gradients

X = torch.tensor([0.3, -1.2, 0.8, 2.0])

ALONG_DRAWS = {
    "STL": lambda: lvm.elbo.TraceSTL_ELBO(),
    "stl": lambda: lvm.elbo.TraceIWAE_ELBO(5, "stl"),
    "dreg": lambda: lvm.elbo.TraceIWAE_ELBO(5, "dreg"),
}
along_draws = pytest.mark.parametrize("estimator", ALONG_DRAWS.values(), ids=ALONG_DRAWS.keys())


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


def gradients(model, guide, elbo, num_draws, x=X):
    """Draws of the gradient at the parameters of a first start, and by name."""
    torch.manual_seed(0)
    objective = lvm.Objective(model, guide, elbo)
    params = objective.init(x)
    torch.manual_seed(0)
    return draw_gradients(objective, params, (x,), num_draws).flat()


def assert_same_mean(model, make_guide, elbo, other, num_draws, x=X):
    """Two gradients at the same draws have the same mean, and are not the same."""
    one = gradients(model, make_guide(), elbo, num_draws, x)
    two = gradients(model, make_guide(), other, num_draws, x)
    difference = one - two
    error = difference.std(0) / math.sqrt(num_draws)
    assert difference[0].norm() > 1e-3 * two.norm(dim=1).mean()
    assert error.norm() < 0.2 * two.mean(0).norm()
    assert (difference.mean(0).abs() <= 4 * error + 1e-5 * two.abs().mean(0)).all()


# Rows with a latent of their own, and guides that compute it by a network


def rows_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


class Amortized:
    """A guide by a network of some layers."""

    def __init__(self, *layers):
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(1, 8), *layers, nn.Tanh(), nn.Linear(8, 1))

    def __call__(self, x):
        pyro.module("net", self.net)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None]).squeeze(-1), 0.8))


class Decoder:
    """A model by a network with dropout."""

    def __init__(self):
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def __call__(self, x):
        pyro.module("decoder", self.net)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.net(z[..., None]).squeeze(-1), 1.0), obs=x)


def noisy_guide(x):
    noise = torch.randn(len(x))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * (x + noise), 0.8))


def plain_guide(x):
    scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, scale))


def prepare(model, guide, elbo):
    """An objective that has looked at model and guide, and the same by the estimator alone."""
    lvm.Objective(model, guide, elbo).init(X)
    elbo.loss(model, guide, X)


BESIDES = "draws random numbers besides its sites"


@along_draws
@pytest.mark.parametrize("guide", [Amortized(nn.Dropout(0.5)), noisy_guide], ids=["dropout", "noise"])
def test_a_guide_that_draws_besides_its_sites_is_refused(guide, estimator):
    with pytest.raises(ValueError, match=f"the guide {BESIDES}"):
        lvm.Objective(rows_model, guide, estimator()).init(X)
    with pytest.raises(ValueError, match=f"the guide {BESIDES}"):
        estimator().loss(rows_model, guide, X)


@along_draws
def test_a_dropout_that_does_nothing_is_accepted(estimator):
    guide = Amortized(nn.Dropout(0.5))
    guide.net.eval()
    prepare(rows_model, guide, estimator())


@pytest.mark.parametrize("guide", [Amortized(nn.Dropout(0.5)), noisy_guide], ids=["dropout", "noise"])
def test_the_total_gradient_takes_a_guide_that_draws_besides_its_sites(guide):
    prepare(rows_model, guide, lvm.elbo.Trace_ELBO())
    prepare(rows_model, guide, lvm.elbo.TraceIWAE_ELBO(5))


def test_a_model_that_draws_besides_its_sites_is_refused_where_it_runs_twice():
    model = Decoder()
    with pytest.raises(ValueError, match=f"the model {BESIDES}"):
        lvm.Objective(model, plain_guide, lvm.elbo.TraceIWAE_ELBO(5, "dreg")).init(X)
    for elbo in (lvm.elbo.TraceSTL_ELBO(), lvm.elbo.TraceIWAE_ELBO(5, "stl"), lvm.elbo.Trace_ELBO()):
        prepare(model, plain_guide, elbo)
    model.net.eval()
    prepare(model, plain_guide, lvm.elbo.TraceIWAE_ELBO(5, "dreg"))


def test_the_model_with_dropout_keeps_the_mean_of_its_gradient():
    torch.manual_seed(1)
    model = Decoder()
    assert_same_mean(model, lambda: plain_guide, lvm.elbo.TraceSTL_ELBO(), lvm.elbo.Trace_ELBO(), 2_000)


@pytest.mark.parametrize("num", [1, 5])
def test_amortized_guides_keep_the_mean_of_their_gradient(num):
    dreg, total = lvm.elbo.TraceIWAE_ELBO(num, "dreg"), lvm.elbo.TraceIWAE_ELBO(num)
    assert_same_mean(rows_model, Amortized, dreg, total, 2_000)


def test_a_second_run_counts_for_nothing_in_the_means_of_batch_norm():
    def means(elbo):
        guide = Amortized(nn.BatchNorm1d(8))
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            elbo.differentiable_loss(rows_model, guide, X).backward()
        norm = guide.net[1]
        return norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()

    expected = means(lvm.elbo.Trace_ELBO())
    assert expected[2] == 1
    assert expected[0].norm() > 0
    for elbo in (lvm.elbo.TraceSTL_ELBO(), lvm.elbo.TraceIWAE_ELBO(1, "stl"), lvm.elbo.TraceIWAE_ELBO(1, "dreg")):
        for found, value in zip(means(elbo), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=0, atol=0)


# Points and draws


def constrained(x):
    a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
    b = pyro.sample("b", dist.Beta(2.0, 3.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(a - b, 1.0), obs=x)


def hand_written_point(x):
    pyro.sample("a", dist.Delta(pyro.param("a_at", torch.tensor(0.7), constraint=constraints.positive)))
    pyro.sample("b", dist.Beta(pyro.param("b_at", torch.tensor(2.0), constraint=constraints.positive), 2.0))


def moved_draw(x):
    """A value that follows from a draw and, besides, from a parameter: the draw itself has all its density."""
    noise = pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    log_a = pyro.param("loc", torch.tensor(0.1)) + scale * noise
    pyro.sample("a", dist.Delta(log_a.exp(), log_density=-log_a - scale.log()))
    pyro.sample("b", dist.Beta(2.0, 2.0))


def parts():
    guide = AutoGuideList(constrained)
    guide.append(AutoNormal(pyro.poutine.block(constrained, expose=["a"])))
    guide.append(AutoNormal(pyro.poutine.block(constrained, expose=["b"])))
    return guide


POINTS = {
    "hand-written": (lambda: hand_written_point, "'a'"),
    "map": (lambda: "map", "'[ab]'"),
    "AutoDelta": (lambda: AutoDelta(constrained), "'[ab]'"),
    "Laplace": (lambda: AutoLaplaceApproximation(constrained), "'.*'"),
    "moved draw": (lambda: moved_draw, "'a'"),
}


@along_draws
@pytest.mark.parametrize("name", POINTS)
def test_points_are_refused(name, estimator):
    make, site = POINTS[name]
    with pytest.raises(ValueError, match=f"puts {site} where its parameters say, not where a draw says"):
        lvm.Objective(constrained, make(), estimator()).init(X)


@pytest.mark.parametrize("name", POINTS)
def test_the_total_gradient_takes_points(name):
    objective = lvm.Objective(constrained, POINTS[name][0](), lvm.elbo.Trace_ELBO())
    objective(objective.init(X), X).backward()


def test_a_moved_draw_has_the_density_of_the_draw_that_it_is():
    """So that refusing it is a matter of the gradient alone."""

    def direct(x):
        scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
        pyro.sample("a", dist.LogNormal(pyro.param("loc", torch.tensor(0.1)), scale))
        pyro.sample("b", dist.Beta(2.0, 2.0))

    losses = []
    for guide in (moved_draw, direct):
        torch.manual_seed(2)
        losses.append(lvm.elbo.Trace_ELBO().loss(constrained, guide, X))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


DRAWS = {
    "AutoNormal": lambda: AutoNormal(constrained, init_scale=0.4),
    "AutoMultivariateNormal": lambda: AutoMultivariateNormal(constrained, init_scale=0.4),
    "AutoLowRankMultivariateNormal": lambda: AutoLowRankMultivariateNormal(constrained, init_scale=0.4, rank=1),
    "AutoGuideList": parts,
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_keep_the_mean_of_their_gradient(name):
    assert_same_mean(constrained, DRAWS[name], lvm.elbo.TraceSTL_ELBO(), lvm.elbo.Trace_ELBO(), 4_000)


@pytest.mark.parametrize("name", DRAWS)
def test_double_reparametrisation_keeps_the_mean_of_the_gradient_of_the_bound(name):
    dreg, total = lvm.elbo.TraceIWAE_ELBO(5, "dreg"), lvm.elbo.TraceIWAE_ELBO(5)
    assert_same_mean(constrained, DRAWS[name], dreg, total, 4_000)


@pytest.mark.parametrize("name", DRAWS)
def test_one_particle_that_sticks_the_landing_is_that_of_the_elbo(name):
    one = gradients(constrained, DRAWS[name](), lvm.elbo.TraceIWAE_ELBO(1, "stl"), 50)
    two = gradients(constrained, DRAWS[name](), lvm.elbo.TraceSTL_ELBO(), 50)
    torch.testing.assert_close(one, two)


def test_no_gradient_along_draws_is_recommended_for_points():
    comparison = lvm.compare_elbos(constrained, "map", X, num_repeats=20)
    assert {"TraceSTL_ELBO", "TraceIWAE_ELBO, stl", "TraceIWAE_ELBO, dreg"} <= comparison.refused.keys()
    assert not comparison.biased("TraceIWAE_ELBO")
    assert "dreg" not in comparison.recommendation
    assert "TraceIWAE_ELBO is biased" not in comparison.recommendation


# Flows, whose parameters stand in a module: their density is that of the parameters when it is computed


def two_latents(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 0.7))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(a + b, 1.5), obs=x)


class Flow:
    """A guide by one transform of a normal distribution."""

    def __init__(self, make):
        torch.manual_seed(1)
        self.flow = make()

    def __call__(self, x):
        pyro.module("flow", self.flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        u = pyro.sample("u", dist.TransformedDistribution(base, [self.flow]), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Delta(u[..., 0]))
        pyro.sample("b", dist.Delta(u[..., 1]))


FLOWS = {
    "AutoIAFNormal": lambda: AutoIAFNormal(two_latents, [8], num_transforms=1),
    "autoregressive": lambda: Flow(lambda: transforms.affine_autoregressive(2, [8])),
    "coupling": lambda: Flow(lambda: transforms.affine_coupling(2, [8])),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_keep_the_mean_of_their_gradient(name):
    stl, total = lvm.elbo.TraceSTL_ELBO(), lvm.elbo.Trace_ELBO()
    assert_same_mean(two_latents, FLOWS[name], stl, total, 4_000)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_keep_the_mean_of_the_gradient_of_the_bound(name):
    dreg, total = lvm.elbo.TraceIWAE_ELBO(5, "dreg"), lvm.elbo.TraceIWAE_ELBO(5)
    assert_same_mean(two_latents, FLOWS[name], dreg, total, 4_000)


@pytest.mark.parametrize("name", FLOWS)
def test_one_particle_of_a_flow_that_sticks_the_landing_has_the_mean_of_the_elbo(name):
    stl, total = lvm.elbo.TraceIWAE_ELBO(1, "stl"), lvm.elbo.Trace_ELBO()
    assert_same_mean(two_latents, FLOWS[name], stl, total, 4_000)


class FlowOfRows:
    """A model whose likelihood is a transform with parameters in a module."""

    def __init__(self):
        torch.manual_seed(1)
        self.flow = transforms.affine_coupling(2, [4])

    def __call__(self, x):
        pyro.module("likelihood", self.flow)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        base = dist.Normal(z * torch.ones(2), 1.0).to_event(1)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, [self.flow]), obs=x)


def test_a_model_with_a_flow_keeps_the_mean_of_the_gradient_of_the_bound():
    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.8))

    dreg, total = lvm.elbo.TraceIWAE_ELBO(5, "dreg"), lvm.elbo.TraceIWAE_ELBO(5)
    x = torch.stack([X, X.flip(0)], 1)
    assert_same_mean(FlowOfRows(), lambda: guide, dreg, total, 4_000, x)


@along_draws
def test_a_transform_without_an_inverse_is_refused(estimator):
    with pytest.raises(ValueError, match="no inverse"):
        lvm.Objective(two_latents, Flow(lambda: transforms.planar(2)), estimator()).init(X)


def test_the_total_gradient_takes_a_transform_without_an_inverse():
    guide = Flow(lambda: transforms.planar(2))
    objective = lvm.Objective(two_latents, guide, lvm.elbo.Trace_ELBO())
    params = objective.init(X)
    objective(params, X).backward()
    assert all(p.grad is not None for p in params.values())
    assert math.isfinite(lvm.elbo.Trace_ELBO().loss(two_latents, guide, X))
