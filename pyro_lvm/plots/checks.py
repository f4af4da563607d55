"""Whether a fit can be trusted: weights of rows, calibration, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binom

from pyro_lvm.plots.axes import COLORS, array, axes, plain
from pyro_lvm.psis import USEFUL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = (-0.5, 2.0)
_KOLMOGOROV = 1.358  # the distance, times the root of the count, that 95% of uniform samples keep below


def pareto_k(values: Any, ax: Axes | None = None) -> Axes:
    """The Pareto k of the importance weights of each row, and the limit from which on they cannot be used.

    Args:
        values: ``[N]``; what lies beyond -0.5 and 2 is drawn there.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes.
    """
    values = np.clip(array("values", values, "N"), *_SHOWN)
    ax = axes(ax, (5, 3.5))
    high = values >= USEFUL
    for mask, colour in ((~high, COLORS[0]), (high, COLORS[1])):
        ax.plot(np.flatnonzero(mask), values[mask], "o", color=colour, markersize=3, alpha=0.7)
    ax.axhline(USEFUL, color="#444444", linewidth=1, linestyle="--")
    ax.set(xlabel="row", ylabel="Pareto k")
    return plain(ax)


def uniformity(values: Any, ax: Axes | None = None) -> Axes:
    """Probabilities that should be uniform: how many lie below each, less the number expected.

    The band is the one in which 95% of uniform samples of this size stay.

    Args:
        values: ``[N]``, between 0 and 1.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes, and values that are no probabilities.
    """
    values = np.sort(_probabilities(values))
    ax = axes(ax, (5, 3.5))
    band = _KOLMOGOROV / np.sqrt(len(values))
    ax.axhspan(-band, band, color="#E4E4E4", zorder=0)
    grid = np.linspace(0, 1, 201)
    ax.plot(grid, np.searchsorted(values, grid, "right") / len(values) - grid, color=COLORS[0])
    ax.set(xlabel="probability of a smaller value", ylabel="share below, less expected", xlim=(0, 1))
    return plain(ax)


def ranks(values: Any, ax: Axes | None = None) -> Axes:
    """A histogram of ranks of true values among posterior draws, as probabilities: flat for a calibrated posterior.

    The band is the one in which 95% of the bins' counts lie, if the ranks are uniform.

    Args:
        values: ``[J]``, between 0 and 1.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes, and values that are no probabilities.
    """
    values = _probabilities(values)
    ax = axes(ax, (5, 3.5))
    bins = int(np.clip(len(values) // 25, 2, 20))
    low, high = binom.interval(0.95, len(values), 1 / bins)
    ax.axhspan(low, high, color="#E4E4E4", zorder=0)
    ax.hist(values, bins=bins, range=(0, 1), color=COLORS[0], alpha=0.8)
    ax.set(xlabel="rank", ylabel="simulations", xlim=(0, 1))
    return plain(ax)


def _probabilities(values: Any) -> np.ndarray:
    values = array("values", values, "N")
    if not len(values) or not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("values: expected probabilities, from 0 to 1")
    return values


def predictions(names: Sequence[str], observed: Any, replicated: Sequence[Any], ax: Axes | None = None) -> Axes:
    """Test quantities of the data (dots) over the middle 90% of the same of data drawn anew (bars).

    Each is shown less the median of the latter, and over half the length of the bar, so that a dot in it is within 1.

    Args:
        names: Of the P quantities, from top to bottom.
        observed: ``[P]``.
        replicated: For each quantity its draws, ``[S]``.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes.
    """
    observed = array("observed", observed, len(names))
    if len(replicated) != len(names):
        raise ValueError(f"replicated: expected draws of {len(names)} quantities, got {len(replicated)}")
    ax = axes(ax, (5, 1.0 + 0.3 * len(names)))
    for i, draws in enumerate(replicated):
        low, middle, high = np.quantile(array(f"replicated[{i}]", draws, "S"), [0.05, 0.5, 0.95])
        unit = max((high - low) / 2, np.finfo(float).tiny)
        ax.hlines(i, (low - middle) / unit, (high - middle) / unit, color=COLORS[0], alpha=0.3, linewidth=6)
        place = np.clip((observed[i] - middle) / unit, -4, 4)
        ax.plot(place, i, "o", color=COLORS[0] if low <= observed[i] <= high else COLORS[1])
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("data, over 90% of what the model predicts")
    return plain(ax)
