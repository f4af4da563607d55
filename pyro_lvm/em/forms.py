"""M-steps of families with one argument: what sums they need, and where the likelihood is largest.

Sums are in double precision, and their first dimension counts items, so that those of batches add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.em.floors import SquaredLevels
from pyro_lvm.em.roles import Items
from pyro_lvm.em.sums import histograms, weighted_sums
from pyro_lvm.em.use import Use, base
from pyro_lvm.newton import dirichlet_concentration
from pyro_lvm.sites import Site

_LEAST_SHARE = 1e-18  # of the squared level of a feature, the squared mean of an exponential distribution
NEAR = 1e-3  # of a limit: so near to it a maximum is held by it
Values = dict[str, Tensor]  # something for each item, by argument


class Form(ABC):
    """Families whose likelihood has one shape.

    Attributes:
        items: The items that may stand for each argument.
        floored: The items of an argument that the last maximum holds on a boundary, lest a variance vanishes.
        sizes: How many times larger than itself a relative error of an item is in slopes there.
        together: Whether the arguments are found together, so that one is no maximum without the other.
    """

    items: dict[str, Items]
    floored: Values = {}  # noqa: RUF012
    sizes: Values = {}  # noqa: RUF012
    together = False

    @abstractmethod
    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """What the maximum needs to know of a site's observations, each as often as its weight says."""

    @abstractmethod
    def maximum(self, sums: Tensor, priors: Values, now: Values, free: Values) -> Values:
        """The items of each argument at which the likelihood is largest.

        Args:
            sums: Of all observations.
            priors: What conjugate priors add for the items of an argument, by its name.
            now: The items as they are. Those of which nothing was observed stay so.
            free: Which items of each argument may move.
        """

    @property
    def entangled(self) -> set[str]:
        """The parameters whose items have no maximum by themselves, by what the sums so far say."""
        return set()

    def state(self) -> dict[str, Any]:
        """What was learned from the rows, beside the sums."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Know what ``state`` says; an empty one says nothing."""


def add(a: Tensor, b: Tensor) -> Tensor:
    """Sums over both; the longer of two tensors has items or counts that the other did not meet."""
    total = a.new_zeros([max(sizes) for sizes in zip(a.shape, b.shape, strict=True)])
    for part in (a, b):
        total[tuple(slice(size) for size in part.shape)] += part
    return total


def observed(use: Use, site: Site, weights: Tensor) -> tuple[Any, tuple[Tensor, ...], Tensor]:
    """The distribution without wrappers, the statistics of its value, and weights with its event dimensions."""
    fn, event_dims = base(site["fn"])
    statistics = use.family.statistics(fn, site["value"])  # type: ignore[union-attr]
    weights = weights[(..., *[None] * event_dims)]
    return fn, tuple(_where_it_counts(torch.as_tensor(s), weights, site) for s in statistics), weights


def _where_it_counts(statistic: Tensor, weights: Tensor, site: Site) -> Tensor:
    """A statistic with zeros where it is not finite and nothing counts, as under a mask.

    Raises:
        ValueError: if it counts there.
    """
    bad = ~torch.isfinite(statistic)
    if not bad.any():
        return statistic
    extra = max(0, statistic.dim() - weights.dim())
    counted = weights[(..., *[None] * extra)] * bad if extra else weights * bad
    if counted.any():
        kind = type(base(site["fn"])[0]).__name__
        raise ValueError(
            f"the site {site['name']!r} has values on the edge of what its {kind} distribution allows, such as 0, "
            "where the likelihood has no maximum: move these values inside, or give them a component of their own"
        )
    return torch.where(bad, 0.0, statistic)


def placed(values: Tensor, index: Tensor, count: int) -> Tensor:
    """What stands in each place added to the item whose number is there, ``[count, *rest]``."""
    flat = index.flatten()
    values = values.reshape(len(flat), *values.shape[index.dim() :])
    kept = flat >= 0
    return values.new_zeros(count, *values.shape[1:]).index_add(0, flat[kept], values[kept])


