import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import sklearn.cluster
import sklearn.datasets
import sklearn.mixture
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from pyro_lvm.models import GaussianMixture

COVARIANCES = ["full", "tied", "diag", "spherical"]


def no_guide(x):
    pass


def log_likelihood(model, x):
    return -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, no_guide, x)


def full_covariances(covariance, value, K, D):
    """Covariances in scikit-learn's shapes, as matrices [K, D, D]."""
    value = np.asarray(value)
    return {
        "full": lambda: value,
        "tied": lambda: np.stack([value] * K),
        "diag": lambda: np.stack([np.diag(row) for row in value]),
        "spherical": lambda: np.stack([entry * np.eye(D) for entry in value]),
    }[covariance]()


def random_values(covariance, K, D, seed=0):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(K, D, D))
    matrices = factors @ factors.transpose(0, 2, 1) + 0.5 * np.eye(D)
    covariances = {
        "full": matrices,
        "tied": matrices[0],
        "diag": rng.uniform(0.2, 3, size=(K, D)),
        "spherical": rng.uniform(0.2, 3, size=K),
    }[covariance]
    return rng.dirichlet(np.ones(K)), rng.normal(size=(K, D)), covariances


def random_mixture(covariance, K, D, dtype=torch.float64, seed=0):
    model = GaussianMixture(K, D, covariance=covariance).to(dtype)
    model.weights, model.locs, model.covariances = random_values(covariance, K, D, seed)
    return model


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("N, K, D", [(7, 3, 2), (5, 1, 3), (6, 3, 1), (1, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_likelihood_is_the_mixture_density(covariance, N, K, D, dtype, rtol, param_setting):
    weights, locs, covariances = random_values(covariance, K, D)
    model = random_mixture(covariance, K, D, dtype)
    x = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    matrices = full_covariances(covariance, covariances, K, D)
    logs = [
        np.log(weights[k]) + np.atleast_1d(multivariate_normal(locs[k], matrices[k]).logpdf(x.astype(float)))
        for k in range(K)
    ]
    value = log_likelihood(model, torch.as_tensor(x, dtype=dtype))
    assert value.dtype == dtype
    assert value.item() == pytest.approx(logsumexp(logs, axis=0).sum(), rel=rtol)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_likelihood_sums_the_joint_over_all_assignments(covariance, log_joint):
    N, K, D = 3, 3, 2
    model = random_mixture(covariance, K, D)
    x = torch.randn(N, D, dtype=torch.float64)
    logs = [log_joint(model)({"z": torch.tensor(z)}, x) for z in itertools.product(range(K), repeat=N)]
    torch.testing.assert_close(log_likelihood(model, x), torch.stack(logs).logsumexp(0))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_values_of_scikit_learn_give_its_scores(covariance):
    x = np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0, 0], [4, 4]], 30, axis=0)
    theirs = sklearn.mixture.GaussianMixture(2, covariance_type=covariance, random_state=0).fit(x)
    ours = GaussianMixture(2, 2, covariance=covariance).double()
    ours.weights, ours.locs, ours.covariances = theirs.weights_, theirs.means_, theirs.covariances_
    assert ours.covariances.shape == theirs.covariances_.shape
    np.testing.assert_allclose(ours.covariances.detach(), theirs.covariances_, rtol=1e-12)
    assert log_likelihood(ours, torch.as_tensor(x)).item() == pytest.approx(theirs.score(x) * 60, rel=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gradient_is_that_of_the_density(covariance, param_setting):
    K, D = 3, 2
    model = random_mixture(covariance, K, D)
    x = torch.randn(8, D, dtype=torch.float64)
    params = dict(model.named_parameters())
    actual = torch.autograd.grad(log_likelihood(model, x), list(params.values()))

    scales = torch.eye(D, dtype=x.dtype) if covariance == "spherical" else 1.0
    matrices = {
        "full": lambda: model.covariances,
        "tied": lambda: model.covariances.expand(K, D, D),
        "diag": lambda: torch.diag_embed(model.covariances),
        "spherical": lambda: model.covariances[:, None, None] * scales,
    }[covariance]()
    deviations = x[:, None] - model.locs  # [N, K, D]
    squares = torch.einsum("nkd,kde,nke->nk", deviations, torch.linalg.inv(matrices), deviations)
    logs = -0.5 * (squares + torch.logdet(matrices) + D * math.log(2 * math.pi)) + model.weights.log()
    expected = torch.autograd.grad(logs.logsumexp(-1).sum(), list(params.values()))
    for name, one, other in zip(params, actual, expected, strict=True):
        assert other.abs().sum() > 0, name
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_maps_and_traces(covariance, param_setting, check_transforms):
    model = random_mixture(covariance, 3, 2)
    x = torch.randn(5, 2, dtype=torch.float64)
    check_transforms(model, {"z": torch.randint(3, (4, 5))}, x)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_fit_by_plain_pyro_reaches_the_maximum_of_scikit_learn(covariance, param_setting):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 2)) - 3, 0.5 * rng.normal(size=(80, 2)) + 2])
    theirs = sklearn.mixture.GaussianMixture(2, covariance_type=covariance, random_state=0, tol=1e-9).fit(x)
    data = torch.as_tensor(x, dtype=torch.float32)
    model = GaussianMixture(2, 2, covariance=covariance).initialize(data)
    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(data) for _ in range(300)]
    assert losses[-1] < losses[0]
    assert losses[-1] / len(x) == pytest.approx(-theirs.score(x), abs=2e-3)


