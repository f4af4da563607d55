"""EM on any model whose latents can be summed out, with rules found in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from pyro_lvm.em.e_step import Expectation, expect
from pyro_lvm.em.forms import add
from pyro_lvm.em.m_step import MStep, Sums
from pyro_lvm.em.plan import Plan
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.run import Rows, Theta

_FLAT = {torch.float32: 1e-3, torch.float64: 1e-6}  # a slope of Q, in nats a row


class GenericSteps:
    """E-steps by differentiation, M-steps by rules.

    Args:
        program: The model.
        theta: Where EM starts.
        batches: Goes through all rows.
        num_rows: N, or the total weight.
        one_batch: Whether that is one batch, whose E-step is worth keeping.
        hard: Whether each row counts with its best states alone.

    Attributes:
        plan: The rule of each parameter.
    """

    def __init__(
        self,
        program: EMProgram,
        theta: Theta,
        batches: Callable[[], Iterable[Rows]],
        num_rows: float,
        one_batch: bool,
        hard: bool = False,
    ) -> None:
        self.program, self.batches, self.num_rows, self.hard = program, batches, num_rows, hard
        self.one_batch = one_batch
        self.plan = Plan(program, theta, next(iter(batches()))[0])
        self.m_step = MStep(self.plan)
        self._tried = False
        self._kept: tuple[Theta, list] | None = None

    @property
    def objective_name(self) -> str:
        """What is maximised."""
        if self.hard:
            return "classification log-likelihood"
        return "log-posterior" if self.program.points else "log-likelihood"

    def sweep(self, theta: Theta) -> tuple[float, Sums]:
        """The objective at ``theta``, and sums over all rows."""
        value, sums = 0.0, dict[str, Tensor]()
        for i, (args, weight, expectation) in enumerate(self._expectations(theta)):
            value += float(expectation.objective(weight)) + (float(expectation.outside) if i == 0 else 0.0)
            for key, part in self.m_step.sums(args, expectation).items():
                sums[key] = add(sums[key], part) if key in sums else part
        return value, sums

    def maximize(self, theta: Theta, found: Sums) -> Theta:
        """The next parameters; the first time, closed forms are tried against the slope of Q."""
        if not self._tried:
            self._tried = True
            self._check_closed_forms(theta, found)
        return self.m_step(theta, found, lambda: self._batches_at(theta))

    def _check_closed_forms(self, theta: Theta, sums: Sums) -> None:
        new = self.m_step.closed(sums, theta)
        names = [n for n in self.plan.closed if not (new[n] == 0).any()]  # zero is on the boundary
        slopes = self.m_step.gradient(names, new, self._batches_at(theta))
        for name, slope in slopes.items():
            if not slope.abs().max() <= _FLAT[slope.dtype] * self.num_rows:
                self.plan.give_up(name, "its closed form is no maximum of Q")

    def _batches_at(self, theta: Theta) -> Iterator[tuple]:
        return ((args, expectation) for args, _, expectation in self._expectations(theta))

    def _expectations(self, theta: Theta) -> Iterable[tuple[tuple, Tensor | None, Expectation]]:
        """The E-step on each batch; that of a single batch is kept for the M-step."""
        if self._kept is not None and self._kept[0] is theta:
            return self._kept[1]
        found = self._make(theta)
        if self.one_batch:
            kept = list(found)
            self._kept = theta, kept
            return kept
        return found

    def _make(self, theta: Theta) -> Iterator[tuple[tuple, Tensor | None, Expectation]]:
        plate = self.program.program.sites.row_plate
        for args, weight in self.batches():
            with torch.no_grad():
                trace = self.program.trace(theta, args)
                expectation = expect(trace, plate, weight, self.hard)
            yield args, weight, expectation
