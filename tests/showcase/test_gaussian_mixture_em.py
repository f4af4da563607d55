"""`fit_em` on Gaussian mixtures against scikit-learn, in starts, paths and the filling of holes."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

import pyro_lvm as lvm

COVARIANCES = ["full", "tied", "diag", "spherical"]


@pytest.fixture(autouse=True)
def _double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def wine():
    x = load_wine().data
    return torch.tensor((x - x.mean(0)) / x.std(0))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("weighted", [False, True])
def test_iris_from_the_start_of_scikit_learn(covariance, weighted):
    x = load_iris().data
    x = x + 0.01 * np.random.default_rng(0).normal(size=x.shape)  # rows that are alike make a scatter singular
    weight = np.random.default_rng(1).integers(1, 4, len(x)) if weighted else np.ones(len(x), int)
    mixture = lvm.models.GaussianMixture(3, 4, covariance=covariance).initialize(x)
    inverse = torch.linalg.inv if covariance in ("full", "tied") else torch.reciprocal
    theirs = SklearnMixture(
        3,
        covariance_type=covariance,
        reg_covar=0,
        tol=0,
        max_iter=60,
        weights_init=mixture.weights.detach().numpy(),
        means_init=mixture.locs.detach().numpy(),
        precisions_init=inverse(mixture.covariances.detach()).numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(x.repeat(weight, axis=0))
    options = {"sample_weight": weight} if weighted else {}
    em = lvm.fit_em(mixture, x, tol=0, max_iter=60, progress=False, **options)
    assert float(em.objective[-1]) / weight.sum() == pytest.approx(theirs.score(x.repeat(weight, axis=0)), abs=1e-6)


@pytest.mark.parametrize(
    ("covariance", "num_components"),
    [("full", 1), pytest.param("full", 2, marks=pytest.mark.slow), ("tied", 3), ("diag", 3), ("spherical", 3)],
)
def test_holes_in_wine_are_filled_better_than_by_means(covariance, num_components):
    x = wine()
    gone = torch.tensor(np.random.default_rng(0).random(x.shape) < 0.2)
    holes = x.masked_fill(gone, torch.nan)
    mixture = lvm.models.GaussianMixture(num_components, 13, covariance=covariance)
    em = lvm.fit_em(mixture, holes, missing=True, tol=1e-5, progress=False)
    assert (em.objective.diff() > -1e-8).all()
    error, by_means = ((f - x)[gone].square().mean() for f in (mixture.impute(holes), holes.nanmean(0).expand_as(x)))
    print(f"{covariance}: {error:.3f}, by means {by_means:.3f}")
    assert error < 0.75 * by_means


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_nothing_missing_is_plain_em(covariance):
    x = wine()
    fits = []
    for missing in (False, True):
        mixture = lvm.models.GaussianMixture(3, 13, covariance=covariance)
        fits.append(lvm.fit_em(mixture, x, missing=missing, max_iter=15, tol=0, progress=False))
    torch.testing.assert_close(fits[0].objective, fits[1].objective, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fits[0].params, fits[1].params, rtol=1e-6, atol=1e-8)


def apart(rng, count, least):
    """Locs in a square, no two of them nearer than this."""
    locs = [rng.uniform(-8, 8, 2)]
    while len(locs) < count:
        new = rng.uniform(-8, 8, 2)
        if np.linalg.norm(new - locs, axis=1).min() > least:
            locs.append(new)
    return np.array(locs)


def recovers(found, locs):
    """Whether every loc has one of its own within half a standard deviation."""
    distance = np.linalg.norm(found[:, None] - locs, axis=-1)
    return distance[linear_sum_assignment(distance)].max() < 0.5


def test_components_of_ten_mixtures_are_recovered_as_often_as_by_scikit_learn():
    ours, theirs = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        locs = apart(rng, 8, 3.5)
        x = locs[rng.integers(8, size=800)] + rng.normal(size=(800, 2))
        em = lvm.fit_em(lvm.models.GaussianMixture(8, 2), x, seed=seed, progress=False)
        ours.append(recovers(em.params["locs"].numpy(), locs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            sklearn = SklearnMixture(8, init_params="k-means++", max_iter=200, tol=1e-6, random_state=seed).fit(x)
        theirs.append(recovers(sklearn.means_, locs))
    print(f"recovered: {sum(ours)} of ten, by scikit-learn {sum(theirs)}")
    assert 0 < sum(theirs) < 10, "too easy or too hard to tell"
    assert sum(ours) >= sum(theirs)
