import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from pyro_lvm.models import gaussian_mixture_em
from pyro_lvm.models.gaussian_mixture_em import GaussianMixtureSteps

COVARIANCES = ["full", "tied", "diag", "spherical"]
SCALES = {"full": "scale_tril", "tied": "scale_tril", "diag": "scale", "spherical": "scale"}
N, D, K = 300, 3, 4


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(K, D, D)) + np.eye(D)
    labels = rng.integers(K, size=N)
    return 2 * rng.normal(size=(K, D))[labels] + np.einsum("nde,ne->nd", factors[labels], rng.normal(size=(N, D)))


def start(covariance, x, seed=0, num_components=K):
    """Weights, locs and covariances, in the shapes of scikit-learn."""
    rng = np.random.default_rng(seed)
    K, D = num_components, x.shape[1]
    factors = 0.3 * rng.normal(size=(K, D, D)) + np.eye(D)
    matrices = factors @ factors.transpose(0, 2, 1)
    covariances = {
        "full": matrices,
        "tied": matrices[0],
        "diag": rng.uniform(0.5, 2, size=(K, D)),
        "spherical": rng.uniform(0.5, 2, size=K),
    }[covariance]
    return rng.dirichlet(np.full(K, 5.0)), x[rng.choice(len(x), K, replace=False)], covariances


def as_params(covariance, weights, locs, covariances, dtype=torch.float64):
    root = np.linalg.cholesky if SCALES[covariance] == "scale_tril" else np.sqrt
    values = {"weights": weights, "locs": locs, SCALES[covariance]: root(covariances)}
    return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}


def matrices(params):
    """Covariances `[K, D, D]` of parameters of any type."""
    K, D = params["locs"].shape
    if "scale_tril" in params:
        scale_tril = params["scale_tril"].double()
        return (scale_tril @ scale_tril.mT).expand(K, D, D)
    return params["scale"].double().square().reshape(K, -1).expand(K, D).diag_embed()


def iterate(params, x, weight=None, num_iterations=5, steps=None):
    """Parameters after some iterations, and the log-likelihood before each."""
    steps = steps or GaussianMixtureSteps()
    history = []
    for _ in range(num_iterations):
        sums = steps.expect(params, (x,), weight)
        history.append(sums["log_p"])
        params = steps.maximize(sums, params)
    return params, torch.stack(history)


def assert_same(one, other, rtol=1e-9, atol=1e-9):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


def textbook(covariance, weights, locs, covariances, x, row_weight):
    """One iteration by the formulas of Bishop's book, and the log-likelihood."""
    full = matrices(as_params(covariance, weights, locs, covariances)).numpy()
    K, D = locs.shape
    log_joint = np.stack(
        [np.log(weights[k]) + multivariate_normal.logpdf(x, locs[k], full[k]) for k in range(K)], axis=1
    )
    log_p = logsumexp(log_joint, axis=1)
    r = np.exp(log_joint - log_p[:, None]) * row_weight[:, None]
    counts = r.sum(0)
    new_locs = (r.T @ x) / counts[:, None]
    scatters = np.stack([(r[:, k, None] * (x - new_locs[k])).T @ (x - new_locs[k]) for k in range(K)])
    each = scatters / counts[:, None, None]
    new_covariances = {
        "full": each,
        "tied": scatters.sum(0) / counts.sum(),
        "diag": np.diagonal(each, axis1=1, axis2=2),
        "spherical": np.trace(each, axis1=1, axis2=2) / D,
    }[covariance]
    return counts / counts.sum(), new_locs, new_covariances, (row_weight * log_p).sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_iteration_is_the_textbook_s(covariance, weighted, data):
    values = start(covariance, data)
    row_weight = np.random.default_rng(1).uniform(0, 3, N) if weighted else np.ones(N)
    *expected, log_likelihood = textbook(covariance, *values, data, row_weight)
    weight = torch.tensor(row_weight) if weighted else None
    params, history = iterate(as_params(covariance, *values), torch.tensor(data), weight, num_iterations=1)
    assert_same(params, as_params(covariance, *expected))
    assert history[0].item() == pytest.approx(log_likelihood, rel=1e-12)


