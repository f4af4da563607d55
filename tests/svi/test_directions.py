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
    leaf = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    along = basis().T @ (leaf / scale)
    (slope,) = torch.autograd.grad(0.5 * (along * curvature * along).sum(), leaf, create_graph=True)
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
    curvature[:3] = torch.tensor([-3.0, -0.01, 0.25])
    wide = directions(curvature, torch.ones(SIZE).double())
    assert (wide.square().sum(0) > 1e-6).sum() == 1
    spread = wide.square().sum()  # 1 / 0.25^0.5 - 1
    assert spread.item() == pytest.approx(1.0, rel=1e-6)
    assert (basis()[:, 2] @ wide).abs().sum().item() == pytest.approx(1.0, rel=1e-3)


def test_directions_that_are_not_resolved_are_no_wider_than_they_are():
    curvature = torch.logspace(-5, 0, SIZE).double()
    wide = directions(curvature, torch.ones(SIZE).double())
    found = 1 + wide.square().sum(0)
    exact = curvature[:RANK].rsqrt()
    assert (found <= exact * 1.000001).all()
    assert found[0] > 0.4 * exact[0]


def test_a_loss_that_curves_alike_everywhere_has_none():
    assert directions(torch.ones(SIZE).double(), torch.ones(SIZE).double()).abs().max() < 1e-3


def test_directions_without_curvature_have_no_width_to_be_told():
    curvature = torch.ones(SIZE).double()
    curvature[:2] = torch.tensor([1e-9, 0.25])
    found = directions(curvature, torch.ones(SIZE).double()).square().sum(0).sort(descending=True).values
    torch.testing.assert_close(found, torch.tensor([1.0, *[0.0] * (RANK - 1)]).double(), rtol=1e-6, atol=1e-6)


def test_directions_that_are_equally_flat_are_all_found():
    """One vector has products in as many directions as there are curvatures, here two."""
    curvature = torch.ones(SIZE).double()
    curvature[:5] = 0.04
    wide = directions(curvature, torch.ones(SIZE).double())
    torch.testing.assert_close(wide @ wide.T, 4 * basis()[:, :5] @ basis()[:, :5].T, rtol=1e-3, atol=1e-3)
