"""Flat priors: where there is nothing to draw from, fits start in the middle of the unconstrained space."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm

N = 40
Y = torch.randn(N, generator=torch.Generator().manual_seed(0)) + 3.0
FLAT = dist.ImproperUniform(constraints.real, (), ())


def known_scale(y):
    loc = pyro.sample("loc", FLAT)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def unknown_scale(y):
    locs = pyro.sample("locs", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(locs[(torch.arange(len(y)) % 2)], scale), obs=y)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank", pytest.param("flow", marks=pytest.mark.slow)])
def test_the_mean_of_normal_data_has_its_normal_posterior(guide):
    """p(loc | y) = N(mean of y, 1 / N), and the integral of the likelihood over loc is known."""
    result = lvm.fit(known_scale, guide, Y, num_steps=500, optim=0.02, elbo=lvm.elbo.TraceSTL_ELBO(), progress=False)
    log_integral = torch.distributions.Normal(Y.mean(), 1.0).log_prob(Y).sum() + 0.5 * math.log(2 * math.pi / N)
    value, error = result.evidence(1_000)
    assert abs(value - log_integral) < 4 * error + 1e-6
    draws = result.sample(4_000)["loc"]
    assert abs(draws.mean() - Y.mean()) < (4 / 4_000**0.5 + 0.1) / N**0.5
    assert abs(draws.std() * N**0.5 - 1) < 4 / 8_000**0.5 + 0.1


def test_the_mode_is_that_of_least_squares():
    """By MAP in constrained space, as by Pyro's AutoDelta."""
    result = lvm.fit(unknown_scale, "map", Y, num_steps=2_000, optim=0.02, progress=False)
    means = Y.reshape(-1, 2).mean(0)
    found = {name: value[0] for name, value in result.sample(1).items()}
    torch.testing.assert_close(found["locs"], means, rtol=0, atol=1e-3)
    residual = (Y.reshape(-1, 2) - means).square().mean().sqrt()
    torch.testing.assert_close(found["scale"], residual, rtol=1e-3, atol=0)


def test_nothing_is_drawn_from_a_flat_prior():
    with pytest.raises(ValueError, match="prior of 'loc' is improper"):
        lvm.prior_predictive(known_scale, Y)
    result = lvm.fit(known_scale, "mean_field", Y, num_steps=10, progress=False)
    with pytest.raises(ValueError, match="prior of 'loc' is improper"):
        result.evidence(100, proposal="prior")