def test_draws_follow_the_mixture():
    model = GaussianMixture(2, 1)
    model.weights, model.locs, model.covariances = [0.25, 0.75], [[-5.0], [5.0]], [[[1.0]], [[4.0]]]
    trace = poutine.trace(poutine.uncondition(model)).get_trace(torch.zeros(4000, 1))
    z, x = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
    assert trace.nodes["z"]["infer"] == {"enumerate": "parallel"}
    assert z.double().mean() == pytest.approx(0.75, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    assert x[z == 1].mean().item() == pytest.approx(5, abs=4 * 2 / math.sqrt(3000))
    assert x[z == 1].std().item() == pytest.approx(2, abs=4 * 2 / math.sqrt(2 * 3000))
    assert x[z == 0].std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * 1000))


def test_a_row_plate_of_the_rows_at_hand():
    trace = poutine.trace(GaussianMixture(2, 3)).get_trace(torch.zeros(5, 3))
    for name in ("z", "x"):
        (plate,) = trace.nodes[name]["cond_indep_stack"]
        assert (plate.name, plate.size, plate.dim) == ("rows", 5, -1)


def test_integers_are_rows_too():
    model = random_mixture("full", 2, 2, torch.float32)
    x = torch.tensor([[0, 1], [2, -1]])
    torch.testing.assert_close(log_likelihood(model, x), log_likelihood(model, x.float()))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_default_start(covariance):
    model = GaussianMixture(3, 2, covariance=covariance)
    assert not model.initialized
    torch.testing.assert_close(model.weights, torch.full((3,), 1 / 3))
    matrices = full_covariances(covariance, model.covariances.detach(), 3, 2)
    np.testing.assert_allclose(matrices, np.stack([np.eye(2)] * 3))


