"""Parameters of mixtures of Gaussians, of one run of EM or of several at once, in one shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from pyro_lvm.models._steps import Params, Sums


def kind_of(params: Params) -> str:
    """Which of the four types the covariances have."""
    if "scale_tril" in params:
        return "full" if params["scale_tril"].dim() > params["locs"].dim() else "tied"
    return "diag" if params["scale"].dim() == params["locs"].dim() else "spherical"


def as_runs(params: Params) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters in double precision, with a dimension of runs.

    Returns:
        `weights`, `[R, K]`; `locs`, `[R, K, D]`; and `scale_tril` or `scale`, which is `[R, K, D, D]` (full),
        `[R, 1, D, D]` (tied), `[R, K, D]` (diagonal) or `[R, K, 1]` (spherical).
    """
    kind = kind_of(params)
    weights, locs, scale = (
        params[name].detach().double()
        for name in ("weights", "locs", "scale_tril" if "scale_tril" in params else "scale")
    )
    if locs.dim() == 2:
        weights, locs, scale = weights.unsqueeze(0), locs.unsqueeze(0), scale.unsqueeze(0)
    if kind == "tied":
        scale = scale.unsqueeze(1)
    elif kind == "spherical":
        scale = scale.unsqueeze(-1)
    return weights, locs, scale


def without_runs(sums: Sums, params: Params) -> Sums:
    """Drops the dimension of runs if the parameters have none."""
    return sums if params["locs"].dim() == 3 else {name: value.squeeze(0) for name, value in sums.items()}


def normalize(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sums over components and the responsibilities, `[R, n]` and `[R, K, n]`; uses up the logits.

    Responsibilities near the smallest number of the dtype become zero, for processors are slow below it.
    """
    largest = logits.amax(1, keepdim=True)
    lowest = math.log(torch.finfo(logits.dtype).tiny) + 8
    posterior = torch.threshold_(logits.sub_(largest), lowest, -math.inf).exp_()
    total = posterior.sum(1, keepdim=True)
    return (largest + total.log()).squeeze(1), posterior.div_(total)


def colour(scale: Tensor, noise: Tensor) -> Tensor:
    """From units of the covariances to those of the data, `[R, K, D]`."""
    return (scale @ noise.unsqueeze(-1)).squeeze(-1) if scale.dim() == 4 else scale * noise


def whiten(scale: Tensor, deviation: Tensor) -> Tensor:
    """From units of the data to those of the covariances, `[R, K, D]`."""
    if scale.dim() == 4:
        return solve_triangular(scale, deviation.unsqueeze(-1), upper=False).squeeze(-1)
    return deviation / scale


def inverse(scale_tril: Tensor) -> Tensor:
    """Of the factors, `[*, D, D]`."""
    identity = torch.eye(scale_tril.shape[-1], dtype=scale_tril.dtype, device=scale_tril.device)
    return solve_triangular(scale_tril, identity.expand_as(scale_tril), upper=False)


def log_constant(locs: Tensor, scale: Tensor) -> Tensor:
    """The log-densities at the locs, `[R, K]`."""
    scales = scale.diagonal(dim1=-2, dim2=-1) if scale.dim() == 4 else scale
    return -scales.expand_as(locs).log().sum(-1) - 0.5 * locs.shape[-1] * math.log(2 * math.pi)
