"""Maxima on a boundary: rates of zero, variances that vanish, counts that are Poisson, bounds that users set."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import stats
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

import pyro_lvm as lvm

from .checks import assert_at_the_top, assert_rises, fit, pyros_log_density, rules

FAMILIES = {
    "gamma": (dist.Gamma, [1.2, 20.0], [0.5, 1.0], [3.0, 4.0], [0.9, 0.3]),
    "beta": (dist.Beta, [1.2, 20.0], [4.0, 5.0], [2.0, 5.0], [3.0, 2.0]),
    "negative binomial": (None, [1.5, 30.0], [0.3, 0.5], [2.0, 4.0], [0.5, 0.6]),
}


def mixture_of_two(name, largest, dtype=torch.float64):
    """A mixture whose first arguments have a bound, and its data."""
    kind, first, second, start, other = FAMILIES[name]
    values = [torch.tensor(v, dtype=dtype) for v in (first, second, start, other)]
    unit = name == "negative binomial"

    def density(a, b):
        return dist.NegativeBinomial(a, probs=b) if unit else kind(a, b)

    def model(x):
        w = pyro.param("w", torch.tensor([0.5, 0.5], dtype=dtype), constraint=constraints.simplex)
        a = pyro.param("a", values[2], constraint=constraints.interval(0.1, largest))
        b = pyro.param("b", values[3], constraint=constraints.unit_interval if unit else constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", density(a[z], b[z]), obs=x)

    return model, density(*values[:2]).sample((300,)).flatten()


@pytest.mark.parametrize("largest", [6.0, *(pytest.param(x, marks=pytest.mark.slow) for x in (10.0, 13.0)), 18.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_partners_are_given_up_together(name, largest):
    """The bound is met in the first iteration or later; the other argument must not stay behind, nor run ahead."""
    model, x = mixture_of_two(name, largest)
    found, searched = fit(model, x, tol=1e-9), fit(model, x, tol=1e-9, m_step="numeric")
    assert_rises(found)
    assert found.objective[-1].item() == pytest.approx(searched.objective[-1].item(), rel=1e-6)
    assert "maximum" in rules(found)["a"]
    assert rules(found)["b"] == "L-BFGS on Q, for the other parameter of its family is not free"


@pytest.mark.parametrize("name", FAMILIES)
def test_online_em_moves_partners_together(name):
    model, x = mixture_of_two(name, 10.0)
    found = lvm.fit_em(model, x, online=0.7, batch_size=50, max_iter=10, progress=False)
    a, b = found.params["a"], found.params["b"]
    assert (a < 10).all()
    means = {"gamma": a / b, "beta": a / (a + b), "negative binomial": a * b / (1 - b)}[name]
    _, first, second, *_ = FAMILIES[name]
    first, second = torch.tensor(first).double(), torch.tensor(second).double()
    odds = second / (1 - second)
    true = {"gamma": first / second, "beta": first / (first + second), "negative binomial": first * odds}[name]
    assert means[0] < means[1]
    assert (means[0] / true[0] - 1).abs() < 0.5  # the one that the bound does not hold


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_counts_that_vary_less_than_a_poissons_are_poisson(dtype):
    x = torch.binomial(torch.full((1000,), 20.0, dtype=dtype), torch.full((1000,), 0.5, dtype=dtype))

    def model(x):
        r = pyro.param("r", torch.tensor(2.0, dtype=dtype), constraint=constraints.positive)
        p = pyro.param("p", torch.tensor(0.5, dtype=dtype), constraint=constraints.unit_interval)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.NegativeBinomial(r, probs=p), obs=x)

    found = lvm.fit_em(model, x, progress=False)
    assert found.converged
    assert found.params["r"].item() == pytest.approx(1e6 * x.mean().item())
    mean = found.params["r"] * found.params["p"] / (1 - found.params["p"])
    assert mean.item() == pytest.approx(x.mean().item(), rel=1e-4)
    poisson = stats.poisson(x.double().mean().item()).logpmf(x.numpy()).sum()
    assert found.objective[-1].item() == pytest.approx(poisson, abs=len(x) * 1e-5)  # a total count is no more


@pytest.mark.parametrize("seed", range(3))
def test_negative_binomials_of_poisson_counts_in_single_precision(seed):
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor([2.0, 20.0], dtype=torch.float32)[torch.randint(2, (800,), generator=generator)]
    model, _ = mixture_of_two("negative binomial", 1e5, torch.float32)
    found = lvm.fit_em(model, torch.poisson(rates, generator=generator), progress=False)
    assert found.converged
    means = found.params["a"] * found.params["b"] / (1 - found.params["b"])
    torch.testing.assert_close(means.sort().values, torch.tensor([2.0, 20.0]).float(), rtol=0.1, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["gamma", "exponential", *(pytest.param(name, marks=pytest.mark.slow) for name in ("narrow gamma", "beta"))]
)
def test_ties_make_no_spikes(name, dtype):
    """Rounded values, of which a component could hold one alone, with a likelihood that has no bound."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(300, generator=generator, dtype=dtype)
    tied = {
        "gamma": (10 * uniform).ceil(),
        "narrow gamma": 40 + (10 * uniform).ceil(),
        "beta": (8 * uniform).ceil() / 10,
    }
    x = tied.get(name, -uniform.log())
    if name == "exponential":
        x[:60] = 0.0
    start = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=dtype)
    other = start.flip(-1)
    if name == "narrow gamma":
        start, other = 1e5 * start, 1e5 * start / torch.tensor([42.0, 44.0, 46.0, 48.0], dtype=dtype)

    def model(x):
        w = pyro.param("w", torch.full((4,), 0.25, dtype=dtype), constraint=constraints.simplex)
        a = pyro.param("a", start, constraint=constraints.positive)
        b = pyro.param("b", other, constraint=constraints.positive) if name != "exponential" else None
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            kinds = {"gamma": dist.Gamma, "beta": dist.Beta, "exponential": lambda a, _: dist.Exponential(a)}
            pyro.sample("x", kinds[name.split()[-1]](a[z], b if b is None else b[z]), obs=x)

    found = lvm.fit_em(model, x, max_iter=2000, progress=False)
    a, b = found.params["a"].double(), found.params.get("b", torch.ones(())).double()
    size, y = a * b / (a + b) if name == "beta" else a, x.double()
    spread = ((y / (1 - y)).log() if name == "beta" else y.log()).var(correction=0)
    largest = max(1, 1 / spread) * 1e6
    largest = 1e9 / y[y > 0].log().mean().exp() if name == "exponential" else largest
    largest = min(largest, 1e8) if dtype is torch.float32 and name != "exponential" else largest
    assert size.max().item() == pytest.approx(float(largest), rel=1e-4)
    assert "held at its limit" in found.summary()
    exact = {name: value.double() for name, value in found.params.items()}
    expected, _ = pyros_log_density(model, exact, x.double())
    ours = 1e-9 if dtype is torch.float64 else 1e-4
    theirs = len(x) * torch.finfo(torch.float64).eps * size.max().item()  # terms as large as concentrations
    assert found.objective[-1].item() == pytest.approx(expected.item(), rel=ours, abs=max(ours, theirs))
    assert "L-BFGS" not in found.summary()
    assert found.converged


