"""Posterior predictive checks whose p-values are uniform under the model, for no data is used twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.diagnostics.finding import Finding
from pyro_lvm.diagnostics.loo import tail_probability
from pyro_lvm.diagnostics.weights import Weights
from pyro_lvm.psis import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Statistic = Callable[[Tensor], Tensor]
_FOLDS = 10
_MOST_K = 0.7
_DOUBTFUL, _BAD = 0.01, 1e-4

STATISTICS: dict[str, Statistic] = {
    "mean": torch.mean,
    "sd": torch.std,
    "min": torch.min,
    "max": torch.max,
}
"""Of the rows of a fold, ``[n, ...]`` to a number."""


@dataclass(frozen=True)
class PredictiveCheck:
    """One test quantity against its predictive distribution.

    Attributes:
        site: Of the observations.
        statistic: The name of the test quantity.
        p_values: The probability of a smaller value in each fold of rows, given the other folds; of all rows given
            all, where no fold can be held out, ``[F]``.
        held_out: Whether folds were held out. Else the p-value is drawn to one half by the double use of the data.
        unreliable: Folds whose weights have a Pareto k above 0.7, which ``p_value`` leaves out.
        observed: The test quantity of all rows.
        replicated: The same of data drawn from the posterior predictive distribution, ``[S]``.
    """

    site: str
    statistic: str
    p_values: Tensor = field(compare=False)
    held_out: bool
    unreliable: int
    observed: float
    replicated: Tensor = field(repr=False, compare=False)

    @property
    def p_value(self) -> float:
        """Two-sided, of all folds together (Stouffer's method)."""
        smallest = 0.5 / len(self.replicated)  # what so many draws can tell
        scores = torch.special.ndtri(self.p_values.clamp(smallest, 1 - smallest))
        return 2 * torch.special.ndtr(-abs(scores.sum() / math.sqrt(len(scores)))).item()

    def findings(self) -> list[Finding]:
        """Whether the model can have made such data."""
        low, high = self.replicated.double().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        text = f"{self.statistic} of {self.site!r} is {self.observed:.4g}, predicted {low:.4g} to {high:.4g} (90%)"
        if not len(self.p_values):
            return [Finding("prediction", "unknown", f"{text}; no fold of the rows can be held out by weights")]
        text += f", p = {self.p_value:.2g}" + ("" if self.held_out else ", conservative")
        grade = "good" if self.p_value >= _DOUBTFUL else "doubtful" if self.p_value >= _BAD else "bad"
        advice = "" if grade == "good" else "another likelihood, or latents that say how rows differ"
        return [Finding("prediction", grade, text, advice)]


@dataclass(frozen=True)
class PredictiveChecks:
    """Several test quantities of all observed sites.

    Attributes:
        each: The checks.
    """

    each: tuple[PredictiveCheck, ...]

    def findings(self) -> list[Finding]:
        """Those of each check."""
        return [finding for check in self.each for finding in check.findings()]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Each test quantity over what the model predicts."""
        names = [f"{check.statistic} of {check.site}" for check in self.each]
        observed, replicated = [c.observed for c in self.each], [c.replicated for c in self.each]
        ax = plots.predictions(names, observed, replicated, ax)
        ax.set_title("predictive checks")
        return ax


def check_predictions(
    weights: Weights | None,
    replicated: Mapping[str, Tensor],
    observed: Mapping[str, Tensor],
    statistics: Mapping[str, Statistic],
) -> PredictiveChecks:
    """Compare test quantities of the data with those of data drawn anew.

    Rows fall into ten folds at random. Each is held out by importance weights p(x, g) / q(g) / p(x_fold | g) and
    compared with its prediction from the others (Li and Huggins 2022, divided split predictive checks), so that the
    p-values are uniform under the model, where those that use the data twice are not.

    Args:
        weights: Draws and their weights; None if nothing is drawn that rows share, so that none can be held out.
        replicated: Data of all rows for each draw, ``[S, N, ...]``, by site.
        observed: The data, ``[N, ...]``.
        statistics: Test quantities.

    Raises:
        ValueError: if a test quantity is no number.
    """
    found = []
    for site, y in observed.items():
        num_rows = None if weights is None or weights.rows is None else weights.rows.shape[1]
        held_out = num_rows == len(y) >= 2 * _FOLDS
        folds = torch.randperm(len(y)).tensor_split(_FOLDS) if held_out else (torch.arange(len(y)),)
        smoothed = [_without(weights, fold if held_out else None, len(replicated[site])) for fold in folds]
        reliable = [(fold, w) for fold, (w, k) in zip(folds, smoothed, strict=True) if k < _MOST_K]
        for name, statistic in statistics.items():
            number = _checked(statistic, name)
            if not torch.isfinite(number(y)):
                continue  # as the standard deviation of one number

            def of_draws(rows: Tensor, number: Statistic = number, site: str = site) -> Tensor:
                return torch.stack([number(draw) for draw in replicated[site][:, rows]])

            p_values = [tail_probability(w, of_draws(fold), number(y[fold])) for fold, w in reliable]
            values = torch.stack(p_values) if p_values else torch.empty(0, dtype=torch.float64)
            unreliable, whole = len(folds) - len(reliable), of_draws(torch.arange(len(y)))
            found.append(PredictiveCheck(site, name, values, held_out, unreliable, number(y).item(), whole))
    return PredictiveChecks(tuple(found))


def _without(weights: Weights | None, fold: Tensor | None, num_draws: int) -> tuple[Tensor, float]:
    """Log-weights of draws given all rows but those of a fold."""
    if weights is None:
        return torch.full((num_draws,), -math.log(num_draws), dtype=torch.float64), -math.inf
    if fold is None:
        return smooth(weights.marginal)
    assert weights.rows is not None
    return smooth(weights.marginal.double() - weights.rows[:, fold].double().sum(-1))


def _checked(statistic: Statistic, name: str) -> Statistic:
    def number(rows: Tensor) -> Tensor:
        value = torch.as_tensor(statistic(rows.double()))
        if value.numel() != 1:
            raise ValueError(f"the test quantity {name!r} must be a number; got shape {list(value.shape)}")
        return value.reshape(()).double()

    return number
