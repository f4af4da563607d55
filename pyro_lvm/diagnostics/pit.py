"""Whether the predictive distribution of each row, given all others, is as wide as it should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.diagnostics.loo import left_out_weights, tail_probability
from pyro_lvm.verdict.finding import Finding
from pyro_lvm.verdict.weights import Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOUBTFUL, _BAD = 0.01, 1e-4


@dataclass(frozen=True)
class PIT:
    """Probabilities of a smaller value than each row's, given all other rows (LOO-PIT, Gelfand et al. 1992).

    They are uniform where the model is right, up to the dependence between rows.

    Attributes:
        site: Of the observations.
        values: ``[n]``, of at most 5,000 rows.
    """

    site: str
    values: Tensor = field(repr=False, compare=False)

    @property
    def p_value(self) -> float:
        """Of the test that they are uniform (Kolmogorov and Smirnov)."""
        from scipy.stats import kstest

        return float(kstest(self.values.numpy(), "uniform").pvalue)

    def findings(self) -> list[Finding]:
        """Whether rows are where they were expected."""
        p = self.p_value
        text = f"LOO-PIT of {self.site!r}: uniform with p = {p:.2g}"
        if p >= _DOUBTFUL:
            return [Finding("calibration", "good", text)]
        advice = "another likelihood: plot() shows whether predictions are too narrow, too wide or shifted"
        return [Finding("calibration", "doubtful" if p >= _BAD else "bad", text, advice)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """How many values lie below each, less the number expected."""
        ax = plots.uniformity(self.values, ax)
        ax.set_title(f"LOO-PIT of {self.site}")
        return ax


def pit(site: str, weights: Weights, replicated: Tensor, observed: Tensor) -> PIT:
    """Rank each row among its predictions from all other rows.

    Where values tie, as counts do, the rank among them is drawn at random.

    Args:
        site: Of the observations.
        weights: Of draws, with rows.
        replicated: Each row that has weights, drawn anew at each draw, ``[S, n]``.
        observed: ``[n]``.
    """
    rows = zip(left_out_weights(weights), replicated.unbind(1), observed, strict=True)
    return PIT(site, torch.stack([tail_probability(log_weights, *of_row) for (log_weights, _), *of_row in rows]))
