"""M-steps of normal distributions, whose sums are kept for each pair of items that a site uses together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.em.floors import Floors
from pyro_lvm.em.forms import NEAR, Form, Values, observed, placed
from pyro_lvm.em.roles import Items
from pyro_lvm.em.sums import scatters, weighted_sums
from pyro_lvm.em.use import Use
from pyro_lvm.sites import Site

_CROSSED_ITERATIONS = 500


class Pairs:
    """The pairs of items, one of either argument, that were met so far; -1 stands for a constant."""

    def __init__(self, known: Sequence[Sequence[int]] = ()) -> None:
        self._rows: dict[tuple[int, int], int] = {(a, b): i for i, (a, b) in enumerate(known)}

    def rows(self, first: Tensor, second: Tensor) -> Tensor:
        """The number of the pair in each place, by the items that stand there."""
        indices = torch.broadcast_tensors(first, second)
        distinct, inverse = torch.stack([i.flatten() for i in indices], -1).unique(dim=0, return_inverse=True)
        known = [self._rows.setdefault((a, b), len(self._rows)) for a, b in distinct.tolist()]
        return torch.tensor(known)[inverse].reshape(indices[0].shape)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def items(self) -> Tensor:
        """The items of each pair, ``[2, P]``."""
        return torch.tensor(list(self._rows), dtype=torch.long).reshape(-1, 2).mT

    def meet_several(self, argument: int) -> Tensor:
        """Which pairs have an item, of the first or second argument, that stands in other pairs too, ``[P]``."""
        own = self.items[argument]
        _, inverse, counts = own.unique(return_inverse=True, return_counts=True)
        return (own >= 0) & (counts[inverse] > 1)

    def filled(self, sums: Tensor) -> Tensor:
        """Sums with zeros for the pairs that they did not meet."""
        return torch.cat([sums, sums.new_zeros(len(self) - len(sums), *sums.shape[1:])])


class Paired(Form):
    """Families with two arguments.

    Attributes:
        pairs: Of an item of the one and one of the other.
        floors: The smallest variances, of families that have a variance.
    """

    pairs: Pairs
    floors: Floors | None = None

    def state(self) -> dict[str, Any]:
        """Pairs and floors."""
        floors = None if self.floors is None else self.floors.state()
        return {"pairs": self.pairs.items.mT.contiguous(), "floors": floors}

    def restore(self, state: dict[str, Any]) -> None:
        """Know these pairs and floors."""
        if state:
            self.pairs = Pairs(state["pairs"].tolist())
            if self.floors is not None:
                self.floors.restore(state["floors"])


class Normal(Paired):
    """Locs and scales of normal distributions, which may be shared across each other.

    Second moments are kept about the locs at the start, so that a large offset does not cancel them.
    """

    floors: Floors

    def __init__(self, items: Items, centre: Tensor, row_dim: int | None) -> None:
        self.items, self.centre, self.pairs = {"loc": items, "scale": items}, centre.double(), Pairs()
        self.floors = Floors(items.count, row_dim)

    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """The weight, the sum and the sum of squares about the centre, ``[P, 3]``."""
        fn, (x,), weights = observed(use, site, weights)
        loc, scale = use.index("loc"), use.index("scale")
        x, weights = x.double(), weights.double()
        self.floors.see(site, scale, weights, x)
        if (loc < 0).any():
            x = x - torch.where(loc < 0, fn.loc.detach().double(), 0.0)
        if (scale < 0).any():
            weights = weights * torch.where(scale < 0, fn.scale.detach().double() ** -2, 1.0)
        rows = self.pairs.rows(loc, scale)
        middle = _middle(weights, x, rows.shape)
        off = x - middle
        n, first, second = (weighted_sums(weights, off**power, rows.shape) for power in range(3))
        shift = middle - torch.where(loc < 0, 0.0, self.centre[loc.clamp(min=0)])
        second = second + 2 * shift * first + shift.square() * n
        first = first + shift * n
        return placed(torch.stack([n, first, second], -1), rows, len(self.pairs))

    def maximum(self, sums: Tensor, priors: Values, now: Values, free: Values) -> Values:
        """Locs given the scales, scales about the new locs, and again where several scales share a loc."""
        locs, scales = now["loc"], now["scale"]
        count = len(locs)
        n, first, second = self.pairs.filled(sums).unbind(-1)
        of_loc, of_scale = self.pairs.items
        loc_prior = priors.get("loc", n.new_zeros(count, 2))
        variance_prior = priors.get("scale", n.new_zeros(count, 2))
        once = not _is_crossed(of_loc, of_scale) and not loc_prior.any()
        moved = locs - self.centre
        for _ in range(1 if once else _CROSSED_ITERATIONS):
            before = moved, scales
            precision = torch.where(of_scale < 0, 1.0, scales[of_scale.clamp(min=0)] ** -2)
            weight = placed(precision * n, of_loc, count) + loc_prior[:, 0]
            total = placed(precision * first, of_loc, count) + loc_prior[:, 1] - loc_prior[:, 0] * self.centre
            moved = torch.where(free["loc"] & (weight > 0), total / weight, moved)
            off = torch.where(of_loc < 0, 0.0, moved[of_loc.clamp(min=0)])
            squares = placed(second - 2 * off * first + off.square() * n, of_scale, count) + variance_prior[:, 1]
            weight = placed(n, of_scale, count) + variance_prior[:, 0]
            least = self.floors.below(scales.square())
            variances = torch.maximum(squares / weight, least)
            self.floored = {"scale": squares / weight <= least * (1 + NEAR)}
            scales = torch.where(free["scale"] & (weight > 0), variances.sqrt(), scales)
            if all(torch.allclose(a, b, rtol=1e-13, atol=0) for a, b in zip(before, (moved, scales), strict=True)):
                break
        return {"loc": torch.where(free["loc"], self.centre + moved, locs), "scale": scales}


def _middle(weights: Tensor, x: Tensor, places: torch.Size, item_dim: int = 0) -> Tensor:
    """The mean of what counts, in each place where observations differ: what does not count may lie anywhere."""
    batch = x.shape[: x.dim() - item_dim]
    wanted = [1] * (len(batch) - len(places)) + list(places[max(0, len(places) - len(batch)) :])
    apart = torch.Size([size if place > 1 else 1 for size, place in zip(batch, wanted, strict=True)])
    weights = weights.abs()  # those of points that stand for a variance may be negative
    total, n = weighted_sums(weights, x, apart, item_dim), weighted_sums(weights, torch.ones_like(weights), apart)
    return (total / n[(..., *[None] * item_dim)]).nan_to_num()


def _is_crossed(of_loc: Tensor, of_scale: Tensor) -> bool:
    """Whether some loc is used with several scales."""
    used = of_loc[of_loc >= 0]
    return len(used.unique()) < len(used) and bool((of_scale >= 0).any())


class MultivariateNormal(Paired):
    """Locs and covariances of multivariate normal distributions; a covariance may be shared by several locs.

    A loc of several covariances would be entangled with them.

    Attributes:
        pairs: Of a loc and a covariance.
        floors: The smallest eigenvalues of the covariances.
    """

    floors: Floors

    def __init__(self, locs: Items, covariances: Items, centre: Tensor, row_dim: int | None) -> None:
        self.items, self.centre, self.pairs = {"loc": locs, "covariance": covariances}, centre.double(), Pairs()
        self.floors = Floors(covariances.count, row_dim)

    @property
    def entangled(self) -> set[str]:
        """See :attr:`Form.entangled`."""
        of_loc, _ = self.pairs.items
        return set(self.items["loc"].owners(of_loc[self.pairs.meet_several(0)]))

    def sums(self, use: Use, site: Site, weights: Tensor) -> Tensor:
        """The weight, the sum and the scatter about the centre, in a row for each pair, ``[P, 1 + D + D * D]``."""
        fn, (x,), weights = observed(use, site, weights)
        loc, covariance = use.index("loc"), use.index("covariance")
        x, weights = x.double(), weights.double()
        self.floors.see(site, covariance, weights, x, item_dim=1)
        if (loc < 0).any():
            x = x - torch.where((loc < 0).unsqueeze(-1), fn.loc.detach().double(), 0.0)
        rows = self.pairs.rows(loc, covariance)
        middle = _middle(weights, x, rows.shape, item_dim=1)
        n = weighted_sums(weights, torch.ones_like(weights), rows.shape)
        first = weighted_sums(weights, x - middle, rows.shape, 1)
        second = scatters(weights, x - middle, rows.shape)
        centre = torch.where((loc < 0).unsqueeze(-1), 0.0, self.centre[loc.clamp(min=0)])
        shift = middle - centre
        cross = shift.unsqueeze(-1) * first.unsqueeze(-2)
        outer = shift.unsqueeze(-1) * shift.unsqueeze(-2)
        second = second + cross + cross.mT + outer * n[..., None, None]
        first = first + shift * n.unsqueeze(-1)
        parts = [n.unsqueeze(-1), first, second.flatten(-2)]
        return placed(torch.cat(parts, -1), rows, len(self.pairs))

    def maximum(self, sums: Tensor, priors: Values, now: Values, free: Values) -> Values:
        """Locs, each of one covariance alone so that it does not matter, and covariances about them."""
        locs, covariances = now["loc"], now["covariance"]
        size = locs.shape[-1]
        of_loc, of_covariance = self.pairs.items
        n, first, second = self.pairs.filled(sums).split([1, size, size * size], -1)
        weight, total = (placed(s, of_loc, len(locs)) for s in (n, first))
        moved = torch.where(free["loc"].unsqueeze(-1) & (weight > 0), total / weight, locs - self.centre)
        off = torch.where((of_loc < 0).unsqueeze(-1), 0.0, moved[of_loc.clamp(min=0)])
        cross = off.unsqueeze(-1) * first.unsqueeze(-2)
        about = second.reshape(-1, size, size) - cross - cross.mT + off.unsqueeze(-1) * off.unsqueeze(-2) * n[..., None]
        scatter = placed(about, of_covariance, len(covariances))
        weight = placed(n, of_covariance, len(covariances)).unsqueeze(-1)
        least = self.floors.below(torch.linalg.eigvalsh(covariances)[:, 0])
        found, low = _floored(scatter / weight.clamp(min=torch.finfo(weight.dtype).tiny), least)
        self.floored = {"covariance": low}
        seen = free["covariance"][:, None, None] & (weight > 0)
        return {"loc": self.centre + moved, "covariance": torch.where(seen, found, covariances)}


def _floored(matrices: Tensor, floors: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances with the largest likelihood among those with no eigenvalue below their floor, and which are there."""
    matrices = (matrices + matrices.mT) / 2
    values, vectors = torch.linalg.eigh(matrices)
    low = (values < floors.unsqueeze(-1)).any(-1)
    lifted = torch.maximum(values, floors.unsqueeze(-1)).unsqueeze(-2)
    near = (values <= floors.unsqueeze(-1) * (1 + NEAR)).any(-1)
    return torch.where(low[:, None, None], (vectors * lifted) @ vectors.mT, matrices), near
