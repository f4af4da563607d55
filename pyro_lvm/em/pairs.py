"""M-steps of families with two arguments, whose sums are kept for each pair of items that a site uses together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.em.forms import Sums, observed, placed
from pyro_lvm.em.newton import dirichlet_concentration, gamma_concentration, negative_binomial_count
from pyro_lvm.em.roles import Picked
from pyro_lvm.em.sums import scatters, weighted_sums
from pyro_lvm.em.use import Use, base
from pyro_lvm.sites import Site

_CROSSED_ITERATIONS = 200


class Pairs:
    """The pairs of items, one of either argument, that were met so far; -1 stands for a constant."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], int] = {}

    def rows(self, first: Tensor, second: Tensor) -> Tensor:
        """The number of the pair in each place."""
        first, second = torch.broadcast_tensors(first, second)
        both = torch.stack([first.flatten(), second.flatten()], -1)
        distinct, inverse = both.unique(dim=0, return_inverse=True)
        known = [self._rows.setdefault((a, b), len(self._rows)) for a, b in distinct.tolist()]
        return torch.tensor(known)[inverse].reshape(first.shape)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def items(self) -> Tensor:
        """The items of each pair, ``[2, P]``."""
        return torch.tensor(list(self._rows), dtype=torch.long).reshape(-1, 2).mT

    def matched(self) -> bool:
        """Whether every item belongs to one pair alone."""
        first, second = self.items
        return all(len(part.unique()) == len(part) and bool((part >= 0).all()) for part in (first, second))


class Normal:
    """Locs and scales of normal distributions, which may be shared across each other.

    Second moments are kept about ``centre``, the locs at the start, so that large offsets do not cancel them.
    """

    def __init__(self, centre: Tensor, floor: float = 0.0) -> None:
        self.centre, self.floor, self.pairs = centre.double(), floor, Pairs()

    def sums(self, use: Use, site: Site, weights: Tensor) -> Sums:
        """n, the sum and the sum of squares about the centre, for each pair."""
        fn, (x,), weights = observed(use, site, weights)
        loc, scale = use.roles.get("loc"), use.roles["scale"]
        assert scale is not None
        x, weights = x.double(), weights.double()
        known = torch.full((1,) * len(fn.batch_shape), -1)
        loc_index, scale_index = known if loc is None else loc.index, scale.index
        if (loc_index < 0).any():
            x = x - torch.where(loc_index < 0, fn.loc.detach().double(), 0.0)
        if (scale_index < 0).any():
            weights = weights * torch.where(scale_index < 0, fn.scale.detach().double().square().reciprocal(), 1.0)
        rows = self.pairs.rows(loc_index, scale_index)
        places = rows.shape
        full = torch.broadcast_shapes(weights.shape, x.shape)
        summed = [d - len(places) for d, size in enumerate(places) if size == 1 and len(places) - d <= x.dim()]
        middle = x.mean(summed, keepdim=True) if summed else x
        deviations = x - middle
        n, first, second = (
            weighted_sums(weights, s, places) for s in (torch.ones_like(x).expand(full), deviations, deviations.square())
        )
        centre = torch.where(loc_index >= 0, self.centre[loc_index.clamp(min=0)], 0.0)
        shift = middle - centre
        second = second + 2 * shift * first + shift.square() * n
        first = first + shift * n
        return {"normal": placed(torch.stack([n, first, second], -1), rows, len(self.pairs))}

    def prior(self, use: Use, site: Site, links: dict[str, str]) -> Sums | None:
        raise NotImplementedError
