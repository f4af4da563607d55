"""PPCA on wine and digits, against the maximum of the likelihood in closed form."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_lvm as lvm


def wine():
    x = load_wine().data
    return (x - x.mean(0)) / x.std(0)


def digits():
    return load_digits().data


def varying_digits():
    x = digits()
    return x[:, x.std(0) > 0]


def scaled_digits():
    return digits() / 16


def best_log_likelihood(x, L):
    """Per row: Tipping and Bishop (1999), equation 4 at the maximum of equations 7 and 8."""
    D = x.shape[1]
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = variances[L:].mean()
    return -0.5 * (D * np.log(2 * np.pi) + np.log(variances[:L]).sum() + (D - L) * np.log(noise) + D)


@pytest.mark.parametrize(
    "load, num_latents, dtype",
    [
        (wine, 2, torch.float32),
        (wine, 5, torch.float64),
        pytest.param(digits, 10, torch.float32, marks=pytest.mark.slow),  # three of the 64 pixels are constant
        pytest.param(varying_digits, 10, torch.float32, marks=pytest.mark.slow),
        pytest.param(scaled_digits, 10, torch.float32, marks=pytest.mark.slow),
        pytest.param(digits, 30, torch.float32, marks=pytest.mark.slow),
        pytest.param(digits, 10, torch.float64, marks=pytest.mark.slow),
    ],
)
def test_the_elbo_reaches_the_closed_form_maximum(load, num_latents, dtype):
    x = torch.tensor(load(), dtype=dtype)
    N, D = x.shape
    result = lvm.fit(
        lvm.models.PPCA(num_latents, D).to(dtype),
        None,
        x,
        num_steps=400,
        optim=0.1,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, 400),
        progress=False,
    )
    best = best_log_likelihood(x.double().numpy(), num_latents)
    gap = best + result.losses[-1].item() / N  # the guide is exact: one loss is the likelihood, whatever the draw
    print(f"{load.__name__}: {best:.4f} nats a row, ours {gap:.5f} below")
    assert abs(gap) < 0.001
    assert result.score().value.mean().item() == pytest.approx(best, abs=0.001)
    variances = np.linalg.eigvalsh(np.cov(x.T.double(), bias=True))[: D - num_latents]
    assert result.params["noise"].item() == pytest.approx(variances.mean(), rel=0.01)
