"""The smallest variances that EM allows, lest a component shrinks onto a single row and its density has no bound."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.em.sums import weighted_sums
from pyro_lvm.models._spread import ROUNDING
from pyro_lvm.sites import Site


class _Feature(NamedTuple):
    """What was seen of the features of one site, F of them.

    Attributes:
        centre: About which moments are taken, ``[F]``.
        moments: The weight, the sum and the sum of squares, ``[3, F]``.
        users: Items and the features that they are used for, one pair a row, ``[n, 2]``.
    """

    centre: Tensor
    moments: Tensor
    users: Tensor


class Floors:
    """The smallest variance of each item: a millionth of that of the least varying feature that it is used for.

    Rows come in batches. The floors are known when all rows were seen, which is when they are first asked for.

    Args:
        count: The number of items.
        row_dim: The dimension of the rows in log-densities; None where there are none.
        share: What to take instead of a millionth.
    """

    def __init__(self, count: int, row_dim: int | None, share: float = 1e-6) -> None:
        self.count, self.row_dim, self.share = count, row_dim, share
        self._seen: dict[str, _Feature] = {}
        self._values: Tensor | None = None

    def see(self, site: Site, index: Tensor, weights: Tensor, x: Tensor, item_dim: int = 0) -> None:
        """Note how the observations of a site vary.

        Args:
            site: The site.
            index: Which item stands where, ``[*batch]``.
            weights: Of the observations, ``[*batch]``.
            x: The observations, ``[*batch, *item]``; every number of an item is a feature.
            item_dim: The dimensions of an item.
        """
        if self._values is not None:
            return
        index, weights = (t[(..., *[None] * item_dim)] for t in (index, weights))
        places = self._features(site, torch.broadcast_shapes(weights.shape, x.shape), item_dim)
        mean = weighted_sums(weights, x, places) / weighted_sums(weights, torch.ones_like(x), places)
        held = self._seen.get(site["name"])
        centre = mean.nan_to_num().flatten() if held is None else held.centre
        off = x - centre.reshape(places)
        moments = torch.stack([weighted_sums(weights, off**power, places).flatten() for power in range(3)])
        features = torch.arange(len(centre), device=index.device).reshape(places)
        users = torch.stack([t.flatten() for t in torch.broadcast_tensors(index, features)], -1)
        users = users[users[:, 0] >= 0].unique(dim=0)
        if held is not None:
            moments, users = held.moments + moments, torch.cat([held.users, users]).unique(dim=0)
        self._seen[site["name"]] = _Feature(centre, moments, users)

    def _features(self, site: Site, shape: torch.Size, item_dim: int) -> torch.Size:
        """The shape of the features: 1 where observations are rows, states of latents, or repetitions without rows."""
        events = len(site["fn"].event_shape)
        plates = {frame.dim - events for frame in site["cond_indep_stack"] if frame.vectorized}
        row = None if self.row_dim is None else self.row_dim - events
        kept = (plates - {row} if row in plates else set()) | {-d for d in range(1, events + 1)}
        return torch.Size([size if d - len(shape) in kept else 1 for d, size in enumerate(shape)])

    @property
    def values(self) -> Tensor:
        """The floor of each item, ``[count]``; 0 where none was seen.

        Of an item that is used where nothing varies it is that of all its observations together; where these do not
        vary either, the smallest of all items, or a millionth.
        """
        if self._values is None:
            alone = torch.full((self.count,), torch.inf, dtype=torch.float64)
            together = torch.zeros(3, self.count, dtype=torch.float64)
            for centre, moments, users in self._seen.values():
                item, at = users.unbind(-1)
                alone.scatter_reduce_(0, item, self._spreads(centre, *moments)[at], "amin")
                n, first, second = moments
                about_zero = torch.stack([n, first + n * centre, second + 2 * centre * first + n * centre.square()])
                together.index_add_(1, item, about_zero[:, at])
            found = torch.where(torch.isfinite(alone), alone, self._spreads(torch.zeros(()), *together))
            least = found.min() if torch.isfinite(found).any() else torch.ones((), dtype=torch.float64)
            met = torch.zeros(self.count, dtype=torch.bool)
            for _, _, users in self._seen.values():
                met[users[:, 0]] = True
            self._values = (self.share * torch.where(torch.isfinite(found), found, least)).where(met, 0.0)
        return self._values

    def _spreads(self, centre: Tensor, n: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """What to take a share of, infinite where nothing says it, from moments about the centre."""
        return _variances(n, first, second)

    def below(self, variances: Tensor) -> Tensor:
        """The floors, lower for items that are lower already."""
        return torch.minimum(self.values, variances)

    def state(self) -> Tensor | None:
        """The floors, if they are known."""
        return self._values

    def restore(self, state: Tensor | None) -> None:
        """Know these floors."""
        self._values = state


class SquaredLevels(Floors):
    """The smallest squared mean of positive numbers: a share of the squared geometric mean of those that are not zero.

    No single large number moves it, and none is too small for it.
    """

    def see(self, site: Site, index: Tensor, weights: Tensor, x: Tensor, item_dim: int = 0) -> None:
        """Note how large the observations of a site are; see :meth:`Floors.see`."""
        super().see(site, index, weights * (x > 0), torch.where(x > 0, x, 1.0).log(), item_dim)

    def _spreads(self, centre: Tensor, n: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.where(n > 0, (2 * (centre + first / n)).exp(), torch.inf)


def _variances(n: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Variances from moments, infinite where there is none beyond rounding."""
    mean, square = first / n, second / n
    variance = square - mean.square()
    return torch.where(variance > ROUNDING * square, variance, torch.inf)