@pytest.mark.filterwarnings("ignore", category=ConvergenceWarning)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_scikit_learn_from_the_same_start(covariance, data):
    weights, locs, covariances = start(covariance, data)
    precisions = np.linalg.inv(covariances) if SCALES[covariance] == "scale_tril" else 1 / covariances
    sklearn = SklearnMixture(
        K,
        covariance_type=covariance,
        reg_covar=0,
        tol=0,
        max_iter=8,
        weights_init=weights,
        means_init=locs,
        precisions_init=precisions,
    ).fit(data)
    x = torch.tensor(data)
    params, _ = iterate(as_params(covariance, weights, locs, covariances), x, num_iterations=8)
    assert_same(params, as_params(covariance, sklearn.weights_, sklearn.means_, sklearn.covariances_), rtol=1e-6)
    log_p = GaussianMixtureSteps().expect(params, (x,), None)["log_p"].item() / N
    assert log_p == pytest.approx(sklearn.score(data), abs=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_weights_are_repeats(covariance, data):
    params, x = as_params(covariance, *start(covariance, data)), torch.tensor(data)
    repeats = torch.randint(0, 4, (N,))
    weighted, weighted_history = iterate(params, x, repeats.double())
    repeated, repeated_history = iterate(params, x.repeat_interleave(repeats, 0))
    assert_same(weighted, repeated)
    torch.testing.assert_close(weighted_history, repeated_history)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_batches_add_up(covariance, data):
    params, x = as_params(covariance, *start(covariance, data)), torch.tensor(data)
    weight = torch.rand(N, dtype=torch.float64)
    steps = GaussianMixtureSteps()
    whole = steps.expect(params, (x,), weight)
    parts = [steps.expect(params, (x[rows],), weight[rows]) for rows in torch.arange(N).split(77)]
    assert_same(whole, {name: sum(part[name] for part in parts) for name in whole})
    assert all(value.dtype == torch.float64 for value in whole.values())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_chunks_add_up(covariance, data, monkeypatch):
    params, x = as_params(covariance, *start(covariance, data)), torch.tensor(data)
    weight = torch.rand(N, dtype=torch.float64)
    whole = GaussianMixtureSteps().expect(params, (x,), weight)
    monkeypatch.setattr(gaussian_mixture_em, "_MAX_ROWS", 70)
    assert_same(GaussianMixtureSteps().expect(params, (x,), weight), whole)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_log_likelihood_rises(covariance, data):
    _, history = iterate(as_params(covariance, *start(covariance, data)), torch.tensor(data), num_iterations=30)
    assert (history.diff() > -1e-9).all()
    assert history[-1] > history[0] + 10


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_restarts_are_single_runs(covariance, weighted, data):
    x = torch.tensor(data)
    weight = torch.rand(N, dtype=torch.float64) if weighted else None
    runs = [as_params(covariance, *start(covariance, data, seed)) for seed in range(3)]
    together, history = iterate({name: torch.stack([run[name] for run in runs]) for name in runs[0]}, x, weight)
    assert history.shape == (5, 3)
    for i, run in enumerate(runs):
        alone, alone_history = iterate(run, x, weight)
        assert_same({name: value[i] for name, value in together.items()}, alone)
        torch.testing.assert_close(history[:, i], alone_history)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_single_precision(covariance, data):
    values = start(covariance, data)
    exact, exact_history = iterate(as_params(covariance, *values), torch.tensor(data))
    params, history = iterate(as_params(covariance, *values, torch.float32), torch.tensor(data, dtype=torch.float32))
    assert all(value.dtype == torch.float32 for value in params.values())
    assert_same({name: value.double() for name, value in params.items()}, exact, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(history, exact_history, rtol=1e-5, atol=0)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_single_precision_far_from_zero(covariance, data):
    weights, locs, covariances = start(covariance, data)
    x = torch.tensor(data + 1e4, dtype=torch.float32)
    params = as_params(covariance, weights, locs + 1e4, covariances, torch.float32)
    exact, exact_history = iterate({name: value.double() for name, value in params.items()}, x.double())
    params, history = iterate(params, x)
    torch.testing.assert_close(matrices(params), matrices(exact), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(history, exact_history, rtol=1e-4, atol=0)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_single_precision_of_components_far_apart(covariance):
    noise = torch.randn(400, 2, dtype=torch.float64)
    x = (noise + torch.tensor([[-2e4], [2e4]]).repeat(200, 2)).float()
    locs = np.array([[-2e4, -2e4], [2e4, 2e4]])
    _, _, covariances = start(covariance, noise.numpy(), num_components=2)
    params, _ = iterate(as_params(covariance, np.full(2, 0.5), locs, covariances, torch.float32), x, num_iterations=2)
    rows = x.double().reshape(200, 2, 2)
    each = torch.stack([rows[:, k].T.cov(correction=0) for k in range(2)])
    expected = {
        "full": each,
        "tied": each.mean(0).expand(2, 2, 2),
        "diag": each.diagonal(dim1=1, dim2=2).diag_embed(),
        "spherical": each.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(2, 2).diag_embed(),
    }[covariance]
    torch.testing.assert_close(matrices(params), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_component_without_weight_stays(covariance, data):
    weights, locs, covariances = start(covariance, data)
    locs = np.concatenate([locs[:-1], np.full((1, D), 1e3)])
    params = as_params(covariance, weights, locs, covariances)
    result, history = iterate(params, torch.tensor(data), num_iterations=3)
    assert result["weights"][-1] == 0
    assert result["weights"].sum().item() == pytest.approx(1)
    torch.testing.assert_close(result["locs"][-1], params["locs"][-1], rtol=0, atol=0)
    if covariance != "tied":
        torch.testing.assert_close(matrices(result)[-1], matrices(params)[-1])
    assert all(value.isfinite().all() for value in result.values())
    assert (history.diff() > 0).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_singular_covariance_is_kept(covariance, data):
    params = as_params(covariance, *start(covariance, data))
    x = torch.ones(10, D, dtype=torch.float64)
    result, history = iterate(params, x, num_iterations=4)
    torch.testing.assert_close(matrices(result), matrices(params))
    torch.testing.assert_close(result["locs"], torch.ones_like(result["locs"]))
    assert (history.diff() > -1e-9).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_floor_is_a_constrained_maximum(covariance, data):
    """Of the expected log-density: nothing near it that satisfies the constraint is better."""
    weights, locs, covariances = start(covariance, data)
    params, x = as_params(covariance, weights, locs, 100 * covariances), torch.tensor(data)
    sums = GaussianMixtureSteps().expect(params, (x,), None)
    free = GaussianMixtureSteps().maximize(sums, params)
    floor = 1.1 * float(torch.linalg.eigvalsh(matrices(free)).min())
    bound = GaussianMixtureSteps(floor).maximize(sums, params)
    assert torch.linalg.eigvalsh(matrices(bound)).min().item() == pytest.approx(floor)

    total = sums["counts"].sum() if covariance == "tied" else sums["counts"]
    scatters, bounded = matrices(free), matrices(bound)
    n = total.expand(K)

    def expected_log_density(covariances):
        trace = torch.linalg.solve(covariances, scatters).diagonal(dim1=1, dim2=2).sum(1)
        return -0.5 * (n * (torch.logdet(covariances) + trace)).sum()

    best = expected_log_density(bounded)
    for _ in range(200):
        other = 0.02 * torch.randn(K, D, D, dtype=torch.float64)
        step = {
            "full": other + other.mT,
            "tied": (other[0] + other[0].mT).expand(K, D, D),
            "diag": other.diagonal(dim1=1, dim2=2).diag_embed(),
            "spherical": other[:, 0, :1].expand(K, D).diag_embed(),
        }[covariance]
        variances, axes = torch.linalg.eigh(bounded + step)
        near = axes * variances.clamp_min(floor).unsqueeze(1) @ axes.mT
        assert expected_log_density(near) <= best + 1e-9


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_start_below_the_floor_lowers_it(covariance, data):
    x = torch.tensor(data)
    params, steps = as_params(covariance, *start(covariance, data)), GaussianMixtureSteps(1e3)
    least = torch.linalg.eigvalsh(matrices(params)).min()
    result, history = iterate(params, x, steps=steps)
    assert (history.diff() > -1e-9).all()
    assert torch.linalg.eigvalsh(matrices(result)).min() > least - 1e-9


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_floor_below_all_variances_changes_nothing(covariance, data):
    params, x = as_params(covariance, *start(covariance, data)), torch.tensor(data)
    assert_same(iterate(params, x, steps=GaussianMixtureSteps(1e-6))[0], iterate(params, x)[0])


def test_a_floor_stops_a_collapse(data):
    x = torch.tensor(np.concatenate([data, np.full((5, D), 50.0)]))
    weights, locs, covariances = start("full", data)
    params = as_params("full", weights, np.concatenate([locs[1:], np.full((1, D), 50.0)]), covariances)
    result, _ = iterate(params, x, num_iterations=10, steps=GaussianMixtureSteps(1e-3))
    torch.testing.assert_close(matrices(result)[-1], 1e-3 * torch.eye(D, dtype=torch.float64))


def test_one_component_finds_the_sample_moments(data):
    for covariance in COVARIANCES:
        params, _ = iterate(as_params(covariance, *start(covariance, data, num_components=1)), torch.tensor(data))
        torch.testing.assert_close(params["locs"][0], torch.tensor(data.mean(0)))
        if covariance in ("full", "tied"):
            torch.testing.assert_close(matrices(params)[0], torch.tensor(np.cov(data.T, bias=True)))


def test_rows_on_disk(data, tmp_path):
    np.save(tmp_path / "x.npy", data)
    params = as_params("full", *start("full", data))
    x = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    assert_same(iterate(params, x)[0], iterate(params, torch.tensor(data))[0])


@pytest.mark.parametrize(
    ("dtype", "far"), [(torch.float64, 0.0), (torch.float64, 1e7), (torch.float32, 0.0), (torch.float32, 1e3)]
)
@pytest.mark.parametrize("shape", [(3_000, 3, 3), (10_000, 2, 2), (10_000, 2, 100), (2_000, 64, 64)])
def test_rows_far_from_all_others_lose_no_digits(dtype, far, shape):
    """Moments of rows near the centre come from products of features, of others from their distances."""
    N, D, K = shape
    generator = torch.Generator().manual_seed(0)
    locs = 3 * torch.randn(K, D, generator=generator, dtype=torch.float64)
    x = locs[torch.arange(N) % (K - 1)] + torch.randn(N, D, generator=generator, dtype=torch.float64)
    locs[-1] = x[-1] = far
    x = x.to(dtype)
    params = {
        "weights": torch.ones(K, dtype=dtype) / K,
        "locs": locs.to(dtype),
        "scale_tril": torch.eye(D, dtype=dtype).expand(K, D, D) + 0.1 * torch.ones(K, D, D, dtype=dtype).tril(),
    }
    found = GaussianMixtureSteps().expect(params, (x,), None)
    deviation = x.double().unsqueeze(1) - params["locs"].double()
    by_component = deviation.permute(1, 2, 0)
    noise = torch.linalg.solve_triangular(params["scale_tril"].double(), by_component, upper=False).permute(2, 0, 1)
    log_det = params["scale_tril"].double().diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_joint = params["weights"].double().log() - log_det - 0.5 * noise.square().sum(-1) - D / 2 * np.log(2 * np.pi)
    share = log_joint.softmax(-1)
    tolerance = {"rtol": 1e-9, "atol": 1e-7} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 3e-2}
    torch.testing.assert_close(found["log_p"], log_joint.logsumexp(-1).sum(), **tolerance)
    torch.testing.assert_close(found["counts"], share.sum(0), **tolerance)
    rows = (share.sqrt().unsqueeze(-1) * noise).transpose(0, 1)
    torch.testing.assert_close(found["second"], rows.mT @ rows, **tolerance)
