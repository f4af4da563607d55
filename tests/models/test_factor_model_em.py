"""EM for probabilistic PCA and factor analysis, with and without missing entries."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis
from statsmodels.multivariate.factor_rotation import rotate_factors
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.models import PPCA, FactorAnalysis, varimax

MODELS = [PPCA, FactorAnalysis]


@pytest.fixture(autouse=True)
def _double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def wine():
    x = torch.tensor(load_wine().data)
    return (x - x.mean(0)) / x.std(0, correction=0)


def digits():
    return torch.tensor(load_digits().data)


def generated():
    generator = torch.Generator().manual_seed(0)
    loading = torch.randn(8, 3, generator=generator)
    noise = 0.7 * torch.randn(400, 8, generator=generator)
    return torch.randn(400, 3, generator=generator) @ loading.mT + 5 + noise


def holes(x, seed=0):
    there = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > 0.2
    return torch.where(there, x, torch.nan)


def fit(model, x, **options):
    return lvm.fit_em(model, x, **({"tol": 1e-10, "max_iter": 20_000, "progress": False} | options))


def largest_log_likelihood(x, num_latents):
    """Of probabilistic PCA (Tipping and Bishop 1999, equations 7 and 8)."""
    N, D = x.shape
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    noise = values[num_latents:].mean()
    log_det = np.log(values[:num_latents]).sum() + (D - num_latents) * np.log(noise)
    return -N / 2 * (D * math.log(2 * math.pi) + log_det + D)


def marginal_by_brute_force(params, x):
    """The sum of the log-densities of the entries that are there, row by row."""
    loading, loc = params["loading"].numpy(), params["loc"].numpy()
    covariance = loading @ loading.T + np.diag(params["noise"].expand(len(loc)).numpy())
    total = 0.0
    for row in x.numpy():
        there = ~np.isnan(row)
        if there.any():
            total += stats.multivariate_normal.logpdf(row[there], loc[there], covariance[np.ix_(there, there)])
    return total


def slopes(params, x):
    """The derivatives of the marginal log-likelihood, complete or not, by pattern."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    covariance = leaves["loading"] @ leaves["loading"].mT + torch.diag(leaves["noise"].expand(x.shape[1]))
    total = 0.0
    for row in x:
        there = ~row.isnan()
        fn = torch.distributions.MultivariateNormal(leaves["loc"][there], covariance[there][:, there])
        total = total + fn.log_prob(row[there])
    return torch.autograd.grad(total, list(leaves.values()))


@pytest.mark.parametrize(("data", "num_latents"), [(wine, 2), (wine, 5), (digits, 10), (generated, 3)])
def test_em_reaches_the_closed_form_of_probabilistic_pca(data, num_latents):
    x = data()
    result = fit(PPCA(num_latents, x.shape[1]), x)
    best = largest_log_likelihood(x, num_latents)
    assert result.converged
    assert (result.objective.diff() >= -1e-9 * abs(best)).all()
    assert abs(result.objective[-1] - best) < 1e-6 * len(x)
    solved = PPCA(num_latents, x.shape[1]).closed_form(x)
    assert abs(solved.observed_log_prob(x).sum() - best) < 1e-9 * abs(best)


def test_closed_form_is_a_stationary_point():
    model = PPCA(2, 13).closed_form(wine())
    assert max(slope.abs().max() for slope in slopes(model._values(), wine())) < 1e-8 * len(wine())


def pixels_that_vary():
    x = digits()
    return x[:, x.std(0) > 0.5]


