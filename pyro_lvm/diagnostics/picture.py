"""Several pictures in one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_WIDTH, _HEIGHT = 4.6, 3.8


def figure_of(pictures: Sequence[Callable[[Axes], Any]]) -> Figure:
    """A figure with axes for each picture, three in a row.

    Args:
        pictures: Functions that draw into the axes they are given.
    """
    import matplotlib.pyplot as plt

    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (_WIDTH * columns, _HEIGHT * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    try:
        for ax, draw in zip(axes.flat, pictures, strict=False):
            draw(ax)
    except BaseException:
        plt.close(figure)
        raise
    for ax in axes.flat[len(pictures) :]:
        ax.set_axis_off()
    return figure
