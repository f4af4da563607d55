"""Log-densities of distributions that plates have expanded, at the cost of what they were before.

Those of gamma, beta, negative binomial and Poisson distributions keep their digits where concentrations are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    dist.Beta: ("concentration1", "concentration0"),
    dist.NegativeBinomial: ("total_count", "logits"),
}
_MANY = 15.0  # from here on four terms of Stirling's series have the digits of double precision


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
    if type(base) in _CONCENTRATED and not (type(base) is dist.Poisson and params[0].dtype is torch.float64):
        value = value if value.is_floating_point() else value.to(params[0].dtype)
        return _summed(_CONCENTRATED[type(base)](*params, value).expand(shape), event_dims)
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


def _gamma(a: Tensor, rate: Tensor, x: Tensor) -> Tensor:
    r"""With the mean :math:`\mu = a / b`, :math:`a (\log(x / \mu) - x / \mu + 1) - \log x`, and what no x is in.

    The usual terms are about as large as the concentration, and cancel out; these are as large as their sum.

    References:
        C. Loader, "Fast and accurate computation of binomial probabilities" (2000).
    """
    inside = torch.where(x > 0, x, 1.0)
    log_x = inside.log()
    found = _bent(a, log_x + rate.log() - a.log(), inside * rate - a) - log_x
    found = found + 0.5 * (a / (2 * math.pi)).log() - _stirling(a)
    edge = torch.xlogy(a - 1, a.new_zeros(())) + a * rate.log() - a.lgamma()
    return torch.where(x > 0, found, torch.where(x == 0, edge, _outside(x)))


def _beta(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Likewise, with the divergence of Bernoulli distributions with the probabilities of mean and value."""
    n = a + b
    inside = torch.where((x > 0) & (x < 1), x, 0.5)
    off = inside * b - (1 - inside) * a  # n times value minus mean
    log_x, log_y, log_n = inside.log(), (-inside).log1p(), n.log()
    found = _bent(a, log_x + log_n - a.log(), off) + _bent(b, log_y + log_n - b.log(), -off) - log_x - log_y
    constant = 0.5 * (a / (2 * math.pi) * (b / n)).log() + _stirling(n) - _stirling(a) - _stirling(b)
    edge = torch.xlogy(a - 1, x) + torch.xlogy(b - 1, 1 - x) + n.lgamma() - a.lgamma() - b.lgamma()
    edge = torch.where((x == 0) | (x == 1), edge, _outside(x))
    return torch.where((x > 0) & (x < 1), found + constant, edge)


def _negative_binomial(total_count: Tensor, logits: Tensor, x: Tensor) -> Tensor:
    """Likewise: r / n times the binomial probability of r in n = r + x trials."""
    r, inside = torch.where(total_count > 0, total_count, 1.0), torch.where(x > 0, x, 1.0)
    n, log_r, log_x = r + inside, r.log(), inside.log()
    log_n, log_p, log_q = n.log(), torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    off = inside * (-logits).sigmoid() - r * logits.sigmoid()  # x minus n p
    found = _bent(r, log_n - log_r + log_q, off) + _bent(inside, log_n - log_x + log_p, -off)
    found = found + 0.5 * (log_r - math.log(2 * math.pi) - log_n - log_x)
    found = found + _stirling(n) - _stirling(r) - _stirling(inside)
    edge = torch.where(x == 0, total_count * log_q, _outside(x))
    return torch.where((x > 0) & (total_count > 0), found, edge)


def _poisson(rate: Tensor, x: Tensor) -> Tensor:
    """Likewise. In double precision, where any count has its digits, the usual terms cost less."""
    inside = torch.where(x > 0, x, 1.0)
    log_x = inside.log()
    found = _bent(inside, rate.log() - log_x, rate - inside) - 0.5 * (log_x + math.log(2 * math.pi)) - _stirling(inside)
    return torch.where(x > 0, found, torch.where(x == 0, -rate, _outside(x)))


def _outside(x: Tensor) -> Tensor:
    """The log-density of what a distribution does not take."""
    return torch.where(x.isnan(), x, -torch.inf)


_CONCENTRATED: dict[type, Callable[..., Tensor]] = {
    dist.Gamma: _gamma,
    dist.Beta: _beta,
    dist.NegativeBinomial: _negative_binomial,
    dist.Poisson: _poisson,
}


def _bent(weight: Tensor, log_ratio: Tensor, excess: Tensor) -> Tensor:
    """A weight times the logarithm of a ratio, minus the ratio, plus 1.

    Args:
        weight: The weight.
        log_ratio: The logarithm of the ratio.
        excess: The weight times the ratio minus 1, with more digits where the ratio is near 1.
    """
    near = excess.abs() < 0.5 * weight
    off = torch.where(near, excess, 0.0) / weight
    return torch.where(near, weight * (off.log1p() - off), weight * log_ratio - excess)


def _stirling(a: Tensor) -> Tensor:
    """What the logarithm of the gamma function has beyond Stirling's formula."""
    few, many = a.clamp(max=_MANY), a.clamp(min=_MANY)
    direct = few.lgamma() - (few - 0.5) * few.log() + few - 0.5 * math.log(2 * math.pi)
    square = many**-2
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / many
    return torch.where(a < _MANY, direct, series)
