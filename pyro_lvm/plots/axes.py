"""What pictures share: colours, axes, and arrays from whatever is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

PALE = 0.25
"""Opacity of what stands behind."""

_GRID = "#E4E4E4"


def array(name: str, value: Any, *shape: int | str, hint: str = "") -> np.ndarray:
    """``value`` as an array of numbers; a letter in ``shape`` stands for any length."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = f"[{', '.join(map(str, shape))}]"
        raise ValueError(f"{name}: expected shape {wanted}, got {list(array.shape)}{hint and f'; {hint}'}")
    return array.astype(float)


def axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def plain(ax: Axes) -> Axes:
    """Two spines and a grid that stays behind."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def color(k: int) -> str:
    """The k-th colour, and the first again after the last."""
    return COLORS[k % len(COLORS)]
