"""Mixtures of normal distributions take the path of scikit-learn's, whatever their components share."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from .checks import assert_at_the_top, assert_closed, assert_rises, fit

K, D = 3, 2
SCALES = {
    "full": (lambda: torch.eye(D).repeat(K, 1, 1), constraints.lower_cholesky),
    "tied": (lambda: torch.eye(D), constraints.lower_cholesky),
    "diag": (lambda: torch.ones(K, D), constraints.positive),
    "spherical": (lambda: torch.ones(K), constraints.positive),
}


def rows():
    labels = torch.arange(240) % K
    factors = torch.tensor([[[1.0, 0.0], [0.5, 0.8]], [[0.6, 0.0], [-0.4, 1.2]], [[1.5, 0.0], [0.0, 0.5]]])
    locs = torch.tensor([[0.0, 0.0], [4.0, 3.0], [-3.0, 4.0]])
    return locs[labels] + (factors[labels] @ torch.randn(240, D, 1)).squeeze(-1)


def mixture(kind):
    scale, constraint = SCALES[kind]

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([[1.0, 0.0], [3.0, 1.0], [-1.0, 2.0]]), constraint=constraints.real)
        spread = pyro.param("spread", scale, constraint=constraint)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            if kind == "full":
                components = dist.MultivariateNormal(loc[z], scale_tril=spread[z])
            elif kind == "tied":
                components = dist.MultivariateNormal(loc[z], scale_tril=spread)
            elif kind == "diag":
                components = dist.Normal(loc[z], spread[z]).to_event(1)
            else:
                components = dist.Normal(loc[z], spread[z].unsqueeze(-1)).to_event(1)
            pyro.sample("x", components, obs=x)

    return model


def sklearns(kind, x, num_iter):
    precisions = {"full": np.tile(np.eye(D), (K, 1, 1)), "tied": np.eye(D), "diag": np.ones((K, D))}
    mixture = GaussianMixture(
        K,
        covariance_type=kind,
        tol=0,
        reg_covar=0,
        max_iter=num_iter,
        init_params="random",
        random_state=0,
        weights_init=[0.2, 0.5, 0.3],
        means_init=[[1.0, 0.0], [3.0, 1.0], [-1.0, 2.0]],
        precisions_init=precisions.get(kind, np.ones(K)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(x.numpy())


def covariances(kind, spread):
    return spread @ spread.mT if kind in ("full", "tied") else spread.square()


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("num_iter", [1, 4, None], ids=["one", "four", "all"])
def test_fit_is_that_of_scikit_learn_from_the_same_start(kind, num_iter):
    x, model = rows(), mixture(kind)
    result = fit(model, x, **({} if num_iter is None else {"max_iter": num_iter}))
    theirs = sklearns(kind, x, result.num_iter)
    assert float(result.objective[-1]) == pytest.approx(theirs.score(x.numpy()) * len(x), rel=1e-9)
    np.testing.assert_allclose(result.params["weights"], theirs.weights_, rtol=1e-7)
    np.testing.assert_allclose(result.params["loc"], theirs.means_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(covariances(kind, result.params["spread"]), theirs.covariances_, rtol=1e-7, atol=1e-9)
    assert_rises(result)
    assert_closed(
        result, weights="counts", loc="mean", spread="covariance" if kind in ("full", "tied") else "deviation"
    )
    if num_iter is None:
        assert result.converged
        assert_at_the_top(result, model, x)


def test_full_covariances_may_be_given_as_covariance_matrices():
    x = rows()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([[1.0, 0.0], [3.0, 1.0], [-1.0, 2.0]]), constraint=constraints.real)
        covariance = pyro.param("covariance", torch.eye(D).repeat(K, 1, 1), constraint=constraints.positive_definite)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=covariance[z]), obs=x)

    result, factors = fit(model, x), fit(mixture("full"), x)
    assert_closed(result, covariance="covariance")
    torch.testing.assert_close(result.objective, factors.objective, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.params["covariance"], covariances("full", factors.params["spread"]))


def test_precisions_of_multivariate_normals_have_a_closed_form():
    x = rows()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([[1.0, 0.0], [3.0, 1.0], [-1.0, 2.0]]), constraint=constraints.real)
        precision = pyro.param("precision", torch.eye(D).repeat(K, 1, 1), constraint=constraints.positive_definite)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=precision[z]), obs=x)

    result, factors = fit(model, x), fit(mixture("full"), x)
    assert_closed(result, precision="covariance")
    torch.testing.assert_close(result.objective, factors.objective, rtol=1e-10, atol=1e-10)


def test_standard_deviation_that_all_components_share_is_that_of_scikit_learns_tied_covariance():
    x = rows()[:, :1]

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([1.0, 3.0, -1.0]), constraint=constraints.real)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale), obs=x)

    result = fit(model, x.squeeze(-1))
    theirs = GaussianMixture(
        K,
        covariance_type="tied",
        tol=0,
        reg_covar=0,
        max_iter=result.num_iter,
        init_params="random",
        weights_init=[0.2, 0.5, 0.3],
        means_init=[[1.0], [3.0], [-1.0]],
        precisions_init=np.eye(1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(x.numpy())
    assert float(result.objective[-1]) == pytest.approx(theirs.score(x.numpy()) * len(x), rel=1e-9)
    assert float(result.params["scale"]) ** 2 == pytest.approx(float(theirs.covariances_[0, 0]), rel=1e-7)
    assert_closed(result, scale="deviation")
    assert_rises(result)
    assert_at_the_top(result, model, x.squeeze(-1))


def test_one_component_is_the_mean_and_the_covariance():
    x = rows()

    def model(x):
        loc = pyro.param("loc", torch.zeros(D))
        scale_tril = pyro.param("scale_tril", torch.eye(D), constraint=constraints.lower_cholesky)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=scale_tril), obs=x)

    result = fit(model, x)
    scale_tril = result.params["scale_tril"]
    torch.testing.assert_close(result.params["loc"], x.mean(0))
    torch.testing.assert_close(scale_tril @ scale_tril.mT, x.T.cov(correction=0))
    assert_closed(result)