SCALES = {
    "gamma": (dist.Gamma, [(5.0, 500.0), (2.0, 0.1)], [(1.0, 1.0), (1.0, 0.05)]),
    "beta": (dist.Beta, [(5.0, 500.0), (4.0, 2.0)], [(1.0, 10.0), (2.0, 1.0)]),
    "exponential": (dist.Exponential, [(1000.0,), (0.01,)], [(100.0,), (0.1,)]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SCALES)
def test_components_of_other_scales_are_found(name, dtype):
    """What is small beside all the rows is no spike."""
    kind, true, start = SCALES[name]
    x = torch.cat([kind(*map(torch.tensor, values)).sample((300,)) for values in true]).to(dtype)

    def model(x):
        w = pyro.param("w", torch.full((2,), 0.5, dtype=dtype), constraint=constraints.simplex)
        arguments = [
            pyro.param(f"a{i}", torch.tensor(values, dtype=dtype), constraint=constraints.positive)
            for i, values in enumerate(zip(*start, strict=True))
        ]
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", kind(*(a[z] for a in arguments)), obs=x)

    found, searched = (lvm.fit_em(model, x, m_step=how, progress=False) for how in ("auto", "numeric"))
    assert found.converged
    assert found.objective[-1].item() >= searched.objective[-1].item() - 1e-3 * len(x)
    assert "held" not in found.summary()
    first, *rest = (found.params[f"a{i}"].double() for i in range(len(start[0])))
    means = {"gamma": lambda a, b: a / b, "beta": lambda a, b: a / (a + b), "exponential": lambda a: 1 / a}[name]
    expected = means(*torch.tensor(true).double().T)
    torch.testing.assert_close(means(first, *rest), expected, rtol=0.25, atol=0.0)


def test_beta_under_its_limit_is_at_the_top():
    """One value alone: the best of all distributions with the largest sum has its mean next to it."""
    x = torch.full((50,), 0.3)

    def model(x):
        a = pyro.param("a", torch.tensor(20.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(5.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Beta(a, b), obs=x)

    found = fit(model, x)
    a, b = found.params["a"].item(), found.params["b"].item()
    assert a * b / (a + b) == pytest.approx(1e6)
    grid = np.linspace(0.299, 0.301, 20_001)  # of the mean
    best = stats.beta(1e6 / (1 - grid), 1e6 / grid).logpdf(0.3).max()
    assert stats.beta(a, b).logpdf(0.3) == pytest.approx(best, abs=1e-8)


def test_negative_binomial_that_starts_beyond_its_limit_does_not_fall():
    x = torch.poisson(torch.full((2000,), 20.0)).float()

    def model(x):
        r = pyro.param("r", torch.tensor(2000.0).float(), constraint=constraints.positive)
        p = pyro.param("p", torch.tensor(20 / 2020).float(), constraint=constraints.unit_interval)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.NegativeBinomial(r, probs=p), obs=x)

    assert lvm.fit_em(model, x, progress=False).converged


BEYOND = {  # on rows that are alike, without a maximum
    "gamma": (dist.Gamma, (1e8, 1e8), 1.0),
    "beta": (dist.Beta, (3e7, 3e7), 0.5),
    "exponential": (dist.Exponential, (1e12,), 0.0),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_start_beyond_its_limit_stays(name):
    kind, start, value = BEYOND[name]
    x = torch.full((30,), value).double()

    def model(x):
        arguments = [
            pyro.param(f"a{i}", torch.tensor(value).double(), constraint=constraints.positive)
            for i, value in enumerate(start)
        ]
        with pyro.plate("rows", len(x)):
            pyro.sample("x", kind(*arguments), obs=x)

    found = lvm.fit_em(model, x, progress=False)
    assert found.converged
    assert [found.params[f"a{i}"].item() for i in range(len(start))] == pytest.approx(start)


def test_negative_binomials_of_huge_poisson_counts_are_poisson():
    x = torch.tensor(np.random.default_rng(0).poisson(1e9, 400)).double()

    def model(x):
        r = pyro.param("r", torch.tensor(3.0).double(), constraint=constraints.positive)
        logits = pyro.param("logits", torch.tensor(15.0).double())
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.NegativeBinomial(r, logits=logits), obs=x)

    found = lvm.fit_em(model, x, progress=False)
    poisson = stats.poisson(x.mean().item()).logpmf(x.numpy()).sum()
    assert found.objective[-1].item() == pytest.approx(poisson, abs=0.1)
    assert found.converged


@pytest.mark.parametrize("e_step", ["auto", "hard"])
@pytest.mark.parametrize("first", ["known first", pytest.param("known last", marks=pytest.mark.slow)])
def test_arguments_beside_constants_are_searched_for(first, e_step):
    """One component has a known total count; the other's is the last of all parameters, or not."""
    rng = np.random.default_rng(0)
    x = torch.tensor(np.concatenate([rng.poisson(rng.gamma(30, 1.0, 300)), rng.poisson(rng.gamma(2, 2.0, 300))]))

    def model(x):
        def learned():
            return pyro.param("r", torch.tensor([3.0]).double(), constraint=constraints.positive)

        w = pyro.param("w", torch.tensor([0.5, 0.5]).double(), constraint=constraints.simplex)
        r = learned() if first == "known first" else None
        p = pyro.param("p", torch.tensor([0.99, 0.5]).double(), constraint=constraints.unit_interval)
        r = torch.cat([torch.tensor([30.0]).double(), learned() if r is None else r])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.NegativeBinomial(r[z], probs=p[z]), obs=x)

    found, searched = (fit(model, x.double(), m_step=how, e_step=e_step, tol=1e-9) for how in ("auto", "numeric"))
    assert rules(found)["p"] == "L-BFGS on Q, for other arguments of its family are shared, or constants"
    assert found.objective[-1].item() == pytest.approx(searched.objective[-1].item(), abs=1e-4)


def test_no_slope_under_a_mask_is_said():
    x, there = torch.poisson(torch.full((50,), 3.0)), torch.arange(50) % 5 > 0

    def model(x):
        a = pyro.param("a", torch.tensor(3.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=there):
            pyro.sample("x", dist.Poisson(a, validate_args=False), obs=torch.where(there, x, torch.nan))

    with pytest.raises(ValueError, match="slope of the log-density by 'a' is not finite"):
        lvm.fit_em(model, x, progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    def model(x):
        a = pyro.param("a", torch.tensor(3.0, dtype=dtype), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(a), obs=x)

    with pytest.raises(ValueError, match=f"single or double precision; got {dtype}"):
        lvm.fit_em(model, torch.ones(5, dtype=dtype), progress=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("true", [(0.5, 1e5), (50.0, 3e6), (5e3, 3e6), (2e5, 1e6)])
def test_negative_binomials_of_large_counts(true, dtype):
    """Total count and mean; those of a million and more are told from Poisson counts in single precision too."""
    r, mean = true
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.poisson(rng.gamma(r, mean / r, 400)), dtype=dtype)

    def model(x):
        count = pyro.param("r", torch.tensor(3.0, dtype=dtype), constraint=constraints.positive)
        logits = pyro.param("logits", torch.tensor(10.0, dtype=dtype))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.NegativeBinomial(count, logits=logits), obs=x)

    found = fit(model, x)
    assert rules(found)["r"] == "bisection on expected counts"
    counts = x.double().numpy()

    def log_likelihood(log_r):
        r = np.exp(log_r)
        return stats.nbinom(r, r / (r + counts.mean())).logpmf(counts).sum()

    best = minimize(lambda log_r: -log_likelihood(log_r[0]), [np.log(r)], method="Nelder-Mead", options={"xatol": 1e-8})
    assert found.params["r"].item() == pytest.approx(np.exp(best.x.item()), rel=1e-3)
    rounding = 1e-5 if dtype is torch.float64 else 1e-2  # of scipy's terms, each about 4e7, and of ours
    assert found.objective[-1].item() == pytest.approx(-best.fun, abs=rounding)
    means = found.params["r"].double() * found.params["logits"].double().exp()
    assert means.item() == pytest.approx(counts.mean(), rel=1e-6 if dtype is torch.float64 else 1e-4)


def test_online_em_of_pairs_with_constraints_of_events():
    _, x = mixture_of_two("gamma", 10.0)

    def rows(x):
        bounded = constraints.independent(constraints.interval(0.1, 10.0), 1)
        a = pyro.param("a", torch.ones(2, 1), constraint=bounded)
        b = pyro.param("b", torch.tensor([[1.0], [0.2]]), constraint=bounded)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Gamma(a[z], b[z]).to_event(1), obs=x)

    found = lvm.fit_em(rows, x.unsqueeze(-1), online=0.7, batch_size=50, max_iter=3, progress=False)
    assert (found.params["a"] < 10).all()


def counts_of_digits():
    x = load_digits().data
    return torch.tensor(x[:300, x[:300].sum(0) > 0])


@pytest.mark.parametrize("link", ["rate", "exp", "softplus"])
def test_rates_of_zero_keep_their_closed_form(link):
    x, K = counts_of_digits(), 4
    start = 1 + torch.rand(K, x.shape[1], generator=torch.Generator().manual_seed(1)).double()

    def model(x):
        w = pyro.param("w", torch.full((K,), 0.25).double(), constraint=constraints.simplex)
        if link == "exp":
            rate = pyro.param("rate", start.log()).exp()
        elif link == "softplus":
            rate = torch.nn.functional.softplus(pyro.param("rate", start.expm1().log()))
        else:
            rate = pyro.param("rate", start, constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Poisson(rate[z]).to_event(1), obs=x)

    found = fit(model, x, tol=0, max_iter=15)
    assert rules(found)["rate"] == "weighted mean"
    w, rate, path = np.full(K, 1 / K), start.numpy(), []
    for _ in range(16):
        joint = np.log(w) + stats.poisson(rate).logpmf(x.numpy()[:, None]).sum(-1)
        path.append(logsumexp(joint, axis=1).sum())
        r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        w, rate = r.mean(0), r.T @ x.numpy() / r.sum(0)[:, None]
    np.testing.assert_allclose(found.objective, path, rtol=1e-10)


@pytest.mark.parametrize("argument", ["probs", "logits"])
def test_probabilities_of_zero_and_one_keep_their_closed_form(argument):
    x = (counts_of_digits() > 7).double()
    start = torch.randn(4, x.shape[1], generator=torch.Generator().manual_seed(1)).double()

    def model(x):
        w = pyro.param("w", torch.full((4,), 0.25).double(), constraint=constraints.simplex)
        if argument == "logits":
            logits = pyro.param("items", start)
            given = {"logits": logits}
        else:
            given = {"probs": pyro.param("items", start.sigmoid(), constraint=constraints.unit_interval)}
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Bernoulli(**{name: v[z] for name, v in given.items()}).to_event(1), obs=x)

    found = fit(model, x, tol=1e-9)
    assert rules(found)["items"] == "weighted proportion"
    assert_rises(found)
    if argument == "logits":
        assert_at_the_top(found, model, x)


