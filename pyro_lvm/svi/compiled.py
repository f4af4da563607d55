"""The compiled training loop: blocks of steps as one program, behind the protocol of the eager loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.compiling import Scan
from pyro_lvm.modules import python_values
from pyro_lvm.noise import Given
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.nonfinite import NonFiniteError
from pyro_lvm.svi.step import Step, Tree


class CompiledLoop:
    """The steps of an eager loop in blocks, each block one call of a compiled program.

    The eager loop keeps parameters, optimizer and scheduler, which are brought up to date whenever somebody looks. It
    takes the first step, by which optimizers make their state, and those that went wrong, whose error it raises.

    Args:
        eager: The loop.
        seed: Of the random numbers.
        required: Whether a step that can no longer run compiled is an error; else the eager loop goes on.
        watched: Whether others run between the blocks, and could change what a model holds.

    Attributes:
        compiled: Whether the next step is to run compiled.

    Raises:
        NotCompilable: that says why.
    """

    def __init__(self, eager: EagerLoop, seed: int, required: bool, watched: bool) -> None:
        self.eager, self.required, self.watched = eager, required, watched
        self.step = Step(eager, seed)
        self.scan = Scan(self.step, *self.step.example())
        self.compiled = True
        self._carry: Tree | None = None  # of the steps taken, as long as the eager loop does not know it
        self._held = self._python_values() if watched else {}

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters now, unconstrained, by name."""
        self._tell_eager()
        return self.eager.params

    def run(self, start: int, stop: int, interrupted: Callable[[], bool]) -> Tensor:
        """Steps ``start`` to ``stop``; fewer if ``interrupted`` says so between two programs.

        Returns:
            The loss of each step taken, in nats, ``[n]``.

        Raises:
            NonFiniteError: at the first loss or gradient that is not finite.
        """
        if self.watched and self.compiled:
            self._check_python_values()
        losses: list[Tensor] = []
        step = start
        while step < stop and not (losses and interrupted()):
            losses.append(self._some(step, stop, interrupted))
            step += len(losses[-1])
        return torch.cat(losses)

    def _some(self, start: int, stop: int, interrupted: Callable[[], bool]) -> Tensor:
        if not self.compiled:
            return self.eager.run(start, stop, interrupted)
        if start == 0:
            return self._eager_step(0)
        chunk = self.step.noise.chunk
        return self._block(start, min(stop, (start // chunk + 1) * chunk))

    def _block(self, start: int, stop: int) -> Tensor:
        before = (self._carry or self.step.carry(), self._random_state(), self._schedule())
        own = self.step.block(start, stop)
        if changed := self.step.optimizer.changed_options():
            self._restore(before)
            self._leave(f"the scheduler changes {', '.join(changed)} of the optimizer, beside its learning rate")
            return torch.empty(0, dtype=torch.float64)
        carry, losses = self.scan(before[0], own, self.step.fixed())
        if not all(torch.isfinite(t).all() for t in (losses, *carry["params"])):
            self._explain(before, start, stop, losses)
        self._carry = carry
        return losses.to("cpu", torch.float64)

    def _explain(self, before: Any, start: int, stop: int, losses: Tensor) -> None:
        """Take the steps again, the one that fails eagerly, and raise its error."""
        bad = int((~torch.isfinite(losses)).float().argmax()) if not torch.isfinite(losses).all() else len(losses)
        good = max(0, bad - 1)  # the gradient of the step before may be what failed
        self._restore(before)
        if good:
            self._carry, _ = self.scan(before[0], self.step.block(start, start + good), self.step.fixed())
        self._tell_eager()
        for name, value in self.eager.params.items():
            self.eager.good[name].copy_(value.detach())
        for step in range(start + good, stop):
            self._eager_step(step)
        raise NonFiniteError(
            start + bad,
            None,
            "the compiled loss is not finite, though the eager one is",
            self.eager.objective.program.parameters.constrained(self.eager.good),
        )

    def _eager_step(self, step: int) -> Tensor:
        numbers = {kind: value[0] for kind, value in self.step.noise.between(step, step + 1).items()}
        with Given(numbers):
            return self.eager.run(step, step + 1, lambda: False)

    def _random_state(self) -> Any:
        return randomness.get_state() if self.step.draws_itself else None

    def _schedule(self) -> Any:
        scheduler = self.eager.scheduler
        return None if scheduler is None else copy.deepcopy((scheduler.state_dict(), self.step.optimizer.settings()))

    def _restore(self, before: Any) -> None:
        self._carry, random_state, schedule = before
        if random_state is not None:
            randomness.set_state(random_state)
        if schedule is not None:
            self.eager.scheduler.load_state_dict(schedule[0])
            self.step.optimizer.load_settings(schedule[1])

    def _tell_eager(self) -> None:
        if self._carry is not None:
            self.step.write(self._carry)
            self._carry = None

    def _python_values(self) -> dict[str, Any]:
        """What the program holds fixed of what model and guide reach: numbers, and which tensors stand where."""
        program, held = self.eager.objective.program, {id(t) for t in self.scan.held}
        found = python_values(program.model, program.guide)
        return {name: v for name, v in found.items() if not isinstance(v, Tensor) or id(v) in held}

    def _check_python_values(self) -> None:
        now = self._python_values()
        changed = [name for name, value in self._held.items() if not _same(now.get(name), value)]
        if changed:
            self._leave(
                f"{sorted(changed)[0]!r} has changed between two steps, and the compiled program holds its old value: "
                "keep it in a tensor (a buffer) and change that in place"
            )

    def _leave(self, reason: str) -> None:
        """Go on eagerly from here."""
        self._tell_eager()
        if self.required:
            raise ValueError(f"compile=True: {reason}")
        warnings.warn(f"the fit goes on eagerly: {reason}", RuntimeWarning, stacklevel=2)
        self.compiled = False

    def state_dict(self) -> dict[str, Any]:
        """Everything on which the next step depends."""
        self._tell_eager()
        return self.eager.state_dict() | {"compiled": self.compiled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self._carry = None
        self.compiled = state["compiled"]
        self.eager.load_state_dict(state)


def _same(now: Any, then: Any) -> bool:
    return now is then or (not isinstance(then, Tensor) and type(now) is type(then) and bool(now == then))
