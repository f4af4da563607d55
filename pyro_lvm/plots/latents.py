"""Pictures of latents: components of a mixture, maps, and rows as images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_lvm.plots.axes import COLORS, array, axes, color, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_LABELS = 25
_HELD = (0.5, 0.9)  # of a component's mass, by its ellipses


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

    locs = array("locs", locs, "K", "D")
    K, D = locs.shape
    weights = array("weights", weights, K)
    x = array("x", x, "N", D)
    covariances = array(
        "covariances", covariances, K, D, D, hint="give tied, diagonal and spherical covariances as full matrices"
    )
    chosen = list(features)
    if len(chosen) != 2 or chosen[0] == chosen[1] or not all(type(f) is int and 0 <= f < D for f in chosen):
        raise ValueError(f"features: expected two different integers from 0 to {D - 1}, got {features!r}")
    colors = np.array([to_rgb(color(k)) for k in range(K)])
    rows: Any = "#888888"
    if responsibilities is not None:
        rows = np.clip(array("responsibilities", responsibilities, len(x), K) @ colors, 0, 1)

    ax = axes(ax, (6, 4.5))
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
    return plain(ax)


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

    z = array("z", z, "N", 2)
    names = np.zeros(len(z)) if labels is None else np.asarray(labels)
    if names.shape != (len(z),):
        raise ValueError(f"labels: expected shape [{len(z)}], got {list(names.shape)}")
    ax = axes(ax, (5.5, 5))
    for k, name in enumerate(np.unique(names)):
        rows = z[names == name]
        ax.scatter(rows[:, 0], rows[:, 1], s=12, color=color(k), alpha=0.6, linewidths=0)
        if labels is not None:
            halo = [withStroke(linewidth=3.5, foreground="white")]
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 13, "fontweight": "bold", "zorder": 5}
            across, up = np.median(rows, 0)
            ax.text(across, up, str(name), color=color(k), path_effects=halo, **style)
    ax.set(xlabel="latent 0", ylabel="latent 1")
    ax.set_aspect("equal", adjustable="datalim")
    return plain(ax)


def units(values: Any, active: Any = None, label: str = "KL (nats a row)", ax: Axes | None = None) -> Axes:
    """A bar for each unit of a latent, from the largest to the smallest, the active ones in colour.

    Args:
        values: What a unit tells of the rows, ``[L]``.
        active: Which units are in use, ``[L]``; all, if None.
        label: What the values are.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes, and no units.
    """
    values = array("values", values, "L")
    if not len(values):
        raise ValueError("values: expected at least one unit, got none")
    used = np.full(len(values), True) if active is None else array("active", active, len(values)) > 0
    ax = axes(ax, (6, 3.5))
    order = np.argsort(-values, kind="stable")
    for group, shade, name in ((used, COLORS[0], "active"), (~used, "#BBBBBB", "inactive")):
        if group.any():
            text = f"{name}: {group.sum()} of {len(values)}"
            ax.bar(np.flatnonzero(group[order]), values[order][group[order]], color=shade, label=text)
    step = math.ceil(len(values) / _MOST_LABELS)
    ax.set_xticks(range(0, len(values), step), order[::step].tolist())
    ax.set(xlabel="unit", ylabel=label)
    ax.legend(frameon=False)
    plain(ax).grid(axis="x", visible=False)
    return ax


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
    pixels = array("values", values, "M", height * width)
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
    ax = axes(ax, (6, 6 * sheet.shape[0] / sheet.shape[1]))
    ax.imshow(sheet, cmap="Greys", interpolation="nearest")
    ax.set_axis_off()
    return ax


def similarity(values: Any, ax: Axes | None = None) -> Axes:
    """The probability that two rows belong together, for each pair of rows.

    Args:
        values: ``[N, N]``, from 0 (white) to 1.
        ax: Axes to draw into.

    Returns:
        The axes.

    Raises:
        ValueError: for other shapes.
    """
    values = array("values", values, "N", "N")
    if len(values) != values.shape[1]:
        raise ValueError(f"values: expected a square matrix, got {list(values.shape)}")
    ax = axes(ax, (4.5, 4))
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return ax
