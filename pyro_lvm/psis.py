"""Pareto-smoothed importance sampling (Vehtari et al. 2024), by ArviZ."""

from __future__ import annotations

import importlib
import math
from importlib import metadata
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

USEFUL = 0.7
"""The Pareto k below which estimates by weights are useful."""

_FEWEST = 5  # draws in the tail
_ROUNDING = 1e-6  # of log-weights that are sums in float32, eight units in their last place, relative to their size
_MOST_ROUNDING = 0.1  # nats: more than these are no rounding, however large the sums


class Smoothed(NamedTuple):
    """Importance weights whose largest are replaced by the quantiles of a fitted Pareto distribution.

    Attributes:
        log_weights: Normalised, so that the weights sum to 1, in double precision, ``[S]``.
        pareto_k: The shape of the tail: the variance of the weights is finite below 1/2, and estimates are useful below
            0.7. Infinity if there are too few draws, or too few that weigh anything, minus infinity if the largest
            weights are equal up to rounding.
    """

    log_weights: Tensor
    pareto_k: float


def smooth(log_weights: Tensor) -> Smoothed:
    """Smooth importance weights.

    Args:
        log_weights: In nats, ``[S]``.
    """
    num_draws = len(log_weights)
    weights = log_weights.detach().double().cpu()
    plain = weights - weights.logsumexp(0)
    tail = int(min(0.2 * num_draws, 3 * math.sqrt(num_draws)))
    if tail < _FEWEST:
        return Smoothed(plain, math.inf)
    largest = weights.topk(tail).values
    if not torch.isfinite(largest).all():
        return Smoothed(plain, math.inf)
    if largest[0] - largest[-1] <= min(_MOST_ROUNDING, _ROUNDING * (1 + largest.abs().max().item())):
        return Smoothed(plain, -math.inf)
    smoothed, pareto_k = _psislw((weights - largest[0]).numpy())
    return Smoothed(torch.from_numpy(np.ascontiguousarray(smoothed, dtype=float)), pareto_k)


def pareto_k(log_weights: Tensor) -> float:
    """The shape of the tail of importance weights; see :class:`Smoothed`."""
    return smooth(log_weights).pareto_k


def _psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    if metadata.version("arviz").startswith("0."):
        with np.errstate(over="ignore"):  # of what then weighs nothing
            smoothed, k = importlib.import_module("arviz").psislw(log_weights)
    else:
        array_stats = importlib.import_module("arviz_stats.base").array_stats
        smoothed, k = array_stats.psislw(
            -log_weights
        )  # which takes the logarithms of the inverse weights, as LOO has them
    return smoothed, float(k)
