"""EM on any model whose latents can be summed out, with rules found in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from pyro_lvm.em.e_step import Expectation, drawn, expect
from pyro_lvm.em.m_step import MStep, Sums, collect
from pyro_lvm.em.plan import LEAST_SQUARES, Plan
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.run import Rows, Theta
from pyro_lvm.params import is_real

_DRAWS = 10  # of the states of each row, in Monte Carlo EM
_FLAT = {torch.float32: 1e-3, torch.float64: 1e-6}  # a slope of Q, in nats a row


class GenericSteps:
    """E-steps by differentiation, M-steps by rules.

    Args:
        program: The model.
        theta: Where EM starts.
        batches: Goes through all rows.
        num_rows: N, or the total weight.
        one_batch: Whether that is one batch, whose E-step is worth keeping.
        kind: "exact", "hard" (each row counts with its best states alone) or "monte_carlo" (with draws of its states).
        patient: See :class:`MStep`.

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
        kind: str = "exact",
        patient: bool = False,
    ) -> None:
        self.program, self.batches, self.num_rows, self.kind = program, batches, num_rows, kind
        self.one_batch = one_batch
        self.plan = Plan(program, theta, (args for args, _ in batches()))
        self.m_step = MStep(self.plan, patient)
        self._tried = False
        self._kept: tuple[Theta, list] | None = None

    @property
    def monotone(self) -> bool:
        """Whether the objective never falls."""
        return self.kind != "monte_carlo"

    @property
    def objective_name(self) -> str:
        """What is maximised."""
        if self.kind == "hard":
            return "classification log-likelihood"
        return "log-posterior" if self.program.points else "log-likelihood"

    def sweep(self, theta: Theta) -> tuple[Tensor, Sums]:
        """The objective at ``theta``, and sums over all rows."""
        value, sums = torch.zeros((), dtype=torch.float64), dict[str, Tensor]()
        for i, (args, weight, expectation) in enumerate(self._expectations(theta)):
            value = value + expectation.objective(weight) + (expectation.outside if i == 0 else 0.0)
            collect(sums, self.m_step.sums(args, expectation, first=i == 0))
        return value, sums

    def maximize(self, theta: Theta, found: Sums) -> Theta:
        """The next parameters; the first time, closed forms are tried against the slope of Q."""
        if not self._tried:
            self._tried = True
            late = self.plan.late_params
            self._give_up(self.m_step.closed(found, theta), theta, set(self.plan.closed) - late)
            self._give_up(
                self._m_step(theta, found),
                theta,
                (set(self.plan.closed) & late) | set(self.plan.governed_by(LEAST_SQUARES)),
            )
        return self._m_step(theta, found)

    def _m_step(self, theta: Theta, found: Sums) -> Theta:
        return self.m_step(theta, found, lambda: self._batches_at(theta))

    def _give_up(self, new: Theta, theta: Theta, names: set[str]) -> None:
        """Leave parameters to a search if Q still rises at what should be its maximum, and not on a boundary."""
        constraints = self.program.program.parameters.constraints
        inside = [name for name in names if is_real(constraints[name]) or not (new[name] == 0).any()]
        asked = [name for name in inside if not self.plan.is_floored(name, new[name])]
        for name, slope in self.m_step.gradient(asked, new, self._batches_at(theta)).items() if asked else ():
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
        return ((args, weight, self.expect(theta, args, weight)) for args, weight in self.batches())

    def expect(self, theta: Theta, args: tuple, weight: Tensor | None) -> Expectation:
        """The E-step on some rows."""
        with torch.no_grad():
            trace = self.program.trace(theta, args)
            plate = self.program.program.sites.row_plate
            if self.kind == "monte_carlo":
                return drawn(trace, plate, weight, _DRAWS)
            return expect(trace, plate, weight, hard=self.kind == "hard")
