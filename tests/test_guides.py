"""The full-rank guide by name equals Pyro's own, at its draws and elsewhere."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide

import pyro_lvm as lvm
from pyro_lvm import elbo
from pyro_lvm.guides import AutoMultivariateNormal

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(x):
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(3), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


@pytest.fixture
def guide():
    pyro.set_rng_seed(0)
    guide = AutoMultivariateNormal(model)
    guide(X)
    guide.double()
    with torch.no_grad():
        for value in guide.parameters():
            value.add_(0.3 * torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view(value.shape))
    yield guide
    pyro.clear_param_store()


def numbers(guide, log_q):
    """A log-density, or several, and its derivatives by the guide's parameters."""
    grads = torch.autograd.grad(log_q.sum(), list(guide.parameters()), allow_unused=True)
    return [log_q, *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, guide.parameters(), strict=True))]


def at_its_draw(guide):
    q = guide.get_posterior()
    return q.log_prob(q.rsample())


def at_a_detached_draw(guide):
    q = guide.get_posterior()
    return q.log_prob(q.rsample().detach())


def at_a_draw_without_gradient(guide):
    q = guide.get_posterior()
    return q.log_prob(q.sample())


def at_the_draw_before_the_last(guide):
    q = guide.get_posterior()
    first = q.rsample()
    q.rsample()
    return q.log_prob(first)


def at_a_draw_changed_in_place(guide):
    q = guide.get_posterior()
    draw = q.rsample()
    with torch.no_grad():
        draw += 1.0
    return q.log_prob(draw)


def at_many_draws(guide):
    q = guide.get_posterior()
    return q.log_prob(q.rsample((5, 2)))


def expanded(guide):
    q = guide.get_posterior().expand([7])
    return q.log_prob(q.rsample())


def in_a_trace(guide):
    return poutine.trace(guide).get_trace(X).log_prob_sum()


WAYS = [
    at_its_draw,
    at_a_detached_draw,
    at_a_draw_without_gradient,
    at_the_draw_before_the_last,
    at_a_draw_changed_in_place,
    at_many_draws,
    expanded,
    in_a_trace,
]


@pytest.mark.parametrize("way", WAYS)
def test_density_and_gradient_are_those_of_a_multivariate_normal(guide, way):
    pyro.set_rng_seed(1)
    found = numbers(guide, way(guide))
    pyro.set_rng_seed(1)
    plain = autoguide.AutoMultivariateNormal.get_posterior  # the same parameters, Pyro's distribution
    guide.get_posterior = lambda *args: plain(guide)
    for ours, theirs in zip(found, numbers(guide, way(guide)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "estimator",
    [
        Trace_ELBO(),
        elbo.Trace_ELBO(),
        elbo.TraceSTL_ELBO(),
        elbo.TraceScore_ELBO(),
        elbo.TraceIWAE_ELBO(num_particles=3),
    ],
    ids=["Pyro's", "ours", "along draws", "score", "IWAE"],
)
def test_a_fit_by_name_is_one_with_pyros_guide(estimator):
    ours, theirs = (
        lvm.fit(model, guide, X.float(), elbo=estimator, num_steps=30, seed=3, compile=False, progress=False)
        for guide in ("full_rank", autoguide.AutoMultivariateNormal(model))
    )
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-4, atol=1e-4)
    assert ours.params.keys() == theirs.params.keys()


def test_it_has_moments(guide):
    assert guide.get_posterior().covariance_matrix.shape == (4, 4)
    assert guide.median(X)["loc"].shape == (3,)