CONCENTRATED = [  # the usual terms of their log-densities cancel out
    ("gamma", (1e4, 3e3)),
    ("gamma", (1e6, 2e5)),
    ("gamma", (1e7, 1e7)),
    ("beta", (2e3, 5e3)),
    ("beta", (2e5, 5e5)),
    ("beta", (1.0, 3e3)),  # broad, for all the large number
    ("beta", (2.0, 5e6)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name, true", CONCENTRATED)
def test_concentrated_distributions_keep_their_closed_form(name, true, dtype):
    rng = np.random.default_rng(0)
    rows = rng.gamma(true[0], 1 / true[1], 400) if name == "gamma" else rng.beta(*true, 400)
    x, start = torch.tensor(rows, dtype=dtype), torch.tensor([0.5, 0.6], dtype=dtype) * torch.tensor(true, dtype=dtype)

    def model(x):
        a = pyro.param("a", start[0], constraint=constraints.positive)
        b = pyro.param("b", start[1], constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", (dist.Gamma if name == "gamma" else dist.Beta)(a, b), obs=x)

    found = fit(model, x, tol=1e-9)
    assert found.converged
    assert rules(found)["a"] == "Newton's method"
    rows = x.double().numpy()

    def log_likelihood(logs):
        a, b = np.exp(logs)
        return (stats.gamma(a, scale=1 / b) if name == "gamma" else stats.beta(a, b)).logpdf(rows).sum()

    here = np.log([found.params[key].item() for key in ("a", "b")])
    options = {"xatol": 1e-12, "fatol": 1e-9, "initial_simplex": here + 1e-3 * np.array([[0, 0], [1, 0], [1, 1]])}
    best = -minimize(lambda logs: -log_likelihood(logs), here, method="Nelder-Mead", options=options).fun
    assert log_likelihood(here) == pytest.approx(best, abs=1e-4 if dtype is torch.float64 else 1e-2)
    assert found.objective[-1].item() == pytest.approx(best, abs=1e-4 if dtype is torch.float64 else 0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variation", [2e-2, 1e-2, 1e-3, 1e-4])
def test_mixtures_of_concentrated_gammas_rise_to_those_of_normals(variation, dtype):
    """Whose log-likelihood they have, but for skewness of the size of the variation."""
    rng = np.random.default_rng(1)
    z = rng.integers(2, size=500)
    rows = rng.normal(np.where(z, 1 + 5 * variation, 1.0), variation)
    x = torch.tensor(rows, dtype=dtype)

    def model(x):
        w = pyro.param("w", torch.tensor([0.5, 0.5], dtype=dtype), constraint=constraints.simplex)
        size = torch.full((2,), 0.3 / variation**2, dtype=dtype)
        mean = torch.tensor([1 - variation, 1 + 6 * variation], dtype=dtype)
        a = pyro.param("a", size, constraint=constraints.positive)
        b = pyro.param("b", size / mean, constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Categorical(w))
            pyro.sample("x", dist.Gamma(a[k], b[k]), obs=x)

    found = fit(model, x, tol=1e-9 if dtype is torch.float64 else 1e-5)
    assert found.converged
    assert "L-BFGS" not in found.summary()
    peer = GaussianMixture(2, tol=1e-12, reg_covar=0, means_init=[[1.0], [1 + 5 * variation]], max_iter=1000)
    peer.fit(rows[:, None])
    share = 2 * variation + (0.0 if dtype is torch.float64 else 1e-3)
    assert found.objective[-1].item() / 500 == pytest.approx(peer.score(rows[:, None]), abs=share)


def test_a_beta_just_below_its_limit_stays():
    """Rows whose maximum lies 0.05% below; the limit itself would be worse."""
    n, mean = 2.2e6, 0.35
    a, b = n * mean, n * (1 - mean)
    x = torch.tensor(stats.beta(a, b).ppf((np.arange(400) + 0.5) / 400))
    spread = (x / (1 - x)).log().var(correction=0)
    wide = torch.cat([x, torch.tensor(stats.beta(2, 2).ppf((np.arange(400) + 0.5) / 400))])
    assert spread < 1e-5

    def model(x):
        w = pyro.param("w", torch.tensor([0.5, 0.5], dtype=torch.float64), constraint=constraints.simplex)
        first = pyro.param("a", torch.tensor([a * 0.9, 2.0], dtype=torch.float64), constraint=constraints.positive)
        second = pyro.param("b", torch.tensor([b * 0.9, 2.0], dtype=torch.float64), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Beta(first[z], second[z]), obs=x)

    found = fit(model, wide, tol=1e-10)
    assert_rises(found)
    assert found.converged


@pytest.mark.parametrize("kind", [dist.Gamma, dist.Beta])
def test_values_on_the_edge_are_refused(kind):
    def model(x):
        a = pyro.param("a", torch.tensor(1.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", kind(a, b), obs=x)

    with pytest.raises(ValueError, match=f"'x' has values on the edge of what its {kind.__name__} distribution"):
        lvm.fit_em(model, torch.tensor([0.0, 0.3, 0.5]), progress=False)


def test_a_line_through_all_rows_leaves_a_scale_at_its_floor():
    """A millionth of the variance of what was observed, and not of residuals, which vanish."""
    u = torch.linspace(-1, 1, 50).double()
    y = 2.0 + 3.0 * u

    def model(u, y):
        b = pyro.param("b", torch.zeros(2).double())
        s = pyro.param("s", torch.tensor(1.0).double(), constraint=constraints.positive)
        with pyro.plate("rows", len(u)):
            pyro.sample("y", dist.Normal(b[0] + b[1] * u, s), obs=y)

    found = fit(model, u, y)
    torch.testing.assert_close(found.params["b"], torch.tensor([2.0, 3.0]).double())
    assert found.params["s"].item() == pytest.approx(1e-3 * y.std(correction=0).item(), rel=1e-6)
    assert "held at its limit" in rules(found)["s"]
    assert rules(found)["b"] == "weighted least squares"


def test_one_component_has_all_the_weight():
    x = torch.poisson(torch.full((100, 2), 3.0), generator=torch.Generator().manual_seed(0))
    found = lvm.fit_em(lvm.models.Mixture(1, lvm.models.mixture.Poisson(2)), x, progress=False)
    assert "L-BFGS" not in found.summary()
    torch.testing.assert_close(found.params["rate"][0], x.mean(0))


@pytest.mark.parametrize("rows", [[1e-12] * 5, [1e-10], [1.0] * 999 + [1e13], [1e-200] * 3, [0.0, 1e-30, 1e30]])
def test_rates_of_what_is_small_or_large_are_no_spikes(rows):
    x = torch.tensor(rows, dtype=torch.float64)

    def model(x):
        rate = pyro.param("rate", torch.tensor(1.0).double(), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    found = fit(model, x)
    assert rules(found)["rate"] == "weighted mean"
    assert found.params["rate"].item() == pytest.approx(1 / x.mean().item(), rel=1e-12)
