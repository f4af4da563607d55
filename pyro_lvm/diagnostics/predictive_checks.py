"""Posterior predictive checks whose p-values are uniform under the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.verdict.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Statistic = Callable[[Tensor], Any]
_DOUBTFUL, _BAD = 0.01, 0.002


def _sd(rows: Tensor) -> Tensor:
    return rows.std(correction=0)


STATISTICS: dict[str, Statistic] = {"mean": torch.mean, "sd": _sd, "min": torch.min, "max": torch.max}


@dataclass(frozen=True)
class PredictiveCheck:
    """One test quantity of the data against the same of data that the model draws.

    Attributes:
        site: Of the observations.
        statistic: The name of the test quantity.
        observed: Of the data.
        replicated: Of data drawn at many posterior draws, ``[S]``.
        below: The rank among data drawn at one posterior draw (Johnson 2007, Gosselin 2011), as a share, uniform under
            the model; over all draws it would be drawn to one half, for the data have been used twice. NaN where the
            quantity is, of the data or of some data drawn.
        calibrated: Whether there was a posterior to draw from; at a point, ``below`` is drawn to one half, too.
    """

    site: str
    statistic: str
    observed: float
    replicated: Tensor = field(repr=False, compare=False)
    below: float
    calibrated: bool

    @property
    def p_value(self) -> float:
        """Two-sided."""
        return 2 * min(self.below, 1 - self.below)

    def findings(self) -> list[Finding]:
        """Whether the model can have made such data."""
        if math.isnan(self.below):
            text = f"{self.statistic} of {self.site!r} is NaN, of the data or of data drawn anew"
            return [Finding("prediction", "unknown", text)]
        low, high = self.replicated.quantile(self.replicated.new_tensor([0.05, 0.95])).tolist()
        text = f"{self.statistic} of {self.site!r} is {self.observed:.4g}, predicted {low:.4g} to {high:.4g} (90%)"
        text += f", p = {self.p_value:.2g}" + ("" if self.calibrated else ", conservative")
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
        known = [check for check in self.each if not math.isnan(check.below)]
        names = [f"{check.statistic} of {check.site}" for check in known]
        observed, replicated = [c.observed for c in known], [c.replicated for c in known]
        ax = plots.predictions(names, observed, replicated, ax)
        ax.set_title("predictive checks")
        return ax


Quantities = dict[tuple[str, str], Tensor]  # by site and name, ``[S]``


def quantities(data: Mapping[str, Tensor], statistics: Mapping[str, Statistic]) -> Quantities:
    """Test quantities of data drawn several times.

    Args:
        data: Of each site, ``[S, N, ...]``.
        statistics: Test quantities by name.

    Raises:
        ValueError: if a test quantity fails, or is no number.
    """
    return {
        (site, name): torch.tensor([_number(statistic, name, rows.double()) for rows in drawn], dtype=torch.float64)
        for site, drawn in data.items()
        for name, statistic in statistics.items()
    }


def check_predictions(
    observed: Quantities, replicated: Quantities, at_one_draw: Quantities, calibrated: bool
) -> PredictiveChecks:
    """Compare test quantities of the data with those of data drawn anew.

    Data and a draw of their posterior are distributed as data and the latents that made them. So the rank of a test
    quantity among those of data drawn at that one draw is uniform under the model, whatever the quantity. Ties are
    broken at random; quantities that never vary are passed over.

    Args:
        observed: Of the data, ``[1]``.
        replicated: Of data drawn at many posterior draws, ``[S]``.
        at_one_draw: Of data drawn at one of them, ``[R]``.
        calibrated: Whether that draw is of a posterior, and no point.
    """
    found = []
    for (site, name), value in observed.items():
        many, one = replicated[site, name], at_one_draw[site, name]
        if (many == value).all() and (one == value).all():
            continue
        places = (one < value).sum() + ((one == value).sum() + 1) * torch.rand(())
        is_nan = torch.cat([value, many, one]).isnan().any()
        below = math.nan if is_nan else (places / (len(one) + 1)).item()
        found.append(PredictiveCheck(site, name, value.item(), many, below, calibrated))
    return PredictiveChecks(tuple(found))


def _number(statistic: Statistic, name: str, rows: Tensor) -> float:
    try:
        value = statistic(rows)
    except Exception as error:  # whatever a user's function raises
        raise ValueError(f"the test quantity {name!r} failed on rows {list(rows.shape)}: {error}") from error
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = getattr(value, "shape", None)
        got = repr(value) if shape is None else f"shape {list(shape)}"
        raise ValueError(f"the test quantity {name!r} must return a number; got {got}") from error
