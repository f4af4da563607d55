"""Draws, predictions, scores and evidence of a result, against closed forms and brute force."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoLaplaceApproximation, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm

SGD = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731  a fit that stands still


def still(model, guide, *data, **options):
    """A result at the parameters that the programs start with."""
    return lvm.fit(model, guide, *data, **({"num_steps": 1, "optim": SGD, "progress": False} | options))


def near(estimate, exact, errors=4.0, floor=1e-4):
    value, error = (torch.as_tensor(t).double() for t in estimate)
    return bool(((value - torch.as_tensor(exact).double()).abs() <= errors * error + floor).all())


# A conjugate Normal: mean ~ N(0, 2^2), x_i ~ N(mean, 1), with the exact posterior as its guide.
X = torch.tensor([0.5, -1.0, 2.0, 0.1, 3.0])


def posterior(x):
    precision = 0.25 + len(x)
    return x.sum() / precision, precision**-0.5


def conjugate(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def exact_guide(x):
    loc, scale = posterior(X)
    pyro.sample("mean", dist.Normal(pyro.param("loc", loc), pyro.param("scale", torch.tensor(scale))))


def wide_guide(x):
    loc, scale = posterior(X)
    pyro.sample("mean", dist.Normal(pyro.param("loc", loc + 0.3), 1.5 * scale))


def log_evidence(x):
    covariance = torch.eye(len(x)) + 4.0
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x).item()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_evidence_is_exact_under_the_exact_posterior(count):
    def guide(x):
        loc, scale = posterior(x)
        pyro.sample("mean", dist.Normal(loc + pyro.param("zero", torch.tensor(0.0)), scale))

    estimate = still(conjugate, guide, X[:count]).evidence(num_particles=50)
    assert estimate.value == pytest.approx(log_evidence(X[:count]), abs=1e-5)
    assert 0 <= estimate.standard_error < 1e-5


@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_evidence_is_right_within_its_error_and_the_error_is_right(proposal):
    result = still(conjugate, wide_guide, X)
    estimates = [result.evidence(400, proposal=proposal, seed=s) for s in range(100)]
    values = torch.tensor([e.value for e in estimates])
    errors = torch.tensor([e.standard_error for e in estimates])
    assert abs(values.mean() - log_evidence(X)) < 4 * values.std() / 10 + values.var() / 2
    assert values.std().item() == pytest.approx(errors.mean().item(), rel=0.35)


def local(x):
    """z_i ~ N(0, 1), x_i ~ N(z_i, 1): p(x_i) = N(0, 2)."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x):
    half = pyro.param("half", torch.tensor(0.45))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(half * x, 0.8))


def exact_local_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("half", torch.tensor(0.5)) * x, math.sqrt(0.5)))


LOCAL_SCORES = dist.Normal(0.0, math.sqrt(2.0)).log_prob(X)


def test_what_lies_outside_the_plate_counts_for_the_evidence_and_for_no_row():
    def model(x):
        pyro.factor("prior", pyro.param("term", torch.tensor(-3.0)))
        local(x)

    result = still(model, exact_local_guide, X)
    assert result.evidence(10).value == pytest.approx(LOCAL_SCORES.sum().item() - 3.0, rel=1e-5)
    torch.testing.assert_close(result.score(num_draws=2).value.float(), LOCAL_SCORES)


def test_scores_and_evidence_of_local_latents():
    result = still(local, local_guide, X)
    assert near(result.score(num_draws=4000), LOCAL_SCORES)
    assert near(result.evidence(4000), LOCAL_SCORES.sum())
    assert near(result.evidence(4000, proposal="prior"), LOCAL_SCORES.sum())
    exact = still(local, exact_local_guide, X)
    torch.testing.assert_close(exact.score(num_draws=3).value.float(), LOCAL_SCORES)
    assert exact.evidence(3).standard_error < 1e-5
    new = torch.tensor([4.0, -2.0, 7.0])
    torch.testing.assert_close(
        exact.score(new, num_draws=3).value.float(), dist.Normal(0.0, math.sqrt(2.0)).log_prob(new)
    )


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank"])
def test_evidence_with_a_guide_of_these_rows(guide):
    result = lvm.fit(local, guide, X, num_steps=600, optim=0.05, progress=False)
    assert near(result.evidence(4000), LOCAL_SCORES.sum())
    if guide == "mean_field":
        assert near(result.score(num_draws=4000), LOCAL_SCORES)
    else:
        with pytest.raises(ValueError, match="draws the latents of all rows jointly"):
            result.score()
    with pytest.raises(ValueError, match=r"\['z'\] of the fitted rows alone"):
        result.score(X + 1)
    with pytest.raises(ValueError, match=r"\['z'\] of the fitted rows alone"):
        result.posterior(X + 1)


def test_score_averages_global_latents_over_the_guide():
    loc, scale = posterior(X)
    exact = dist.Normal(loc, math.sqrt(scale**2 + 1)).log_prob(X)
    assert near(still(conjugate, exact_guide, X).score(num_draws=4000), exact)


