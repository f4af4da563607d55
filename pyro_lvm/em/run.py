"""The iterations of EM: sweeps over the rows, M-steps, and the guards between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

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
    monotone: bool

    def sweep(self, theta: Theta) -> tuple[Tensor, Any]:
        """The objective at ``theta``, in nats, and what the M-step needs to know; of several runs at once, ``[R]``."""

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
    """EM from one start, or from several at once.

    Args:
        steps: What an iteration does.
        theta: Where it starts; with several starts, every parameter has them in its first dimension.
        max_iter: The most iterations.
        tol: The gain below which it has converged, in nats a row.
        num_rows: N, or the total weight.
        callbacks: Called after each iteration; a true answer ends the run.

    Attributes:
        theta: The parameters now.
        objective: At the start and after each iteration, ``[num_iter + 1]`` or ``[num_iter + 1, R]``.
        converged: Whether the last iteration gained less than the tolerance, in every run.
    """

    def __init__(
        self,
        steps: Steps,
        theta: Theta,
        max_iter: int,
        tol: float,
        num_rows: float,
        callbacks: Sequence[Callable[[EMState], Any]] = (),
    ) -> None:
        self.steps, self.theta, self.max_iter, self.tol = steps, theta, max_iter, tol
        self.num_rows, self.callbacks = num_rows, callbacks
        self._values: list[Tensor] = []
        self.converged = False

    @property
    def objective(self) -> Tensor:
        """Of each iteration, in nats."""
        return torch.stack(self._values)

    def finish(self, interrupted: Callable[[], bool], bar: tqdm) -> None:
        """All iterations that are left, or as many as callbacks and the user allow."""
        value, found = self.steps.sweep(self.theta)
        self._values.append(value.double())
        while len(self._values) <= self.max_iter and not self.converged and not interrupted():
            theta = self.steps.maximize(self.theta, found)
            value, found = self.steps.sweep(theta)
            self._check(value)
            gain = value - self._values[-1]
            self.theta = theta
            self._values.append(value.double())
            self.converged = self.steps.monotone and bool((gain < self.tol * self.num_rows).all())
            bar.update()
            bar.set_postfix_str(f"{self.steps.objective_name} {float(value.max()):.6g}")
            state = EMState(len(self._values) - 1, self.objective, theta)
            if any([callback(state) for callback in self.callbacks]):
                break

    def _check(self, value: Tensor) -> None:
        if not torch.isfinite(value).all():
            raise ValueError(
                f"iteration {len(self._values)} of EM made the {self.steps.objective_name} infinite: a prior below 1 "
                "(of a Dirichlet, beta or gamma) has no mode where a component is empty, and a density without bound "
                "none at all"
            )
        before = self._values[-1]
        dtype = next(iter(self.theta.values())).dtype
        allowed = _ROUNDING[dtype] * before.abs().clamp(min=self.num_rows)
        if not self.steps.monotone:
            return
        fell = ~(value >= before - allowed)
        if fell.any():
            raise NotMonotoneError(len(self._values), float(before[fell][0]), float(value[fell][0]))
