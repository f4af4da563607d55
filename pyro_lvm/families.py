"""Families whose weighted log-likelihood has its maximum in closed form, sorted by the shape of that likelihood.

A weighted log-density is a sum of statistics times functions of the parameters. Families for which these functions
agree share one rule: a Poisson's rate, an exponential's and a gamma prior of either all say ``a log rate - b rate``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor


class Argument(NamedTuple):
    """An argument of a family.

    Attributes:
        read: Its value in a distribution, with dimensions of size 1 where it was only expanded.
        item_dim: How many dimensions one value of it has: 0 for a number, 1 for a vector, 2 for a matrix.
    """

    read: Callable[[Any], Tensor]
    item_dim: int = 0


class Family(NamedTuple):
    """A family of distributions.

    Attributes:
        form: The shape of its log-likelihood.
        arguments: Its arguments, by the names that the form has for them.
        statistics: Of an observation, given the distribution for the arguments that are known numbers.
        known: An argument that, if it is a known number, leaves a family of another form.
        in_one_tensor: Whether the distribution keeps all its arguments together, so that each depends on the others.
    """

    form: str
    arguments: dict[str, Argument]
    statistics: Callable[[Any, Tensor], tuple[Any, ...]]
    known: tuple[str, Family] | None = None
    in_one_tensor: bool = False


def narrowed(tensor: Tensor) -> Tensor:
    """A tensor with size 1 in the dimensions along which it only repeats."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _own(name: str) -> Callable[[Any], Tensor]:
    return lambda fn: narrowed(getattr(fn, name))


def _probs(of_logits: Callable[[Tensor], Tensor]) -> Callable[[Any], Tensor]:
    def read(fn: Any) -> Tensor:
        if "logits" in vars(fn) and ("probs" not in vars(fn) or getattr(fn, "_param", None) is vars(fn)["logits"]):
            return of_logits(narrowed(fn.logits))
        return narrowed(fn.probs)

    return read


def _covariance(fn: Any) -> Tensor:
    factor = fn._unbroadcasted_scale_tril
    return factor @ factor.mT


def _ones(x: Tensor) -> Tensor:
    return torch.ones((), dtype=x.dtype, device=x.device)


_PROBABILITY = {"probs": Argument(_probs(torch.sigmoid))}
_SIMPLEX = {"probs": Argument(_probs(lambda logits: logits.softmax(-1)), 1)}
_RATE = {"rate": Argument(_own("rate"))}
_NORMAL = {"loc": Argument(_own("loc")), "scale": Argument(_own("scale"))}

FAMILIES: dict[type, Family] = {
    # a log rate - b rate: statistics a and b
    dist.Poisson: Family("rate", _RATE, lambda fn, x: (x, _ones(x))),
    dist.Exponential: Family("rate", _RATE, lambda fn, x: (_ones(x), x)),
    # a log probs + (b - a) log(1 - probs)
    dist.Bernoulli: Family("probability", _PROBABILITY, lambda fn, x: (x, _ones(x))),
    dist.Geometric: Family("probability", _PROBABILITY, lambda fn, x: (_ones(x), x + 1)),
    dist.Binomial: Family("probability", _PROBABILITY, lambda fn, x: (x, fn.total_count)),
    # sum of counts log probs, or the log of one of the probs, whose number is the statistic
    dist.Categorical: Family("simplex", _SIMPLEX, lambda fn, x: (x.long(),)),
    dist.OneHotCategorical: Family("simplex", _SIMPLEX, lambda fn, x: (x,)),
    dist.Multinomial: Family("simplex", _SIMPLEX, lambda fn, x: (x,)),
    # squared distances from a loc over a squared scale
    dist.Normal: Family("normal", _NORMAL, lambda fn, x: (x,)),
    dist.LogNormal: Family("normal", _NORMAL, lambda fn, x: (x.log(),)),
    dist.MultivariateNormal: Family(
        "multivariate_normal",
        {"loc": Argument(_own("loc"), 1), "covariance": Argument(_covariance, 2)},
        lambda fn, x: (x,),
    ),
    # their own, by Newton's method
    dist.Gamma: Family(
        "gamma",
        {"concentration": Argument(_own("concentration")), **_RATE},
        lambda fn, x: (_ones(x), x, x.double().log()),
        known=("concentration", Family("rate", _RATE, lambda fn, x: (fn.concentration, x))),
    ),
    dist.Beta: Family(
        "beta",
        {"concentration1": Argument(_own("concentration1")), "concentration0": Argument(_own("concentration0"))},
        lambda fn, x: (_ones(x), x.double().log(), (-x.double()).log1p()),
        in_one_tensor=True,
    ),
    dist.NegativeBinomial: Family(
        "negative_binomial",
        {"total_count": Argument(_own("total_count")), **_PROBABILITY},
        lambda fn, x: (x,),
        known=("total_count", Family("probability", _PROBABILITY, lambda fn, x: (x, x + fn.total_count))),
    ),
    dist.Dirichlet: Family(
        "dirichlet", {"concentration": Argument(_own("concentration"), 1)}, lambda fn, x: (_ones(x), x.log())
    ),
}


def family_of(fn: Any) -> Family | None:
    """The family of a distribution, if its maximum is known here."""
    return next((FAMILIES[kind] for kind in type(fn).__mro__ if kind in FAMILIES), None)
