"""Stepwise EM: an M-step after every minibatch, on sums that forget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm.batches import ShuffledRows
from pyro_lvm.em.batch import Batch
from pyro_lvm.em.forms import add
from pyro_lvm.em.m_step import Sums
from pyro_lvm.em.run import EMState, Refilled, Theta


class OnlineSteps(Protocol):
    """An E-step whose sums mean the same whatever the parameters, and an M-step."""

    def check_online(self, theta: Theta) -> None:
        """Refuse what has no such sums."""

    def online_sums(self, theta: Theta, batch: Batch) -> tuple[Tensor, Sums]:
        """The objective of a minibatch, and its sums; the first of a pass adds what lies outside the rows."""

    def online_maximum(self, sums: Sums, theta: Theta) -> Theta:
        """The next parameters."""


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

    converged = torch.tensor(False)

    def __init__(
        self,
        steps: OnlineSteps,
        theta: Theta,
        batches: ShuffledRows,
        exponent: float,
        num_epochs: int,
        callbacks: Sequence[Callable[[EMState], Any]],
    ) -> None:
        self.steps = steps
        steps.check_online(theta)
        self.theta, self.batches, self.exponent = theta, batches, exponent
        self.num_epochs, self.callbacks = num_epochs, callbacks
        self._values: list[Tensor] = []
        self._held: Sums = {}
        self.finished = False
        self.refilled: list[tuple[int, Refilled]] = []

    @property
    def objective(self) -> Tensor:
        """Of each pass, in nats."""
        return torch.stack(self._values)

    def finish(self, interrupted: Callable[[], bool], bar: tqdm, save: Callable[[], None] = lambda: None) -> None:
        """All passes that are left, or as many as callbacks and the user allow."""
        while not self.finished and not (self._values and interrupted()):
            self._values.append(self._pass(len(self._values) * self.batches.num_batches))
            bar.update()
            state = EMState(len(self._values), self.objective, self.theta)
            stopped = any([callback(state) for callback in self.callbacks])
            self.finished = stopped or len(self._values) == self.num_epochs
            save()

    def _pass(self, start: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for step in range(start, start + self.batches.num_batches):
            batch = Batch(*self.batches.get(step), first=step == start)
            objective, new = self.steps.online_sums(self.theta, batch)
            total = total + objective
            scale = self.batches.num_rows / self.batches.data.count(batch.args)  # type: ignore[operator]
            share = (step + 2) ** -self.exponent if self._held else 1.0
            for key, part in new.items():
                old = (1 - share) * self._held[key] if key in self._held else torch.zeros_like(part)
                self._held[key] = add(old, share * scale * part)
            self.theta = self.steps.online_maximum(self._held, self.theta)
        return total

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry."""
        theta = {name: value.detach() for name, value in self.theta.items()}  # without marks that Pyro left
        return {"theta": theta, "values": self._values, "finished": self.finished, "held": self._held}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.theta, self._values, self.finished = state["theta"], state["values"], state["finished"]
        self._held = state["held"]
