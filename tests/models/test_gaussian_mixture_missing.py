import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from pyro_lvm.models import _gaussian_posterior
from pyro_lvm.models._gaussian_posterior import impute, observed_log_prob
from pyro_lvm.models.gaussian_mixture_em import GaussianMixtureSteps
from pyro_lvm.models.gaussian_mixture_missing import MissingGaussianMixtureSteps

COVARIANCES = ["full", "tied", "diag", "spherical"]
N, D, K = 120, 4, 3


@pytest.fixture
def complete():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(D, D))
    return 3 * rng.normal(size=(K, D))[rng.integers(K, size=N)] + rng.normal(size=(N, D)) @ factor


@pytest.fixture
def data(complete):
    x = np.where(np.random.default_rng(1).random((N, D)) < 0.3, np.nan, complete)
    x[7] = np.nan
    x[8] = complete[8]
    return x


def start(covariance, x, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.tril(0.4 * rng.normal(size=(K, D, D)), -1) + np.eye(D) * rng.uniform(0.5, 2, size=(K, 1, D))
    values = {
        "weights": rng.dirichlet(np.full(K, 5.0)),
        "locs": np.nan_to_num(x[rng.choice(len(x), K, replace=False)]),
        **{
            "full": {"scale_tril": scales},
            "tied": {"scale_tril": scales[0]},
            "diag": {"scale": rng.uniform(0.5, 2, size=(K, D))},
            "spherical": {"scale": rng.uniform(0.5, 2, size=K)},
        }[covariance],
    }
    return {name: torch.tensor(value) for name, value in values.items()}


def matrices(params):
    if "scale_tril" in params:
        scale_tril = params["scale_tril"]
        return (scale_tril @ scale_tril.mT).expand(K, D, D).numpy()
    return params["scale"].square().reshape(K, -1).expand(K, D).diag_embed().numpy()


def by_rows(params, x):
    """Log-densities, responsibilities, and conditional means and covariances, row by row from the joint Gaussian."""
    weights, locs, covariances = params["weights"].numpy(), params["locs"].numpy(), matrices(params)
    log_joint = np.tile(np.log(weights), (len(x), 1))
    means, conditional = np.zeros((len(x), K, D)), np.zeros((len(x), K, D, D))
    for i, row in enumerate(x):
        o, m = np.flatnonzero(~np.isnan(row)), np.flatnonzero(np.isnan(row))
        for k in range(K):
            loc, covariance = locs[k], covariances[k]
            means[i, k] = np.where(np.isnan(row), loc, row)
            conditional[i, k][np.ix_(m, m)] = covariance[np.ix_(m, m)]
            if len(o):
                inside = covariance[np.ix_(o, o)]
                log_joint[i, k] += multivariate_normal.logpdf(row[o], loc[o], inside)
                gain = covariance[np.ix_(m, o)] @ np.linalg.inv(inside)
                means[i, k, m] += gain @ (row[o] - loc[o])
                conditional[i, k][np.ix_(m, m)] -= gain @ covariance[np.ix_(o, m)]
    log_p = logsumexp(log_joint, axis=1)
    return log_p, np.exp(log_joint - log_p[:, None]), means, conditional


def textbook(covariance, params, x, row_weight):
    """One iteration by the formulas of Ghahramani and Jordan."""
    _, r, means, conditional = by_rows(params, x)
    r = r * row_weight[:, None]
    counts = r.sum(0)
    locs = np.einsum("nk,nkd->kd", r, means) / counts[:, None]
    deviations = means - locs
    scatters = np.einsum("nk,nkd,nke->kde", r, deviations, deviations) + np.einsum("nk,nkde->kde", r, conditional)
    each = scatters / counts[:, None, None]
    scale = {
        "full": lambda: {"scale_tril": np.linalg.cholesky(each)},
        "tied": lambda: {"scale_tril": np.linalg.cholesky(scatters.sum(0) / counts.sum())},
        "diag": lambda: {"scale": np.sqrt(np.diagonal(each, axis1=1, axis2=2))},
        "spherical": lambda: {"scale": np.sqrt(np.trace(each, axis1=1, axis2=2) / D)},
    }[covariance]()
    values = {"weights": counts / counts.sum(), "locs": locs, **scale}
    return {name: torch.tensor(value) for name, value in values.items()}


def iterate(steps, params, x, weight=None, num_iterations=5):
    history = []
    for _ in range(num_iterations):
        sums = steps.expect(params, (x,), weight)
        history.append(sums["log_p"])
        params = steps.maximize(sums, params)
    return params, torch.stack(history)


def assert_same(one, other, rtol=1e-8, atol=1e-8):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_iteration_is_the_textbook_s(covariance, weighted, data):
    params, x = start(covariance, data), torch.tensor(data)
    row_weight = np.random.default_rng(2).uniform(0, 3, N) if weighted else np.ones(N)
    weight = torch.tensor(row_weight) if weighted else None
    result, history = iterate(MissingGaussianMixtureSteps(), params, x, weight, num_iterations=1)
    assert_same(result, textbook(covariance, params, data, row_weight))
    assert history[0].item() == pytest.approx((row_weight * by_rows(params, data)[0]).sum(), rel=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_densities_and_imputation(covariance, data):
    params, x = start(covariance, data), torch.tensor(data)
    log_p, r, means, _ = by_rows(params, data)
    torch.testing.assert_close(observed_log_prob(params, x), torch.tensor(log_p))
    filled = impute(params, x)
    torch.testing.assert_close(filled, torch.tensor(np.einsum("nk,nkd->nd", r, means)))
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_marginal_is_an_integral(covariance, complete):
    """Two entries are missing, and are integrated out on a grid of the complete density."""
    params = start(covariance, complete)
    row = torch.tensor(complete[0])
    grid = torch.linspace(-25, 25, 501, dtype=torch.float64)
    rows = row.repeat(501, 501, 1)
    rows[..., 1], rows[..., 3] = grid[:, None], grid
    density = observed_log_prob(params, rows.reshape(-1, D)).exp().reshape(501, 501)
    missing = row.clone()
    missing[[1, 3]] = torch.nan
    integral = density.sum() * 0.1**2
    torch.testing.assert_close(observed_log_prob(params, missing[None]).exp()[0], integral, rtol=1e-6, atol=0)
    mean = (density.sum(1) @ grid / density.sum(), density.sum(0) @ grid / density.sum())
    torch.testing.assert_close(impute(params, missing[None])[0, [1, 3]], torch.stack(mean), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_complete_data_give_the_plain_steps(covariance, complete):
    params, x, weight = start(covariance, complete), torch.tensor(complete), torch.rand(N, dtype=torch.float64)
    plain, plain_history = iterate(GaussianMixtureSteps(), params, x, weight)
    missing, missing_history = iterate(MissingGaussianMixtureSteps(), params, x, weight)
    assert_same(missing, plain)
    torch.testing.assert_close(missing_history, plain_history)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_row_without_entries(covariance, data):
    params, row = start(covariance, data), torch.full((1, D), torch.nan, dtype=torch.float64)
    assert observed_log_prob(params, row).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(impute(params, row)[0], params["weights"] @ params["locs"])
    assert_same(iterate(MissingGaussianMixtureSteps(), params, row)[0], params)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_log_likelihood_rises(covariance, data):
    _, history = iterate(MissingGaussianMixtureSteps(), start(covariance, data), torch.tensor(data), num_iterations=30)
    assert (history.diff() > -1e-9).all()
    assert history[-1] > history[0] + 10


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_batches_and_pieces_add_up(covariance, data, monkeypatch):
    params, x = start(covariance, data), torch.tensor(data)
    weight = torch.rand(N, dtype=torch.float64)
    steps = MissingGaussianMixtureSteps()
    whole = steps.expect(params, (x,), weight)
    parts = [steps.expect(params, (x[rows],), weight[rows]) for rows in torch.arange(N).split(33)]
    assert_same(whole, {name: sum(part[name] for part in parts) for name in whole})
    monkeypatch.setattr(_gaussian_posterior, "_NUM_ENTRIES", 5 * K * D)
    assert_same(whole, steps.expect(params, (x,), weight))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_restarts_are_single_runs(covariance, data):
    x = torch.tensor(data)
    runs = [start(covariance, data, seed) for seed in range(3)]
    stacked = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    together, history = iterate(MissingGaussianMixtureSteps(), stacked, x)
    log_prob, filled = observed_log_prob(stacked, x), impute(stacked, x)
    for i, run in enumerate(runs):
        alone, alone_history = iterate(MissingGaussianMixtureSteps(), run, x)
        assert_same({name: value[i] for name, value in together.items()}, alone)
        torch.testing.assert_close(history[:, i], alone_history)
        torch.testing.assert_close(log_prob[i], observed_log_prob(run, x))
        torch.testing.assert_close(filled[i], impute(run, x))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_single_precision(covariance, data):
    params, x = start(covariance, data), torch.tensor(data)
    single = {name: value.float() for name, value in params.items()}
    exact, _ = iterate(MissingGaussianMixtureSteps(), params, x)
    result, history = iterate(MissingGaussianMixtureSteps(), single, x.float())
    assert history.dtype == torch.float64
    assert_same(result, {name: value.float() for name, value in exact.items()}, rtol=1e-3, atol=1e-4)
    assert impute(single, x.float()).dtype == observed_log_prob(single, x.float()).dtype == torch.float32


def test_one_gaussian_with_a_monotone_pattern():
    """Anderson's closed form: the marginal of the first feature, and the regression of the second on it."""
    x = torch.randn(200, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64) + 3
    pairs = x[:120].numpy()
    x[120:, 1] = torch.nan
    params = {"weights": torch.ones(1), "locs": torch.zeros(1, 2), "scale_tril": torch.eye(2)[None]}
    params = {name: value.double() for name, value in params.items()}
    params, _ = iterate(MissingGaussianMixtureSteps(), params, x, num_iterations=200)
    first = x[:, 0].numpy()
    cov = np.cov(pairs.T, bias=True)
    slope = cov[0, 1] / cov[0, 0]
    loc = pairs[:, 1].mean() + slope * (first.mean() - pairs[:, 0].mean())
    variance = cov[1, 1] + slope**2 * (first.var() - cov[0, 0])
    expected = [[first.var(), slope * first.var()], [slope * first.var(), variance]]
    torch.testing.assert_close(params["locs"][0], torch.tensor([first.mean(), loc], dtype=torch.float64))
    covariance = params["scale_tril"][0] @ params["scale_tril"][0].mT
    torch.testing.assert_close(covariance, torch.tensor(expected, dtype=torch.float64))
