"""Log-densities of expanded distributions are those that the distributions themselves compute."""

import pyro.distributions as dist
import pytest
import torch

from pyro_lvm.elbo.densities import log_prob

N, K, D = 5, 3, 2


def table(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype) + 0.5


def distributions():
    """By what is expanded: all parameters, some of them, or none; with and without events."""
    rates = table(K, 1, D)
    yield "normal", dist.Normal(torch.randn(K, 1, D).double(), rates).to_event(1)
    yield "normal of one scale", dist.Normal(torch.randn(K, 1, D).double(), table(1)).to_event(1)
    yield "normal of a number", dist.Normal(0.0, 2.0).expand([D]).to_event(1)
    yield "normal without events", dist.Normal(torch.randn(K, 1).double(), table(K, 1))
    yield "normal about rows", dist.Normal(torch.randn(N, D).double(), table(K, 1, 1)).to_event(1)
    yield "normal of two dtypes", dist.Normal(torch.randn(K, 1, D), table(K, 1, D).float()).to_event(1)
    yield "matrices", dist.Normal(torch.randn(K, 1, 4, D).double(), table(D)).to_event(2)
    yield "laplace", dist.Laplace(torch.randn(K, 1, D).double(), rates).to_event(1)
    yield "poisson", dist.Poisson(rates).to_event(1)
    yield "exponential", dist.Exponential(rates).to_event(1)
    yield "gamma", dist.Gamma(rates, table(K, 1, 1)).to_event(1)
    yield "beta", dist.Beta(rates, rates).to_event(1)
    yield "mvn", dist.MultivariateNormal(torch.randn(K, 1, D).double(), torch.eye(D).double())
    yield "masked", dist.Normal(torch.randn(K, 1, D).double(), rates).to_event(1).mask(torch.arange(N) > 1)


CASES = dict(distributions())


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_log_density_is_the_distributions_own(name, grad):
    fn = CASES[name]
    fn = fn if name == "masked" else fn.expand(torch.broadcast_shapes(fn.batch_shape, (N,)))
    values = {"poisson": torch.poisson(table(N, D)), "beta": table(N, D) / 2}
    shape = (N, 4, D) if name == "matrices" else (N, D) if fn.event_shape else (N,)
    value = values.get(name, table(*shape))
    before = value.clone()
    with torch.set_grad_enabled(grad):
        found = log_prob(fn, value)
    expected = fn.log_prob(value)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    assert torch.equal(value, before)


def test_slopes_are_those_of_the_distributions_own():
    loc, scale, x = (table(*shape).requires_grad_() for shape in ((K, 1, D), (K, 1, 1), (N, D)))
    fn = dist.Normal(loc, scale).to_event(1).expand([K, N])
    weight = table(K, N)
    ours, theirs = (
        torch.autograd.grad((density * weight).sum(), (loc, scale, x)) for density in (log_prob(fn, x), fn.log_prob(x))
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_values_outside_the_support_are_refused():
    fn = dist.Poisson(table(K, 1, D), validate_args=True).to_event(1).expand([K, N])
    with pytest.raises(ValueError, match="support"):
        log_prob(fn, -table(N, D))
