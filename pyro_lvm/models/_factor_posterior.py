"""What rows of a factor model, complete or not, say of their latents and of their missing entries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.models._steps import Params

_NUM_ENTRIES = 2**20  # of a tensor of rows


class Rows(NamedTuple):
    """Some rows, in double precision.

    Attributes:
        rows: Which.
        there: Ones for the entries that are observed, and zeros, ``[n, D]``.
        off: The deviations of the entries from the loc, 0 where they are missing, ``[n, D]``.
        mean: Of the latents given the entries, ``[n, L]``.
        covariance: The same, ``[n, L, L]``.
        log_prob: Of the entries, ``[n]``.
    """

    rows: slice
    there: Tensor
    off: Tensor
    mean: Tensor
    covariance: Tensor
    log_prob: Tensor


def posterior(params: Params, x: Tensor) -> Iterator[Rows]:
    r"""The posterior of all rows, some at a time.

    Of a row's observed entries :math:`o`, the latents have the precision :math:`A = I + W_o^\top \Psi_o^{-1} W_o` and
    the mean :math:`A^{-1} W_o^\top \Psi_o^{-1} (x_o - \mu_o)`.

    Args:
        params: The parameters, `loading` ``[D, L]``, `loc` ``[D]`` and `noise` ``[D]`` or a number.
        x: Data, ``[N, D]``, with NaN for missing entries.
    """
    loading, loc = params["loading"].double(), params["loc"].double()
    noise = params["noise"].double().expand_as(loc)
    D, L = loading.shape
    outer = (loading.unsqueeze(2) * loading.unsqueeze(1)).reshape(D, L * L)
    identity = torch.eye(L).to(loading)
    size = max(1, _NUM_ENTRIES // max(D, (L + 1) ** 2))
    for first in range(0, len(x), size):
        off = x[first : first + size].to(loc) - loc
        there = (~off.isnan()).to(loc)
        off = torch.where(there > 0, off, 0.0)
        precision = identity + ((there / noise) @ outer).reshape(-1, L, L)
        factor = torch.linalg.cholesky(precision)
        right = (off / noise) @ loading
        mean = torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + there @ (2 * math.pi * noise).log()
        log_prob = -0.5 * (log_det + (off.square() / noise).sum(-1) - (right * mean).sum(-1))
        yield Rows(slice(first, first + size), there, off, mean, torch.cholesky_inverse(factor), log_prob)


def observed_log_prob(params: Params, x: Tensor) -> Tensor:
    """Log-densities of the observed entries, ``[N]``, in the dtype of `x`; see `posterior`."""
    return torch.cat([x.new_zeros(0), *(part.log_prob.to(x) for part in posterior(params, x))])


def latent_means(params: Params, x: Tensor) -> Tensor:
    """Means of the latents given the observed entries, ``[N, L]``, in the dtype of `x`; see `posterior`."""
    return torch.cat([x.new_zeros(0, params["loading"].shape[1]), *(part.mean.to(x) for part in posterior(params, x))])


def impute(params: Params, x: Tensor) -> Tensor:
    """The rows with their missing entries replaced by their means given the others; see `posterior`."""
    filled = latent_means(params, x) @ params["loading"].mT + params["loc"]
    return torch.where(x.isnan(), filled.to(x), x)
