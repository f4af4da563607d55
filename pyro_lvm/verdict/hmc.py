"""Hamiltonian Monte Carlo of many chains at a time, which measure their own scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_BETWEEN_METRICS = 10  # moves
_ACCEPTANCE = 0.8
_TRAJECTORY, _MOST_LEAPS = 1.5, 16  # in standard deviations; leaps of one move
_FIRST_STEP, _STEPS = 0.3, (1e-3, 0.75)  # and the smallest and largest

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


class Chains(NamedTuple):
    """What chains have come to.

    Attributes:
        draws: After each of the moves kept, ``[M, C, D]``.
        acceptance: The mean probability of the moves kept.
    """

    draws: Tensor
    acceptance: float


def run_chains(density: ValueAndGradient, start: Tensor, num_warmup: int, num_kept: int) -> Chains:
    """Move chains towards a density by Hamiltonian Monte Carlo (Neal 2011).

    During warm-up the covariance of the chains themselves is the metric, measured anew every ten moves, and the step
    is fitted to an acceptance of 0.8. A trajectory that leaves the density's support is rejected.

    Args:
        density: The log-density of points ``[C, D]``, ``[C]`` in nats, and its gradient ``[C, D]``.
        start: Where the chains begin, ``[C, D]``.
        num_warmup: Moves that adapt, and are not kept.
        num_kept: M.
    """
    point, (value, slope) = start, density(start)
    scale, step = _scale(point), _FIRST_STEP
    kept, accepted = [], []
    for move in range(num_warmup + num_kept):
        if 0 < move <= num_warmup and move % _BETWEEN_METRICS == 0:
            scale = _scale(point)
        jittered = step * (0.5 + torch.rand(len(point), 1, dtype=point.dtype, device=point.device))
        momentum = torch.randn_like(point)
        before = value - 0.5 * momentum.square().sum(-1)
        new, new_value, new_slope = point, value, slope
        for _ in range(min(_MOST_LEAPS, math.ceil(_TRAJECTORY / step))):
            momentum = momentum + 0.5 * jittered * (new_slope @ scale)
            new = new + jittered * (momentum @ scale.T)
            new_value, new_slope = density(new)
            momentum = momentum + 0.5 * jittered * (new_slope @ scale)
        ratio = (new_value - 0.5 * momentum.square().sum(-1) - before).exp().clamp(max=1).nan_to_num(0.0)
        taken = torch.rand_like(ratio) < ratio
        value = torch.where(taken, new_value, value)
        point, slope = (torch.where(taken[:, None], *pair) for pair in ((new, point), (new_slope, slope)))
        acceptance = ratio.mean().item()
        if move < num_warmup:
            step = min(max(step * math.exp(acceptance - _ACCEPTANCE), _STEPS[0]), _STEPS[1])
        else:
            kept.append(point)
            accepted.append(acceptance)
    return Chains(torch.stack(kept), sum(accepted) / num_kept)


def _scale(points: Tensor) -> Tensor:
    """A triangular root of the points' covariance, shrunk towards its diagonal, ``[D, D]``."""
    count, dim = points.shape
    covariance = torch.cov(points.T.double()).reshape(dim, dim)
    variances = covariance.diagonal().clamp(min=torch.finfo(points.dtype).tiny)
    shrunk = count / (count + dim + 5) * covariance + (dim + 5) / (count + dim + 5) * torch.diag(variances)
    return torch.linalg.cholesky(shrunk).to(points.dtype)
