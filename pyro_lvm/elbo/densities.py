"""Log-densities of distributions that plates have expanded, at the cost of what they were before."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.families import narrowed

_NUM_ENTRIES = 2**18  # of a table: what the caches of a processor hold
_BY_PARAMETERS: dict[type, tuple[str, ...]] = {
    dist.Normal: ("loc", "scale"),
    dist.Laplace: ("loc", "scale"),
    dist.Poisson: ("rate",),
    dist.Exponential: ("rate",),
    dist.Gamma: ("concentration", "rate"),
}


def log_prob(fn: Any, value: Any, *args: Any, **kwargs: Any) -> Tensor:
    """``fn.log_prob(value)``, in which functions of parameters alone are computed once and not for every row.

    A plate repeats parameters along its rows, and torch takes the logarithm of each repetition.

    Args:
        fn: A distribution.
        value: Its value.
        args: Other arguments of ``fn.log_prob``.
        kwargs: Named ones.
    """
    if isinstance(fn, dist.Independent):
        base, event_dims = fn.base_dist, fn.reinterpreted_batch_ndims
    else:
        base, event_dims = fn, 0
    names = _BY_PARAMETERS.get(type(base))
    if names is None or args or kwargs:
        return fn.log_prob(value, *args, **kwargs)
    if base._validate_args:
        base._validate_sample(value)
    shape = torch.broadcast_shapes(value.shape, base.batch_shape)
    params = [narrowed(getattr(base, name)) for name in names]
    if type(base) is dist.Normal and not torch.is_grad_enabled():
        loc, scale = params
        return _normal(loc, scale, value, shape, event_dims)
    return _summed(type(base)(*params, validate_args=False).log_prob(value).expand(shape), event_dims)


def _normal(loc: Tensor, scale: Tensor, value: Tensor, shape: torch.Size, event_dims: int) -> Tensor:
    """The same in the caches of the processor, some rows at a time, which derivatives would not allow."""
    batch, events = shape[: len(shape) - event_dims], shape[len(shape) - event_dims :]
    constant = -scale.log() - 0.5 * math.log(2 * math.pi)
    constant = _summed(constant.expand(constant.shape[: constant.dim() - event_dims] + events), event_dims)

    def density(value: Tensor, loc: Tensor, scale: Tensor, constant: Tensor) -> Tensor:
        return torch.add(constant, _summed(((value - loc) / scale).square_(), event_dims), alpha=-0.5)

    value, loc, scale, constant = (*(t.expand(shape) for t in (value, loc, scale)), constant.expand(batch))
    if not batch or shape.numel() <= _NUM_ENTRIES:
        return density(value, loc, scale, constant)
    rows = batch.index(max(batch))
    at_once = max(1, _NUM_ENTRIES * batch[rows] // shape.numel())
    blocks = zip(*(t.split(at_once, rows) for t in (value, loc, scale, constant)), strict=True)
    return torch.cat([density(*block) for block in blocks], rows)


def _summed(log_prob: Tensor, event_dims: int) -> Tensor:
    return log_prob.sum(tuple(range(-event_dims, 0))) if event_dims else log_prob
