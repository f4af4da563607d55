"""One M-step for each form of log-likelihood: what sums it needs, and where its maximum lies.

Every form keeps its sums in tensors whose first dimension counts items, or pairs of items that a site's arguments use
together, so that sums of batches add up. Sums are in double precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.em.newton import dirichlet_concentration, gamma_concentration, negative_binomial_count
from pyro_lvm.em.roles import Items, Picked
from pyro_lvm.em.sums import scatters, weighted_sums
from pyro_lvm.em.use import Use, base
from pyro_lvm.sites import Site

Sums = dict[str, Tensor]


def add(ours: Sums, theirs: Sums) -> Sums:
    """Sums over both; the longer of two tensors has pairs or counts that the other did not meet."""
    return {k: _add(ours.get(k), theirs.get(k)) for k in ours.keys() | theirs.keys()}


def _add(a: Tensor | None, b: Tensor | None) -> Tensor:
    if a is None or b is None:
        return b if a is None else a  # type: ignore[return-value]
    shape = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]
    total = a.new_zeros(shape)
    for part in (a, b):
        total[tuple(slice(size) for size in part.shape)] += part
    return total


def observed(use: Use, site: Site, weights: Tensor) -> tuple[Any, tuple[Any, ...], Tensor]:
    """The distribution without wrappers, its statistics, and weights with its event dimensions."""
    fn, event_dims = base(site["fn"])
    statistics = use.family.statistics(fn, site["value"])  # type: ignore[union-attr]
    return fn, statistics, weights[(..., *[None] * event_dims)]


def placed(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Add what stands in each place to the item whose number is there; ``[count, *rest]``."""
    flat = index.flatten()
    values = values.reshape(len(flat), *values.shape[index.dim() :])
    kept = flat >= 0
    return values.new_zeros(count, *values.shape[1:]).index_add(0, flat[kept], values[kept])


class Form(ABC):
    """An M-step for the items of one shape."""

    @abstractmethod
    def sums(self, use: Use, site: Site, weights: Tensor) -> Sums:
        """What the maximum needs to know of a site's observations, each as often as its weight says."""

    @abstractmethod
    def prior(self, use: Use, site: Site) -> Sums | None:
        """What a conjugate prior adds to the sums; None if this prior is not conjugate."""

    @abstractmethod
    def maximum(self, sums: Sums, now: Tensor, free: Tensor) -> Tensor:
        """The items at which the likelihood is largest; those about which the sums say nothing stay as they are.

        Args:
            sums: Of all observations.
            now: The items as they are, as the arguments have them, in double precision.
            free: Which of them may move.
        """


class Ratio(Form):
    """Rates and probabilities: the maximum of ``a log v - b v`` and of ``a log v + (b - a) log(1 - v)`` is a / b."""

    def __init__(self, form: str, items: Items) -> None:
        self.form, self.items = form, items

    def sums(self, use: Use, site: Site, weights: Tensor) -> Sums:
        fn, statistics, weights = observed(use, site, weights)
        index = _only(use).index
        full = torch.broadcast_shapes(weights.shape, *(torch.as_tensor(s).shape for s in statistics))
        parts = [weighted_sums(weights, torch.as_tensor(s).expand(full), index.shape) for s in statistics]
        return {self.form: placed(torch.stack(parts, -1), index, self.items.count)}

    def prior(self, use: Use, site: Site) -> Sums | None:
        fn, _ = base(site["fn"])
        if self.form == "rate" and isinstance(fn, torch.distributions.Gamma):
            pseudo = fn.concentration - 1, fn.rate
        elif self.form == "probability" and isinstance(fn, torch.distributions.Beta):
            pseudo = fn.concentration1 - 1, fn.concentration1 + fn.concentration0 - 2
        else:
            return None
        return {self.form: _of_parameter(self.items, use.prior_of, torch.stack(torch.broadcast_tensors(*pseudo), -1))}

    def maximum(self, sums: Sums, now: Tensor, free: Tensor) -> Tensor:
        a, b = sums[self.form].unbind(-1)
        return torch.where(b > 0, a.clamp(min=0) / b, now)


class Simplex(Form):
    """Probabilities of categories: expected counts, normalised."""

    def __init__(self, items: Items) -> None:
        self.items = items
        self.key = f"simplex {items.shape[0]}"

    def sums(self, use: Use, site: Site, weights: Tensor) -> Sums:
        fn, (counts,), weights = observed(use, site, weights)
        index = _only(use).index
        return {self.key: placed(weighted_sums(weights, counts, index.shape, 1), index, self.items.count)}

    def prior(self, use: Use, site: Site) -> Sums | None:
        fn, _ = base(site["fn"])
        if not isinstance(fn, torch.distributions.Dirichlet):
            return None
        return {self.key: _of_parameter(self.items, use.prior_of, fn.concentration - 1)}

    def maximum(self, sums: Sums, now: Tensor, free: Tensor) -> Tensor:
        counts = sums[self.key].clamp(min=0)
        total = counts.sum(-1, keepdim=True)
        return torch.where(total > 0, counts / total, now)


def _only(use: Use) -> Picked:
    (role,) = use.roles.values()
    assert role is not None
    return role


def _of_parameter(items: Items, name: str, values: Tensor) -> Tensor:
    """Numbers for each item of one parameter, zero for all other items."""
    values = values.double()
    rest = values.shape[-1:]
    flat = values.reshape(-1, *rest)
    result = flat.new_zeros(items.count, *rest)
    first = items.names[name]
    result[first : first + len(flat)] = flat
    return result
