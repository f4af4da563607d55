"""What an argument of a distribution is made of: items of parameters, picked as they are, or something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

Theta = Mapping[str, Tensor]  # constrained values of parameters, by name

_TOLERANCE = 100  # times the rounding of a number


class Link(NamedTuple):
    """A function that users put between a parameter and an argument, and its inverse."""

    name: str
    call: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


IDENTITY = Link("identity", lambda v: v, lambda v: v)
_NUMBERS = (
    IDENTITY,
    Link("exp", torch.exp, torch.log),
    Link("sqrt", torch.sqrt, torch.square),
    Link("softplus", torch.nn.functional.softplus, lambda v: v + (-(-v).expm1()).log()),
    Link("sigmoid", torch.sigmoid, torch.logit),
    Link("square", torch.square, torch.sqrt),
    Link("reciprocal", torch.reciprocal, torch.reciprocal),
    Link("rsqrt", torch.rsqrt, lambda v: v.square().reciprocal()),
)
_SIMPLICES = (
    Link("identity", lambda v: v / v.sum(-1, keepdim=True), lambda v: v),
    Link("softmax", lambda v: v.softmax(-1), torch.log),
)
_VECTORS = _NUMBERS[:1]
_MATRICES = (
    Link("cholesky", lambda v: v.tril() @ v.tril().mT, torch.linalg.cholesky),
    IDENTITY,
    Link("inverse", torch.linalg.inv, torch.linalg.inv),
)


class Items:
    """The items of one shape that the parameters hold, counted through.

    Attributes:
        item_dim: Dimensions of an item: 0 for numbers, 1 for vectors, 2 for matrices.
        names: The parameters that have such items, with the number of the first item of each.
    """

    def __init__(self, theta: Theta, item_dim: int, shape: tuple[int, ...]) -> None:
        self.item_dim, self.shape = item_dim, shape
        self.names: dict[str, int] = {}
        self.count = 0
        for name, value in theta.items():
            if value.is_floating_point() and value.dim() >= item_dim and value.shape[value.dim() - item_dim :] == shape:
                self.names[name] = self.count
                self.count += value.numel() // max(1, math.prod(shape))

    def values(self, theta: Theta) -> Tensor:
        """All items, ``[count, *shape]``."""
        return torch.cat([theta[name].reshape(-1, *self.shape) for name in self.names])

    def owners(self, index: Tensor) -> list[str]:
        """The parameters to which these items belong."""
        starts = torch.tensor(list(self.names.values()))
        places = torch.bucketize(index[index >= 0].unique().cpu(), starts, right=True) - 1
        return [list(self.names)[i] for i in places.unique().tolist()]

    def of(self, names: Collection[str]) -> Tensor:
        """Which items belong to these parameters, ``[count]``."""
        ends = [*list(self.names.values())[1:], self.count]
        mask = torch.zeros(self.count, dtype=torch.bool)
        for (name, first), end in zip(self.names.items(), ends, strict=True):
            mask[first:end] = name in names
        return mask

    def split(self, items: Tensor, theta: Theta) -> dict[str, Tensor]:
        """Items by parameter, in the parameters' shapes."""
        sizes = [theta[name].numel() // max(1, items[0].numel()) for name in self.names]
        return {n: part.reshape(theta[n].shape) for n, part in zip(self.names, items.split(sizes), strict=True)}


@dataclass(frozen=True)
class Picked:
    """An argument made of items: ``argument = link(items)[index]``.

    Attributes:
        items: Where from.
        index: Which item stands in each place, -1 for a constant; of size 1 along dimensions in which all are the same.
        link: What was done to them.
    """

    items: Items
    index: Tensor
    link: Link

    @cached_property
    def names(self) -> list[str]:
        """The parameters that it is picked from."""
        return self.items.owners(self.index)


def find(values: tuple[Tensor, Tensor], thetas: tuple[Theta, Theta], item_dim: int, form: str) -> Picked | None:
    """Which items an argument was picked from, by its values under two fillings of the parameters.

    Args:
        values: The argument under the one and the other filling, ``[*batch, *item]``.
        thetas: The fillings, in which no two items are alike.
        item_dim: Dimensions of an item.
        form: The form of the likelihood; a simplex is normalised before it is compared.

    Returns:
        Where its items come from; None if it was computed in another way.
    """
    shape = tuple(values[0].shape[values[0].dim() - item_dim :])
    items = Items(thetas[0], item_dim, shape)
    first, second = (v.detach().reshape(-1, *shape) for v in values)
    constant = _alike(first, second)
    batch = values[0].shape[: values[0].dim() - item_dim]
    links = {0: _NUMBERS, 1: _SIMPLICES if form == "simplex" else _VECTORS, 2: _MATRICES}[item_dim]
    for link in links if items.count else ():
        tables = [_of(link, items.values(theta)) for theta in thetas]
        nearest = _nearest((first, second), (tables[0], tables[1]))
        matches = _alike(first, tables[0][nearest]) & _alike(second, tables[1][nearest])
        if (matches | constant).all() and matches.any():
            return Picked(items, torch.where(constant, -1, nearest).reshape(batch), link)
    if constant.all():
        return Picked(items, torch.full([1] * len(batch), -1), links[0])
    return None


def _of(link: Link, values: Tensor) -> Tensor:
    try:
        return link.call(values)
    except torch.linalg.LinAlgError:
        return torch.full_like(values, torch.nan)


def _alike(a: Tensor, b: Tensor) -> Tensor:
    """Which items agree up to rounding, ``[n]``."""
    tolerance = _TOLERANCE * torch.finfo(a.dtype).eps
    same = (a == b) | ((a - b).abs() <= tolerance * torch.maximum(a.abs(), b.abs()))
    return same.flatten(1).all(1) if a.dim() > 1 else same


def _nearest(items: tuple[Tensor, Tensor], tables: tuple[Tensor, Tensor]) -> Tensor:
    """For each item, as it is under both fillings, the nearest in a table, along a random direction."""
    size = 2 * max(1, items[0][:1].numel())
    direction = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(items[0].device)
    keys, wanted = (torch.cat([v.reshape(len(v), -1).double() for v in pair], 1) for pair in (tables, items))
    keys, wanted = keys.nan_to_num() @ direction, wanted.nan_to_num() @ direction
    keys, order = keys.sort()
    right = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    left = (right - 1).clamp(min=0)
    return order[torch.where((keys[left] - wanted).abs() < (keys[right] - wanted).abs(), left, right)]
