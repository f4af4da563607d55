"""Roots of increasing functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_NUM_STEPS = 60  # halve a bracket of the widest numbers below the rounding of double precision
_NUM_LAST_STEPS = 2  # of Newton's method with gradients: derivatives are right up to the third


def solve(function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The numbers at which increasing functions have the values `target`.

    Newton's method, that halves the bracket where a step leaves it or shrinks too little. Gradients by the parameters
    of the functions and by the targets come from Newton steps at the end, by the implicit function theorem.

    Args:
        function: The values and the slopes, which are positive, at some numbers.
        target: The values, `[*]`.
        lower: Numbers with values at most these, `[*]`.
        upper: Numbers with values at least these, `[*]`.
    """
    with torch.no_grad():
        x = 0.5 * (lower + upper)
        last = upper - lower
        for _ in range(_NUM_STEPS):
            value, slope = function(x)
            excess = value - target
            lower, upper = torch.where(excess < 0, x, lower), torch.where(excess < 0, upper, x)
            newton = x - excess / slope
            good = (newton >= lower) & (newton <= upper) & (2 * excess.abs() <= last.abs() * slope)
            new = torch.where(good, newton, 0.5 * (lower + upper))
            x, last = new, new - x
    for _ in range(_NUM_LAST_STEPS):
        value, slope = function(x)
        x = x - (value - target) / slope
    return x