def hierarchical(x):
    """mean ~ N(0, 1); u_i ~ N(mean, 1); z_ij ~ N(u_i, 1); x_ij ~ N(z_ij, 1)."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal(mean, 1.0))
        with pyro.plate("columns", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hierarchical_guide(x):
    w = pyro.param("w", torch.tensor(0.6))
    mean = pyro.sample("mean", dist.Normal(w * x.mean(), 0.7))
    with pyro.plate("rows", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal((mean + x.sum(1, keepdim=True) / 2) / (1 + x.shape[1] / 2), 0.8))
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal((u + x) / 2, 0.8))


@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (3, 1), (1, 1)])
def test_evidence_of_nested_plates(shape):
    torch.manual_seed(4)
    x = torch.randn(shape)
    rows = torch.arange(shape[0]).repeat_interleave(shape[1])
    covariance = 1.0 + (rows[:, None] == rows).float() + 2 * torch.eye(x.numel())
    exact = dist.MultivariateNormal(torch.zeros(x.numel()), covariance).log_prob(x.flatten())
    result = still(hierarchical, hierarchical_guide, x)
    assert near(result.evidence(8000), exact)
    assert near(result.evidence(20_000, proposal="prior"), exact)
    draws = result.sample(7)
    assert {n: tuple(d.shape) for n, d in draws.items()} == {
        "mean": (7,), "u": (7, shape[0], 1), "z": (7, *shape),
    }  # fmt: skip


def test_evidence_without_plates():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor(1.3)
    # long enough that the guide is as wide as the posterior: a narrow one has weights of infinite variance
    result = lvm.fit(model, "mean_field", x, num_steps=500, optim=0.05, progress=False)
    assert near(result.evidence(4000), dist.Normal(0.0, math.sqrt(2.0)).log_prob(x))
    with pytest.raises(ValueError, match="no plate that follows the rows"):
        result.score()


# Mixtures.
WEIGHTS, LOCS = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.5, 2.0])


def mixture(x, K=3):
    weights = pyro.param("weights", (WEIGHTS[:K] / WEIGHTS[:K].sum()), constraint=constraints.simplex)
    locs = pyro.param("locs", LOCS[:K])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], 0.7), obs=x)


def joint_of(x, K=3):
    return dist.Normal(LOCS[:K], 0.7).log_prob(x[:, None]) + (WEIGHTS[:K] / WEIGHTS[:K].sum()).log()


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5])
def test_a_mixture_is_exact(K, count):
    x = X[:count]
    result = still(mixture, None, x, model_kwargs={"K": K})
    joint = joint_of(x, K)
    score, evidence = result.score(), result.evidence()
    torch.testing.assert_close(score.value.float(), joint.logsumexp(1))
    assert score.standard_error.abs().max() == 0
    assert evidence.value == pytest.approx(joint.logsumexp(1).sum().item(), rel=1e-5)
    assert evidence.standard_error == 0
    torch.testing.assert_close(result.posterior()["z"].probs, joint.softmax(1), rtol=1e-5, atol=1e-6)
    new = torch.tensor([0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(result.posterior(new)["z"].probs, joint_of(new, K).softmax(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.score(new).value.float(), joint_of(new, K).logsumexp(1))
    draws = result.sample(3000)["z"]
    counts = torch.stack([(draws == k).sum(0) for k in range(K)], 1)
    assert draws.shape == (3000, count)
    expected = joint.softmax(1)
    error = (expected * (1 - expected) / 3000).sqrt()
    assert ((counts / 3000 - expected).abs() <= 4 * error + 1e-3).all()


def test_scores_agree_with_scipy():
    result = still(mixture, None, X)
    density = sum(WEIGHTS[k].item() * scipy.stats.norm(LOCS[k].item(), 0.7).pdf(X.numpy()) for k in range(3))
    torch.testing.assert_close(result.score().value, torch.as_tensor(density).log(), rtol=1e-5, atol=1e-5)


INITIAL = torch.tensor([0.6, 0.4])
TRANSITION = torch.tensor([[0.7, 0.3], [0.2, 0.8]])


def chain(x):
    """A hidden Markov model of several sequences ``[N, T]``."""
    transition = pyro.param("transition", TRANSITION, constraint=constraints.simplex)
    with pyro.plate("rows", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            probs = INITIAL if z is None else transition[z]
            z = pyro.sample(f"z{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(3.0 * z - 1.0, 1.5), obs=x[:, t])


@pytest.mark.parametrize("count", [1, 3])
def test_paths_of_a_chain_are_drawn_jointly(count):
    """Against the posterior of all 16 paths of each sequence."""
    torch.manual_seed(0)
    x = torch.randn(count, 4) * 2
    result = still(chain, None, x)
    paths = torch.tensor(list(itertools.product([0, 1], repeat=4)))
    prior = INITIAL[paths[:, 0]].log() + TRANSITION[paths[:, :-1], paths[:, 1:]].log().sum(1)
    joint = prior + dist.Normal(3.0 * paths - 1.0, 1.5).log_prob(x[:, None]).sum(-1)
    torch.testing.assert_close(result.score().value.float(), joint.logsumexp(1))
    draws = result.sample(4000)
    index = sum(draws[f"z{t}"] * 2 ** (3 - t) for t in range(4))
    marginals = result.posterior()
    for i in range(count):
        expected = joint[i].softmax(0)
        for t in range(4):
            one = expected[paths[:, t] == 1].sum()
            torch.testing.assert_close(marginals[f"z{t}"].probs[i, 1], one, rtol=1e-4, atol=1e-5)
        observed = torch.bincount(index[:, i], minlength=16)
        many = expected * 4000 >= 5
        table = [torch.cat([c[many], c[~many].sum()[None]]) for c in (observed, expected * 4000)]
        statistic = ((table[0] - table[1]) ** 2 / table[1].clamp(min=1e-3)).sum().item()
        assert scipy.stats.chi2(int(many.sum())).sf(statistic) > 1e-3


def global_switch(x):
    """One switch for all rows, and a component for each row that depends on it."""
    switch = pyro.sample("switch", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
    table = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(table[switch]), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


@pytest.mark.parametrize("count", [1, 3])
def test_a_global_discrete_site(count):
    x = X[:count]
    table = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    likelihood = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(x[:, None])
    rows = (table.log()[:, None] + likelihood).logsumexp(-1)  # [switch, N]
    joint = torch.tensor([0.4, 0.6]).log() + rows.sum(1)
    result = still(global_switch, None, x)
    assert result.evidence().value == pytest.approx(joint.logsumexp(0).item(), rel=1e-5)
    posterior = joint.softmax(0)
    torch.testing.assert_close(result.posterior()["switch"].probs, posterior, rtol=1e-4, atol=1e-5)
    draws = result.sample(4000)
    error = (posterior[1] * posterior[0] / 4000).sqrt()
    assert abs(draws["switch"].double().mean() - posterior[1]) < 4 * error
    for s in range(2):
        chosen = draws["z"][draws["switch"] == s].double()
        exact = (table.log()[s] + likelihood).softmax(-1)[:, 1]
        assert ((chosen.mean(0) - exact).abs() < 4 * (exact * (1 - exact) / len(chosen)).sqrt() + 1e-3).all()


def mixed(x):
    """A component and a continuous latent for each row, and a global mean."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        u = pyro.sample("u", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(u + 4.0 * z - 2.0, 1.0), obs=x)


def mixed_guide(x):
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.9))
    with pyro.plate("rows", len(x)):
        pyro.sample("u", dist.Normal(0.3 * x, 1.5))


