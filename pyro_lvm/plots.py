"""Pictures of fits: arrays in, matplotlib axes out.

Nothing here knows a model or a result, so that a picture can be made of any draws. Every function draws into the axes
that it is given, or into those of a new figure, and changes no global setting of matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLORS", "images", "intervals", "latent_map", "losses", "mixture"]

COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#332288",
    "#882255",
    "#999933",
    "#444444",
)
"""Ten colours that remain apart for colour-blind readers (after Okabe and Ito 2008, and Tol 2021)."""

_HELD = (0.5, 0.9)  # of a component's mass, by its ellipses
_GRID = "#E4E4E4"
_PALE = 0.25  # opacity of what stands behind


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
    values = _array("losses", losses, "num_steps")
    if not len(values):
        raise ValueError("losses: expected at least one step, got none")
    if window is None:
        window = max(1, len(values) // 50)
    if type(window) is not int or not 1 <= window <= len(values):
        raise ValueError(f"window: expected an integer from 1 to the number of steps, {len(values)}, got {window!r}")
    ax = _axes(ax, (6, 3.5))
    steps = np.arange(1, len(values) + 1)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    ax.plot(steps, values, color=COLORS[0], alpha=_PALE, linewidth=0.8, label="each step")
    ax.plot(steps[window - 1 :], means, color=COLORS[0], linewidth=1.8, label=f"mean of {window:,} steps")
    late = values[len(values) // 20 :]
    late = late[np.isfinite(late)]
    if late.size and late.max() > late.min():
        margin = 0.05 * (late.max() - late.min())
        ax.set_ylim(late.min() - margin, late.max() + margin)
    ax.set(xlabel="step", ylabel="loss (negative ELBO, nats)")
    ax.legend(frameon=False)
    return _plain(ax)


def mixture(
    x: Any,
    weights: Any,
    locs: Any,
    covariances: Any,
    responsibilities: Any = None,
    features: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
) -> Axes:
    """Two features of the rows, and the ellipses of a Gaussian mixture.

    Each component has two ellipses, which hold half and nine tenths of its mass in these two features. A row has the
    components' colours, mixed by its responsibilities.

    Args:
        x: Rows, ``[N, D]``.
        weights: ``[K]``.
        locs: ``[K, D]``.
        covariances: Full matrices, ``[K, D, D]``.
        responsibilities: The posterior of each row's component, ``[N, K]``; rows are grey, if None.
        features: The two features to draw, counted from 0.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for shapes that do not fit together, or features that are not two of the D.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Ellipse

    locs = _array("locs", locs, "K", "D")
    K, D = locs.shape
    weights = _array("weights", weights, K)
    x = _array("x", x, "N", D)
    covariances = _array(
        "covariances", covariances, K, D, D, hint="give tied, diagonal and spherical covariances as full matrices"
    )
    chosen = list(features)
    if len(chosen) != 2 or chosen[0] == chosen[1] or not all(type(f) is int and 0 <= f < D for f in chosen):
        raise ValueError(f"features: expected two different integers from 0 to {D - 1}, got {features!r}")
    colors = np.array([to_rgb(_color(k)) for k in range(K)])
    rows: Any = "#888888"
    if responsibilities is not None:
        rows = np.clip(_array("responsibilities", responsibilities, len(x), K) @ colors, 0, 1)

    ax = _axes(ax, (6, 4.5))
    ax.scatter(x[:, chosen[0]], x[:, chosen[1]], c=rows, s=20, alpha=0.85, linewidths=0, zorder=2)
    for k in range(K):
        variances, directions = np.linalg.eigh(covariances[k][np.ix_(chosen, chosen)])
        angle = math.degrees(math.atan2(directions[1, 1], directions[0, 1]))
        for held in _HELD:
            radius = math.sqrt(-2 * math.log1p(-held))  # the chi-squared quantile with two degrees of freedom
            minor, major = 2 * radius * np.sqrt(variances.clip(min=0))
            ellipse = Ellipse(
                tuple(locs[k, chosen]), major, minor, angle=angle, facecolor=(*colors[k], 0.1), edgecolor=colors[k]
            )
            ellipse.set(linewidth=1.5, zorder=3 if held == min(_HELD) else 1)
            ax.add_patch(ellipse)
        ax.plot(*locs[k, chosen], "+", color="black", markersize=9, markeredgewidth=1.6, zorder=4)
        ax.plot([], [], "o", color=colors[k], label=f"component {k}, weight {weights[k]:.2f}")
    ax.set(xlabel=f"feature {chosen[0]}", ylabel=f"feature {chosen[1]}")
    ax.legend(frameon=False, handletextpad=0.2)
    return _plain(ax)


