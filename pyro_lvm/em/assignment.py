"""Rows given to the components of a mixture, as in a clustering, and what M-steps make of that."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.em.e_step import Expectation
from pyro_lvm.sites import RowPlate, Site, is_observed, sample_sites


class Components(NamedTuple):
    """The states of the one discrete latent that a row has.

    Attributes:
        site: Its name.
        dim: The dimension that its states take.
        size: K.
        row_dim: The dimension of the rows.
    """

    site: str
    dim: int
    size: int
    row_dim: int

    def shares(self, expectation: Expectation) -> Tensor:
        """How much of each row belongs to each component, times the weight of the row, ``[N, K]``."""
        weights = expectation.weights[self.site].movedim((self.row_dim, self.dim), (0, 1))
        return weights.reshape(weights.shape[:2])

    def possible(self, expectation: Expectation) -> Tensor:
        """Which components have a prior probability at all, ``[K]``."""
        log_prob = expectation.trace.nodes[self.site]["unscaled_log_prob"]
        least = math.log(4 * torch.finfo(log_prob.dtype).eps)  # which torch puts in the place of zero
        return (log_prob.movedim(self.dim, 0).reshape(self.size, -1) > least).any(1)

    def assign(self, expectation: Expectation, shares: Tensor) -> Expectation:
        """The expectation with other shares, ``[N, K]``, each row as often as before."""
        gap = [1] * (self.row_dim - self.dim - 1)
        shaped = shares.T.reshape(self.size, *gap, len(shares), *[1] * (-self.row_dim - 1))
        weights = {}
        for name, old in expectation.weights.items():
            depends = old.dim() >= -self.dim and old.shape[self.dim] == self.size
            weights[name] = old.sum(self.dim, keepdim=True) * shaped.to(old) if depends else old
        return expectation._replace(weights=weights)


def components_of(expectation: Expectation, row_plate: RowPlate | None) -> Components | None:
    """The components of a mixture; None for another model."""
    sites = sample_sites(expectation.trace)
    latent = [site for site in sites.values() if site["infer"].get("_enumerate_dim") is not None]
    if row_plate is None or len(latent) != 1:
        return None
    (site,) = latent
    if [f.name for f in site["cond_indep_stack"] if f.vectorized] != [row_plate.name]:
        return None
    count = len(site["fn"].enumerate_support(expand=False))
    return Components(site["name"], site["infer"]["_enumerate_dim"], count, row_plate.dim)


def features(expectation: Expectation, row_dim: int) -> Tensor | None:
    """What was observed of each row, standardised, ``[N, D]``; None if that is nothing."""
    found = []
    num_rows = len(expectation.rows)  # type: ignore[arg-type]
    for site in sample_sites(expectation.trace).values():
        if is_observed(site) and _has_rows(site, row_dim, num_rows):
            found.append(site["value"].movedim(row_dim - site["fn"].event_dim, 0).reshape(num_rows, -1).double())
    if not found:
        return None
    table = torch.cat(found, 1)
    spread = table.std(0, correction=0)
    return (table - table.mean(0)) / torch.where(spread > 0, spread, 1.0)


def _has_rows(site: Site, row_dim: int, num_rows: int) -> bool:
    axis = row_dim - site["fn"].event_dim
    return site["value"].dim() >= -axis and site["value"].shape[axis] == num_rows


def near_a_poorly_explained_row(expectation: Expectation, table: Tensor, count: int, rank: int) -> Tensor:
    """The rows nearest to one that the model explains worse than nineteen in twenty, but not worst of all.

    Args:
        expectation: At the present parameters.
        table: What the distance is measured in, ``[N, D]``.
        count: How many rows.
        rank: The next worse row for each number from 0 on.

    Returns:
        Which rows, ``[count]``.
    """
    order = expectation.rows.argsort()  # type: ignore[union-attr]
    centre = table[order[max(0, len(order) // 20 - rank)]]
    return (table - centre).square().sum(1).topk(count, largest=False).indices
