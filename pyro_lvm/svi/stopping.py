"""When a noisy loss has levelled off."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lvm.checks import check_count


@dataclass(frozen=True)
class FitState:
    """What a callback sees, every ``every`` steps.

    Attributes:
        step: Steps taken.
        losses: All losses so far, ``[step]``, in nats.
        params: Constrained parameters by name.
        validation: Held-out losses by step.
        every: Steps between two calls.
    """

    step: int
    losses: Tensor
    params: dict[str, Tensor]
    validation: dict[int, float]
    every: int


def improvement(losses: Tensor) -> tuple[float, float]:
    """By how much the last quarter of the losses lies below the quarter before it, and the standard error of that."""
    quarter = len(losses) // 4
    before, last = losses[-2 * quarter : -quarter].double(), losses[-quarter:].double()
    error = math.sqrt((before.var().item() + last.var().item()) / quarter)
    return (before.mean() - last.mean()).item(), error


FEWEST = 40
"""Losses below which nothing is said of their trend: ten in each quarter."""


class StopWhenFlat:
    """Stop a fit when its loss has levelled off.

    The mean loss of the last quarter of all steps is compared with that of the quarter before. The fit stops once the
    improvement is below ``num_errors`` of its standard errors for ``patience`` checks in a row. The blocks grow with
    the fit, so that a slow descent under noise is seen sooner or later. Checks depend on the losses alone, never on
    the clock or on earlier calls.

    Args:
        patience: Checks in a row, ``every`` steps apart.
        num_errors: What still counts as noise.
        min_steps: No check before.

    Raises:
        ValueError: for arguments that are not positive.

    Example:
        >>> import pyro_lvm as lvm
        >>> stop = lvm.StopWhenFlat(patience=3)
        >>> # result = lvm.fit(model, "mean_field", x, num_steps=100_000, callbacks=[stop])
    """

    def __init__(self, patience: int = 3, num_errors: float = 1.0, min_steps: int = 400) -> None:
        if isinstance(num_errors, bool) or not isinstance(num_errors, int | float) or not num_errors > 0:
            raise ValueError(f"num_errors must be positive; got {num_errors!r}")
        self.patience, self.min_steps = check_count("patience", patience), check_count("min_steps", min_steps)
        self.num_errors = num_errors

    def __call__(self, state: FitState) -> bool:
        """Whether to stop."""
        checks = [state.step - i * state.every for i in range(self.patience)]
        return all(n >= self.min_steps and self.is_flat(state.losses[:n]) for n in checks)

    def is_flat(self, losses: Tensor) -> bool:
        """Whether these losses had levelled off at their end."""
        if len(losses) < max(8, self.min_steps) or not torch.isfinite(losses).all():
            return False
        gain, error = improvement(losses)
        return gain <= self.num_errors * error
