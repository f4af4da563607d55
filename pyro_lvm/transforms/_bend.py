"""Bends of one number, x + (m - 1) tanh x, and their inverse."""

from __future__ import annotations

import torch
from torch import Tensor

_NUM_STEPS = 6  # to the rounding of double precision
_NUM_LAST_STEPS = 2  # with gradients: derivatives are right up to the third


def slope(tanh: Tensor, middle: Tensor) -> Tensor:
    """The slope of a bend, where `tanh` is the hyperbolic tangent and `middle` is m, the slope at zero."""
    return tanh.square() + middle * (1 - tanh.square())


def unbend(y: Tensor, middle: Tensor) -> Tensor:
    """The numbers x with x + (m - 1) tanh x = y, for positive slopes m at zero.

    Newton's method, from a side of the root on which no step goes beyond it: a bend is odd, and for positive numbers
    concave if m is more than 1 and convex otherwise. Gradients come from the last steps, by the implicit function
    theorem.

    Args:
        y: The values, `[*]`.
        middle: The slopes at zero, `[*]`.
    """
    with torch.no_grad():
        size, tiny = y.abs(), torch.finfo(y.dtype).tiny
        more = (middle - 1).clamp(min=tiny)
        straight = size - more
        gap = ((2 * more).log() / 2 - straight).clamp(min=1)  # x is no further up, for 1 - tanh x < 2 exp(-2 x)
        bent = ((2 * more - gap).clamp(min=tiny) / gap).log() / 2  # where tanh x is as large as it then must be
        below = torch.maximum(torch.maximum(size / middle, straight), bent)
        lack = (1 - middle).clamp(min=tiny)
        cube = 5 * size / lack  # at most that of x, up to 1: x - tanh x is at least its fifth
        above = torch.minimum(size / middle, torch.where(cube < 1, cube ** (1 / 3), size + lack))
        x = torch.where(middle > 1, below, above) * y.sign()
        for _ in range(_NUM_STEPS):
            x = _step(x, y, middle)
    for _ in range(_NUM_LAST_STEPS):
        x = _step(x, y, middle)
    return x


def _step(x: Tensor, y: Tensor, middle: Tensor) -> Tensor:
    tanh = x.tanh()
    return x - (x + (middle - 1) * tanh - y) / slope(tanh, middle)
