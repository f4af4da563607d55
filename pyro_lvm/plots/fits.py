"""Pictures of fits: losses and posterior intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_lvm.plots.axes import COLORS, PALE, array, axes, color, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def losses(losses: Any, window: int | None = None, ax: Axes | None = None) -> Axes:
    """The loss of each step, and its running mean.

    The vertical axis spans the losses after the first twentieth of the steps. The fall before, often a hundred times
    as deep, is cut off at the top.

    Args:
        losses: Negative ELBOs in nats, ``[num_steps]``, such as ``result.losses``.
        window: Steps in a mean; a fiftieth of all, if None.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for another shape, no steps, or a window that is not from 1 to the number of steps.
    """
    values = array("losses", losses, "num_steps")
    if not len(values):
        raise ValueError("losses: expected at least one step, got none")
    if window is None:
        window = max(1, len(values) // 50)
    if type(window) is not int or not 1 <= window <= len(values):
        raise ValueError(f"window: expected an integer from 1 to the number of steps, {len(values)}, got {window!r}")
    ax = axes(ax, (6, 3.5))
    steps = np.arange(1, len(values) + 1)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    ax.plot(steps, values, color=COLORS[0], alpha=PALE, linewidth=0.8, label="each step")
    ax.plot(steps[window - 1 :], means, color=COLORS[0], linewidth=1.8, label=f"mean of {window:,} steps")
    late = values[len(values) // 20 :]
    late = late[np.isfinite(late)]
    if late.size and late.max() > late.min():
        margin = 0.05 * (late.max() - late.min())
        ax.set_ylim(late.min() - margin, late.max() + margin)
    ax.set(xlabel="step", ylabel="loss (negative ELBO, nats)")
    ax.legend(frameon=False)
    return plain(ax)


def intervals(
    draws: Mapping[str, Any],
    names: Sequence[str] | None = None,
    probability: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """Posterior intervals of several quantities, and of several fits beside each other.

    A dot is a mean, and a line reaches from the lower to the upper quantile that leave equal tails.

    Args:
        draws: For the name of each fit, its draws, ``[S, D]``; S may differ.
        names: Names of the D quantities, from top to bottom.
        probability: What an interval holds.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for no draws, other shapes, or a probability that is not between 0 and 1.
    """
    if not draws:
        raise ValueError("draws: expected at least one fit, got none")
    first = array("draws", next(iter(draws.values())), "S", "D")
    arrays = {fit: array(f"draws[{fit!r}]", value, "S", first.shape[1]) for fit, value in draws.items()}
    D = first.shape[1]
    names = [str(d) for d in range(D)] if names is None else list(names)
    if len(names) != D:
        raise ValueError(f"names: expected {D} names, one for each column of the draws, got {len(names)}")
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a number between 0 and 1, got {probability!r}")
    ax = axes(ax, (6, 0.8 + 0.22 * D))
    tail = (1 - probability) / 2
    for i, (fit, values) in enumerate(arrays.items()):
        lower, upper = np.quantile(values, [tail, 1 - tail], axis=0)
        height = np.arange(D) + 0.22 * (i - (len(arrays) - 1) / 2)
        ax.hlines(height, lower, upper, color=color(i), linewidth=2)
        ax.plot(values.mean(0), height, "o", color=color(i), markersize=4, label=fit)
    ax.axvline(0, color="#888888", linewidth=1, zorder=0)
    ax.set_yticks(range(D), names)
    ax.set_ylim(D - 0.4, -0.6)
    ax.set_xlabel(f"posterior mean and {probability:.0%} interval")
    ax.legend(frameon=False, ncols=len(arrays), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return plain(ax)


def standardized(names: Sequence[str], locs: Any, scales: Any, ax: Axes | None = None) -> Axes:
    """Marginals beside those of a reference, in units of the reference.

    A dot is a mean, and a line reaches one standard deviation to both sides. The band is that of the reference, from
    -1 to 1.

    Args:
        names: Of the P quantities, from top to bottom.
        locs: Means, less those of the reference and over its standard deviations, ``[P]``.
        scales: Standard deviations over those of the reference, ``[P]``.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes.
    """
    locs, scales = array("locs", locs, len(names)), array("scales", scales, len(names))
    ax = axes(ax, (6, 1.0 + 0.22 * len(names)))
    height = np.arange(len(names))
    ax.axvspan(-1, 1, color=COLORS[0], alpha=PALE / 2, linewidth=0, label="reference")
    ax.axvline(0, color=COLORS[0], linewidth=1)
    ax.hlines(height, locs - scales, locs + scales, color=COLORS[1], linewidth=2)
    ax.plot(locs, height, "o", color=COLORS[1], markersize=4, label="fit")
    ax.set_yticks(height, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("mean and one standard deviation, in those of the reference")
    ax.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return plain(ax)
