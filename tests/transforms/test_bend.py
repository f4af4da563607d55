"""Bends against roots by bisection, and their gradients against finite differences."""

import math

import pytest
import torch
from scipy.optimize import brentq

from pyro_lvm.transforms import _bend
from pyro_lvm.transforms._bend import slope, unbend

MIDDLES = [1e-30, 1e-6, 0.01, 0.5, 1.0, 1.5, 30.0, 9_000.0, 1e6, 1e9]
VALUES = [0.0, 1e-12, 1e-3, 0.4, 1.0, 7.0, 29.0, 9_000.0, 1e6, 1.0001e6, 1e9]


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


@pytest.mark.parametrize("num_steps", range(6))
def test_no_step_goes_beyond_the_root(num_steps, monkeypatch):
    """But for its own rounding: from below where the bend is concave, from above where it is convex."""
    m = torch.tensor([1e-3, 0.05, 0.4, 0.9, 1.2, 4.0, 80.0, 1e5, 1e9], dtype=torch.float64).unsqueeze(-1)
    y = torch.logspace(-8, 10, 400, dtype=torch.float64).expand(len(m), -1)
    root = unbend(y, m)
    monkeypatch.setattr(_bend, "_NUM_LAST_STEPS", 0)
    monkeypatch.setattr(_bend, "_NUM_STEPS", num_steps)
    rounding = 1e-15 * ((root + m) / slope(root.tanh(), m) + root)
    beyond = (unbend(y, m) - root) * torch.where(m > 1, 1, -1)
    assert (beyond <= 4 * rounding).all()
