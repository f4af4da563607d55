"""Pareto-smoothed importance sampling (Vehtari et al. 2024), by ArviZ."""

from __future__ import annotations

import importlib
import math
from importlib import metadata

from torch import Tensor

_FEWEST = 5  # draws in the tail
_ROUNDING = 1e-5  # of log-weights in float32, relative to their size


def pareto_k(log_weights: Tensor) -> float:
    """The shape of the tail of importance weights: their variance is finite below 1/2, and estimates useful below 0.7.

    Args:
        log_weights: In nats, ``[S]``.

    Returns:
        The estimate; infinity if there are too few draws, minus infinity if the largest weights are equal.
    """
    num_draws = len(log_weights)
    tail = int(min(0.2 * num_draws, 3 * math.sqrt(num_draws)))
    if tail < _FEWEST:
        return math.inf
    largest = log_weights.double().topk(tail).values
    if largest[0] - largest[-1] <= _ROUNDING * (1 + largest.abs().max()):
        return -math.inf
    weights = (log_weights.double() - largest[0]).cpu().numpy()
    if metadata.version("arviz").startswith("0."):
        return float(importlib.import_module("arviz").psislw(weights)[1])
    array_stats = importlib.import_module("arviz_stats.base").array_stats
    return float(array_stats.psislw(-weights)[1])  # which takes the logarithms of the inverse weights, as LOO has them
