"""Log-densities of expanded distributions are those that the distributions themselves compute."""

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_lvm import densities
from pyro_lvm.densities import log_prob

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
    yield "negative binomial", dist.NegativeBinomial(rates, probs=table(K, 1, 1) / 2).to_event(1)
    yield "negative binomial by logits", dist.NegativeBinomial(3, logits=torch.randn(K, 1, D).double()).to_event(1)
    yield "mvn", dist.MultivariateNormal(torch.randn(K, 1, D).double(), torch.eye(D).double())
    yield "masked", dist.Normal(torch.randn(K, 1, D).double(), rates).to_event(1).mask(torch.arange(N) > 1)


CASES = dict(distributions())


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_log_density_is_the_distributions_own(name, grad):
    fn = CASES[name]
    fn = fn if name == "masked" else fn.expand(torch.broadcast_shapes(fn.batch_shape, (N,)))
    counts = torch.poisson(table(N, D))
    values = {"poisson": counts, "beta": table(N, D) / 2, "negative binomial": counts}
    values["negative binomial by logits"] = counts.long()
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


@pytest.mark.parametrize("at_once", [1, 7])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("normal", "matrices"))])
def test_rows_in_blocks_are_rows_together(name, at_once, monkeypatch):
    fn = CASES[name]
    x = torch.randn(N, *fn.event_shape).double()
    with torch.no_grad():
        together = log_prob(fn, x)
        monkeypatch.setattr(densities, "_NUM_ENTRIES", at_once)
        torch.testing.assert_close(log_prob(fn, x), together, rtol=1e-12, atol=0)


def exact(name, a, b, x):
    """In forty digits."""
    a, b, x = map(mpmath.mpf, (a, b, x))
    if name == "gamma":
        return a * mpmath.log(b) + (a - 1) * mpmath.log(x) - b * x - mpmath.loggamma(a)
    if name == "negative binomial":
        chosen = mpmath.loggamma(a + x) - mpmath.loggamma(a) - mpmath.loggamma(x + 1)
        return chosen - x * mpmath.log1p(mpmath.exp(-b)) - a * mpmath.log1p(mpmath.exp(b))
    beta = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
    return (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log(1 - x) - beta


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("first", [0.3, 5.0, 14.9, 15.1, 1e3, 1e6, 1e9])
@pytest.mark.parametrize(
    "name, second", [("gamma", 0.01), ("gamma", 40.0), ("beta", 0.7), ("beta", 2e4), ("beta", 1e9)]
)
def test_concentrated_densities_keep_their_digits(name, first, second, dtype):
    """Rounding errors are of the size of the parameter's own, seen a few standard deviations away."""
    rng = np.random.default_rng(0)
    kind = dist.Gamma if name == "gamma" else dist.Beta
    rows = rng.gamma(first, 1 / second, 20) if name == "gamma" else rng.beta(first, second, 20)
    x = torch.tensor(rows, dtype=dtype).clamp(min=1e-30)
    x = x if name == "gamma" else x.clamp(max=1 - 1e-6)
    a, b = torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype)
    with mpmath.workdps(40):
        expected = [float(exact(name, a.item(), b.item(), v)) for v in x.tolist()]
    error = np.abs(log_prob(kind(a, b), x).double().numpy() - expected)
    spread = first if name == "gamma" else 1 / (1 / first + 1 / second)
    allowed = np.abs(expected) + 30 * max(spread, 1) ** 0.5
    assert (error < 4 * torch.finfo(dtype).eps * allowed).all(), (error / allowed / torch.finfo(dtype).eps).max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [1e-3, 0.3, 5.0, 14.9, 15.1, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("mean", [0.01, 1.0, 30.0, 1e3, 1e6])
def test_densities_of_large_counts_keep_their_digits(count, mean, dtype):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.poisson(rng.gamma(count, mean / count, 20)), dtype=dtype)
    r, logits = torch.tensor(count, dtype=dtype), torch.tensor(np.log(mean / count), dtype=dtype)
    with mpmath.workdps(60):
        expected = [float(exact("negative binomial", r.item(), logits.item(), v)) for v in x.tolist()]
    error = np.abs(log_prob(dist.NegativeBinomial(r, logits=logits), x).double().numpy() - expected)
    allowed = 1 + np.abs(expected) + 30 * max(min(mean, count), 1) ** 0.5
    assert (error < 4 * torch.finfo(dtype).eps * allowed).all(), (error / allowed / torch.finfo(dtype).eps).max()


SOME = torch.tensor([0.5, 1.0, 2.0])
EDGES = {
    "gamma": (dist.Gamma(SOME, 2.0), 0.0),
    "beta at 0": (dist.Beta(SOME, 2.0), 0.0),
    "beta at 1": (dist.Beta(torch.tensor(2.0), SOME), 1.0),
    "no count": (dist.NegativeBinomial(SOME, logits=torch.tensor(0.3)), 0.0),
    "none of no trials": (dist.NegativeBinomial(torch.zeros(3), logits=SOME), 0.0),
    "some of no trials": (dist.NegativeBinomial(torch.zeros(3), logits=SOME), 2.0),
    "probability of 0": (dist.NegativeBinomial(SOME, probs=torch.tensor(0.0)), 3.0),
    "probability of nearly 1": (dist.NegativeBinomial(SOME, probs=torch.tensor(1 - 1e-7)), 3.0),
    "gamma below": (dist.Gamma(SOME, 2.0, validate_args=False), -1.0),
    "count below": (dist.NegativeBinomial(SOME, logits=0.3, validate_args=False), -1.0),
}


