"""What is said of how a fit ended."""

import importlib
from importlib import metadata

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.constraints import softplus_lower_cholesky
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.diagnostics.optimisation import examine, split_rhat

Y = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 3.0


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def grades(result):
    return {finding.about: finding.grade for finding in examine(result).findings()}


def arviz_rhat(path):
    """Of the two halves as chains."""
    x = path.reshape(2, -1)
    if metadata.version("arviz").startswith("0."):
        return importlib.import_module("arviz").rhat(x, method="identity")
    stats = importlib.import_module("arviz_stats.base").array_stats
    return float(stats.rhat(x, chain_axis=0, draw_axis=1, method="identity"))


def test_split_rhat_is_that_of_arviz():
    x = np.random.default_rng(0).normal(size=(50, 3)) + np.linspace(0, 1, 50)[:, None] * np.array([0.0, 1.0, 5.0])
    expected = [float(arviz_rhat(column)) for column in x.T]
    np.testing.assert_allclose(split_rhat(torch.tensor(x)).numpy(), expected, rtol=1e-6)


def test_split_rhat_of_coordinates_that_stand_still():
    still, jump = torch.ones(20), torch.cat([torch.zeros(10), torch.ones(10)])
    assert split_rhat(torch.stack([still, jump], 1)).tolist() == [1.0, torch.inf]


def test_a_fit_that_has_come_to_rest(fit):
    def falling(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1_000)

    result = fit(model, "mean_field", Y, num_steps=1_000, optim=0.05, scheduler=falling)
    assert grades(result) == {"optimisation": "good", "stationarity": "good"}


def test_a_fit_that_was_still_falling(fit):
    result = fit(model, "mean_field", Y, num_steps=200, optim=0.002)
    found = examine(result)
    assert grades(result) == {"optimisation": "doubtful", "stationarity": "doubtful"}
    assert found.drift.value > 3 * found.drift.standard_error
    assert found.rhat.max() > 1.1


def test_a_learning_rate_that_is_too_large(fit):
    """Parameters that jump around the optimum are better on average than one by one."""
    result = fit(model, "mean_field", Y, num_steps=1_000, optim=0.5)
    found = examine(result)
    assert grades(result)["learning rate"] == "doubtful"
    assert found.jitter.value > 0.1


@pytest.mark.slow
def test_the_gain_of_averaging_is_that_of_the_elbo(fit):
    """With a conjugate model, the ELBO of a normal guide has a closed form."""
    result = fit(model, "mean_field", Y, num_steps=1_000, optim=0.3)

    def elbo(values):
        loc = values["AutoNormal.locs.mean"]
        scale = torch.nn.functional.softplus(values["AutoNormal.scales.mean"])
        precision = 0.01 + len(Y)
        return (-0.5 * precision * ((loc - Y.sum() / precision) ** 2 + scale**2) + scale.log()).item()

    path = result.path
    tail = path.tail
    averaged = path.unflattened(tail[len(tail) // 2 :].mean(0))
    last = {name: value for name, value in result._values.items() if name in averaged}
    jitter = examine(result).jitter
    assert abs(jitter.value - (elbo(averaged) - elbo(last))) < 4 * jitter.standard_error + 1e-3


def test_too_few_steps_tell_nothing(fit):
    result = fit(model, "mean_field", Y, num_steps=10)
    assert grades(result)["optimisation"] == "unknown"
    assert examine(result).drift is None


@pytest.mark.parametrize(
    ("constraint", "value", "count"),
    [
        (constraints.positive, torch.tensor([1e-12, 1.0]), 1),
        (constraints.unit_interval, torch.tensor([1e-12, 1 - 1e-10]), 2),
        (constraints.simplex, torch.tensor([1e-12, 0.5, 0.5]), 1),
        (constraints.interval(-2.0, 3.0), torch.tensor([0.0, 2.9]), 0),
        (constraints.real, torch.tensor([0.0, 1e-12]), 0),
        (constraints.positive, torch.tensor(1e-12), 1),
        (constraints.positive, torch.tensor([1e-10, 3e-10]), 0),  # in units that are large
        (constraints.greater_than(2.0), torch.tensor([3.0, 2.0 + 1e-12]), 1),
        (constraints.less_than(0.0), torch.tensor(-1e-12), 1),
        (constraints.less_than(0.0), torch.tensor([-1e-12, -2.0]), 1),
        (constraints.lower_cholesky, torch.tensor([[1.0, 0.0], [0.5, 1e-12]]), 1),
        (softplus_lower_cholesky, torch.tensor([[1.0, 0.0], [0.5, 1e-12]]), 1),
        (constraints.lower_cholesky, torch.tensor([[1.0, 0.0], [0.0, 0.1]]), 0),
    ],
)
def test_parameters_at_their_bounds_are_counted(fit, constraint, value, count):
    def bounded():
        held = pyro.param("held", value.double(), constraint=constraint)
        pyro.sample("x", dist.Normal(held.sum(), 1.0), obs=torch.tensor(0.0).double())

    found = examine(fit(bounded, None, num_steps=1, optim=1e-12))
    assert found.at_bound == ({"held": count} if count else {})
    assert sum(finding.about == "bounds" for finding in found.findings()) == (count > 0)


def test_em_tells_of_convergence_and_of_its_starts():
    x = torch.cat([torch.randn(30, 1, generator=torch.Generator().manual_seed(s)) + 8 * s for s in range(3)])
    mixture = lvm.models.GaussianMixture(3, 1)
    result = lvm.fit_em(mixture, x, num_restarts=4)
    found = examine(result)
    assert grades(result)["optimisation"] == "good"
    below = result.restarts.max() - result.restarts
    assert f"{int((below <= 0.1).sum())} of 4 starts" in found.findings()[1].text
    early = lvm.fit_em(lvm.models.GaussianMixture(3, 1), x, max_iter=1, num_restarts=1)
    assert grades(early)["optimisation"] == "doubtful"


@pytest.mark.parametrize(
    ("reached", "grade", "text"),
    [
        ([-7.0, -5.0, -8.0], "doubtful", "1 of 3 starts came within 0.1 nats of the best, the worst 3 below"),
        ([-5.05, -5.0, -8.0], "good", "2 of 3 starts came within 0.1 nats of the best, the worst 3 below"),
    ],
)
def test_svi_tells_of_its_starts(fit, reached, grade, text):
    result = fit(model, "mean_field", Y)
    assert "restarts" not in grades(result)
    result.restarts = torch.tensor(reached)
    (found,) = (finding for finding in examine(result).findings() if finding.about == "restarts")
    assert (found.grade, found.text) == (grade, text)