def test_default_start_follows_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert {value.dtype for value in GaussianMixture(3, 2).parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


# Assigning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_assigned_values_read_back(covariance, param_setting):
    values = random_values(covariance, 3, 2)
    model = GaussianMixture(3, 2, covariance=covariance).double()
    for name, value in zip(["weights", "locs", "covariances"], values, strict=True):
        setattr(model, name, value)
        np.testing.assert_allclose(getattr(model, name).detach(), value, rtol=1e-12)
        assert model.initialized
    before = log_likelihood(model, torch.zeros(1, 2, dtype=torch.float64))
    model.locs = np.asarray(values[1]) + 1  # after the parameters went through Pyro's store
    assert log_likelihood(model, torch.zeros(1, 2, dtype=torch.float64)) != before


def test_an_assigned_tensor_is_copied():
    model, locs = GaussianMixture(2, 2), torch.zeros(2, 2)
    model.locs = locs
    locs += 1
    torch.testing.assert_close(model.locs, torch.zeros(2, 2))


def test_the_start_is_known_after_loading_and_copying():
    model = random_mixture("diag", 2, 2, torch.float32)
    other = GaussianMixture(2, 2, covariance="diag")
    other.load_state_dict(model.state_dict())
    assert other.initialized
    assert copy.deepcopy(model).initialized
    torch.testing.assert_close(copy.deepcopy(model).covariances, other.covariances)


def test_weights_may_be_zero():
    model = GaussianMixture(3, 1)
    model.weights = [0.0, 1.0, 0.0]
    torch.testing.assert_close(model.weights, torch.tensor([0.0, 1.0, 0.0]))
    assert log_likelihood(model, torch.zeros(1, 1)).isfinite()


NAN = float("nan")
PSD = "covariances: expected positive definite matrices"


@pytest.mark.parametrize(
    "covariance, name, value, message",
    [
        ("full", "weights", [0.5, 0.4], r"weights: expected non-negative numbers that sum to 1, got \[0.5"),
        ("full", "weights", [1.5, -0.5], "weights: expected non-negative numbers that sum to 1, got"),
        ("full", "weights", [0.2, 0.3, 0.5], r"weights: expected shape \[2\], got \[3\]"),
        ("full", "weights", [NAN, 1.0], "weights: expected finite values, got nan"),
        ("full", "locs", [[0.0, 0.0]], r"locs: expected shape \[2, 2\], got \[1, 2\]"),
        ("full", "locs", [[0.0, math.inf], [0.0, 0.0]], "locs: expected finite values, got inf"),
        ("full", "scale_tril", [[[1.0, 1.0], [0.0, 1.0]]] * 2, "scale_tril: expected lower triangular matr"),
        ("diag", "scale", [[1.0, 0.0], [1.0, 1.0]], r"scale: expected positive numbers, got \[\[1.0, 0.0\]"),
        ("full", "covariances", np.eye(2), r"shape \[2, 2, 2\] for covariance='full', got \[2, 2\]"),
        ("tied", "covariances", np.ones(2), r"shape \[2, 2\] for covariance='tied', got \[2\]"),
        ("diag", "covariances", np.ones(2), r"shape \[2, 2\] for covariance='diag', got \[2\]"),
        ("spherical", "covariances", np.eye(2), r"shape \[2\] for covariance='spherical', got \[2, 2\]"),
        ("full", "covariances", [np.eye(2), [[1, 2], [2, 1]]], PSD + ", component 1 is not"),
        ("tied", "covariances", [[1.0, 2.0], [2.0, 1.0]], PSD + "$"),
        ("tied", "covariances", [[1.0, 0.0], [0.5, 1.0]], "covariances: expected symmetric matrices"),
        ("full", "covariances", np.full((2, 2, 2), NAN), "covariances: expected finite values, got nan"),
        ("diag", "covariances", [[1.0, 1.0], [0.0, 1.0]], "covariances: expected positive variances, got 0"),
        ("spherical", "covariances", [1.0, -1.0], "covariances: expected positive variances, got -1"),
    ],
)
def test_assignments_are_checked(covariance, name, value, message):
    model = GaussianMixture(2, 2, covariance=covariance)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        setattr(model, name, np.asarray(value))
    assert not model.initialized
    for key, old in before.items():
        torch.testing.assert_close(model.state_dict()[key], old, rtol=0, atol=0)


# Starting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_initialize_finds_separate_clusters(covariance, dtype):
    rng = np.random.default_rng(0)
    centres, stds, counts = np.array([[-9.0, 0.0], [0.0, 9.0], [9.0, 0.0]]), [0.5, 1.0, 2.0], [200, 300, 500]
    clusters = [
        centre + std * rng.normal(size=(count, 2)) for centre, std, count in zip(centres, stds, counts, strict=True)
    ]
    x = torch.as_tensor(np.concatenate(clusters), dtype=dtype)
    model = GaussianMixture(3, 2, covariance=covariance).to(dtype)
    assert model.initialize(x, seed=1) is model
    assert model.initialized
    assert {value.dtype for value in model.parameters()} == {dtype}
    order = model.locs[:, 0].argsort()
    np.testing.assert_allclose(model.locs.detach()[order], centres, atol=0.3)
    np.testing.assert_allclose(model.weights.detach()[order], [0.2, 0.3, 0.5], atol=0.01)
    variances = np.array([cluster.var(0).mean() for cluster in clusters])
    expected = {
        "full": variances[:, None, None] * np.eye(2),
        "tied": np.average(variances, weights=counts) * np.eye(2),
        "diag": variances[:, None] * np.ones(2),
        "spherical": variances,
    }[covariance]
    # sampling error of the covariances, and a pseudo-row of variance 20 over at least 200 rows
    actual = model.covariances.detach() if covariance == "tied" else model.covariances.detach()[order]
    np.testing.assert_allclose(actual, expected, atol=0.3)


def test_initialize_is_the_documented_formula():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [100.0, 50.0]], dtype=torch.float64)
    model = GaussianMixture(2, 2).double().initialize(x)
    first = int(model.locs[:, 0].argmin())
    torch.testing.assert_close(model.locs[first].tolist(), [1.0, 0.0])
    torch.testing.assert_close(model.weights[[first, 1 - first]].tolist(), [3 / 5, 2 / 5])
    pseudo = np.diag(x.numpy().var(0)) / 2
    np.testing.assert_allclose(model.covariances[first].detach(), (np.diag([2.0, 0.0]) + pseudo) / 3)
    np.testing.assert_allclose(model.covariances[1 - first].detach(), pseudo / 2)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(
    "x, K",
    [
        (torch.tensor([[3.0, 4.0]]), 1),
        (torch.ones(6, 2), 3),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), 3),
        (torch.tensor([[0.0, 1.0]] * 50 + [[5.0, 1.0]]), 3),
        (1e-8 * torch.tensor([[0.0, 1.0], [3.0, 5.0], [2.0, 2.0], [1.0, 7.0]]), 2),
        (torch.tensor([[0, 1], [3, 5], [2, 2], [1, 7]]), 2),
    ],
    ids=["one row", "all equal", "a row each", "fewer distinct rows", "small", "integers"],
)
def test_initialize_survives_poor_data(covariance, x, K):
    model = GaussianMixture(K, 2, covariance=covariance).initialize(x)
    assert all(value.isfinite().all() for value in model.parameters())
    assert log_likelihood(model, x).isfinite()


