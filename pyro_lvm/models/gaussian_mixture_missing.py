"""EM for mixtures of Gaussians whose data have missing entries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import qr, solve_triangular

from pyro_lvm.models._steps import Params, Sums
from pyro_lvm.models.gaussian_mixture_em import GaussianMixtureSteps, as_runs, normalize, without_runs

__all__ = ["MissingGaussianMixtureSteps", "impute", "observed_log_prob"]

_NUM_ENTRIES = 2**20  # of a tensor of rows and components


class MissingGaussianMixtureSteps(GaussianMixtureSteps):
    r"""EM for a mixture of Gaussians whose missing entries, NaN, are integrated out.

    The entries are missing at random: whether one is missing may depend on what is observed, not on what is missing.
    A row without any entry adds nothing to the log-likelihood.

    With :math:`\Sigma = L L^\top` and the observed rows of the factor :math:`L_o = R^\top Q^\top`, by a QR
    decomposition of :math:`L_o^\top`, a row's noise :math:`L^{-1} (x - \mu)` has, given :math:`x_o`, the mean and
    covariance

    .. math::

        Q R^{-\top} (x_o - \mu_o), \qquad I - Q Q^\top.

    Full and tied covariances take one decomposition a component for each pattern of missing entries.

    Args:
        floor: The smallest variance in any direction.

    References:
        Z. Ghahramani and M. I. Jordan, "Supervised learning from incomplete data via an EM approach" (1994).
        R. J. A. Little and D. B. Rubin, *Statistical Analysis with Missing Data* (2019), chapter 11.
    """

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """See `GaussianMixtureSteps.expect`; the sums are the same, in expectation over the missing entries."""
        weights, locs, scale = as_runs(params)
        log_p = weights.new_zeros(len(weights))
        counts, first, second = (torch.zeros_like(value) for value in (weights, locs, scale))
        for piece in _pieces(args[0], locs, scale):
            row_log_p, posterior = _posterior(piece, weights)
            if weight is not None:
                row_weight = weight[piece.rows].to(row_log_p)
                row_log_p, posterior = row_log_p * row_weight, posterior * row_weight
            log_p += row_log_p.sum(-1)
            counts += posterior.sum(-1)
            weighted = posterior.unsqueeze(-1) * piece.mean
            first += weighted.sum(2)
            if scale.dim() == 4:
                known, unknown = weighted.mT @ piece.mean, posterior.sum(-1)[..., None, None] * piece.covariance
            else:
                known, unknown = (weighted * piece.mean).sum(2), posterior @ piece.covariance
            second += (known + unknown).sum_to_size(second.shape)
        return without_runs({"log_p": log_p, "counts": counts, "first": first, "second": second}, params)


def observed_log_prob(params: Params, x: Tensor) -> Tensor:
    """Log-densities of the observed entries.

    Args:
        params: The parameters, as `GaussianMixtureSteps` takes them.
        x: Data, ``[N, D]``, with NaN for missing entries.

    Returns:
        ``[N]``, or ``[R, N]``, in the dtype of `x`.
    """
    weights, locs, scale = as_runs(params)
    result = x.new_empty(len(locs), len(x))
    for piece in _pieces(x, locs, scale):
        result[:, piece.rows] = _posterior(piece, weights)[0].to(result)
    return result if params["locs"].dim() == 3 else result.squeeze(0)


def impute(params: Params, x: Tensor) -> Tensor:
    """Fill missing entries with their expectations given the observed entries of their rows.

    Args:
        params: The parameters, as `GaussianMixtureSteps` takes them.
        x: Data, ``[N, D]``, with NaN for missing entries.

    Returns:
        ``[N, D]``, or ``[R, N, D]``, in the dtype of `x`. The observed entries are as they were.
    """
    weights, locs, scale = as_runs(params)
    result = x.new_empty(len(locs), *x.shape)
    for piece in _pieces(x, locs, scale):
        _, posterior = _posterior(piece, weights)
        deviation = piece.mean @ scale.mT if scale.dim() == 4 else piece.mean * scale.unsqueeze(2)
        result[:, piece.rows] = (posterior.unsqueeze(-1) * (locs.unsqueeze(2) + deviation)).sum(1).to(result)
    result = x.where(~x.isnan(), result)
    return result if params["locs"].dim() == 3 else result.squeeze(0)


class _Piece(NamedTuple):
    """Rows, and what they say of their noise, the deviation from the loc in units of the covariance."""

    rows: Tensor | slice
    log_constant: Tensor
    """The log-density of the observed entries at the loc, `[R, K, n]` or `[R, K, 1]`."""
    mean: Tensor
    """`[R, K, n, D]`. Its squared length is that of the observed deviation."""
    covariance: Tensor
    """The matrix of all rows, `[R, K, D, D]` or `[R, 1, D, D]`; or of each row the diagonal, `[n, D]`."""


def _posterior(piece: _Piece, weights: Tensor) -> tuple[Tensor, Tensor]:
    log_prob = piece.log_constant - 0.5 * piece.mean.square().sum(-1)
    return normalize(weights.log().unsqueeze(-1) + log_prob)


def _pieces(x: Tensor, locs: Tensor, scale: Tensor) -> Iterator[_Piece]:
    num_rows = max(_NUM_ENTRIES // locs.numel(), 1)
    return (_by_pattern if scale.dim() == 4 else _by_row)(x, locs, scale, num_rows)


def _by_row(x: Tensor, locs: Tensor, scale: Tensor, num_rows: int) -> Iterator[_Piece]:
    log_constant = -scale.expand_as(locs).log() - 0.5 * math.log(2 * math.pi)
    for start in range(0, len(x), num_rows):
        rows = slice(start, start + num_rows)
        data = x[rows].to(locs)
        missing = data.isnan()
        mean = ((data - locs.unsqueeze(2)) / scale.unsqueeze(2)).masked_fill(missing, 0.0)
        yield _Piece(rows, log_constant @ (~missing).to(locs).T, mean, missing.to(locs))


def _by_pattern(x: Tensor, locs: Tensor, scale: Tensor, num_rows: int) -> Iterator[_Piece]:
    patterns, which, counts = torch.unique(x.isnan(), dim=0, return_inverse=True, return_counts=True)
    identity = torch.eye(x.shape[1], dtype=locs.dtype, device=locs.device)
    for missing, members in zip(patterns, which.argsort().split(counts.tolist()), strict=True):
        observed = (~missing).nonzero().squeeze(1)
        q, r = qr(scale[:, :, observed].mT)
        gain = solve_triangular(r.mT, q, upper=False, left=False)
        log_det = r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1, keepdim=True)
        log_constant = -log_det - 0.5 * math.log(2 * math.pi) * len(observed)
        for rows in members.split(num_rows):
            deviation = x[rows][:, observed].to(locs) - locs[:, :, None, observed]
            yield _Piece(rows, log_constant, deviation @ gain.mT, identity - q @ q.mT)