def latent_map(z: Any, labels: Any = None, ax: Axes | None = None) -> Axes:
    """Rows where their two latents lie, each class in a colour of its own and with its name at its median.

    Args:
        z: Latents, ``[N, 2]``.
        labels: The class of each row, ``[N]``: numbers or strings; rows are of one kind, if None.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes.
    """
    from matplotlib.patheffects import withStroke

    z = _array("z", z, "N", 2)
    names = np.zeros(len(z)) if labels is None else np.asarray(labels)
    if names.shape != (len(z),):
        raise ValueError(f"labels: expected shape [{len(z)}], got {list(names.shape)}")
    ax = _axes(ax, (5.5, 5))
    for k, name in enumerate(np.unique(names)):
        rows = z[names == name]
        ax.scatter(rows[:, 0], rows[:, 1], s=12, color=_color(k), alpha=0.6, linewidths=0)
        if labels is not None:
            halo = [withStroke(linewidth=3.5, foreground="white")]
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 13, "fontweight": "bold", "zorder": 5}
            across, up = np.median(rows, 0)
            ax.text(across, up, str(name), color=_color(k), path_effects=halo, **style)
    ax.set(xlabel="latent 0", ylabel="latent 1")
    ax.set_aspect("equal", adjustable="datalim")
    return _plain(ax)


def images(values: Any, shape: tuple[int, int], num_columns: int | None = None, ax: Axes | None = None) -> Axes:
    """Rows as pictures, side by side and then below each other, dark where the values are large.

    Args:
        values: Rows of pixels, ``[M, H * W]``.
        shape: Height and width of a picture.
        num_columns: Pictures in a line; about the square root of M, if None.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for rows that do not have the shape's number of pixels, no rows, or no columns.
    """
    height, width = shape
    pixels = _array("values", values, "M", height * width)
    if not len(pixels):
        raise ValueError("values: expected at least one row, got none")
    columns = math.ceil(math.sqrt(len(pixels))) if num_columns is None else num_columns
    if type(columns) is not int or columns < 1:
        raise ValueError(f"num_columns: expected a positive integer, got {num_columns!r}")
    lines = math.ceil(len(pixels) / columns)
    sheet = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, row in enumerate(pixels):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = row.reshape(height, width)
    ax = _axes(ax, (6, 6 * sheet.shape[0] / sheet.shape[1]))
    ax.imshow(sheet, cmap="Greys", interpolation="nearest")
    ax.set_axis_off()
    return ax


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
    first = _array("draws", next(iter(draws.values())), "S", "D")
    arrays = {fit: _array(f"draws[{fit!r}]", value, "S", first.shape[1]) for fit, value in draws.items()}
    D = first.shape[1]
    names = [str(d) for d in range(D)] if names is None else list(names)
    if len(names) != D:
        raise ValueError(f"names: expected {D} names, one for each column of the draws, got {len(names)}")
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a number between 0 and 1, got {probability!r}")
    ax = _axes(ax, (6, 0.8 + 0.22 * D))
    tail = (1 - probability) / 2
    for i, (fit, values) in enumerate(arrays.items()):
        lower, upper = np.quantile(values, [tail, 1 - tail], axis=0)
        height = np.arange(D) + 0.22 * (i - (len(arrays) - 1) / 2)
        ax.hlines(height, lower, upper, color=_color(i), linewidth=2)
        ax.plot(values.mean(0), height, "o", color=_color(i), markersize=4, label=fit)
    ax.axvline(0, color="#888888", linewidth=1, zorder=0)
    ax.set_yticks(range(D), names)
    ax.set_ylim(D - 0.4, -0.6)
    ax.set_xlabel(f"posterior mean and {probability:.0%} interval")
    ax.legend(frameon=False, ncols=len(arrays), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return _plain(ax)


def _array(name: str, value: Any, *shape: int | str, hint: str = "") -> np.ndarray:
    """``value`` as an array of numbers; a letter in ``shape`` stands for any length."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = f"[{', '.join(map(str, shape))}]"
        raise ValueError(f"{name}: expected shape {wanted}, got {list(array.shape)}{hint and f'; {hint}'}")
    return array.astype(float)


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _plain(ax: Axes) -> Axes:
    """Two spines and a grid that stays behind."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def _color(k: int) -> str:
    return COLORS[k % len(COLORS)]