def test_discrete_and_continuous_latents_together():
    x = X[:2]
    result = still(mixed, mixed_guide, x)
    grid = torch.linspace(-6, 6, 2001)
    component = dist.Normal(grid[:, None, None] + torch.tensor([-2.0, 2.0]), math.sqrt(2.0)).log_prob(x[:, None])
    rows = (component + torch.tensor([0.3, 0.7]).log()).logsumexp(-1)
    exact = (dist.Normal(0.0, 1.0).log_prob(grid) + rows.sum(1)).logsumexp(0) + math.log(12 / 2000)
    assert near(result.evidence(20_000), exact)
    assert near(result.evidence(20_000, proposal="prior"), exact)
    draws = result.sample(50)
    assert {n: tuple(d.shape) for n, d in draws.items()} == {"mean": (50,), "u": (50, 2), "z": (50, 2)}
    # z given u is Bayes' rule of each draw
    many = result.sample(4000)
    odds = dist.Normal(many["u"][..., None] + torch.tensor([-2.0, 2.0]), 1.0).log_prob(x[:, None])
    expected = (odds + torch.tensor([0.3, 0.7]).log()).softmax(-1)[..., 1]
    assert ((many["z"].double() - expected).mean(0).abs() < 4 * 0.5 / 4000**0.5).all()
    torch.testing.assert_close(result.posterior(num_draws=4000)["z"].probs[:, 1], expected.mean(0), rtol=0.1, atol=0.02)


def test_ppca_is_exact():
    model = lvm.models.PPCA(2, 4)
    torch.manual_seed(0)
    model.loading, model.loc, model.noise = torch.randn(4, 2), torch.randn(4), 0.3
    x = torch.randn(6, 4)
    result = still(model, None, x)
    covariance = model.loading @ model.loading.T + 0.3 * torch.eye(4)
    exact = dist.MultivariateNormal(model.loc, covariance).log_prob(x).detach()
    score = result.score(num_draws=4)
    torch.testing.assert_close(score.value.float(), exact, rtol=1e-3, atol=1e-3)
    assert score.standard_error.max() < 1e-3
    assert result.evidence(4).value == pytest.approx(exact.sum().item(), rel=1e-4)


# Draws and predictions.


def test_draws_are_those_of_the_posterior_and_the_seed_repeats_them():
    result = still(conjugate, exact_guide, X)
    loc, scale = posterior(X)
    draws = result.sample(4000)["mean"]
    assert scipy.stats.kstest(draws.numpy(), scipy.stats.norm(loc, scale).cdf).pvalue > 1e-3
    assert torch.equal(result.sample(4000)["mean"], draws)
    assert torch.equal(result.sample(10, seed=4)["mean"], result.sample(10, seed=4)["mean"])
    assert not torch.equal(result.sample(10, seed=4)["mean"], result.sample(10, seed=5)["mean"])
    assert result.posterior()["mean"].mean.item() == pytest.approx(loc.item())


def test_predictions_have_the_posterior_predictive_distribution():
    result = still(conjugate, exact_guide, X)
    loc, scale = posterior(X)
    predictive = scipy.stats.norm(loc, math.sqrt(scale**2 + 1))
    for draws in (result.predict(num_draws=3000)["x"], result.predict(torch.zeros(7), num_draws=3000)["x"]):
        assert scipy.stats.kstest(draws[:, -1].numpy(), predictive.cdf).pvalue > 1e-3
        # one mean for all rows of a draw
        assert torch.corrcoef(draws[:, :2].T)[0, 1].item() == pytest.approx(scale**2 / (scale**2 + 1), abs=0.08)
    assert result.predict(torch.zeros(7), num_draws=3)["x"].shape == (3, 7)


def regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)


def test_a_supervised_model_predicts_new_rows():
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 40)
    result = lvm.fit(regression, "mean_field", x, 1.5 * x, num_steps=1500, optim=0.05, progress=False)
    new = torch.tensor([10.0, -10.0])
    draws = result.predict(new, num_draws=400)["y"]
    assert draws.shape == (400, 2)
    assert near((draws.mean(0), draws.std(0) / 20), 15.0 * torch.tensor([1.0, -1.0]), floor=0.3)
    assert torch.equal(draws, result.predict(new, num_draws=400)["y"])
    assert result.predict(num_draws=2)["y"].shape == (2, 40)


def test_new_rows_of_a_guide_that_knows_only_the_fitted_ones_come_from_the_prior():
    result = lvm.fit(local, "mean_field", X, num_steps=400, optim=0.05, progress=False)
    draws = result.predict(torch.zeros(9), num_draws=2000)["x"]
    assert draws.shape == (2000, 9)
    assert scipy.stats.kstest(draws[:, 8].numpy(), scipy.stats.norm(0, math.sqrt(2)).cdf).pvalue > 1e-3
    # those of the fitted rows from their own posterior
    fitted = result.predict(num_draws=2000)["x"]
    loc = result.params["AutoNormal.locs.z"]
    assert loc[4] > 1
    assert ((fitted.mean(0) - loc).abs() < 4 * fitted.std(0) / 2000**0.5).all()


def test_new_rows_of_an_amortized_guide_come_from_it():
    draws = still(local, exact_local_guide, X).predict(torch.tensor([6.0, 0.0]), num_draws=2000)["x"]
    assert draws.mean(0)[0].item() == pytest.approx(3.0, abs=0.12)


def latent_regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(slope * x + z, 0.5), obs=y)


def guide_of_observations(x, y):
    pyro.sample("slope", dist.Normal(pyro.param("loc", torch.tensor(2.0)), 0.1))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(y / 1.25, 0.2**0.5))


def guide_of_inputs(x, y=None):
    """It can run without the observations, and yet stands for the posterior given them."""
    pyro.sample("slope", dist.Normal(pyro.param("loc", torch.tensor(2.0)), 0.1))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(7.0 + x, 0.01))


@pytest.mark.parametrize("guide", [guide_of_observations, guide_of_inputs])
@pytest.mark.parametrize("inputs", [(torch.tensor([3.0, 0.0]),), (torch.tensor([3.0, 0.0]), None)], ids=len)
def test_rows_without_their_observations_have_latents_from_the_prior(guide, inputs):
    draws = still(latent_regression, guide, X, X + 1).predict(*inputs, num_draws=3000)["y"]
    for row, x in zip(draws.T, (3.0, 0.0), strict=True):
        exact = scipy.stats.norm(2 * x, math.sqrt((0.1 * x) ** 2 + 1 + 0.25))
        assert scipy.stats.kstest(row.numpy(), exact.cdf).pvalue > 1e-3
    # the one slope of a draw is in all its rows
    assert torch.corrcoef(still(latent_regression, guide, X, X).predict(100 * X, num_draws=500)["y"].T)[1, 2] < -0.9


