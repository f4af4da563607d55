"""Pictures of comparisons: numbers and curves side by side."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_lvm.plots.axes import array, axes, color, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def dots(
    values: Mapping[str, float],
    label: str,
    log: bool = True,
    ax: Axes | None = None,
    errors: Mapping[str, float] | None = None,
) -> Axes:
    """A dot for each of several numbers, from top to bottom, with the number beside it.

    Args:
        values: A number for each name; those that are not finite, or not positive on a logarithmic axis, have no dot.
        label: What the numbers are.
        log: Whether the axis is logarithmic.
        ax: Axes to draw into.
        errors: Standard errors, which a line through the dot shows to both sides; none for a name that is left out.

    Returns:
        The axes.

    Raises:
        TypeError: if the values are no numbers by name.
        ValueError: for no values.

    Example:
        >>> from pyro_lvm import plots
        >>> ax = plots.dots({"few draws": 20.0, "many draws": 2.0}, "standard error (nats)")
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['few draws', 'many draws']
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"values: expected a dict of numbers by name, got {type(values).__name__}")
    if not values:
        raise ValueError("values: expected at least one, got none")
    wrong = [name for name, value in values.items() if not isinstance(value, Real)]
    if wrong:
        raise TypeError(f"values[{wrong[0]!r}]: expected a number, got {values[wrong[0]]!r}")
    ax = axes(ax, (6, 0.8 + 0.32 * len(values)))
    numbers = array("values", [float(value) for value in values.values()], "M")
    if log:
        ax.set_xscale("log")
    held = errors or {}
    beside, va = ((6, 3), "bottom") if held else ((8, 0), "center")
    for place, (name, number) in enumerate(zip(values, numbers, strict=True)):
        if np.isfinite(number) and (number > 0 or not log):
            ax.plot(number, place, "o", color=color(place), markersize=7)
            error = held.get(name, 0.0)
            if error > 0:
                ax.hlines(place, number - error, number + error, color=color(place), linewidth=2)
            text = f"{float(f'{number:.3g}'):,g}"
            ax.annotate(text, (number, place), xytext=beside, textcoords="offset points", va=va, fontsize=9)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.margins(x=0.2)
    ax.xaxis.set_minor_formatter("")
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
        TypeError: for curves that are no pairs of places and values.
        ValueError: for no curves, or shapes that do not fit together.

    Example:
        >>> from pyro_lvm import plots
        >>> ax = plots.curves({"here": ([0, 1], [1, 2]), "there": ([0, 2], [1, 3])}, "steps", "ELBO (nats)")
        >>> len(ax.lines)
        2
    """
    if not points:
        raise ValueError("points: expected at least one curve, got none")
    for name, pair in points.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"points[{name!r}]: expected places and values, got {pair!r}")
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
