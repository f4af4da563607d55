"""Mixtures on iris by enumeration and gradients, against scikit-learn's EM from the same start."""

import numpy as np
import pytest
import sklearn.mixture
import torch
from sklearn.datasets import load_iris
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_lvm as lvm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_the_likelihood_is_that_of_em_from_the_same_start(covariance, dtype):
    x = torch.tensor(load_iris().data, dtype=dtype)
    mixture = lvm.models.GaussianMixture(3, 4, covariance=covariance).to(dtype).initialize(x)
    weights, locs, covariances = (
        value.detach().double().numpy() for value in (mixture.weights, mixture.locs, mixture.covariances)
    )
    em = sklearn.mixture.GaussianMixture(
        3,
        covariance_type=covariance,
        weights_init=weights / weights.sum(),
        means_init=locs,
        precisions_init=np.linalg.inv(covariances) if covariance in ("full", "tied") else 1 / covariances,
        reg_covar=1e-10,
        tol=1e-10,
        max_iter=10_000,
    ).fit(x.double())
    result = lvm.fit(
        mixture,
        None,
        x,
        num_steps=400,
        optim=0.1,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, 400),
        progress=False,
    )
    ours, theirs = result.score().value.sum().item(), em.score(x.double()) * len(x)
    print(f"{covariance}: {ours:.4f}, scikit-learn {theirs:.4f}, smallest weight {mixture.weights.min():.3f}")
    # both at the same stationary point, no component on a handful of rows: float32 and 400 steps leave 1e-3 nats
    assert ours == pytest.approx(theirs, abs=0.01)
    assert mixture.weights.min() > 0.2
    np.testing.assert_allclose(mixture.weights.detach().numpy(), em.weights_, atol=2e-3)
    np.testing.assert_allclose(mixture.locs.detach().numpy(), em.means_, atol=0.02)