def test_mixture_predictions_follow_the_rows_given():
    result = still(mixture, None, X)
    draws = result.predict(torch.tensor([-2.0, 2.5]), num_draws=3000)["x"]
    means = (joint_of(torch.tensor([-2.0, 2.5])).softmax(1) * LOCS).sum(1)
    assert ((draws.mean(0) - means).abs() < 0.12).all()


def test_prior_predictive_draws_every_site_anew():
    draws = lvm.prior_predictive(conjugate, X, num_draws=3000)
    assert scipy.stats.kstest(draws["mean"].numpy(), scipy.stats.norm(0, 2).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(draws["x"][:, 2].numpy(), scipy.stats.norm(0, 5**0.5).cdf).pvalue > 1e-3
    assert torch.equal(draws["x"], lvm.prior_predictive(conjugate, X, num_draws=3000)["x"])
    assert not torch.equal(draws["x"], lvm.prior_predictive(conjugate, X, num_draws=3000, seed=1)["x"])


@pytest.mark.parametrize("name", ["mean_field", "full_rank", "low_rank"])
def test_posteriors_of_named_guides_have_the_moments_of_their_draws(name):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w.sum(), scale), obs=x)

    result = lvm.fit(model, name, X, num_steps=300, optim=0.05, progress=False)
    found, draws = result.posterior(), result.sample(4000)
    assert set(found) == {"w", "scale"}
    torch.testing.assert_close(found["w"].mean, draws["w"].mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(found["w"].variance.sqrt(), draws["w"].std(0), rtol=0.1, atol=0.02)
    median = found["scale"].icdf(torch.tensor(0.5)) if name == "mean_field" else None
    if median is not None:
        assert draws["scale"].median().item() == pytest.approx(median.item(), rel=0.1)


# What a result keeps.


def module_and_guide():
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        mean = net(x[:, None])[:, 0]
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean + w, 1.0), obs=x)

    return net, model


def test_later_training_changes_no_result():
    _, model = module_and_guide()
    first = lvm.fit(model, "mean_field", X, num_steps=20, progress=False)
    before = first.predict(num_draws=3)["x"], first.evidence(10), {n: v.clone() for n, v in first.params.items()}
    lvm.fit(model, "mean_field", X, num_steps=50, optim=0.1, progress=False)
    assert torch.equal(first.predict(num_draws=3)["x"], before[0])
    assert first.evidence(10) == before[1]
    assert all(torch.equal(v, before[2][n]) for n, v in first.params.items())


def test_saved_and_loaded_is_the_same(tmp_path):
    _, model = module_and_guide()
    result = lvm.fit(model, "mean_field", X, num_steps=20, validation=X, every=5, progress=False)
    result.sample(2)
    result.save(tmp_path / "r")
    _, fresh = module_and_guide()
    back = lvm.load(tmp_path / "r", fresh, "mean_field", X)
    assert torch.equal(back.losses, result.losses)
    assert back.validation == result.validation
    assert (back.seconds, back.seed, back.num_steps, back.converged) == (result.seconds, 0, 20, result.converged)
    assert list(back.params) == list(result.params)
    assert all(torch.equal(v, result.params[n]) for n, v in back.params.items())
    assert torch.equal(back.predict(num_draws=3)["x"], result.predict(num_draws=3)["x"])
    assert str(back) == str(result)
    torch.load(tmp_path / "r", weights_only=True)


def test_a_loaded_fit_is_in_the_users_modules(tmp_path):
    x = torch.randn(20, 2)
    mixture = lvm.models.GaussianMixture(2, 2)
    lvm.fit(mixture, None, x, num_steps=5, progress=False).save(tmp_path / "r")
    fresh = lvm.models.GaussianMixture(2, 2)
    fresh.initialize = lambda x: pytest.fail("a loaded model has its start")
    result = lvm.load(tmp_path / "r", fresh, None, x)
    for name, value in mixture.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    torch.testing.assert_close(result.params["locs"], fresh.locs.detach())
    again = lvm.fit(fresh, None, x, num_steps=1, optim=SGD, progress=False)
    assert torch.equal(again.params["locs"], result.params["locs"])


def test_a_loaded_fit_restores_statistics_that_no_gradient_trains(tmp_path):
    net, model = module_and_guide()
    lvm.fit(model, "mean_field", X, num_steps=5, progress=False).save(tmp_path / "r")
    other, fresh = module_and_guide()
    lvm.load(tmp_path / "r", fresh, "mean_field", X)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())


def test_a_fit_is_loaded_with_its_own_data(tmp_path):
    lvm.fit(conjugate, "mean_field", X, num_steps=2, progress=False).save(tmp_path / "r")
    assert lvm.load(tmp_path / "r", conjugate, "mean_field", X.numpy()).num_steps == 2
    with pytest.raises(ValueError, match="holds a fit to other data"):
        lvm.load(tmp_path / "r", conjugate, "mean_field", X + 1)
    loader = DataLoader(TensorDataset(X), batch_size=2)
    lvm.fit(conjugate, "mean_field", loader, num_steps=2, progress=False).save(tmp_path / "r")
    assert lvm.load(tmp_path / "r", conjugate, "mean_field", X + 1).num_steps == 2


