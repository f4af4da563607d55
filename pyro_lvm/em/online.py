"""Stepwise EM: an M-step after every minibatch, on sums that forget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm.batches import ShuffledRows
from pyro_lvm.em.forms import add
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.m_step import Sums
from pyro_lvm.em.run import EMState, Theta


class OnlineRun:
    """Stepwise EM (Cappé and Moulines 2009; Liang and Klein 2009).

    After minibatch t the sums are ``(1 - g) sums + g N / B (sums of the batch)`` with ``g = (t + 2) ** -exponent``.

    Args:
        steps: E-step and M-step of the model.
        theta: Where it starts.
        batches: Shuffled minibatches.
        exponent: Between 0.5 and 1; the larger, the slower it forgets.
        num_epochs: Passes over the rows.
        callbacks: Called after each pass; a true answer ends the run.

    Attributes:
        objective: The sum of each pass over its minibatches, each at the parameters of its moment, ``[num_epochs]``.

    Raises:
        ValueError: for a parameter without a closed form, whose sums cannot be forgotten, and for observations outside
            the rows.
    """

    converged = False

    def __init__(
        self,
        steps: GenericSteps,
        theta: Theta,
        batches: ShuffledRows,
        exponent: float,
        num_epochs: int,
        callbacks: Sequence[Callable[[EMState], Any]],
    ) -> None:
        others = [name for name in steps.plan.rules if name not in steps.plan.closed or name in steps.plan.late_params]
        if others:
            raise ValueError(
                f"online EM needs a closed form for every parameter, and {others[0]!r} has none: "
                f"{steps.plan.rules[others[0]]}"
            )
        local, uses = steps.program.program.sites.local, steps.plan.uses(next(iter(steps.batches()))[0])
        if outside := [n for n, use in uses.items() if n not in local and not use.prior_of and use.params]:
            raise ValueError(f"online EM needs all observations in the rows, and {outside[0]!r} lies outside")
        self.steps, self.theta, self.batches, self.exponent = steps, theta, batches, exponent
        self.num_epochs, self.callbacks = num_epochs, callbacks
        self._values: list[Tensor] = []

    @property
    def objective(self) -> Tensor:
        """Of each pass, in nats."""
        return torch.stack(self._values)

    def finish(self, interrupted: Callable[[], bool], bar: tqdm) -> None:
        """All passes that are left, or as many as callbacks and the user allow."""
        held: Sums = {}
        for epoch in range(self.num_epochs):
            total = torch.zeros((), dtype=torch.float64)
            for i in range(self.batches.num_batches):
                step = epoch * self.batches.num_batches + i
                args, weight = self.batches.get(step)
                expectation = self.steps.expect(self.theta, args, weight)
                total = total + expectation.objective(weight) + (expectation.outside if i == 0 else 0.0)
                scale = self.batches.num_rows / len(expectation.rows)  # type: ignore[arg-type]
                share = (step + 2) ** -self.exponent if held else 1.0
                new = self.steps.m_step.sums(args, expectation)
                for key, part in new.items():
                    old = (1 - share) * held[key] if key in held else torch.zeros_like(part)
                    held[key] = add(old, share * scale * part)
                self.theta = self.steps.m_step.closed(held, self.theta)
                if interrupted():
                    break
            self._values.append(total)
            bar.update()
            state = EMState(epoch + 1, self.objective, self.theta)
            if interrupted() or any([callback(state) for callback in self.callbacks]):
                break
