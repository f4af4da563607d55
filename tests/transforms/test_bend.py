"""Bends against roots by bisection, and their gradients against finite differences."""

import math

import pytest
import torch
from scipy.optimize import brentq

from pyro_lvm.transforms._bend import slope, unbend

MIDDLES = [1e-30, 1e-6, 0.01, 0.5, 1.0, 1.5, 30.0, 9_000.0]
VALUES = [0.0, 1e-12, 1e-3, 0.4, 1.0, 7.0, 29.0, 9_000.0, 1e4, 1e7]


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("value", VALUES)
def test_unbent_numbers_are_roots(middle, value):
    """To the rounding of the value, which a flat bend makes larger."""
    wide = value + middle + 2
    root = brentq(lambda x: x + (middle - 1) * math.tanh(x) - value, -wide, wide, xtol=1e-300, rtol=1e-15)
    m = torch.tensor(middle, dtype=torch.float64)
    for sign in (1, -1):
        x = unbend(torch.tensor(sign * value, dtype=torch.float64), m)
        rounding = 1e-15 * (abs(root) + middle) / slope(x.tanh(), m) if value else 0.0
        assert abs(float(x) - sign * root) <= 4 * float(rounding) + 1e-14 * abs(root)


@pytest.mark.parametrize("middle", [0.05, 0.999, 1.0, 1.001, 4.0, 500.0])
def test_gradients_are_those_of_finite_differences(middle):
    y = torch.tensor([-600.0, -3.0, -0.2, 0.1, 0.9, 40.0], dtype=torch.float64, requires_grad=True)
    m = torch.full((6,), middle, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unbend, (y, m))
    assert torch.autograd.gradgradcheck(unbend, (y, m))


def test_single_precision_and_broadcasting():
    y, m = torch.linspace(-40, 40, 101), torch.tensor([[1e-3], [0.7], [1.0], [12.0]])
    x = unbend(y, m)
    assert x.shape == (4, 101)
    torch.testing.assert_close(x + (m - 1) * x.tanh(), y.expand(4, 101), rtol=1e-6, atol=1e-5)
