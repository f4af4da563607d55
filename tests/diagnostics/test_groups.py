"""The groups beside the posterior: the prior, predictions for new inputs, unconstrained draws, weights."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.testing import assert_close

import pyro_lvm as lvm

S = 4_000


def regression(X, y=None):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.5).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
    share = pyro.sample("share", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    pyro.deterministic("double", 2 * noise)
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ weights + share[0], noise), obs=y)


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(12, 2, generator=generator)
    return X, X @ torch.tensor([1.0, -1.0]) + torch.randn(12, generator=generator)


@pytest.fixture(scope="module")
def result(rows):
    return lvm.fit(regression, "mean_field", *rows, num_steps=300, optim=0.05, progress=False)


def values(data, group, name):
    return torch.tensor(data[group][name].values[0])


def test_prior_draws_have_the_moments_of_the_prior(result, rows):
    data = lvm.to_arviz(result, S)
    assert set(data["prior"].data_vars) == {"weights", "noise", "share", "double"}
    weights, y = values(data, "prior", "weights"), values(data, "prior_predictive", "y")
    assert (weights.mean(0).abs() < 4 * 1.5 / S**0.5).all()
    assert_close(weights.std(0), torch.full((2,), 1.5), rtol=4 / (2 * S) ** 0.5, atol=0)
    assert_close(values(data, "prior", "double"), 2 * values(data, "prior", "noise"))
    X = rows[0]
    variance = 2.25 * X.square().sum(-1) + math.exp(0.5) + 5 / 36 / 7  # of X w, of the noise, of the share
    spread = y.var(0) / variance - 1
    assert (spread.abs() < 6 * (2 / S) ** 0.5).all()


def test_a_flat_prior_has_no_draws_and_says_so():
    def flat(y):
        loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    result = lvm.fit(flat, "mean_field", torch.zeros(5), num_steps=10, progress=False)
    data = lvm.to_arviz(result, 20)
    assert "prior" not in data
    assert (
        data["sample_stats"].attrs["prior"]
        == "left out: " + "the prior of 'loc' is improper, so that nothing can be drawn from it"
    )


def test_predictions_are_those_of_predict_under_the_names_of_the_plates(result):
    new = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    names = {"coords": {"rows": list("abcdefghijkl"), "feature": ["u", "v"]}, "dims": {"X": ["rows", "feature"]}}
    data = lvm.to_arviz(result, 50, predictions=(new,), **names)
    assert data["predictions"]["y"].dims == ("chain", "draw", "rows")
    assert_close(values(data, "predictions", "y"), result.predict(new, num_draws=50)["y"])
    assert data["predictions"]["rows"].values.tolist() == list(range(7))
    assert data["posterior_predictive"]["rows"].values.tolist() == list("abcdefghijkl")
    assert data["predictions_constant_data"]["X"].dims == ("rows", "feature")
    assert data["predictions_constant_data"]["feature"].values.tolist() == ["u", "v"]
    assert_close(torch.tensor(data["predictions_constant_data"]["X"].values), new)
    assert "predictions" not in lvm.to_arviz(result, 5)


def test_unconstrained_draws_are_mapped_back(result):
    data = lvm.to_arviz(result, 50, unconstrained=True)
    found = data["unconstrained_posterior"]
    assert set(found.data_vars) == {"weights", "noise", "share"}
    assert_close(values(data, "unconstrained_posterior", "noise").exp(), values(data, "posterior", "noise"))
    assert found["share"].dims == ("chain", "draw", "share_unconstrained_dim_0")
    back = torch.distributions.biject_to(constraints.simplex)(values(data, "unconstrained_posterior", "share"))
    assert_close(back, values(data, "posterior", "share"))
    assert "unconstrained_posterior" not in lvm.to_arviz(result, 5)


def test_weights_are_joint_densities_over_those_of_the_guide(result):
    stats = lvm.to_arviz(result, 50)["sample_stats"]
    assert_close(torch.tensor((stats["lp"] - stats["log_q"]).values), torch.tensor(stats["log_weight"].values))


def test_weights_sum_over_enumerated_sites():
    """A shared mean, and a component for each row: the mean weight is the evidence, by a fine grid."""
    y = torch.tensor([-2.0, 1.5, 2.5])

    def mixture(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mean + 2 * z, 1.0), obs=y)

    result = lvm.fit(mixture, "mean_field", y, num_steps=500, optim=0.05, progress=False)
    weights = values(lvm.to_arviz(result, S), "sample_stats", "log_weight")
    grid = torch.linspace(-8, 8, 4_001).double()
    parts = torch.stack([dist.Normal(grid[:, None] + 2 * k, 1.0).log_prob(y.double()) for k in (0, 1)])
    prior = torch.tensor([0.7, 0.3]).double().log()[:, None, None]
    joint = (parts + prior).logsumexp(0).sum(-1) + dist.Normal(0.0, 1.0).log_prob(grid)
    evidence = torch.trapezoid(joint.exp(), grid)
    ratio = weights.exp() / evidence
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / S**0.5