class Ratio(Form):
    """Rates and probabilities: ``a log v - b v`` and ``a log v + (b - a) log(1 - v)`` are largest at a / b.

    The rate of an exponential distribution has an upper limit, lest it grows for ever on rows of zero.
    """

    def __init__(self, argument: str, items: Items, row_dim: int | None) -> None:
        self.argument, self.items = argument, {argument: items}
        self.floors = SquaredLevels(items.count, row_dim, _LEAST_SHARE)

    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """a and b, ``[I, 2]``."""
        fn, statistics, weights = observed(use, site, weights)
        index = use.index(self.argument)
        if isinstance(fn, dist.Exponential):
            self.floors.see(site, index, weights, statistics[1].double())
        full = torch.broadcast_shapes(*(s.shape for s in statistics))
        parts = [weighted_sums(weights, s.expand(full), index.shape) for s in statistics]
        return placed(torch.stack(parts, -1), index, self.items[self.argument].count)

    def maximum(self, sums: Tensor, priors: Values, now: Values, free: Values) -> Values:
        """a / b."""
        a, b = (sums + priors.get(self.argument, 0.0)).unbind(-1)
        limit = self.floors.below(now[self.argument] ** -2).rsqrt()
        moved = free[self.argument] & ((b > 0) | ((a > 0) & limit.isfinite()))
        found = a.clamp(min=0) / b
        found = found.clamp(max=1) if self.argument == "probs" else found  # it may exceed that by rounding
        self.floored = {self.argument: moved & (found >= limit * (1 - NEAR))}
        return {self.argument: torch.where(moved, torch.minimum(found, limit), now[self.argument])}

    def state(self) -> dict[str, Any]:
        """The floors."""
        return {"floors": self.floors.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Know these floors."""
        if state:
            self.floors.restore(state["floors"])


class Simplex(Form):
    """Probabilities of categories: the sum of ``counts log probs`` is largest at the counts, normalised."""

    def __init__(self, items: Items) -> None:
        self.items = {"probs": items}

    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """Counts, ``[I, K]``."""
        _, (counts,), weights = observed(use, site, weights)
        index = use.index("probs")
        if counts.is_floating_point():
            found = weighted_sums(weights, counts, index.shape, 1)
        else:
            found = histograms(weights, counts, index.shape, *self.items["probs"].shape)
        return placed(found, index, self.items["probs"].count)

    def maximum(self, sums: Tensor, priors: Values, now: Values, free: Values) -> Values:
        """Counts, normalised; those below zero, by a prior that has its peak on the boundary, are none."""
        counts = (sums + priors.get("probs", 0.0)).clamp(min=0)
        counts = torch.where(now["probs"] == 0, 0.0, counts)  # a zero is part of the model
        total = counts.sum(-1, keepdim=True)
        return {"probs": torch.where(free["probs"].unsqueeze(-1) & (total > 0), counts / total, now["probs"])}


class Dirichlet(Form):
    """Concentrations of Dirichlet distributions, by Newton's method."""

    def __init__(self, items: Items) -> None:
        self.items = {"concentration": items}

    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """The weight and the sum of logarithms, ``[I, 1 + K]``."""
        _, (one, logs), weights = observed(use, site, weights)
        index = use.index("concentration")
        n = weighted_sums(weights, one.expand(weights.shape), index.shape).unsqueeze(-1)
        found = torch.cat([n, weighted_sums(weights, logs, index.shape, 1)], -1)
        return placed(found, index, self.items["concentration"].count)

    def maximum(self, sums: Tensor, priors: Values, now: Values, free: Values) -> Values:
        """Where the mean logarithms are those expected."""
        n, logs = sums[:, :1], sums[:, 1:]
        moved = free["concentration"] & (n[:, 0] > 0)
        new = now["concentration"].clone()
        new[moved] = dirichlet_concentration(new[moved], logs[moved] / n[moved])
        return {"concentration": new}