def test_a_load_that_fails_changes_no_module(tmp_path):
    _, model = module_and_guide()
    lvm.fit(model, "mean_field", X, num_steps=2, progress=False).save(tmp_path / "r")
    net, fresh = module_and_guide()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="other data"):
        lvm.load(tmp_path / "r", fresh, "mean_field", X + 1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bound_programs_work_with_pyros_tools():
    _, model = module_and_guide()
    result = lvm.fit(model, "mean_field", X, num_steps=20, progress=False)
    draws = Predictive(result.model, guide=result.guide, num_samples=5)(X)
    assert draws["x"].shape[0] == 5
    trace = poutine.trace(poutine.condition(result.model, data={"w": torch.tensor(0.3)})).get_trace(X)
    assert torch.isfinite(trace.log_prob_sum())
    assert not any(site["type"] == "param" for site in trace.nodes.values())
    assert len(pyro.get_param_store()) == 0
    with pyro.get_param_store().scope():
        guide = AutoNormal(result.model)
        svi = SVI(result.model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = [svi.step(X) for _ in range(5)]
        assert all(map(math.isfinite, losses))
        assert sorted(pyro.get_param_store()) == ["AutoNormal.locs.w", "AutoNormal.scales.w"]
    again = lvm.fit(result.model, "full_rank", X, num_steps=3, progress=False)
    assert list(again.params) == ["AutoMultivariateNormal.loc", "AutoMultivariateNormal.scale",
                                  "AutoMultivariateNormal.scale_tril"]  # fmt: skip


def test_a_fit_by_a_loader_needs_the_rows_that_it_did_not_keep():
    data = DataLoader(TensorDataset(X), batch_size=2)
    result = lvm.fit(local, local_guide, data, num_steps=4, progress=False)
    for call in (result.sample, result.score, result.evidence, result.posterior):
        with pytest.raises(ValueError, match="DataLoader"):
            call()
    assert near(result.score(X, num_draws=4000), LOCAL_SCORES, errors=5)
    assert lvm.fit(conjugate, "mean_field", data, num_steps=2, progress=False).sample(3)["mean"].shape == (3,)


def test_a_row_outside_the_support_is_an_error():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    result = lvm.fit(model, "mean_field", X.abs(), num_steps=3, progress=False)
    with pytest.raises(ValueError, match="support"):
        result.score(torch.tensor([1.0, -3.0]))


def test_guides_made_of_parts_are_weighed_right():
    from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoStructured

    structured = AutoStructured(local, conditionals={"z": "mvn"}, dependencies={"z": {}})
    parts = AutoGuideList(local)
    parts.append(AutoMultivariateNormal(poutine.block(local, expose=["z"])))
    for guide in (structured, parts):
        result = lvm.fit(local, guide, X, num_steps=400, optim=0.05, progress=False)
        assert near(result.evidence(4000), LOCAL_SCORES.sum())
        with pytest.raises(ValueError, match="jointly"):
            result.score()


@pytest.fixture(scope="module")
def result():
    return lvm.fit(conjugate, "mean_field", X, num_steps=5, progress=False)


@pytest.fixture(scope="module")
def point():
    return lvm.fit(local, "map", X, num_steps=5, progress=False)


METHODS = {
    "sample: no draws": (lambda r: r.sample(0), ValueError, "num_draws must be a positive integer; got 0"),
    "sample: a fraction": (lambda r: r.sample(2.5), TypeError, "num_draws must be a positive integer; got 2.5"),
    "sample: a seed's kind": (lambda r: r.sample(2, seed="a"), TypeError, "seed must be .* got 'a'"),
    "sample: a seed's sign": (lambda r: r.sample(2, seed=-1), ValueError, "seed must be .* got -1"),
    "posterior: not finite": (lambda r: r.posterior(X / 0), ValueError, "data argument 0 is not finite: .* in row 0"),
    "posterior: dtype": (lambda r: r.posterior(X.double()), ValueError, "float64.*float32"),
    "posterior: draws": (lambda r: r.posterior(num_draws=0), ValueError, "num_draws must be a positive integer; got 0"),
    "posterior: draws' kind": (lambda r: r.posterior(num_draws="x"), TypeError, "num_draws must be .* got 'x'"),
    "predict: draws": (lambda r: r.predict(num_draws=-1), ValueError, "num_draws must be a positive integer; got -1"),
    "predict: draws' kind": (lambda r: r.predict(num_draws=None), TypeError, "num_draws must be .* got None"),
    "predict: too many": (lambda r: r.predict(X, X), TypeError, "positional argument"),
    "predict: dtype": (lambda r: r.predict(X.double()), ValueError, "float64.*float32"),
    "predict: text": (lambda r: r.predict(__import__("numpy").array(["a"])), TypeError, "encode text"),
    "predict: a seed": (lambda r: r.predict(seed=1.5), TypeError, "seed must be a non-negative integer; got 1.5"),
    "predict: a seed too large": (lambda r: r.predict(seed=2**64), ValueError, "seed must be"),
    "score: draws": (lambda r: r.score(num_draws=True), TypeError, "num_draws must be a positive integer; got True"),
    "score: draws' sign": (lambda r: r.score(num_draws=-4), ValueError, "num_draws must be .* got -4"),
    "score: not finite": (lambda r: r.score(X.log()), ValueError, "is not finite: nan in row 1"),
    "score: dtype": (lambda r: r.score(X.double()), ValueError, "float64.*float32"),
    "score: a seed": (lambda r: r.score(seed=[1]), TypeError, "seed must be"),
    "score: a seed's sign": (lambda r: r.score(seed=-1), ValueError, "seed must be"),
    "evidence: particles": (lambda r: r.evidence(0), ValueError, "num_particles must be a positive integer; got 0"),
    "evidence: their kind": (lambda r: r.evidence(1e3), TypeError, "num_particles must be .* got 1000.0"),
    "evidence: proposal": (lambda r: r.evidence(proposal="q"), ValueError, "must be 'guide' or 'prior'; got 'q'"),
    "evidence: its kind": (lambda r: r.evidence(proposal=None), ValueError, "proposal must be .* got None"),
    "evidence: a seed": (lambda r: r.evidence(seed="a"), TypeError, "seed must be"),
    "evidence: a seed's sign": (lambda r: r.evidence(seed=-1), ValueError, "seed must be"),
    "save: a folder": (lambda r: r.save("/tmp"), ValueError, "cannot be written: it is a folder"),
    "save: nowhere": (lambda r: r.save("/no/where"), ValueError, "the folder /no does not exist"),
    "save: a kind": (lambda r: r.save(3), TypeError, "must be a path; got 3"),
}


@pytest.mark.parametrize("what", METHODS)
def test_wrong_arguments_of_methods_are_explained(result, what):
    call, error, message = METHODS[what]
    random = torch.get_rng_state()
    with pytest.raises(error, match=message):
        call(result)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_point_has_no_density_to_weight_by(point):
    with pytest.raises(ValueError, match=r"the guide puts 'z' at a point, as a MAP fit does.*proposal='prior'"):
        point.evidence()
    with pytest.raises(ValueError, match=r"as a MAP fit does.*cannot be integrated out"):
        point.score()
    assert near(point.evidence(4000, proposal="prior"), LOCAL_SCORES.sum())


PRIOR = {
    "model": (lambda: lvm.prior_predictive(X), TypeError, "model must be a callable"),
    "model's kind": (lambda: lvm.prior_predictive("model", X), TypeError, "model must be a callable.*got str"),
    "draws": (lambda: lvm.prior_predictive(conjugate, X, num_draws=0), ValueError, "num_draws must be"),
    "draws' kind": (lambda: lvm.prior_predictive(conjugate, X, num_draws=1.0), TypeError, "num_draws must be"),
    "inputs": (lambda: lvm.prior_predictive(conjugate, X / 0), ValueError, "not finite"),
    "inputs missing": (lambda: lvm.prior_predictive(conjugate), TypeError, "missing 1 required positional argument"),
    "kwargs": (lambda: lvm.prior_predictive(conjugate, X, model_kwargs=[1]), TypeError, "model_kwargs must be a dict"),
    "kwargs unknown": (lambda: lvm.prior_predictive(conjugate, X, model_kwargs={"a": 1}), TypeError, "argument 'a'"),
    "seed": (lambda: lvm.prior_predictive(conjugate, X, seed="a"), TypeError, "seed must be"),
    "seed's sign": (lambda: lvm.prior_predictive(conjugate, X, seed=-1), ValueError, "seed must be"),
}


@pytest.mark.parametrize("what", PRIOR)
def test_wrong_arguments_of_prior_predictive_are_explained(what):
    call, error, message = PRIOR[what]
    with pytest.raises(error, match=message):
        call()


PATH = {"spacing": 1, "seen": {}, "shapes": {}}


def stub(path, **changes):
    state = {"kind": "result", "data": None, "params": {}, "losses": torch.zeros(3), "validation": {}, "seed": 0}
    state |= {
        "seconds": 0.0,
        "compiled": False,
        "target": "ELBO",
        "path": PATH,
        "restarts": torch.zeros(1),
        "climb": None,
    }
    torch.save(state | changes, path)


def loading(**options):
    """Load a saved fit with other arguments."""

    def call(path):
        lvm.fit(conjugate, "mean_field", X, num_steps=2, progress=False).save(path)
        given = {"path": path, "model": conjugate, "guide": "mean_field", "data": (X,)} | options
        lvm.load(given.pop("path"), given.pop("model"), given.pop("guide"), *given.pop("data"), **given)

    return call


LOADS = {
    "path missing": (loading(path="/no/where"), ValueError, "there is no file '/no/where'"),
    "path of a kind": (loading(path=3), TypeError, "path must be a path; got 3"),
    "a foreign file": (lambda p: (p.write_text("x"), lvm.load(p, conjugate, None, X)), ValueError, "is no result of"),
    "a part": (lambda p: (torch.save({"kind": "result"}, p), lvm.load(p, conjugate, None, X)), ValueError, "no result"),
    "other parameters": (lambda p: (stub(p), lvm.load(p, conjugate, "mean_field", X)), ValueError, "holds parameters"),
    "another guide": (loading(guide="full_rank"), ValueError, "but this model and guide have"),
    "another model": (loading(model=local), ValueError, "holds parameters .* but this model and guide have"),
    "model of a kind": (loading(model=3), TypeError, "model must be a callable"),
    "guide as data": (loading(guide=X), TypeError, "the second argument is the guide"),
    "guide unknown": (loading(guide="no"), ValueError, "unknown guide 'no'"),
    "data of another fit": (loading(data=(X + 1,)), ValueError, "a fit to other data"),
    "data not finite": (loading(data=(X / 0,)), ValueError, "not finite"),
    "data missing": (loading(data=()), TypeError, "missing 1 required positional argument"),
    "plate unknown": (loading(plate="no"), ValueError, "plate='no' does not follow"),
    "plate of a kind": (loading(plate=1), TypeError, "plate must be the name"),
    "rows outside": (loading(rows=[3]), ValueError, "rows names position 3"),
    "rows of a kind": (loading(rows="x"), TypeError, "rows must list the positions"),
    "kwargs of a kind": (loading(model_kwargs=3), TypeError, "model_kwargs must be a dict"),
    "kwargs unknown": (loading(model_kwargs={"a": 1}), TypeError, "argument 'a'"),
}


@pytest.mark.parametrize("what", LOADS)
def test_wrong_arguments_of_load_are_explained(what, tmp_path):
    call, error, message = LOADS[what]
    with pytest.raises(error, match=message):
        call(tmp_path / "r")


def test_the_evidence_of_a_model_that_takes_random_rows_is_refused():
    def subsampling():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(X), subsample_size=2) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=X[index])

    result = lvm.fit(subsampling, "mean_field", num_steps=3, progress=False)
    with pytest.raises(ValueError, match=f"the plate 'rows' around 'x' takes 2 of its {len(X)} elements by itself"):
        result.evidence()


