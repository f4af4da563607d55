"""Pareto-smoothed importance sampling (Vehtari et al. 2024), by ArviZ."""

from __future__ import annotations

import importlib
from importlib import metadata

from torch import Tensor


def pareto_k(log_weights: Tensor) -> float:
    """The shape of the tail of importance weights: their variance is finite below 1/2, and estimates useful below 0.7.

    Args:
        log_weights: In nats, ``[S]``.
    """
    weights = log_weights.double().cpu().numpy()
    weights = weights - weights.max()
    if metadata.version("arviz").startswith("0."):
        return float(importlib.import_module("arviz").psislw(weights)[1])
    array_stats = importlib.import_module("arviz_stats.base").array_stats
    return float(array_stats.psislw(-weights)[1])  # which takes the logarithms of the inverse weights, as LOO has them
