"""Pictures of comparisons: bars and curves side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_lvm.plots.axes import array, axes, color, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bars(values: Mapping[str, float], label: str, log: bool = False, ax: Axes | None = None) -> Axes:
    """A horizontal bar for each of several things, from top to bottom, with its number beside it.

    Args:
        values: A number for each name; those that are not finite, or not positive on a logarithmic axis, have no bar.
        label: What the numbers are.
        log: Whether the axis is logarithmic.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for no values.
    """
    if not values:
        raise ValueError("values: expected at least one, got none")
    ax = axes(ax, (6, 0.8 + 0.32 * len(values)))
    numbers = array("values", list(values.values()), "M")
    shown = np.isfinite(numbers) & ((numbers > 0) | (not log))
    if log:
        ax.set_xscale("log")
    drawn = ax.barh(
        np.flatnonzero(shown), numbers[shown], color=[color(int(i)) for i in np.flatnonzero(shown)], height=0.65
    )
    ax.bar_label(drawn, fmt=lambda v: f"{float(f'{v:.3g}'):,g}", padding=3, fontsize=9)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.margins(x=0.2)
    ax.set_xlabel(label)
    return plain(ax)


def curves(
    points: Mapping[str, tuple[Any, Any]], xlabel: str, ylabel: str, log: bool = False, ax: Axes | None = None
) -> Axes:
    """Several curves in one pair of axes.

    Args:
        points: For each name, places along the axis and values, each ``[M]``.
        xlabel: What the places are.
        ylabel: What the values are.
        log: Whether both axes are logarithmic.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for no curves, or shapes that do not fit together.
    """
    if not points:
        raise ValueError("points: expected at least one curve, got none")
    ax = axes(ax, (6, 4))
    for i, (name, (x, y)) in enumerate(points.items()):
        places = array(f"points[{name!r}]", x, "M")
        ax.plot(places, array(f"points[{name!r}]", y, len(places)), color=color(i), linewidth=1.6, label=name)
    if log:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False, fontsize=9)
    return plain(ax)