def test_inputs_that_leave_out_an_observed_site_are_explained():
    def silent(x, y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            if y is not None:
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    result = lvm.fit(silent, "mean_field", X, X, num_steps=3, progress=False)
    with pytest.raises(ValueError, match="the model has no site 'y' on these inputs: let it sample"):
        result.predict(X)


def test_modules_without_parameters_are_in_evaluation_mode_too():
    dropout = torch.nn.Dropout(0.5)

    def dropping(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean + dropout(torch.ones(len(x))), 1.0), obs=x)

    result = lvm.fit(dropping, "map", X, num_steps=3, progress=False)
    assert torch.equal(result.score(seed=1).value, result.score(seed=2).value)
    assert dropout.training


def test_a_start_from_data_sees_all_rows():
    class Centred(pyro.nn.PyroModule):
        initialized = False

        def initialize(self, x):
            self.loc = pyro.nn.PyroParam(x.mean())
            self.initialized = True

        def forward(self, x):
            loc = self.loc
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.arange(10.0)
    result = lvm.fit(Centred(), None, x, batch_size=2, num_steps=1, optim=1e-6, progress=False)
    assert result.params["loc"].item() == pytest.approx(4.5, abs=1e-4)


def grown(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("l", lambda: torch.full((len(x),), 20.0)), 0.1))


