"""The wide directions of a quadratic function, against its eigenvectors."""

import pytest
import torch

from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.directions import wide_directions

SIZE, RANK = 100, 10


def basis():
    return torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()).Q


def directions(curvature, scale):
    """Of a loss that has these curvatures along the basis, in the units of a scale."""
    root = curvature.sign() * curvature.abs().sqrt(), curvature.abs().sqrt()
    leaf = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    along = basis().T @ (leaf / scale)
    (slope,) = torch.autograd.grad(0.5 * (along * root[0] * root[1] * along).sum(), leaf, create_graph=True)
    return wide_directions(slope, leaf, scale, seed=0)


def test_the_gaussian_has_the_covariance_of_the_flat_directions():
    curvature = torch.ones(SIZE).double()
    curvature[:3] = torch.tensor([1e-4, 0.01, 0.3])
    scale = torch.logspace(-3, 3, SIZE).double()
    wide = directions(curvature, scale)
    assert wide.shape == (SIZE, RANK)
    factor = Coordinates(scale, scale, wide=wide).factor
    covariance = basis() @ torch.diag(1 / curvature) @ basis().T
    torch.testing.assert_close(torch.eye(SIZE) + factor @ factor.T, covariance, rtol=1e-3, atol=1e-2)


def test_directions_that_curve_the_other_way_or_more_are_left_out():
    curvature = torch.full((SIZE,), 2.0).double()
    curvature[:3] = torch.tensor([-3.0, 0.0, 0.25])
    wide = directions(curvature, torch.ones(SIZE).double())
    assert (wide.square().sum(0) > 1e-6).sum() == 1
    spread = wide.square().sum()  # 1 / 0.25^0.5 - 1
    assert spread.item() == pytest.approx(1.0, rel=1e-6)
    assert (basis()[:, 2] @ wide).abs().sum().item() == pytest.approx(1.0, rel=1e-3)


def test_where_the_iteration_does_not_end_what_it_has_found_is_taken(monkeypatch):
    monkeypatch.setattr("pyro_lvm.svi.directions._MOST_RESTARTS", 1)
    wide = directions(torch.logspace(-5, 0, SIZE).double(), torch.ones(SIZE).double())
    assert wide.shape == (SIZE, RANK)
    found = (wide.square().sum(0) > 0).sum()
    assert found < RANK
    assert wide[:, found:].eq(0).all()
