"""EM with the steps that a model brings along."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pyro_lvm.em.run import Rows, Theta
from pyro_lvm.models._steps import Steps, Sums


class FusedSteps:
    """A model's own E-step, summed over batches, and its M-step.

    Args:
        steps: The model's.
        batches: Goes through all rows.
    """

    monotone = True

    def __init__(self, steps: Steps, batches: Callable[[], Iterable[Rows]]) -> None:
        self.steps, self.batches = steps, batches
        self.objective_name = steps.objective_name

    def sweep(self, theta: Theta) -> tuple[Tensor, Sums]:
        """The objective at ``theta``, and sums over all rows."""
        total: Sums = {}
        with torch.no_grad():
            for args, weight in self.batches():
                part = self.steps.expect(theta, args, weight)
                total = {k: total[k] + v for k, v in part.items()} if total else part
            return total["log_p"] + self.steps.outside(theta), total

    def maximize(self, theta: Theta, found: Sums) -> Theta:
        """The next parameters."""
        with torch.no_grad():
            return self.steps.maximize(found, theta)
