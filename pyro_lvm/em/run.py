"""The iterations of EM: sweeps over the rows, M-steps, and the guards between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm import randomness

Theta = dict[str, Tensor]  # constrained values of parameters, by name

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the size of the objective
_ROUNDING_A_ROW = {torch.float32: 5e-4, torch.float64: 1e-10}  # nats: terms of a log-density may be larger than it is
EMPTY = 1e-3  # the rows that a component must have
_MOST_REFILLS = 10  # iterations that may fill empty components again, lest a run goes on for ever


class Empty(NamedTuple):
    """A component to which no row belongs.

    Attributes:
        run: Of several starts at once, counted from 0.
        component: Counted from 0.
    """

    run: int
    component: int


class Refilled(NamedTuple):
    """A component that was empty and got rows.

    Attributes:
        iteration: The first that speaks of the new component.
        component: Counted from 0.
    """

    iteration: int
    component: int


@dataclass(frozen=True)
class EMState:
    """What a callback sees after each iteration.

    Where a model runs several starts at once, as those of :mod:`pyro_lvm.models` do, they have one more dimension.

    Attributes:
        iteration: Iterations taken.
        objective: At the start and after each of them, in nats, ``[iteration + 1]`` or ``[iteration + 1, R]``.
        params: Constrained parameters by name, ``[...]`` or ``[R, ...]``.
    """

    iteration: int
    objective: Tensor
    params: Theta


class Steps(Protocol):
    """An E-step with sums over all rows, and an M-step.

    Attributes:
        objective_name: What is maximised.
        monotone: Whether the objective never falls, so that it is an error if it does.
        settles: Whether it comes to rest, so that a small gain is the end.
        rules: How each parameter is found.
    """

    objective_name: str
    monotone: bool
    settles: bool
    rules: dict[str, str]

    def sweep(self, theta: Theta) -> tuple[Tensor, Any]:
        """The objective at ``theta``, in nats, and what the M-step needs to know; of several runs at once, ``[R]``."""

    def maximize(self, theta: Theta, found: Any) -> Theta:
        """The next parameters."""

    def empty(self, theta: Theta, found: Any) -> list[Empty]:
        """The components to which no row belongs."""

    def refill(self, theta: Theta, empty: list[Empty]) -> Theta:
        """Parameters at which these components have rows."""

    def axes(self, theta: Theta) -> dict[str, tuple[int, ...]]:
        """The dimensions of the parameters of one run that count components."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry beside the parameters."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""


class NotMonotoneError(RuntimeError):
    """The objective of an exact EM fell, which it cannot: the model changes between two runs, or there is an error.

    Attributes:
        iteration: After which it fell, counted from 1.
    """

    def __init__(self, iteration: int, before: float, after: float, dtype: torch.dtype) -> None:
        self.iteration = iteration
        digits = "" if dtype is torch.float64 else f" If not, {dtype} may have too few digits for it: use torch.float64"
        super().__init__(
            f"iteration {iteration} of EM lowered the objective from {before:.6f} to {after:.6f} nats: does the model "
            f"draw random numbers, or hold anything that changes from run to run?{digits}"
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
        converged: Whether the last iteration gained less than the tolerance, in each start, ``[]`` or ``[R]``.
        finished: Whether it has ended.
        refilled: Components that were empty, with the run to which each belongs.
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
        self._random: dict[str, Tensor] | None = None
        self.converged, self.finished = torch.tensor(False), False
        self.refilled: list[tuple[int, Refilled]] = []

    @property
    def objective(self) -> Tensor:
        """At the start and after each iteration, in nats, ``[num_iter + 1]`` or ``[num_iter + 1, R]``."""
        return torch.stack(self._values)

    def finish(self, interrupted: Callable[[], bool], bar: tqdm, save: Callable[[], None] = lambda: None) -> None:
        """All iterations that are left, or as many as callbacks and the user allow.

        Args:
            interrupted: Whether the user wants an end.
            bar: Shows how far it is.
            save: Called after each iteration.
        """
        if self.finished:
            return
        if self._random is not None:
            randomness.set_state(self._random)
        value, found = self._sweep(self.theta)
        if not self._values:
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"the {self.steps.objective_name} is infinite at the start, or no number: the parameters "
                    "there make some row impossible, or have a prior density of zero or without bound; give others "
                    "by init="
                )
            self._values.append(value.double())
        while len(self._values) <= self.max_iter and not self.finished and not interrupted():
            empty = [e for e in self.steps.empty(self.theta, found) if self._num_refills(e.run) < _MOST_REFILLS]
            if empty:
                theta = self.steps.refill(self.theta, empty)
                self.refilled += [(e.run, Refilled(len(self._values), e.component)) for e in empty]
            else:
                theta = self.steps.maximize(self.theta, found)
            value, found = self._sweep(theta)
            self._check(value, may_fall=bool(empty))
            gain = value - self._values[-1]
            self.theta = theta
            self._values.append(value.double())
            self.converged = (gain < self.tol * self.num_rows) & (self.steps.settles and not empty)
            bar.update()
            bar.set_postfix_str(f"{self.steps.objective_name} {float(value.max()):.6g}")
            self.finished = self._is_stopped() or bool(self.converged.all()) or len(self._values) > self.max_iter
            save()

    def _is_stopped(self) -> bool:
        if not self.callbacks:  # the path so far is long to put together
            return False
        state = EMState(len(self._values) - 1, self.objective, self.theta)
        return any([callback(state) for callback in self.callbacks])

    def _num_refills(self, run: int) -> int:
        return len({event.iteration for owner, event in self.refilled if owner == run})

    def _sweep(self, theta: Theta) -> tuple[Tensor, Any]:
        self._random = randomness.get_state()  # with which a run that goes on from here makes the same draws again
        return self.steps.sweep(theta)

    def _check(self, value: Tensor, may_fall: bool) -> None:
        if not torch.isfinite(value).all():
            raise ValueError(
                f"iteration {len(self._values)} of EM made the {self.steps.objective_name} infinite: a prior below 1 "
                "(of a Dirichlet, beta or gamma) has no mode where a component is empty, and a density without bound "
                "none at all"
            )
        before = self._values[-1]
        dtype = next(iter(self.theta.values())).dtype
        allowed = (ROUNDING[dtype] * before.abs()).clamp(min=_ROUNDING_A_ROW[dtype] * self.num_rows)
        if may_fall or not self.steps.monotone:
            return
        fell = ~(value >= before - allowed)
        if fell.any():
            raise NotMonotoneError(len(self._values), float(before[fell][0]), float(value[fell][0]), dtype)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry."""
        return {
            "theta": {name: value.detach() for name, value in self.theta.items()},  # without marks that Pyro left
            "values": self._values,
            "random": self._random,
            "converged": self.converged,
            "finished": self.finished,
            "refilled": [(run, *event) for run, event in self.refilled],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; a run that had not begun then is as it is now."""
        if not state["values"]:
            return
        self.theta, self._values, self._random = state["theta"], state["values"], state["random"]
        self.converged, self.finished = state["converged"], state["finished"]
        self.refilled = [(run, Refilled(*event)) for run, *event in state["refilled"]]
