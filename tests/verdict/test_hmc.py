"""Chains of Hamiltonian Monte Carlo, on densities whose moments are known."""

import math

import pytest
import torch

from pyro_lvm.verdict.hmc import run_chains
from pyro_lvm.verdict.marginals import of_chains


def with_gradient(log_density):
    def density(points):
        return log_density(points), torch.func.vmap(torch.func.grad(log_density))(points)

    return density


def spread():
    return torch.randn(400, 1, generator=torch.Generator().manual_seed(1)).double()


def moments(log_density, start, num_warmup=100, num_kept=60):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        chains = run_chains(with_gradient(log_density), start, num_warmup, num_kept)
    assert chains.draws.shape == (num_kept, *start.shape)
    return of_chains(chains.draws.numpy()), chains


def check(found, means, sds):
    """Within four standard errors; D is small."""
    assert (abs(found.means - means) < 4 * found.mean_errors).all()
    assert (abs(found.sds - sds) < 4 * found.sd_errors).all()


def test_a_correlated_normal_on_other_scales():
    root = torch.tensor([[10.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.001]], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.tensor([3.0, -1.0, 0.0]).double(), scale_tril=root)
    start = torch.randn(400, 3, generator=torch.Generator().manual_seed(1)).double() * torch.tensor([3.0, 0.05, 0.002])
    found, chains = moments(normal.log_prob, start)
    check(found, normal.mean.numpy(), normal.stddev.numpy())
    assert 0.6 < chains.acceptance < 0.95


def test_a_skewed_density():
    """The logarithm of a gamma variable, whose mean and variance are polygamma functions of its shape."""
    shape = torch.tensor(1.5, dtype=torch.float64)
    found, _ = moments(lambda u: (shape * u - u.exp()).sum(-1), spread())
    check(found, torch.digamma(shape).item(), torch.polygamma(1, shape).sqrt().item())


def test_a_density_with_an_end():
    """Trajectories that leave the support are rejected."""

    def half_normal(u):
        return torch.where(u > 0, -0.5 * u.square(), -torch.inf).sum(-1)

    found, _ = moments(half_normal, spread().abs(), 200, 100)
    check(found, math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi))


def test_chains_that_overflow_stay():
    def steep(u):
        return -(u.square() * 1e30).exp().sum(-1)

    start = torch.full((20, 1), 1e-16)
    _, chains = moments(steep, start, 5, 5)
    assert torch.isfinite(chains.draws).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_stay(dtype):
    _, chains = moments(lambda u: -0.5 * u.square().sum(-1), torch.zeros(10, 2, dtype=dtype), 3, 2)
    assert chains.draws.dtype == dtype
