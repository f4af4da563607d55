"""Continuous latents that are integrated out: factor models, mixtures of them, random effects."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import FactorAnalysis
from torch.distributions import constraints

import pyro_lvm as lvm

from .checks import assert_rises

SIZE, FEATURES, LATENTS = 150, 5, 2


def normal(*shape, seed):
    draws = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws.to(torch.get_default_dtype())


def wine():
    x = torch.tensor(load_wine().data)
    return (x - x.mean(0)) / x.std(0, correction=0)


def factors(x, num_latents=LATENTS, noise="tied", start=1):
    """Rows with a noise variance that is "tied", "diag"onal, or one number of its own for half of the features."""
    D = x.shape[1]
    loading = pyro.param("loading", lambda: 0.5 * normal(D, num_latents, seed=start))
    loc = pyro.param("loc", torch.zeros(D))
    shape = {"tied": (), "diag": (D,), "shared": (2,)}[noise]
    variance = pyro.param("noise", torch.ones(shape), constraint=constraints.positive)
    if noise == "shared":
        variance = variance[torch.arange(D) % 2]
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(num_latents), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ loading.mT + loc, variance.sqrt()).to_event(1), obs=x)


def fit(model, *data, **options):
    return lvm.fit_em(model, *data, **({"tol": 1e-10, "max_iter": 5_000, "progress": False} | options))


def closed_form(x, num_latents):
    """The largest log-likelihood of probabilistic PCA (Tipping and Bishop 1999, equations 7 and 8)."""
    N, D = x.shape
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    noise = values[num_latents:].mean()
    log_det = np.log(values[:num_latents]).sum() + (D - num_latents) * np.log(noise)
    return -N / 2 * (D * math.log(2 * math.pi) + log_det + D)


@pytest.mark.parametrize("num_latents", [1, 2, 4])
def test_probabilistic_pca_reaches_its_closed_form(num_latents):
    x = wine()
    result = fit(factors, x, model_kwargs={"num_latents": num_latents})
    assert_rises(result)
    assert result.converged
    assert abs(result.objective[-1] - closed_form(x, num_latents)) < 1e-6 * len(x)
    assert "weighted least squares" in result.summary()
    assert "L-BFGS" not in result.summary()
    assert "z  " in result.summary()
    assert "integrated out, Gaussian" in result.summary()


def test_factor_analysis_is_that_of_scikit_learn():
    x = wine()
    result = fit(factors, x, model_kwargs={"noise": "diag"})
    theirs = FactorAnalysis(LATENTS, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    assert_rises(result)
    assert result.objective[-1] / len(x) > theirs.score(x.numpy()) - 1e-6
    ours = result.params["loading"] @ result.params["loading"].mT + result.params["noise"].diag()
    torch.testing.assert_close(ours, torch.tensor(theirs.get_covariance()), rtol=0, atol=1e-3)


def marginal(x, loading, loc, noise):
    covariance = loading @ loading.mT + torch.diag_embed(noise.expand(x.shape[1]))
    return dist.MultivariateNormal(loc, covariance).log_prob(x)


def test_noise_that_some_features_share_is_a_maximum_of_the_marginal_density():
    x = wine()[:, :6]
    result = fit(factors, x, model_kwargs={"noise": "shared"})
    assert_rises(result)
    params = {name: value.clone().requires_grad_() for name, value in result.params.items()}
    total = marginal(x, params["loading"], params["loc"], params["noise"][torch.arange(6) % 2]).sum()
    torch.testing.assert_close(total, result.objective[-1], rtol=1e-9, atol=0)
    slopes = torch.autograd.grad(total, list(params.values()))
    assert max(slope.abs().max() for slope in slopes) < 1e-3 * len(x)


def rows_of_two_planes():
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(SIZE, generator=generator) < 0.4).long()
    loading = normal(2, FEATURES, 1, seed=4)
    latents, noise = normal(SIZE, 1, 1, seed=5), normal(SIZE, FEATURES, seed=6)
    locs = torch.tensor([[0.0] * FEATURES, [3.0] * FEATURES])
    return (loading[labels] @ latents).squeeze(-1) + locs[labels] + 0.4 * noise


def start_of_planes(D, K=2, L=1):
    return {
        "weights": torch.full((K,), 1 / K),
        "loading": 0.5 * normal(K, D, L, seed=7),
        "locs": torch.linspace(0.0, 2.0, K).unsqueeze(-1).expand(K, D) + 0.1 * normal(K, D, seed=8),
        "noise": torch.ones(K),
    }


def planes(x, first="discrete", noise="each"):
    """A mixture of probabilistic PCA; a latent may be drawn before or after the component."""
    start = start_of_planes(x.shape[1])
    weights = pyro.param("weights", start["weights"], constraint=constraints.simplex)
    loading = pyro.param("loading", start["loading"])
    locs = pyro.param("locs", start["locs"])
    D = x.shape[1]
    sizes = {"each": (2,), "diag": (D,), "own": (2, D)}[noise]
    variance = pyro.param("noise", torch.ones(sizes), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        if first == "discrete":
            c = pyro.sample("c", dist.Categorical(weights))
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        if first == "continuous":
            c = pyro.sample("c", dist.Categorical(weights))
        loc = (loading[c] @ z.unsqueeze(-1)).squeeze(-1) + locs[c]
        own = variance if noise == "diag" else variance[c]
        scale = (own.unsqueeze(-1) if noise == "each" else own).sqrt()
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


def planes_by_hand(x, num_iter):
    """EM in the words of Tipping and Bishop, "Mixtures of probabilistic principal component analysers" (1999), with
    the loc and the loading found together."""
    p = start_of_planes(x.shape[1])
    N, D = x.shape
    path = []
    for i in range(num_iter + 1):
        logs = torch.stack(
            [p["weights"][k].log() + marginal(x, p["loading"][k], p["locs"][k], p["noise"][k]) for k in range(2)], -1
        )
        path.append(logs.logsumexp(-1).sum())
        if i == num_iter:
            return torch.stack(path), p
        shares = logs.softmax(-1)
        new = {"weights": shares.mean(0), "loading": [], "locs": [], "noise": []}
        for k in range(2):
            r, W = shares[:, k], p["loading"][k]
            M = W.mT @ W + p["noise"][k] * torch.eye(1)
            mean = (x - p["locs"][k]) @ W @ torch.linalg.inv(M)
            design = torch.cat([mean, torch.ones(N, 1)], -1)
            second = design.mT @ (r[:, None] * design)
            second[:1, :1] += r.sum() * p["noise"][k] * torch.linalg.inv(M)
            coefficients = torch.linalg.solve(second, design.mT @ (r[:, None] * x))
            off = x - design @ coefficients
            spread = p["noise"][k] * (coefficients[:1].mT @ torch.linalg.inv(M) @ coefficients[:1]).trace()
            new["loading"].append(coefficients[:1].mT)
            new["locs"].append(coefficients[1])
            new["noise"].append((r @ off.square().sum(-1) + r.sum() * spread) / (D * r.sum()))
        p = {name: value if isinstance(value, torch.Tensor) else torch.stack(value) for name, value in new.items()}
    return None


@pytest.mark.parametrize("first", ["discrete", "continuous"])
def test_mixture_of_probabilistic_pca_takes_the_path_of_a_loop_written_by_hand(first):
    x = rows_of_two_planes()
    result = fit(planes, x, model_kwargs={"first": first}, tol=0, max_iter=25)
    path, params = planes_by_hand(x, 25)
    torch.testing.assert_close(result.objective, path, rtol=1e-9, atol=0)
    for name, value in params.items():
        torch.testing.assert_close(result.params[name], value, rtol=1e-6, atol=1e-8)
    assert "L-BFGS" not in result.summary()


@pytest.mark.parametrize("noise", ["diag", "own"])
def test_mixture_of_factor_analysers_is_at_the_top(noise):
    """With one noise for both, and with a noise of each."""
    x = rows_of_two_planes()
    result = fit(planes, x, model_kwargs={"noise": noise}, tol=1e-8)
    assert_rises(result)
    assert "L-BFGS" not in result.summary()
    params = {name: value.clone().requires_grad_() for name, value in result.params.items()}
    logs = torch.stack(
        [
            params["weights"][k].log()
            + marginal(x, params["loading"][k], params["locs"][k], params["noise"].expand(2, -1)[k])
            for k in range(2)
        ]
    )
    total = logs.logsumexp(0).sum()
    torch.testing.assert_close(total, result.objective[-1], rtol=1e-9, atol=0)
    del params["weights"]
    assert max(s.abs().max() for s in torch.autograd.grad(total, list(params.values()))) < 1e-3 * len(x)


def groups():
    """Five observations of each of forty groups, at known times."""
    times = normal(40, 5, seed=11)
    effects = torch.tensor([0.8, 0.5]) * normal(40, 2, seed=12)
    y = 1.0 + 0.5 * times + effects[:, :1] + effects[:, 1:] * times + 0.3 * normal(40, 5, seed=13)
    return times, y


def random_effects(times, y):
    """Intercepts and slopes of the groups: each group has a Hessian of its own."""
    line = pyro.param("line", torch.zeros(2))
    tau = pyro.param("tau", torch.ones(2), constraint=constraints.positive)
    sigma = pyro.param("sigma", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("groups", len(times)):
        intercept = pyro.sample("intercept", dist.Normal(0.0, tau[0]))
        slope = pyro.sample("slope", dist.Normal(0.0, tau[1]))
        loc = line[0] + line[1] * times + intercept.unsqueeze(-1) + slope.unsqueeze(-1) * times
        pyro.sample("y", dist.Normal(loc, sigma).to_event(1), obs=y)


def log_density_of_groups(params, times, y):
    design = torch.stack([torch.ones_like(times), times], -1)
    covariance = (design * params["tau"].square()) @ design.mT + params["sigma"].square() * torch.eye(5)
    return dist.MultivariateNormal(design @ params["line"], covariance).log_prob(y)


@pytest.mark.slow
def test_random_effects_are_at_the_top_of_the_marginal_density():
    times, y = groups()
    result = fit(random_effects, times, y, tol=1e-8)
    assert_rises(result)
    params = {name: value.clone().requires_grad_() for name, value in result.params.items()}
    rows = log_density_of_groups(params, times, y)
    torch.testing.assert_close(rows.sum(), result.objective[-1], rtol=1e-9, atol=0)
    slopes = torch.autograd.grad(rows.sum(), list(params.values()))
    assert max(slope.abs().max() for slope in slopes) < 1e-3 * len(y)
    assert "L-BFGS" not in result.summary()


def test_draws_of_several_latents_have_the_moments_of_their_joint_posterior():
    times, y = groups()
    result = fit(random_effects, times, y, max_iter=20)
    draws = result.sample(1_000, seed=1)
    drawn = torch.stack([draws["intercept"], draws["slope"]], -1)
    p = result.params
    design = torch.stack([torch.ones_like(times), times], -1)
    precision = design.mT @ design / p["sigma"].square() + torch.diag(p["tau"] ** -2)
    covariance = torch.linalg.inv(precision)
    off = (y - design @ p["line"]).unsqueeze(-1) / p["sigma"].square()
    mean = (covariance @ design.mT @ off).squeeze(-1)
    error = (drawn.mean(0) - mean) / (covariance.diagonal(dim1=-2, dim2=-1) / len(drawn)).sqrt()
    assert error.abs().max() < 4.5
    about = drawn - mean
    cross = (about[..., 0] * about[..., 1]).mean(0)
    wanted = covariance[:, 0, 1]
    spread = (covariance[:, 0, 0] * covariance[:, 1, 1] + wanted.square()).sqrt() / len(drawn) ** 0.5
    assert ((cross - wanted) / spread).abs().max() < 4.5


@pytest.mark.parametrize("first", ["discrete", "continuous"])
def test_evidence_at_draws_of_the_exact_posterior_has_no_noise(first):
    result = fit(planes, rows_of_two_planes(), model_kwargs={"first": first}, max_iter=5)
    evidence = result.evidence(50)
    assert abs(evidence.value - result.objective[-1]) < 1e-6 * SIZE
    assert evidence.standard_error < 1e-6 * SIZE


def masked_factors(x, seen):
    loading = pyro.param("loading", lambda: 0.5 * normal(x.shape[1], LATENTS, seed=1))
    loc = pyro.param("loc", torch.zeros(x.shape[1]))
    noise = pyro.param("noise", torch.ones(x.shape[1]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
        fn = dist.Normal(z @ loading.mT + loc, noise.sqrt()).mask(seen).to_event(1)
        pyro.sample("x", fn, obs=x)


def test_masked_entries_are_integrated_out():
    x = wine()[:60, :4]
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) > 0.2
    result = fit(masked_factors, x, seen, max_iter=40, tol=0)
    assert_rises(result)
    loading, loc, noise = (result.params[name].numpy() for name in ("loading", "loc", "noise"))
    covariance = loading @ loading.T + np.diag(noise)
    rows = [
        stats.multivariate_normal.logpdf(row[s], loc[s], covariance[np.ix_(s, s)])
        for row, s in zip(x.numpy(), seen.numpy(), strict=True)
        if s.any()
    ]
    np.testing.assert_allclose(sum(rows), result.objective[-1], rtol=1e-9)


@pytest.mark.parametrize(("model", "data"), [(planes, (rows_of_two_planes,)), (random_effects, groups)])
def test_batches_and_weights_take_the_path_of_repeated_rows(model, data):
    data = (data[0](),) if isinstance(data, tuple) else data()
    counts = torch.randint(0, 3, (len(data[0]),), generator=torch.Generator().manual_seed(9))
    repeated = tuple(x.repeat_interleave(counts, 0) for x in data)
    one = fit(model, *repeated, max_iter=8, tol=0)
    other = fit(model, *data, max_iter=8, tol=0, sample_weight=counts.double(), batch_size=17)
    torch.testing.assert_close(one.objective, other.objective, rtol=1e-9, atol=0)
    for name, value in one.params.items():
        torch.testing.assert_close(value, other.params[name], rtol=1e-6, atol=1e-8)


def test_many_coefficients_take_the_path_of_few():
    """Those of many features are found by conjugate gradients."""
    x = torch.tensor(load_digits().data)[:400] / 4
    x = x[:, x.std(0) > 0.3]
    result = fit(factors, x, model_kwargs={"num_latents": 6}, max_iter=400, tol=1e-9)
    assert_rises(result)
    assert abs(result.objective[-1] - closed_form(x, 6)) < 1e-4 * len(x)


def test_single_precision_far_from_zero_ends_near_double_precision():
    x = wine()
    double = fit(factors, x, max_iter=60, tol=0)
    torch.set_default_dtype(torch.float32)
    single = fit(factors, (x + 100).float(), max_iter=60, tol=0, init={"loc": (x + 100).float().mean(0)})
    assert abs(single.objective[-1] - double.objective[-1]) < 1e-3 * len(x)


def half_normal(x):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def logistic(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z), obs=(x > 0).double())


def many_states(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("items", x.shape[1], dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(z + loc[c], 1.0), obs=x)


def in_two_plates(x):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x), dim=-2), pyro.plate("items", x.shape[1], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (half_normal, "no real number"),
        (logistic, "not quadratic"),
        (many_states, "too many components"),
        (in_two_plates, "in the plate of the rows alone"),
    ],
)
def test_what_is_not_gaussian_is_refused(model, words):
    x = normal(30, 3, seed=0)
    with pytest.raises(ValueError, match=words) as error:
        fit(model, x if model in (many_states, in_two_plates) else x[:, 0])
    assert "guide=" in str(error.value)


@pytest.mark.parametrize("options", [{"e_step": "hard"}, {"e_step": "monte_carlo"}, {"online": 0.6, "batch_size": 20}])
def test_other_e_steps_of_gaussian_latents_are_refused(options):
    with pytest.raises(ValueError, match="Gaussian latents"):
        fit(factors, wine(), **options)


def test_a_density_that_grows_without_end_is_refused():
    def growing(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.factor("growth", z.square())
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match="no maximum in 'z'"):
        fit(growing, wine()[:, 0])


def test_a_result_can_be_saved_and_read_again(tmp_path):
    x = rows_of_two_planes()
    result = fit(planes, x, max_iter=5)
    result.save(tmp_path / "em.pt")
    again = lvm.load(tmp_path / "em.pt", planes, None, x)
    assert abs(again.evidence(5).value - result.objective[-1]) < 1e-6 * SIZE


def uneven(x, y, spread):
    """A latent that is known well in all rows, and one that is known better in some."""
    tau = pyro.param("tau", torch.tensor(1.0, dtype=x.dtype), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=x.dtype), tau))
        pyro.sample("x", dist.Normal(u, 0.01), obs=x)
        pyro.sample("y", dist.Normal(v, spread), obs=y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_that_differ_in_a_vague_latent_differ(dtype):
    spread = torch.tensor([0.5, 2.0]).repeat(100)
    x = normal(200, seed=1)
    y = normal(200, seed=2) + spread * normal(200, seed=3)
    result = fit(uneven, *(t.to(dtype) for t in (x, y, spread)), max_iter=3)
    exact = stats.norm(0, math.hypot(1, 0.01)).logpdf(x.numpy()).sum()
    exact += stats.norm(0, np.hypot(1, spread.numpy())).logpdf(y.numpy()).sum()
    assert result.objective[0].item() == pytest.approx(exact, rel=1e-9 if dtype is torch.float64 else 1e-4)


def test_designs_may_be_contrasts():
    dose, contrast = torch.arange(4.0).repeat(20), torch.tensor([1.0, -1.0, -1.0, 1.0])

    def model(x, dose):
        m = pyro.param("m", torch.tensor(0.5))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(m + dose * (z @ contrast), 1.0), obs=x)

    x = dose * (normal(80, 4, seed=4) @ contrast) + normal(80, seed=5)
    exact = stats.norm(0.5, np.sqrt(4 * dose.numpy() ** 2 + 1)).logpdf(x.numpy()).sum()
    assert fit(model, x, dose, max_iter=1).objective[0].item() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_vague_latent_that_is_not_gaussian_is_refused(dtype):
    def model(x, y):
        b = pyro.param("b", torch.tensor(3.0, dtype=dtype))
        with pyro.plate("rows", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
            v = pyro.sample("v", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
            pyro.sample("x", dist.Normal(u, 0.01), obs=x)
            pyro.sample("y", dist.Bernoulli(logits=b * v), obs=y)

    x = normal(50, seed=6).to(dtype)
    with pytest.raises(ValueError, match="the log-density is not quadratic in it"):
        fit(model, x, (x > 0).to(dtype))


def test_sites_with_scales_of_their_own_are_refused():
    def model(x):
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(m + z, 1.0), obs=x)

    with pytest.raises(ValueError, match="'x' and the latent 'z' must share one"):
        fit(model, normal(20, seed=7))