@pytest.mark.parametrize(("data", "num_latents"), [(wine, 2), (generated, 3), (pixels_that_vary, 5)])
def test_factor_analysis_is_that_of_scikit_learn(data, num_latents):
    x = data()
    result = fit(FactorAnalysis(num_latents, x.shape[1]), x)
    theirs = SklearnFactorAnalysis(num_latents, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    assert result.objective[-1] / len(x) > theirs.score(x.numpy()) - 1e-6


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("missing", [False, True])
def test_own_steps_are_those_found_in_the_model(model, missing):
    torch.manual_seed(1)
    one, other = model(2, 13).initialize(wine()), model(2, 13)
    other.load_state_dict(one.state_dict())
    options = {"tol": 0, "max_iter": 12}
    fused, found = fit(one, wine(), missing=missing, **options), fit(other, wine(), e_step="exact", **options)
    assert "weighted least squares" in found.summary()
    torch.testing.assert_close(fused.objective, found.objective, rtol=1e-10, atol=0)
    for name, value in fused.params.items():
        torch.testing.assert_close(value, found.params[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("missing", [False, True])
def test_weights_are_repeated_rows_in_batches_too(model, missing):
    x = holes(wine()) if missing else wine()
    counts = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(1))
    start = model(2, 13).initialize(wine()).state_dict()
    results = []
    for rows, options in (
        (x.repeat_interleave(counts, 0), {}),
        (x, {"sample_weight": counts.double()}),
        (x, {"sample_weight": counts.double(), "batch_size": 50}),
    ):
        fitted = model(2, 13)
        fitted.load_state_dict(start)
        results.append(fit(fitted, rows, missing=missing, tol=0, max_iter=15, **options))
    for other in results[1:]:
        torch.testing.assert_close(other.objective, results[0].objective, rtol=1e-10, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_missing_entries_are_integrated_out(model):
    x = holes(wine())[:80, :6]
    x[3] = torch.nan
    result = fit(model(1, 6), x, missing=True, max_iter=300)
    assert (result.objective.diff() >= -1e-8).all()
    np.testing.assert_allclose(result.objective[-1], marginal_by_brute_force(result.params, x), rtol=1e-10)


def test_maximum_with_missing_entries_is_a_stationary_point():
    x = holes(wine())[:80, :6]
    result = fit(PPCA(1, 6), x, missing=True)
    assert result.converged
    assert max(slope.abs().max() for slope in slopes(result.params, x[~x.isnan().all(1)])) < 1e-3 * len(x)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_latents", [2, 4])
def test_imputation_beats_the_means(model, num_latents):
    x, y = wine(), holes(wine())
    fitted = model(num_latents, 13)
    result = fit(fitted, y, missing=True, tol=1e-7)
    assert (result.objective.diff() >= -1e-8).all()
    missing = y.isnan()
    error = (fitted.impute(y) - x)[missing].square().mean()
    of_means = (y.nanmean(0) - x)[missing].square().mean()
    assert error < 0.75 * of_means
    assert torch.equal(fitted.impute(y)[~missing], x[~missing])


@pytest.mark.parametrize("model", MODELS)
def test_latents_and_densities_of_rows_with_holes(model):
    x = holes(wine())
    fitted = model(3, 13)
    fit(fitted, x, missing=True, max_iter=20)
    p = fitted._values()
    noise = p["noise"].expand(13)
    for row, mean in zip(x[:10], fitted.latents(x)[:10], strict=True):
        there = ~row.isnan()
        W, C = p["loading"][there], p["loading"][there] @ p["loading"][there].mT + torch.diag(noise[there])
        torch.testing.assert_close(mean, W.mT @ torch.linalg.solve(C, row[there] - p["loc"][there]))
    np.testing.assert_allclose(fitted.observed_log_prob(x).sum(), marginal_by_brute_force(p, x), rtol=1e-10)
    complete = fitted.observed_log_prob(wine())
    torch.testing.assert_close(complete, fitted.marginal().log_prob(wine()))


def test_noise_at_its_floor_is_reported():
    x = generated()
    x[:, 2] = 2 * x[:, 0]
    result = fit(FactorAnalysis(1, 8), x, max_iter=3000)
    assert "Heywood" in result.summary()
    at_floor = (result.params["noise"] < 2e-6 * x.var(0)).nonzero().flatten().tolist()
    assert at_floor
    assert f"for the features {', '.join(map(str, at_floor))} " in result.summary()
    assert (result.objective.diff() >= -1e-8 * result.objective[-1].abs()).all()
    assert "Heywood" not in fit(FactorAnalysis(2, 13), wine(), max_iter=100).summary()


def test_a_feature_that_is_never_seen_stays_as_it_is():
    x = wine()
    x[:, 4] = torch.nan
    model = FactorAnalysis(2, 13)
    result = fit(model, x, missing=True, max_iter=10)
    assert all(value.isfinite().all() for value in result.params.values())
    np.testing.assert_allclose(result.objective[-1], marginal_by_brute_force(result.params, x), rtol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_single_precision_far_from_zero(model):
    x = wine()
    double = fit(model(2, 13).initialize(x), x, max_iter=100, tol=0)
    torch.set_default_dtype(torch.float32)
    single = fit(model(2, 13).initialize((x + 100).float()), (x + 100).float(), max_iter=100, tol=0)
    assert abs(single.objective[-1] - double.objective[-1]) < 1e-3 * len(x)


def test_restarts_end_at_the_best():
    result = fit(FactorAnalysis(3, 13), wine(), num_restarts=3, tol=1e-7)
    assert result.restarts.shape == (3,)
    assert result.objective[-1] == result.restarts.max()


def test_varimax_is_that_of_statsmodels():
    loading = torch.randn(12, 4)
    theirs, _ = rotate_factors(loading.numpy(), "varimax", tol=1e-12)

    def criterion(w):
        return float(np.var(np.asarray(w) ** 2, axis=0).sum())

    ours = varimax(loading)
    assert criterion(ours) > criterion(theirs) - 1e-8
    torch.testing.assert_close(ours @ ours.mT, loading @ loading.mT)
    order = np.abs(ours.numpy().T @ theirs).argmax(1)
    matched = theirs[:, order]
    np.testing.assert_allclose(ours.numpy() * np.sign((ours.numpy() * matched).sum(0)), matched, atol=1e-5)


def test_varimax_of_a_model_leaves_it_as_it_is():
    model = FactorAnalysis(3, 13)
    fit(model, wine(), max_iter=30)
    before = model.loading.detach().clone()
    torch.testing.assert_close(model.varimax(), varimax(before), rtol=0, atol=0)
    torch.testing.assert_close(model.loading.detach(), before, rtol=0, atol=0)


def test_what_has_no_loading_is_refused():
    with pytest.raises(TypeError, match="loading: expected a tensor"):
        varimax([[1.0]])
    with pytest.raises(ValueError, match=r"loading: expected shape \[D, L\], got \[3\]"):
        varimax(torch.ones(3))
    with pytest.raises(ValueError, match="loading: expected finite numbers"):
        varimax(torch.tensor([[1.0, torch.nan]]))


def test_whole_numbers_are_rotated():
    loading = torch.tensor([[3, 1], [1, 2], [0, 5]])
    torch.testing.assert_close(varimax(loading), varimax(loading.double()).to(torch.get_default_dtype()))


@pytest.mark.parametrize("model", [PPCA, FactorAnalysis])
def test_no_rows_have_no_latents_and_no_entries_are_refused(model):
    fresh, nothing = model(2, 4), torch.full((5, 4), torch.nan)
    assert fresh.latents(nothing[:0]).shape == (0, 2)
    assert fresh.impute(nothing[:0]).shape == (0, 4)
    assert fresh.observed_log_prob(nothing[:0]).shape == (0,)
    assert fresh.observed_log_prob(nothing).tolist() == 5 * [0.0]
    with pytest.raises(ValueError, match="at least one entry that is not missing"):
        lvm.fit_em(fresh, nothing, missing=True, progress=False)


def test_closed_form_in_single_precision_has_the_digits_of_the_data():
    """One feature varies ten thousand times as much as the others."""
    x = torch.tensor([1e4, 1.0, 1.0]) * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    single, double = PPCA(1, 3).float().closed_form(x.float()), PPCA(1, 3).closed_form(x)
    assert single.noise.item() == pytest.approx(double.noise.item(), rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_missing_entries_come_in_batches_of_a_loader_too(model):
    x = holes(wine())
    loader = DataLoader(TensorDataset(x), batch_size=60)
    found, expected = (
        lvm.fit_em(fresh, data, missing=True, max_iter=3, progress=False)
        for fresh, data in ((model(2, 13).initialize(wine()), loader), (model(2, 13).initialize(wine()), x))
    )
    torch.testing.assert_close(found.objective, expected.objective)
    with pytest.raises(ValueError, match="online EM takes no missing entries"):
        lvm.fit_em(model(2, 13), x, missing=True, online=0.7, batch_size=30, progress=False)


def test_closed_form_without_noise_is_refused():
    with pytest.raises(ValueError, match="vary in more than 2 dimensions"):
        PPCA(2, 4).closed_form(torch.randn(20, 2) @ torch.randn(2, 4))
    with pytest.raises(ValueError, match="vary in more than 4 dimensions"):
        PPCA(4, 4).closed_form(torch.randn(20, 4))
    with pytest.raises(ValueError, match="row 1 has others"):
        PPCA(1, 2).closed_form(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]))
    with pytest.raises(ValueError, match="at least one row"):
        PPCA(1, 2).closed_form(torch.ones(0, 2))
