"""M-steps of families whose two arguments are found together: gamma, beta and negative binomial distributions."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lvm.em.floors import Floors
from pyro_lvm.em.forms import NEAR, Values, observed, placed
from pyro_lvm.em.pairs import Paired, Pairs
from pyro_lvm.em.roles import Items
from pyro_lvm.em.sums import histograms, weighted_sums
from pyro_lvm.em.use import Use
from pyro_lvm.newton import beta_of_harmonic, dirichlet_concentration, gamma_concentration, negative_binomial_count
from pyro_lvm.sites import Site

_LARGEST = 1e6  # inverse of the variance of the logarithm of a gamma, or of the log-odds of a beta, if they vary by 1
_MOST = {torch.float64: 1e11, torch.float32: 1e8}  # the same, however little all vary: digits do not tell more apart


class Maximum(NamedTuple):
    """Where the likelihood of some pairs is largest.

    Attributes:
        first: The first argument of each.
        second: The second.
        size: How many times larger than itself a relative error of either is in slopes there.
        held: Whether the upper limit holds it.
    """

    first: Tensor
    second: Tensor
    size: Tensor
    held: Tensor


class Matched(Paired):
    """Families whose two arguments come in pairs.

    An item of several pairs is entangled with its partners, or with the constant that is one.

    What makes the distribution narrow has an upper limit: a component could else shrink onto a value that rows share.
    The maximum under the limit is exact.
    """

    together = True

    def __init__(self, arguments: list[str], items: Items) -> None:
        self.items, self.pairs = dict.fromkeys(arguments, items), Pairs()
        self.sizes: Values = {}

    @property
    def entangled(self) -> set[str]:
        """See :attr:`Form.entangled`: those of several partners, or of one that is a constant."""
        several = self.pairs.meet_several(0) | self.pairs.meet_several(1)
        pairs = self.pairs.items[:, several | (self.pairs.items < 0).any(0)]
        return {name for items, index in zip(self.items.values(), pairs, strict=True) for name in items.owners(index)}

    def maximum(self, sums: Tensor, priors: Values, now: Values, free: Values) -> Values:
        """Both arguments of each pair."""
        sums = self.pairs.filled(sums)
        name, other = self.items
        first, second = now[name], now[other]
        of_first, of_second = self.pairs.items
        moved = (self.pairs.items >= 0).all(0) & (self._weight(sums) > 0)
        moved = moved & free[name][of_first] & free[other][of_second]
        of_first, of_second = of_first[moved], of_second[moved]
        found = self._best(sums[moved], of_first, first[of_first], second[of_second])
        self.floored, self.sizes = (
            {
                key: torch.zeros(len(first), dtype=value.dtype).index_put((index,), value)
                for key, index in ((name, of_first), (other, of_second))
            }
            for value in (found.held, found.size)
        )
        return {
            name: first.index_put((of_first,), found.first),
            other: second.index_put((of_second,), found.second),
        }

    def _weight(self, sums: Tensor) -> Tensor:
        """Of each pair."""
        return sums[:, 0]

    @abstractmethod
    def _best(self, sums: Tensor, item: Tensor, first: Tensor, second: Tensor) -> Maximum:
        """Of some pairs, their sums, the items of their first arguments, and both arguments as they are."""


class _Concentrated(Matched):
    """Those that are limited by how much their observations vary on a scale without units."""

    floors: Floors

    def __init__(self, arguments: list[str], items: Items, row_dim: int | None, dtype: torch.dtype) -> None:
        super().__init__(arguments, items)
        self.floors, self.most = Floors(items.count, row_dim, 1 / _LARGEST), _MOST[dtype]

    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """Of the statistics of the family, ``[P, 3]``."""
        _, statistics, weights = observed(use, site, weights)
        indices = [use.index(argument) for argument in self.items]
        self.floors.see(site, indices[0], weights, self._without_units(*statistics).double())
        rows, full = self.pairs.rows(*indices), torch.broadcast_shapes(*(s.shape for s in statistics))
        found = torch.stack([weighted_sums(weights, s.expand(full), rows.shape) for s in statistics], -1)
        return placed(found, rows, len(self.pairs))

    @abstractmethod
    def _without_units(self, one: Tensor, second: Tensor, third: Tensor) -> Tensor:
        """A transform of the observations with the real line as its range, from their statistics."""

    def _limits(self) -> Tensor:
        """The largest concentrations: a million, or as many times more as all observations vary little together."""
        return (1 / self.floors.values).clamp(_LARGEST, self.most)


class Gamma(_Concentrated):
    """Concentrations and rates; the concentration has the limit."""

    def _without_units(self, one: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return third

    def _best(self, sums: Tensor, item: Tensor, first: Tensor, second: Tensor) -> Maximum:
        n, x, log_x = sums.unbind(-1)
        limit = torch.maximum(self._limits()[item], first)
        concentration = torch.minimum(gamma_concentration(x / n, log_x / n), limit)
        return Maximum(concentration, concentration * n / x, concentration, concentration >= limit * (1 - NEAR))


class Beta(_Concentrated):
    """Both concentrations; a b / (a + b) has the limit."""

    def _without_units(self, one: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return second - third

    def _best(self, sums: Tensor, item: Tensor, first: Tensor, second: Tensor) -> Maximum:
        start, logs = torch.stack([first, second], -1), sums[:, 1:] / sums[:, :1]
        end = dirichlet_concentration(start, logs)
        limit = torch.maximum(self._limits()[item], _harmonic(start))
        end = torch.where((_harmonic(end) > limit).unsqueeze(-1), beta_of_harmonic(limit, logs), end)
        return Maximum(end[:, 0], end[:, 1], end.sum(-1), _harmonic(end) >= limit * (1 - NEAR))


def _harmonic(concentrations: Tensor) -> Tensor:
    """a b / (a + b), about the inverse of the variance of the log-odds, from ``[..., 2]``."""
    return concentrations.prod(-1) / concentrations.sum(-1)


class NegativeBinomial(Matched):
    """Total counts and probabilities; the total count has the limit, where the distribution is as good as Poisson."""

    def __init__(self, arguments: list[str], items: Items) -> None:
        super().__init__(arguments, items)
        self.counts = torch.zeros(0, dtype=torch.long)

    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """How often each count was observed, in the order in which counts were first met, ``[P, M]``."""
        _, (x,), weights = observed(use, site, weights)
        rows = self.pairs.rows(*map(use.index, self.items))
        found = histograms(weights, self._numbers(x.long()), rows.shape, len(self.counts))
        return placed(found, rows, len(self.pairs))

    def _numbers(self, x: Tensor) -> Tensor:
        """Which of the counts each observation is; new ones are added."""
        distinct, inverse = x.unique(return_inverse=True)
        self.counts = torch.cat([self.counts, distinct[~torch.isin(distinct, self.counts)]])
        ascending, order = self.counts.sort()
        return order[torch.searchsorted(ascending, distinct)][inverse]

    def _weight(self, sums: Tensor) -> Tensor:
        return sums.sum(-1)

    def _best(self, sums: Tensor, item: Tensor, first: Tensor, second: Tensor) -> Maximum:
        counts = self.counts[: sums.shape[-1]].to(sums.dtype)
        mean = (sums @ counts) / sums.sum(-1)
        limit = torch.maximum(first, _LARGEST * mean.clamp(min=1))
        count = negative_binomial_count(counts, sums, limit)
        return Maximum(count, mean / (mean + count), count, count >= limit * (1 - NEAR))

    def state(self) -> dict[str, Any]:
        """Pairs and counts."""
        return super().state() | {"counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Know these pairs and counts."""
        super().restore(state)
        if state:
            self.counts = state["counts"]
