"""The Pareto k of a guide's importance weights: whether they can correct its draws."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.psis import USEFUL
from pyro_lvm.verdict.finding import RICHER, Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HOPELESS = 1.0


@dataclass(frozen=True)
class KHat:
    """The Pareto k of importance weights, in five runs (Yao et al. 2018, Vehtari et al. 2024).

    Attributes:
        each: Of the joint weights, in each run; where rows have many latents, of the weights of what all rows share,
            the rows' own integrated out; empty if nothing is shared.
        rows: Of the weights of each row's own latents, ``[N]``; None where these belong to the joint weights.
        num_draws: In each run.
        shared_only: Whether the rows' own latents are integrated out.
    """

    each: tuple[float, ...]
    num_draws: int
    shared_only: bool = False
    rows: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def value(self) -> float:
        """The median of the runs; of the rows, if nothing is shared."""
        if self.each:
            return statistics.median(self.each)
        assert self.rows is not None
        return self.rows.median().item()

    @property
    def useful(self) -> bool:
        """Whether weights can correct the guide: those of what the runs are of, or else those of the rows."""
        return self.findings()[0].grade == "good"

    def findings(self) -> list[Finding]:
        """Whether the weights can be used."""
        return ([self._joint()] if self.each else []) + ([] if self.rows is None else [self._by_row(self.rows)])

    def _joint(self) -> Finding:
        whose = " of what all rows share" if self.shared_only else ""
        text = (
            f"k-hat{whose} {self.value:.2f} (five runs of {self.num_draws:,} draws: "
            f"{min(self.each):.2f} to {max(self.each):.2f})"
        )
        if self.value == -math.inf:
            return Finding(
                "k-hat", "good", f"the largest weights{whose} are equal up to rounding: no draw weighs too much"
            )
        if self.value < USEFUL:
            what = "what all rows share" if self.shared_only else "the guide"
            return Finding("k-hat", "good", f"{text}: importance weights can correct {what}")
        grade = "doubtful" if self.value < _HOPELESS else "bad"
        return Finding("k-hat", grade, f"{text}: importance weights and what rests on them cannot be used", RICHER)

    def _by_row(self, rows: Tensor) -> Finding:
        high = int((rows >= USEFUL).sum())
        text = f"k-hat of rows: {high:,} of {len(rows):,} at {USEFUL} or above, the largest {rows.max():.2f}"
        if high <= 0.01 * len(rows):
            return Finding("k-hat of rows", "good", text)
        grade = "doubtful" if high <= 0.2 * len(rows) else "bad"
        return Finding("k-hat of rows", grade, text, "a richer guide of the rows' latents; of a VAE, flow=")

    def plot(self, ax: Axes | None = None) -> Axes:
        """The Pareto k of each row's own latents."""
        if self.rows is None:
            raise ValueError("the rows have no weights of their own")
        ax = plots.pareto_k(self.rows, ax)
        ax.set_title("weights of the rows' latents")
        return ax

    def __str__(self) -> str:
        return "; ".join(finding.text for finding in self.findings())
