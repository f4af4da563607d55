"""One fit from its first step to its result: blocks of steps, and what comes between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm import randomness
from pyro_lvm.checkpoint import Checkpoint
from pyro_lvm.interrupts import interrupts
from pyro_lvm.svi.best import Best
from pyro_lvm.svi.compiled import CompiledLoop
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.path import ParameterPath
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.stopping import FitState

_LONG_BLOCK = 1_000
STATE = ("loop", "losses", "validation", "seconds", "finished", "best", "path")  # what a checkpoint holds


class Run:
    """The blocks of one fit, with validation, callbacks and checkpoints between them."""

    def __init__(
        self,
        objective: Objective,
        loop: EagerLoop | CompiledLoop,
        held_out: tuple[Any, ...] | None,
        num_steps: int,
        every: int,
        callbacks: list[Callable[[FitState], Any]],
        kept: Checkpoint | None,
        seed: int,
        best: Best | None = None,
    ) -> None:
        self.best = best
        self.objective, self.loop, self.held_out = objective, loop, held_out
        self.num_steps, self.every, self.callbacks, self.kept, self.seed = num_steps, every, callbacks, kept, seed
        self.path = ParameterPath(num_steps, every)
        self._losses = torch.empty(num_steps, dtype=torch.float64)
        self.step = 0
        self.validation: dict[int, float] = {}
        self.seconds = 0.0
        self.finished = False
        self.compiled = isinstance(loop, CompiledLoop)

    @property
    def losses(self) -> Tensor:
        """Of the steps taken."""
        return self._losses[: self.step]

    def finish(self, progress: bool) -> SVIResult:
        """Take all steps that are left, or as many as callbacks and the user allow."""
        parameters = self.objective.program.parameters
        before = {path: value.clone() for path, value in parameters.untrained().items()}
        try:
            self._take_steps(progress)
        except BaseException:
            parameters.write_untrained(before)  # batch norm has followed the steps
            raise
        params = self.loop.params if self.best is None else self.best.params
        parameters.write(params)
        return SVIResult(
            self.objective.program,
            params,
            losses=self.losses.clone(),
            target=self.objective.target,
            path=self.path,
            validation=self.validation,
            seconds=self.seconds,
            seed=self.seed,
            compiled=self.compiled,
        )

    def _take_steps(self, progress: bool) -> None:
        if self.kept is not None and self.kept.state is not None:
            self._resume(self.kept.state)
        else:
            if self.best is not None:
                self.best.see(self.loop.params)
            if self.kept is not None:
                self._save()
        with (
            interrupts() as interrupted,
            tqdm(total=self.num_steps, initial=self.step, disable=not progress, unit=" steps") as bar,
        ):
            while not self.finished and not interrupted():
                began = time.perf_counter()
                first, stop = self.step, min(self._next_block(self.step), self.path.next(self.step))
                taken = self.loop.run(first, stop, interrupted)
                self.step += len(taken)
                self._losses[first : self.step] = taken
                self.compiled = self.loop.compiled
                if self.path.is_due(self.step):
                    self.path.see(self.step, self.loop.params)
                due = self.step in (self._next_block(first), self.num_steps)
                if self.best is not None and (due or self.step < stop):
                    self.best.see(self.loop.params)
                if due:
                    self.finished = self._between_blocks() or self.step == self.num_steps
                self.seconds += time.perf_counter() - began
                if progress:
                    bar.update(len(taken))
                    bar.set_postfix_str(f"loss {self.losses[-self.every :].mean():.4g}")
                if self.kept is not None and (due or self.step < stop):
                    self._save()
        if self.step:
            self.loop.finish(self.step)

    def _next_block(self, step: int) -> int:
        """Where something comes between two steps; a compiled loop is not interrupted for nothing."""
        idle = self.held_out is None and not self.callbacks and self.kept is None and self.best is None
        block = max(self.every, _LONG_BLOCK) if idle and self.loop.compiled else self.every
        return min(self.num_steps, (step // block + 1) * block)

    def _between_blocks(self) -> bool:
        """Validate, ask the callbacks; whether one of them stops the fit."""
        if self.held_out is None and not self.callbacks:
            return False
        program = self.objective.program
        with randomness.seeded(self.seed):
            if self.held_out is not None:
                with program.parameters.evaluating():
                    self.validation[self.step] = self.objective.value(self.loop.params, self.held_out)
            if not self.callbacks:
                return False
            params = program.parameters.constrained(self.loop.params)
            state = FitState(self.step, self.losses.clone(), params, dict(self.validation), self.every)
            return any([callback(state) for callback in self.callbacks])

    def _save(self) -> None:
        assert self.kept is not None
        self.kept.save(
            {
                "loop": self.loop.state_dict(),
                "losses": self.losses.clone(),
                "validation": self.validation,
                "seconds": self.seconds,
                "finished": self.finished,
                "best": None if self.best is None else self.best.state_dict(),
                "path": self.path.state_dict(),
            }
        )

    def _resume(self, state: dict[str, Any]) -> None:
        self.loop.load_state_dict(state["loop"])
        self.step, self.validation = len(state["losses"]), state["validation"]
        self._losses[: self.step] = state["losses"]
        self.path.load_state_dict(state["path"])
        if self.best is not None:
            self.best.load_state_dict(state["best"])
        self.seconds, self.finished, self.compiled = state["seconds"], state["finished"], state["loop"]["compiled"]


def was_compiled(state: dict[str, Any]) -> bool:
    """Whether the fit of a checkpoint went on in a compiled program, if there is anything left to go on with."""
    return bool(state["loop"]["compiled"] and not state["finished"])