def fixed(x):
    loc = pyro.param("l", torch.full((len(X),), 20.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.1))


@pytest.mark.parametrize(("guide", "num_rows"), [(grown, len(X)), (grown, 1), (fixed, len(X))])
def test_a_guide_with_parameters_of_its_rows_takes_no_others(guide, num_rows):
    result = still(local, guide, X[:num_rows])
    other = torch.zeros(num_rows)
    for call in (result.score, result.posterior):
        with pytest.raises(ValueError, match="fitted rows alone"):
            call(other)
    with pytest.raises(ValueError, match="amortized guide"):
        lvm.fit(local, guide, X[:num_rows], num_steps=1, validation=other, progress=False)
    # rows of their own get latents from the prior, N(0, 1), and not from the guide, near 20
    state = torch.get_rng_state()
    draws = result.predict(other, num_draws=4000)["x"]
    assert torch.equal(torch.get_rng_state(), state)
    assert draws.mean(0).abs().max() < 5 * (2 / 4000) ** 0.5
    assert (result.predict(num_draws=100)["x"].mean(0) > 15).all()


def test_why_no_row_plate_was_found_is_said_where_one_is_needed():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        if len(x) != len(X):
            raise KeyError("a table of 5 rows")
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    result = lvm.fit(model, "mean_field", X, num_steps=2, progress=False)
    with pytest.raises(ValueError, match=r"score of its own .*a table of 5 rows"):
        result.score()
    for option in ({"batch_size": 5}, {"sample_weight": torch.ones(5)}):
        with pytest.raises(ValueError, match=r"does not run on a part of the rows: 'a table of 5 rows'"):
            lvm.fit(model, "mean_field", X, progress=False, **option)


def test_a_bound_method_gets_the_start_of_its_module():
    x = torch.cat([torch.randn(20, 1) - 9, torch.randn(60, 1) + 9])
    mixture = lvm.models.GaussianMixture(2, 1)
    result = lvm.fit(mixture.forward, None, x, num_steps=1, optim=1e-6, progress=False)
    start = lvm.models.GaussianMixture(2, 1).initialize(x)
    torch.testing.assert_close(result.params["locs"], start.locs.detach())


def test_a_flag_without_a_method_is_the_users_own():
    class Flow(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.register_buffer("initialized", torch.tensor(False))
            self.loc = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            loc = self.loc
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    result = lvm.fit(Flow(), None, X, num_steps=1, optim=lambda p: torch.optim.SGD(p, 0.2), progress=False)
    assert result.params["loc"].item() == pytest.approx(0.2 * X.sum().item(), rel=1e-6)


def fail(state):
    raise ArithmeticError


FAILURES = {
    "an option": (lambda m, x: lvm.fit(m, None, x, optim="adam", progress=False), TypeError),
    "weights": (lambda m, x: lvm.fit(m, None, x, sample_weight=-x[:, 0].abs(), progress=False), ValueError),
    "a callback": (lambda m, x: lvm.fit(m, None, x, num_steps=4, every=2, callbacks=[fail], progress=False), Exception),
    "a guide": (lambda m, x: lvm.Objective(m, "mean_field").init(x), ValueError),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_call_that_fails_leaves_a_module_without_its_start(what):
    call, error = FAILURES[what]
    x = torch.randn(30, 2)
    mixture = lvm.models.GaussianMixture(2, 2)
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    with pytest.raises(error):
        call(mixture, x)
    assert not mixture.initialized
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())


# A global enumerated site under which all rows lie: k ~ Bernoulli(1/2), a_i ~ N(3k, 1).
def switched(a):
    k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    loc = pyro.param("loc", torch.tensor(3.0))
    with pyro.plate("rows", len(a)):
        pyro.sample("a", dist.Normal(loc * k, 1.0), obs=a)


def test_rows_under_a_shared_enumerated_site_have_evidence_but_no_score():
    result = still(switched, None, X)
    each = torch.stack([dist.Normal(mean, 1.0).log_prob(X).sum() for mean in (0.0, result.params["loc"])])
    assert result.evidence().value == pytest.approx((each.logsumexp(0) - math.log(2)).item(), abs=1e-4)
    assert result.posterior()["k"].probs.item() == pytest.approx(each.softmax(0)[1].item(), abs=1e-5)
    with pytest.raises(ValueError, match="the rows depend on the enumerated site 'k': no row has a score of its own"):
        result.score()
    with pytest.raises(ValueError, match="the enumerated site 'k' lies outside the row plate"):
        lvm.fit(switched, None, X, sample_weight=torch.ones(len(X)), num_steps=1, progress=False)


def test_the_evidence_with_local_latents_under_a_shared_enumerated_site():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(3.0 * k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.7)) * x, 1.5))

    x = torch.tensor([0.4, 2.0])
    each = torch.stack([dist.Normal(mean, math.sqrt(2.0)).log_prob(x).sum() for mean in (0.0, 3.0)])
    assert near(still(model, guide, x).evidence(20_000), each.logsumexp(0) - math.log(2))


def two_means(x):
    mu, nu = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("mu", "nu"))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mu + nu, 1.0), obs=x)


def partly_a_point(x):
    pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.5))
    pyro.sample("nu", dist.Delta(pyro.param("n", torch.tensor(0.1))))


def mixed_list():
    guide = AutoGuideList(two_means)
    guide.append(AutoNormal(poutine.block(two_means, expose=["mu"])))
    guide.append(AutoDelta(poutine.block(two_means, expose=["nu"])))
    return guide


@pytest.mark.parametrize(
    "guide, site",
    [(partly_a_point, "nu"), (mixed_list(), "nu"), (AutoLaplaceApproximation(two_means), "mu")],
    ids=["by hand", "in a list", "laplace"],
)
def test_a_guide_with_a_point_has_no_evidence(guide, site):
    result = lvm.fit(two_means, guide, X, num_steps=2, progress=False)
    with pytest.raises(ValueError, match=f"the guide puts '{site}' at a point"):
        result.evidence()
    assert torch.isfinite(result.score(num_draws=10).value).all()


