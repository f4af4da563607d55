"""What rows of a mixture of Gaussians, complete or not, say of their components and of their missing entries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import qr, solve_triangular

from pyro_lvm.models._gaussian_runs import as_runs, normalize
from pyro_lvm.models._steps import Params

_NUM_ENTRIES = 2**20  # of a tensor of rows and components


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
    for piece in pieces(x, locs, scale):
        result[:, piece.rows] = posterior(piece, weights)[0].to(result)
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
    for piece in pieces(x, locs, scale):
        _, shares = posterior(piece, weights)
        deviation = piece.mean @ scale.mT if scale.dim() == 4 else piece.mean * scale.unsqueeze(2)
        result[:, piece.rows] = (shares.unsqueeze(-1) * (locs.unsqueeze(2) + deviation)).sum(1).to(result)
    result = x.where(~x.isnan(), result)
    return result if params["locs"].dim() == 3 else result.squeeze(0)


class Piece(NamedTuple):
    """Rows, and what they say of their noise, the deviation from the loc in units of the covariance."""

    rows: Tensor | slice
    log_constant: Tensor
    """The log-density of the observed entries at the loc, `[R, K, n]` or `[R, K, 1]`."""
    mean: Tensor
    """`[R, K, n, D]`. Its squared length is that of the observed deviation."""
    covariance: Tensor
    """The matrix of all rows, `[R, K, D, D]` or `[R, 1, D, D]`; or of each row the diagonal, `[n, D]`."""


def posterior(piece: Piece, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The log-densities of the rows and the responsibilities, `[R, n]` and `[R, K, n]`."""
    log_prob = piece.log_constant - 0.5 * piece.mean.square().sum(-1)
    return normalize(weights.log().unsqueeze(-1) + log_prob)


Patterns = list[tuple[Tensor, Tensor]]  # the entries that are there, and the rows in which just these are


def patterns_of(x: Tensor) -> Patterns:
    """Rows by the entries that are there."""
    missing, which, counts = torch.unique(x.isnan(), dim=0, return_inverse=True, return_counts=True)
    members = which.argsort().split(counts.tolist())
    return [((~row).nonzero().squeeze(1), rows) for row, rows in zip(missing, members, strict=True)]


def pieces(x: Tensor, locs: Tensor, scale: Tensor, patterns: Patterns | None = None) -> Iterator[Piece]:
    """All rows, few at a time.

    Args:
        x: Data, ``[N, D]``, with NaN for missing entries.
        locs: See `as_runs`.
        scale: The same.
        patterns: Of the rows, where they are known.
    """
    num_rows = max(_NUM_ENTRIES // locs.numel(), 1)
    if scale.dim() == 4:
        return _by_pattern(x, locs, scale, num_rows, patterns_of(x) if patterns is None else patterns)
    return _by_row(x, locs, scale, num_rows)


def _by_row(x: Tensor, locs: Tensor, scale: Tensor, num_rows: int) -> Iterator[Piece]:
    log_constant = -scale.expand_as(locs).log() - 0.5 * math.log(2 * math.pi)
    for start in range(0, len(x), num_rows):
        rows = slice(start, start + num_rows)
        data = x[rows].to(locs)
        missing = data.isnan()
        mean = ((data - locs.unsqueeze(2)) / scale.unsqueeze(2)).masked_fill(missing, 0.0)
        yield Piece(rows, log_constant @ (~missing).to(locs).T, mean, missing.to(locs))


def _by_pattern(x: Tensor, locs: Tensor, scale: Tensor, num_rows: int, patterns: Patterns) -> Iterator[Piece]:
    identity = torch.eye(x.shape[1], dtype=locs.dtype, device=locs.device)
    for observed, members in patterns:
        q, r = qr(scale[:, :, observed].mT)
        gain = solve_triangular(r.mT, q, upper=False, left=False)
        log_det = r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1, keepdim=True)
        log_constant = -log_det - 0.5 * math.log(2 * math.pi) * len(observed)
        for rows in members.split(num_rows):
            deviation = x[rows][:, observed].to(locs) - locs[:, :, None, observed]
            yield Piece(rows, log_constant, deviation @ gain.mT, identity - q @ q.mT)
