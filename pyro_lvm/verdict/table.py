"""Draws of variables as a table, a column for each number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def table(draws: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names such as ``"theta[3]"``, P of them, and the draws of each, ``[S, P]``.

    Args:
        draws: Of each variable, ``[S, ...]``.
    """
    names: list[str] = []
    columns = []
    for name, array in draws.items():
        indices = np.ndindex(array.shape[1:])
        names += [name + (f"[{', '.join(map(str, index))}]" if index else "") for index in indices]
        columns.append(np.asarray(array, dtype=float).reshape(len(array), -1))
    return tuple(names), np.concatenate(columns, 1)