def test_a_guide_with_draws_of_its_own_has_no_evidence():
    def auxiliary(x):
        pyro.sample("a", dist.Categorical(torch.ones(4)), infer={"is_auxiliary": True})
        exact_guide(x)

    result = lvm.fit(conjugate, auxiliary, X, num_steps=2, progress=False)
    with pytest.raises(ValueError, match="the guide draws 'a' besides the latents of the model"):
        result.evidence()


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank"])
def test_marginals_in_a_plate_do_not_depend_on_the_guide(guide):
    def model():
        with pyro.plate("groups", 4):
            pyro.sample("p", dist.Dirichlet(torch.ones(3)))
            pyro.sample("s", dist.HalfNormal(1.0))

    result = lvm.fit(model, guide, num_steps=3, progress=False)
    posterior = result.posterior()
    draws = result.sample(4_000)
    for name, event in (("p", (3,)), ("s", ())):
        marginal = posterior[name]
        assert (tuple(marginal.batch_shape), tuple(marginal.event_shape)) == ((4,), event)
        torch.manual_seed(0)
        own = marginal.sample((4_000,))
        error = ((own.var(0) + draws[name].var(0)) / 4_000).sqrt()
        assert ((own.mean(0) - draws[name].mean(0)).abs() < 4 * error).all()


def test_a_list_of_guides_gives_the_distributions_of_its_parts():
    posterior = lvm.fit(two_means, mixed_list(), X, num_steps=2, progress=False).posterior()
    assert isinstance(posterior["mu"], dist.Normal)
    assert isinstance(posterior["nu"], dist.Delta)


@pytest.mark.parametrize("kind", ["one-hot", "binary"])
def test_enumerated_sites_of_other_kinds_than_categorical(kind):
    locs = torch.tensor([-1.0, 2.0])

    def model(x):
        base = pyro.param("base", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            if kind == "one-hot":
                z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
                loc = (z * locs).sum(-1)
            else:
                z = pyro.sample("z", dist.Bernoulli(0.7), infer={"enumerate": "parallel"})
                loc = -1.0 + 3.0 * z
            pyro.sample("x", dist.Normal(base + loc, 1.0), obs=x)

    result = still(model, None, X)
    joint = torch.tensor([0.3, 0.7]).log() + dist.Normal(result.params["base"] + locs, 1.0).log_prob(X[:, None])
    right = joint.softmax(-1)
    posterior, draws = result.posterior()["z"], result.sample(4_000)["z"]
    expected = right if kind == "one-hot" else right[:, 1]
    assert type(posterior) is (dist.OneHotCategorical if kind == "one-hot" else dist.Bernoulli)
    assert torch.allclose(posterior.probs, expected, atol=1e-5)
    assert draws.shape == (4_000, *expected.shape)
    assert ((draws.mean(0) - expected).abs() < 4 * (expected * (1 - expected) / 4_000).sqrt() + 1e-3).all()
    assert result.predict(num_draws=3)["x"].shape == (3, len(X))


def test_a_latent_of_the_guide_that_depends_on_an_enumerated_site():
    locs = torch.tensor([-1.0, 2.0])

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            e = pyro.sample("e", dist.Normal(locs[z], 1.0))
            pyro.sample("x", dist.Normal(e, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("e", dist.Normal(pyro.param("slope", torch.tensor(0.8)) * x, 1.3))

    result = still(model, guide, X)
    mixture = torch.tensor([0.3, 0.7]).log() + dist.Normal(locs, math.sqrt(2.0)).log_prob(X[:, None])
    assert near(result.score(num_draws=20_000), mixture.logsumexp(-1))
    assert near(result.evidence(20_000), mixture.logsumexp(-1).sum())
    assert result.sample(5)["z"].shape == (5, len(X))


def test_a_single_draw_has_no_standard_error():
    result = still(conjugate, wide_guide, X)
    assert math.isnan(result.evidence(1).standard_error)
    assert result.score(num_draws=1).standard_error.isnan().all()


def test_weights_of_many_rows_are_averaged_in_parts(monkeypatch):
    result = still(local, local_guide, X)
    whole = result.evidence(500)
    monkeypatch.setattr("pyro_lvm.importance._WEIGHTS_AT_ONCE", 7 * len(X))
    parts = result.evidence(500)
    assert near(parts, LOCAL_SCORES.sum())
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=0.3, abs=1e-6)


def test_scores_need_the_observations():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            return pyro.sample("y", dist.Normal(w * x + z, 1.0), obs=y)

    result = lvm.fit(model, "mean_field", X, 2 * X, num_steps=2, progress=False)
    for method in ("score", "posterior"):
        with pytest.raises(ValueError, match=f"{method} needs the observations of 'y', and these arguments have none"):
            getattr(result, method)(X[:2])
    assert result.predict(X[:2])["y"].shape == (1_000, 2)


@pytest.mark.parametrize("wrong, got", [(torch.zeros(3), r"\[3\]"), (torch.zeros(4, 2), r"\[4, 2\]"), (5, "5")])
def test_rows_of_another_shape_are_refused(wrong, got):
    def model(x):
        base = pyro.param("base", torch.zeros(3))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(base, 1.0).to_event(1), obs=x)

    result = still(model, None, torch.zeros(6, 3))
    for method in (result.score, result.predict, result.posterior):
        with pytest.raises(ValueError, match=rf"argument 0 must have rows of shape \[3\], as in the fit; got {got}"):
            method(wrong)


MASK = torch.tensor([True, False, True, True, False])


def masked(x):
    with pyro.plate("rows", len(x)), poutine.mask(mask=MASK):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def masked_guide(x):
    with pyro.plate("rows", len(x)), poutine.mask(mask=MASK):
        pyro.sample("z", dist.Normal(pyro.param("half", torch.tensor(0.45)) * x, 0.8))


def test_masked_latents_count_where_the_guide_masks_them_too():
    result = still(masked, masked_guide, X)
    assert near(result.evidence(4_000), LOCAL_SCORES[MASK].sum())
    assert near(result.evidence(20_000, proposal="prior"), LOCAL_SCORES[MASK].sum())
    assert near(result.score(num_draws=4_000), LOCAL_SCORES * MASK)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", local_guide])
def test_masked_latents_under_a_guide_without_the_mask_have_no_evidence(guide):
    result = lvm.fit(masked, guide, X, num_steps=2, progress=False)
    with pytest.raises(ValueError, match="the model masks elements of 'z' and the guide does not mask the same"):
        result.evidence()
    if guide != "full_rank":
        with pytest.raises(ValueError, match="the model masks elements of 'z' and the guide does not mask the same"):
            result.score()
