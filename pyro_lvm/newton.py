"""Maxima in one or a few variables that have no closed form, by short and safe iterations in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

_ITERATIONS = 100
_BISECTIONS = 60  # of the widest brackets here leave nothing beyond rounding
_WIDE = 60.0  # the log-odds of no mean are farther from zero


def gamma_concentration(mean: Tensor, mean_log: Tensor) -> Tensor:
    """The concentration of gamma distributions with the largest likelihood (Minka 2002, "Estimating a gamma").

    Args:
        mean: Of the observations.
        mean_log: Of their logarithms.
    """
    gap = (mean.log() - mean_log).clamp(min=1e-12)
    a = (3 - gap + ((gap - 3).square() + 24 * gap).sqrt()) / (12 * gap)
    for _ in range(_ITERATIONS):
        slope = 1 / a - torch.polygamma(1, a)
        inverse = 1 / a + (a.log() - torch.digamma(a) - gap) / (a.square() * slope)
        new = 1 / inverse
        done = ((new - a).abs() <= 1e-14 * a).all()
        a = new
        if done:
            break
    return a


def dirichlet_concentration(start: Tensor, mean_log: Tensor) -> Tensor:
    """The concentration of Dirichlet distributions with the largest likelihood (Minka 2000, equations 15 to 19).

    Args:
        start: Where to begin, ``[..., K]``.
        mean_log: Of the logarithms of the observations, ``[..., K]``.
    """
    a = start
    value = _dirichlet(a, mean_log)
    for _ in range(_ITERATIONS):
        total = a.sum(-1, keepdim=True)
        gradient = torch.digamma(total) - torch.digamma(a) + mean_log
        curvature, common = -torch.polygamma(1, a), torch.polygamma(1, total)
        b = (gradient / curvature).sum(-1, keepdim=True) / (1 / common + (1 / curvature).sum(-1, keepdim=True))
        step = (gradient - b) / curvature
        size = torch.ones_like(total)
        for _ in range(60):
            new = a - size * step
            new_value = _dirichlet(new.clamp(min=1e-300), mean_log)
            good = (new > 0).all(-1, keepdim=True) & (new_value >= value - 1e-13 * value.abs()).unsqueeze(-1)
            if good.all():
                break
            size = torch.where(good, size, size / 2)
        new = torch.where(good, new, a)
        done = ((new - a).abs() <= 1e-13 * a).all()
        a, value = new, _dirichlet(new, mean_log)
        if done:
            break
    return a


def _dirichlet(a: Tensor, mean_log: Tensor) -> Tensor:
    return torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1) + ((a - 1) * mean_log).sum(-1)


def beta_of_harmonic(harmonic: Tensor, mean_log: Tensor) -> Tensor:
    r"""The concentrations of beta distributions with a known :math:`a b / (a + b)` that have the largest likelihood.

    They are :math:`a = h (1 + e^l)` and :math:`b = h (1 + e^{-l})`, with the root of the slope by :math:`l`.

    Args:
        harmonic: The known :math:`h`, ``[...]``.
        mean_log: Of the logarithms of the observations and of one minus these, ``[..., 2]``.
    """
    low, high = torch.full_like(harmonic, -_WIDE), torch.full_like(harmonic, _WIDE)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        ab = harmonic.unsqueeze(-1) * (1 + torch.stack([middle, -middle], -1).exp())
        slopes = torch.digamma(ab.sum(-1, keepdim=True)) - torch.digamma(ab) + mean_log
        moves = slopes * (ab - harmonic.unsqueeze(-1))
        rising = moves[..., 0] > moves[..., 1]
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return ab


def negative_binomial_count(counts: Tensor, weights: Tensor, largest: Tensor) -> Tensor:
    """The total count r of negative binomials with the largest likelihood, their probabilities at its maximum given r.

    Where the counts vary no more than a Poisson's, the likelihood rises with r for ever.

    Args:
        counts: Distinct counts, ``[M]``.
        weights: How often each was observed, ``[..., M]``.
        largest: The largest r, ``[...]``.
    """
    total = weights.sum(-1)
    mean = (weights @ counts) / total

    def slope(r: Tensor) -> Tensor:
        terms = torch.digamma(counts + r.unsqueeze(-1)) - torch.digamma(r).unsqueeze(-1)
        return (weights * terms).sum(-1) / total - (mean / r).log1p()

    low, high = torch.full_like(mean, 1e-8).log(), largest.log()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        rising = slope(middle.exp()) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return high.exp()
