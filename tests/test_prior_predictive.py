"""Draws of a model before any data is seen."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyro_lvm as lvm


def regression(X, y=None):
    slope = pyro.sample("slope", dist.Normal(2.0, 0.5))
    with pyro.plate("rows", len(X)):
        return pyro.sample("y", dist.StudentT(5.0, slope * X, 0.1), obs=y)


def test_the_draws_are_those_of_the_sites_and_not_of_the_plates():
    draws = lvm.prior_predictive(regression, torch.ones(3), torch.zeros(3), num_draws=2_000)
    assert {name: list(values.shape) for name, values in draws.items()} == {"slope": [2_000], "y": [2_000, 3]}
    assert stats.kstest(draws["slope"], stats.norm(2.0, 0.5).cdf).pvalue > 0.01
    noise = (draws["y"][:, 0] - draws["slope"]) / 0.1
    assert stats.kstest(noise, stats.t(5).cdf).pvalue > 0.01


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_operations_without_a_batching_rule_are_drawn_silently(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always" if action == "ignore" else action)
        draws = lvm.prior_predictive(regression, torch.ones(3), num_draws=50)
    assert not caught
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(draws, lvm.prior_predictive(regression, torch.ones(3), num_draws=50))