@pytest.mark.parametrize("name", EDGES)
def test_values_on_the_edge_have_torchs_densities(name):
    fn, value = EDGES[name]
    expected = torch.full((3,), -torch.inf) if "below" in name else fn.log_prob(torch.full((3,), value))
    torch.testing.assert_close(log_prob(fn, torch.full((3,), value)), expected)


@pytest.mark.parametrize("fn", [dist.Gamma(2.0, SOME), dist.Beta(2.0, SOME), dist.NegativeBinomial(2.0, SOME / 3)])
def test_nothing_is_known_of_nan(fn):
    fn = type(fn)(**{name: getattr(fn, name) for name in fn.arg_constraints if name != "probs"}, validate_args=False)
    assert log_prob(fn, torch.full((3,), torch.nan)).isnan().all()


EXTREMES = {
    "many logits": (dist.NegativeBinomial, (2.0, 95.0), 3.0),
    "few logits": (dist.NegativeBinomial, (2.0, -95.0), 3.0),
    "nothing of many logits": (dist.NegativeBinomial, (2.0, 95.0), 0.0),
    "nothing of few logits": (dist.NegativeBinomial, (2.0, -95.0), 0.0),
    "no trials": (dist.NegativeBinomial, (0.0, 0.3), 0.0),
    "tiny gamma": (dist.Gamma, (2.0, 0.01), 1.2e-38),
    "tinier gamma": (dist.Gamma, (2.0, 1e-9), 1e-30),
    "tiny beta": (dist.Beta, (2e3, 0.5), 1.2e-38),
    "tiny concentration": (dist.Gamma, (1e-20, 1e20), 1.0),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_in_single_precision_are_torchs_in_double_precision(name):
    """Densities, and their slopes by the second argument, and by the first where there is one."""
    kind, arguments, value = EXTREMES[name]
    found = []
    for density, dtype in ((log_prob, torch.float32), (lambda fn, x: fn.log_prob(x), torch.float64)):
        first, second = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in arguments)
        fn = kind(first, logits=second) if kind is dist.NegativeBinomial else kind(first, second)
        density = density(fn, torch.tensor(value, dtype=dtype))
        slopes = torch.autograd.grad(density, (first, second) if arguments[0] else (second,))
        found.append(torch.stack([density.detach(), *slopes]).double())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rate", [0.01, 1.0, 30.0, 1e3, 1e5, 1e7])
def test_poisson_densities_of_large_counts_keep_their_digits(rate, dtype):
    x = torch.tensor(np.random.default_rng(0).poisson(rate, 50), dtype=dtype)
    r = torch.tensor(rate, dtype=dtype)
    with mpmath.workdps(40):
        m = mpmath.mpf(r.item())
        expected = [float(v * mpmath.log(m) - m - mpmath.loggamma(v + 1)) for v in map(mpmath.mpf, x.tolist())]
    error = np.abs(log_prob(dist.Poisson(r), x).double().numpy() - expected)
    terms = rate * max(1, np.log(rate)) if dtype is torch.float64 else 30 * max(rate, 1) ** 0.5
    allowed = 1 + np.abs(expected) + terms
    assert (error < 4 * torch.finfo(dtype).eps * allowed).all(), (error / allowed / torch.finfo(dtype).eps).max()


def test_poisson_densities_have_the_distributions_own_slopes_in_single_precision():
    x, gradients = torch.tensor([0.0, 2.0, 40.0, 30.0, 500.0]).float(), []
    for density in (log_prob, lambda fn, x: fn.log_prob(x)):
        rate = torch.tensor([0.5, 2.0, 10.0, 20.0, 300.0]).float().requires_grad_()
        gradients.append(torch.autograd.grad(density(dist.Poisson(rate), x).sum(), rate)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("argument", ["probs", "logits"])
def test_negative_binomials_have_the_distributions_own_slopes(argument):
    gradients, x = [], torch.tensor([0.0, 2.0, 40.0, 3.0, 500.0]).double()
    for density in (log_prob, lambda fn, x: fn.log_prob(x)):
        r = torch.tensor([0.5, 2.0, 10.0, 20.0, 300.0]).double().requires_grad_()
        second = torch.tensor([0.2, 0.3, 0.8, 0.1, 0.6]).double().requires_grad_()
        density(dist.NegativeBinomial(r, **{argument: second}), x).sum().backward()
        gradients.append([r.grad, second.grad])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_concentrated_densities_have_the_distributions_own_slopes(name):
    kind, gradients = dist.Gamma if name == "gamma" else dist.Beta, []
    for density in (log_prob, lambda fn, x: fn.log_prob(x)):
        values = [
            torch.tensor(v).double().requires_grad_() for v in ([0.5, 10.0, 20.0, 300.0], [2.0, 30.0, 5.0, 200.0])
        ]
        x = torch.tensor([0.3, 0.2, 0.9, 0.6]).double().requires_grad_()
        density(kind(*values), x).sum().backward()
        gradients.append([v.grad for v in (*values, x)])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
