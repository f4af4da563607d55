"""Draws of variables as a table, a column for each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def number_name(name: str, index: Sequence[int]) -> str:
    """The name of one number of a variable, such as ``"theta[3]"``."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def table(draws: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names such as ``"theta[3]"``, P of them, and the draws of each, ``[S, P]``.

    Args:
        draws: Of each variable, ``[S, ...]``.
    """
    names: list[str] = []
    columns = []
    for name, array in draws.items():
        names += [number_name(name, index) for index in np.ndindex(array.shape[1:])]
        columns.append(np.asarray(array, dtype=float).reshape(len(array), -1))
    return tuple(names), np.concatenate(columns, 1)
