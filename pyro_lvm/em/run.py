"""The iterations of EM: sweeps over the rows, M-steps, and the guards between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm.interrupts import interrupts

Theta = dict[str, Tensor]
Rows = tuple[tuple[Any, ...], Tensor | None]  # arguments of the model for some rows, and the weights of these

_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the size of the objective


@dataclass(frozen=True)
class EMState:
    """What a callback sees after each iteration.

    Attributes:
        iteration: Iterations taken.
        objective: At the start of each of them, in nats.
        params: Constrained parameters by name.
    """

    iteration: int
    objective: Tensor
    params: Theta


class Steps(Protocol):
    """An E-step with sums over all rows, and an M-step."""

    objective_name: str

    def sweep(self, theta: Theta) -> tuple[float, Any]:
        """The objective at ``theta``, in nats, and what the M-step needs to know."""

    def maximize(self, theta: Theta, found: Any) -> Theta:
        """The next parameters."""


class NotMonotoneError(RuntimeError):
    """The objective of an exact EM fell, which it cannot: the model changes between two runs, or there is an error.

    Attributes:
        iteration: After which it fell, counted from 1.
    """

    def __init__(self, iteration: int, before: float, after: float) -> None:
        self.iteration = iteration
        super().__init__(
            f"iteration {iteration} of EM lowered the objective from {before:.6f} to {after:.6f} nats: does the model "
            "draw random numbers, or hold anything that changes from run to run?"
        )


class Run:
    """One run of EM from one start.

    Args:
        steps: What an iteration does.
        theta: Where it starts.
        max_iter: The most iterations.
        tol: The gain below which it has converged, in nats a row.
        num_rows: N, or the total weight.
        callbacks: Called after each iteration; a true answer ends the run.
    """

    def __init__(
        self,
        steps: Steps,
        theta: Theta,
        max_iter: int,
        tol: float,
        num_rows: float,
        callbacks: list[Callable[[EMState], Any]],
    ) -> None:
        self.steps, self.theta, self.max_iter, self.tol = steps, theta, max_iter, tol
        self.num_rows, self.callbacks = num_rows, callbacks
        self.objective: list[float] = []
        self.converged = False

    def finish(self, progress: bool) -> None:
        """All iterations that are left."""
        with interrupts() as interrupted, tqdm(total=self.max_iter, disable=not progress, unit=" iterations") as bar:
            value, found = self.steps.sweep(self.theta)
            self.objective.append(value)
            while len(self.objective) <= self.max_iter and not self.converged and not interrupted():
                theta = self.steps.maximize(self.theta, found)
                value, found = self.steps.sweep(theta)
                self._check(value)
                self.theta = theta
                gain = value - self.objective[-1]
                self.objective.append(value)
                self.converged = gain < self.tol * self.num_rows
                bar.update()
                bar.set_postfix_str(f"{self.steps.objective_name} {value:.6g}")
                state = EMState(len(self.objective) - 1, torch.tensor(self.objective, dtype=torch.float64), theta)
                if any([callback(state) for callback in self.callbacks]):
                    break

    def _check(self, value: float) -> None:
        before = self.objective[-1]
        dtype = next(iter(self.theta.values())).dtype
        if not value >= before - _ROUNDING[dtype] * max(abs(before), self.num_rows):
            raise NotMonotoneError(len(self.objective), before, value)
