"""EM on any model whose latents can be summed out, with rules found in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lvm.data import MOST_ROWS
from pyro_lvm.em.assignment import Components, components_of, features, near_a_poorly_explained_row
from pyro_lvm.em.batch import AllRows, Batch, Rows
from pyro_lvm.em.e_step import Expectation, drawn, expect
from pyro_lvm.em.m_step import Expected, MStep, Objective, Sums, collect
from pyro_lvm.em.matching import Axes, num_states, permuted, state_axes
from pyro_lvm.em.plan import LEAST_SQUARES, Plan
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.run import EMPTY, ROUNDING, Empty, Theta
from pyro_lvm.params import is_real

_DRAWS = 10  # of the states of each row, in Monte Carlo EM
_ROUNDINGS = 16  # of the parameters, which slopes of concentrated distributions multiply
_FLAT = {torch.float32: 1e-3, torch.float64: 1e-6}  # a slope of Q, in nats a row
_SURE = 0.9  # the share of a row that goes where it is assigned; the rest leaves no component without rows


class Swept(NamedTuple):
    """What a sweep over all rows has found.

    Attributes:
        sums: For the closed forms.
        shares: How many rows belong to each component, ``[K]``, with infinity for one that is impossible; None without
            components.
    """

    sums: Sums
    shares: Tensor | None


class GenericSteps:
    """E-steps by differentiation, M-steps by rules.

    Args:
        program: The model.
        theta: Where EM starts.
        rows: All of them.
        kind: "exact", "hard" (each row counts with its best states alone) or "monte_carlo" (with draws of its states).
        patient: See :class:`MStep`.
        numeric: Why all parameters are left to a numerical search; empty if they are not.
        q: See :class:`MStep`.

    Attributes:
        plan: The rule of each parameter.
        components: Of the mixture, if the model is one.
    """

    def __init__(
        self,
        program: EMProgram,
        theta: Theta,
        rows: Rows,
        kind: str = "exact",
        patient: bool = False,
        numeric: str = "",
        q: Objective | None = None,
    ) -> None:
        self.program, self.rows, self.kind = program, rows, kind
        self.plan = Plan(program, theta, map(self.completed, rows))
        for name in [*self.plan.closed, *self.plan.governed_by(LEAST_SQUARES)] if numeric else ():
            self.plan.give_up(name, numeric)
        self.m_step = MStep(self.plan, patient, q)
        self._tried = False
        self._kept: tuple[Theta, list[Expected]] | None = None
        self.components = self.find_components(theta)

    def completed(self, batch: Batch) -> Batch:
        """Rows with values of the latents that are not summed out; any will do."""
        return batch

    def find_components(self, theta: Theta) -> Components | None:
        """Of the mixture, if the model is one."""
        batch, expectation = next(iter(self._expectations(theta)))
        in_parts = isinstance(self.rows, AllRows) and not self.rows.at_once
        if expectation.rows is None and (in_parts or batch.weight is not None):
            raise ValueError(
                "a latent outside the row plate ties the rows together, so that they can neither be weighted nor come "
                "in batches"
            )
        return components_of(expectation, self.program.program.sites.row_plate)

    @property
    def monotone(self) -> bool:
        """Whether the objective never falls."""
        return self.kind != "monte_carlo"

    @property
    def settles(self) -> bool:
        """Whether it comes to rest."""
        return self.monotone

    @property
    def objective_name(self) -> str:
        """What is maximised."""
        name = "log-posterior" if self.program.points else "log-likelihood"
        return f"classification {name}" if self.kind == "hard" else name

    @property
    def rules(self) -> dict[str, str]:
        """The rule of each parameter."""
        return self.plan.rules

    def sweep(self, theta: Theta) -> tuple[Tensor, Swept]:
        """The objective at ``theta``, and sums over all rows."""
        value, sums, shares = torch.zeros((), dtype=torch.float64), dict[str, Tensor](), None
        for batch, expectation in self._expectations(theta):
            value = value + expectation.objective(batch.weight) + (expectation.outside if batch.first else 0.0)
            collect(sums, self.m_step.sums(batch, expectation))
            if self.components is not None:
                found = self.components.shares(expectation).double().sum(0)
                found[~self.components.possible(expectation)] = torch.inf
                shares = found if shares is None else shares + found
        return value, Swept(sums, shares)

    def maximize(self, theta: Theta, found: Swept) -> Theta:
        """The next parameters; the first time, closed forms are tried against the slope of Q."""
        if not self._tried:
            self.try_closed_forms(theta, found.sums)
        return self.m_step(theta, found.sums, lambda: self._expectations(theta))

    def empty(self, theta: Theta, found: Swept) -> list[Empty]:
        """The components to which no row belongs."""
        if found.shares is None:
            return []
        few = EMPTY * self.rows.total / self.rows.num_rows
        return [Empty(0, int(k)) for k in (found.shares < few).nonzero()]

    def check_online(self, theta: Theta) -> None:
        """Refuse parameters without a closed form, whose sums cannot be forgotten, and what lies outside the rows."""
        self._refuse_searches()
        self.try_closed_forms(theta)
        self._refuse_searches()
        local, uses = self.program.program.sites.local, self.plan.uses(next(iter(self.rows)))
        if outside := [n for n, use in uses.items() if n not in local and not use.prior_of and use.params]:
            raise ValueError(f"online EM needs all observations in the rows, and {outside[0]!r} lies outside")

    def online_sums(self, theta: Theta, batch: Batch) -> tuple[Tensor, Sums]:
        """The objective of a minibatch, and its sums; the first of a pass adds what lies outside the rows."""
        expectation = self.expect(theta, batch)
        objective = expectation.objective(batch.weight) + (expectation.outside if batch.first else 0.0)
        return objective, self.m_step.sums(batch._replace(first=True), expectation)

    def online_maximum(self, sums: Sums, theta: Theta) -> Theta:
        """The next parameters."""
        new = self.m_step.closed(sums, theta)
        self._refuse_searches()
        return new

    def _refuse_searches(self) -> None:
        others = [name for name in self.rules if name not in self.plan.closed or name in self.plan.late_params]
        if others:
            raise ValueError(
                f"online EM needs a closed form for every parameter, and {others[0]!r} has none: "
                f"{self.rules[others[0]]}"
            )

    def remarks(self, theta: Theta) -> dict[str, str]:
        """The rules of parameters that are held on a boundary there."""
        if not any(mask.any() for form in self.plan.forms.values() for mask in form.floored.values()):
            return {}
        with torch.no_grad():
            self.maximize(theta, self.sweep(theta)[1])
        return {n: f"{self.rules[n]}; held at its limit" for n in self.plan.closed if self.plan.is_floored(n)}

    def refill(self, theta: Theta, empty: list[Empty]) -> Theta:
        """Parameters at which empty components have rows: some alike that the model explains badly."""
        assert self.components is not None
        batch = self.rows.sample(MOST_ROWS, seed=0)
        expectation = self.expect(theta, batch)
        table = features(expectation, self.components.row_dim)
        table = expectation.rows.unsqueeze(1) if table is None else table  # type: ignore[union-attr]
        shares = self.components.shares(expectation)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        for rank, (_, component) in enumerate(empty):
            count = max(1, len(shares) // (2 * self.components.size))
            chosen = near_a_poorly_explained_row(expectation, table, count, rank)
            shares[chosen] *= 1 - _SURE
            shares[chosen, component] += _SURE
        return self.from_shares(theta, batch, expectation, shares)

    def from_labels(self, theta: Theta, batch: Batch, labels: Tensor) -> Theta:
        """The M-step of a clustering of some rows, ``[N]``."""
        assert self.components is not None
        count = self.components.size
        shares = _SURE * torch.eye(count)[labels] + (1 - _SURE) / count
        return self.from_shares(theta, batch, self.expect(theta, batch), shares)

    def from_shares(self, theta: Theta, batch: Batch, expectation: Expectation, shares: Tensor) -> Theta:
        """The M-step of rows that belong to components with these shares, ``[N, K]``."""
        assert self.components is not None
        assigned = self.components.assign(expectation, shares)
        m_step = MStep(self.plan, patient=True)
        return m_step(theta, m_step.sums(batch, assigned), lambda: [(batch, assigned)])

    def axes(self, theta: Theta) -> Axes:
        """The dimensions of parameters that count states, if the model does not care for the order of states."""
        batch, expectation = next(iter(self._expectations(theta)))
        axes = state_axes(self.plan.uses(batch), theta, expectation)
        order = torch.arange(num_states(theta, axes)).roll(1)
        here, there = (self.sweep(t)[0] for t in (theta, permuted(theta, axes, order)))
        rounding = ROUNDING[next(iter(theta.values())).dtype] * here.abs().clamp(min=self.rows.total)
        return axes if (here - there).abs() <= rounding else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry of what was learned on the way."""
        return {"tried": self._tried, "plan": self.plan.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self._tried = state["tried"]
        self.plan.restore(state["plan"])

    def try_closed_forms(self, theta: Theta, sums: Sums | None = None) -> None:
        """Give up rules after which Q has a slope; of many rows a part is enough to see that.

        Args:
            theta: Where to try them.
            sums: Of all rows there, where they are known.
        """
        self._tried = True
        expected: Callable[[], Iterable[Expected]] = partial(self._expectations, theta)
        total = self.rows.total
        if isinstance(self.rows, AllRows) and self.rows.num_rows > MOST_ROWS:
            batch = self.rows.sample(MOST_ROWS, seed=0)
            total *= MOST_ROWS / self.rows.num_rows
            part, sums = self.expected(theta, batch), None
            expected = lambda: part  # noqa: E731
        if sums is None:
            sums = {}
            for completion in expected():
                collect(sums, self.m_step.sums(*completion))
        late = self.plan.late_params
        self._give_up(self.m_step.closed(sums, theta), set(self.plan.closed) - late, expected, total)
        others = (set(self.plan.closed) & late) | set(self.plan.governed_by(LEAST_SQUARES))
        if others:
            self._give_up(self.m_step(theta, sums, expected), others, expected, total)

    def _give_up(self, new: Theta, names: set[str], expected: Callable[[], Iterable[Expected]], total: float) -> None:
        """Leave parameters to a search if Q still rises at what should be its maximum, and not on a boundary."""
        constraints = self.program.program.parameters.constraints
        inside = [name for name in names if is_real(constraints[name]) or not (new[name] == 0).any()]
        asked = [name for name in inside if not self.plan.is_floored(name)]
        for name, slope in self.m_step.slopes(asked, new, expected).items() if asked else ():
            rounding = _ROUNDINGS * torch.finfo(slope.dtype).eps * self.plan.size(name)
            if not slope.abs().max() <= (_FLAT[slope.dtype] + rounding) * total:
                self.plan.give_up(name, "its closed form is no maximum of Q")

    def _expectations(self, theta: Theta) -> Iterable[Expected]:
        """The E-step on each batch; that of a single batch is kept for the M-step."""
        if self._kept is not None and self._kept[0] is theta:
            return self._kept[1]
        found = (part for batch in self.rows for part in self.expected(theta, batch))
        if self.rows.at_once:
            kept = list(found)
            self._kept = theta, kept
            return kept
        return found

    def expected(self, theta: Theta, batch: Batch) -> list[Expected]:
        """The E-step on some rows, and these as the M-step sees them."""
        return [(batch, self.expect(theta, batch))]

    def expect(self, theta: Theta, batch: Batch) -> Expectation:
        """The E-step on some rows."""
        with torch.no_grad():
            trace = self.program.trace(theta, batch)
            plate = self.program.program.sites.row_plate
            if self.kind == "monte_carlo":
                return drawn(trace, plate, batch.weight, _DRAWS)
            found = expect(trace, plate, batch.weight, hard=self.kind == "hard")
            if batch.share == 1.0:
                return found
            return found._replace(weights={name: batch.share * weight for name, weight in found.weights.items()})
