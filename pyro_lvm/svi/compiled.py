"""The compiled training loop: blocks of steps as one program, behind the protocol of the eager loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.batches import ShuffledRows
from pyro_lvm.compiling import Scan
from pyro_lvm.modules import python_values
from pyro_lvm.noise import Given
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.nonfinite import NonFiniteError
from pyro_lvm.svi.step import Step, Tree
from pyro_lvm.tracing import NotCompilable, first_line
from pyro_lvm.warn import warn

_CHECKED_BATCHES = 50
_AFTER_THE_FIRST = 2  # call of the loop, callbacks have run once, and may have changed what no look at values finds
_SCHEDULED = "the scheduler changes {} of the optimizer, beside its learning rate"


class _Before(NamedTuple):
    """Where a block began."""

    start: int
    carry: Tree
    random_state: Any
    schedule: Any


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
        program = eager.objective.program
        self._programs = (program.model, program.guide, program.model_kwargs, program.data.args)
        self.step = Step(eager, seed)
        before = _fixed(python_values(*self._programs))
        self.scan = Scan(self.step, *self.step.example())
        self.compiled = True
        self._carry: Tree | None = None  # of the steps taken, as long as the eager loop does not know it
        self._blocks: list[_Before] = []  # the last two
        self._calls = 0
        self._held = self._python_values()
        self._check_schedule()
        if changed := _differences(before, _fixed(python_values(*self._programs))):
            raise NotCompilable(f"{changed[0]!r} changes as model and guide run: keep it in a tensor, or leave it out")

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
        if self.compiled:
            self._check_batches(start, stop)
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
        before = _Before(start, self._carry or self.step.carry(), self._random_state(), self._schedule())
        own = self.step.block(start, stop)
        if changed := self.step.optimizer.changed_options():
            self._restore(before)
            self._leave(_SCHEDULED.format(", ".join(changed)))
            return torch.empty(0, dtype=torch.float64)
        try:
            carry, losses = self.scan(before.carry, own, self.step.fixed())
        except RuntimeError as error:
            self._restore(before)
            self._leave(f"the compiled program failed: {error}")
            return torch.empty(0, dtype=torch.float64)
        self._blocks = [*self._blocks[-1:], before]
        if not all(torch.isfinite(t).all() for t in (losses, *carry["params"])):
            return self._replay(start, stop, losses)
        self._carry = carry
        return losses.to("cpu", torch.float64)

    def _replay(self, start: int, stop: int, losses: Tensor) -> Tensor:
        """Take the steps of a block that went wrong again, the failing one and its predecessor eagerly.

        Returns:
            The losses of the block, if no step fails: parameters that overflow fail in the step after.
        """
        finite = torch.isfinite(losses)
        bad = stop if finite.all() else start + int((~finite).to(torch.uint8).argmax())
        # The gradient of the step before may be what failed, and the parameters of the one before that are good.
        first = max(bad - 2, self._blocks[0].start)
        before = next(block for block in reversed(self._blocks) if block.start <= first)
        self._restore(before)
        done = before.start
        while done < first:  # in the chunks of the noise
            chunk = self.step.noise.chunk
            until = min(first, (done // chunk + 1) * chunk)
            self._carry, _ = self.scan(self._carry, self.step.block(done, until), self.step.fixed())
            done = until
        again = [self._eager_step(step) for step in range(first, stop)]
        if not finite.all():
            self._leave(f"the compiled loss of step {bad} is not finite, though the eager one is")
        return torch.cat([losses[: max(0, first - start)].double(), *again[max(0, start - first) :]])

    def _eager_step(self, step: int) -> Tensor:
        self._tell_eager()
        numbers = {kind: value[0] for kind, value in self.step.noise.between(step, step + 1).items()}
        with Given(numbers):
            return self.eager.run(step, step + 1, lambda: False)

    def _random_state(self) -> Any:
        return randomness.get_state() if self.step.draws_itself else None

    def _check_schedule(self) -> None:
        if self.eager.scheduler is None:
            return
        before = _Before(0, self.step.example()[0], None, self._schedule())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.eager.scheduler.step()
        changed = self.step.optimizer.changed_options()
        self._restore(before)
        self._carry = None
        if changed:
            raise NotCompilable(_SCHEDULED.format(", ".join(changed)))

    def _schedule(self) -> Any:
        scheduler = self.eager.scheduler
        return None if scheduler is None else copy.deepcopy((scheduler.state_dict(), self.step.optimizer.settings()))

    def _restore(self, before: _Before) -> None:
        self._carry = before.carry
        if before.random_state is not None:
            randomness.set_state(before.random_state)
        if before.schedule is not None:
            self.eager.scheduler.load_state_dict(before.schedule[0])
            self.step.optimizer.load_settings(before.schedule[1])

    def _tell_eager(self) -> None:
        if self._carry is not None:
            self.step.write(self._carry)
            self._carry = None

    def _python_values(self) -> dict[str, list[Any]]:
        """What the program holds fixed of what model and guide reach: numbers, and which tensors stand where."""
        return _fixed(python_values(*self._programs), self.scan.held)

    def _check_python_values(self) -> None:
        now = self._python_values()
        changed = _differences(self._held, now)
        self._calls += 1
        if (changed or self._calls == _AFTER_THE_FIRST) and (told := self._outdated()) is not None:
            what = repr(changed[0]) if changed else f"a number of Python's{told}"
            self._leave(
                f"{what} has changed between two steps, and the compiled program holds its old value: keep it in a "
                "tensor (a buffer) and change that in place"
            )
        self._held = now

    def _outdated(self) -> str | None:
        """What a new trace of the step has for a number of the program; the random state stays as it is."""
        state = randomness.get_state()
        try:
            return self.scan.outdated()
        finally:
            randomness.set_state(state)

    def _check_batches(self, start: int, stop: int) -> None:
        """Pyro's checks on the first batches, as the steps to come would meet them: compiled steps make none."""
        batches = self.eager.batches
        if isinstance(batches, ShuffledRows) and is_validation_enabled():
            for step in range(max(1, start), min(stop, batches.num_batches, _CHECKED_BATCHES)):
                self.eager.check(step, batches.get(step))

    def finish(self, stop: int) -> None:
        """All steps to ``stop`` are taken: warn where Pyro's checks would refuse another."""
        if self.compiled and is_validation_enabled():
            self._tell_eager()
            try:
                self.eager.check(stop, self.eager.batches.get(stop - 1))
            except (ValueError, NonFiniteError) as error:
                warn(f"the fit ends where an eager step would fail: {first_line(error)}")

    def _leave(self, reason: str) -> None:
        """Go on eagerly from here."""
        self._tell_eager()
        if self.required:
            raise ValueError(f"compile=True: {reason}")
        warn(f"the fit goes on eagerly: {reason}")
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


def _fixed(values: dict[str, list[Any]], tensors: Sequence[Tensor] = ()) -> dict[str, list[Any]]:
    """Numbers and strings, and of the tensors these."""
    ids = {id(t) for t in tensors}
    return {name: [v for v in found if not isinstance(v, Tensor) or id(v) in ids] for name, found in values.items()}


def _differences(then: dict[str, list[Any]], now: dict[str, list[Any]]) -> list[str]:
    """The names under which there are other numbers or strings, or other tensors."""

    def same(a: Any, b: Any) -> bool:
        return a is b or (not isinstance(a, Tensor) and type(a) is type(b) and bool(a == b))

    def equal(ours: list[Any], theirs: list[Any]) -> bool:
        return len(ours) == len(theirs) and all(map(same, ours, theirs))

    return sorted(name for name in then.keys() | now.keys() if not equal(then.get(name, []), now.get(name, [])))