def test_initialize_is_seeded_and_leaves_random_states_alone():
    x = torch.randn(200, 3)
    numpys = np.random.get_state()[1].copy()
    first, again, other = (GaussianMixture(5, 3, "diag").initialize(x, seed=seed).locs.detach() for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    np.testing.assert_array_equal(np.random.get_state()[1], numpys)
    model = GaussianMixture(5, 3)
    state = torch.get_rng_state()
    model.initialize(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 2), "x: expected at least as many rows as components, 3, got 2"),
        (torch.tensor([[0.0, 0.0]] * 4 + [[NAN, 0.0]]), "x: expected finite values, row 4 has others"),
        (torch.zeros(5, 3), r"x: expected shape \[N, 2\], got \[5, 3\]"),
    ],
)
def test_initialize_refuses_wrong_data(x, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(3, 2).initialize(x)


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((0, 2), ValueError, "num_components must be a positive integer; got 0"),
        ((2, -1), ValueError, "num_features must be a positive integer; got -1"),
        ((2.0, 2), TypeError, "num_components must be a positive integer; got 2.0"),
        ((2, "3"), TypeError, "num_features must be a positive integer; got '3'"),
        ((True, 2), TypeError, "num_components must be a positive integer; got True"),
        (
            (2, 2, "round"),
            ValueError,
            "covariance: expected one of 'full', 'tied', 'diag', 'spherical', got 'round'",
        ),
        ((2, 2, None), ValueError, "covariance: expected one of 'full', .*, got None"),
    ],
)
def test_constructor_refuses_wrong_arguments(args, error, message):
    with pytest.raises(error, match=message):
        GaussianMixture(*args)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(4), ValueError, r"x: expected shape \[N, 2\], got \[4\]"),
        (torch.zeros(4, 3), ValueError, r"x: expected shape \[N, 2\], got \[4, 3\]"),
        (torch.zeros(4, 2).double(), ValueError, "x: expected torch.float32, the dtype of the model, got torch"),
        (np.zeros((4, 2)), TypeError, r"x: expected a tensor of shape \[N, 2\], got ndarray"),
    ],
)
def test_model_refuses_wrong_rows(x, error, message):
    with pytest.raises(error, match=message):
        GaussianMixture(2, 2)(x)


def test_initialize_keeps_the_tightest_clusters():
    """On iris about one run of k-means in ten ends in a poor optimum; scikit-learn's best of 50 is the reference."""
    x = sklearn.datasets.load_iris().data
    best = sklearn.cluster.KMeans(3, n_init=50, random_state=0).fit(x)
    expected = np.sort((np.bincount(best.labels_) + 1) / 153)
    for seed in range(5):
        mixture = GaussianMixture(3, 4).double().initialize(torch.tensor(x), seed=seed)
        np.testing.assert_allclose(np.sort(mixture.weights.detach()), expected, atol=1.5 / 153)  # one row may waver
