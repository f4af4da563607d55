"""E-steps: how often each entry of each site's log-density counts, given the rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.ops import packed
from torch import Tensor

from pyro_lvm.elbo.contraction import draw_enumerated, expected_counts, log_density
from pyro_lvm.elbo.terms import by_row, masked
from pyro_lvm.sites import RowPlate, Site, sample_sites


class Expectation(NamedTuple):
    """What an E-step says of a batch of rows.

    Attributes:
        rows: log p of each row, ``[N]``, or of its best completion; None without a row plate.
        outside: What lies outside the rows: the log-density of priors.
        weights: For each site a weight for every entry of its log-density, in its shape.
        trace: The trace at the parameters of the E-step.
    """

    rows: Tensor | None
    outside: Tensor
    weights: dict[str, Tensor]
    trace: poutine.Trace

    def objective(self, row_weight: Tensor | None) -> Tensor:
        """The log-density of these rows, each as often as it weighs, without what lies outside."""
        if self.rows is None:
            return self.outside.new_zeros(())
        return self.rows.double().sum() if row_weight is None else self.rows.double() @ row_weight.double()


def expect(
    trace: poutine.Trace, row_plate: RowPlate | None, row_weight: Tensor | None = None, hard: bool = False
) -> Expectation:
    """The E-step on a trace with its enumerated sites in parallel.

    The derivative of log p(x) by a site's log-density is the posterior probability of each of its entries (Darwiche
    2003); that of the maximum over states is one where the best states are.

    Args:
        trace: A trace from ``enumerate_model``.
        row_plate: The plate of the rows.
        row_weight: ``[N]``, or None.
        hard: Whether every row counts with its best states alone.
    """
    sites = sample_sites(trace)
    names = () if row_plate is None else (row_plate.name,)

    def total() -> tuple[Tensor, tuple[Tensor, ...]]:
        outside, rows = by_row(log_density(trace, _scale, best=hard), names)
        if rows is None:
            return outside, (outside,)
        return outside + (rows.sum() if row_weight is None else rows @ row_weight.to(rows)), (outside, rows)

    if any(site["infer"].get("_enumerate_dim") is not None for site in sites.values()):
        counts, parts = expected_counts(trace, sites, total)
        weights = {n: _unpacked(sites[n], count) for n, count in counts.items()}
    else:
        _, parts = total()
        weights = {n: _of_rows(site, row_plate, row_weight) for n, site in sites.items()}
    return Expectation(parts[1] if len(parts) > 1 else None, parts[0], weights, trace)


def drawn(trace: poutine.Trace, row_plate: RowPlate | None, row_weight: Tensor | None, num_draws: int) -> Expectation:
    """The E-step by draws of the enumerated sites from their posterior (Wei and Tanner 1990)."""
    exact = expect(trace, row_plate, row_weight)
    enumerated = {n: s for n, s in sample_sites(trace).items() if s["infer"].get("_enumerate_dim") is not None}
    total = {name: torch.zeros_like(w) for name, w in exact.weights.items()}
    for _ in range(num_draws):
        for name, weights in _given(trace, enumerated, draw_enumerated(trace), row_plate, row_weight).items():
            total[name] += weights / num_draws
    return exact._replace(weights=total)


def _given(
    trace: poutine.Trace,
    enumerated: dict[str, Site],
    draws: dict[str, Tensor],
    row_plate: RowPlate | None,
    row_weight: Tensor | None,
) -> dict[str, Tensor]:
    """The counts where the enumerated sites are known to have these values."""
    parts = {name: site["packed"] for name, site in enumerated.items()}
    before = {name: part["unscaled_log_prob"] for name, part in parts.items()}
    try:
        for name, site in enumerated.items():
            event = site["fn"].event_dim
            same = site["value"] == draws[name]
            same = same.flatten(same.dim() - event).all(-1) if event else same
            known = packed.pack(torch.where(same, 0.0, -torch.inf), site["infer"]["_dim_to_symbol"])
            ours, theirs = packed.broadcast_all(before[name], known)
            new: Any = ours + theirs
            new._pyro_dims = ours._pyro_dims
            parts[name]["unscaled_log_prob"] = new
        return expect(trace, row_plate, row_weight).weights
    finally:
        for name, part in parts.items():
            part["unscaled_log_prob"] = before[name]


def _scale(site: Site) -> Any:
    return site["scale"]


def _unpacked(site: Site, count: Any) -> Tensor:
    """Counts in the shape of a site's log-density."""
    symbols = {symbol: dim for dim, symbol in site["infer"]["_dim_to_symbol"].items()}
    return packed.unpack(count, symbols).expand(site["unscaled_log_prob"].shape)


def _of_rows(site: Site, row_plate: RowPlate | None, row_weight: Tensor | None) -> Tensor:
    """The weights of a site that depends on no enumerated site."""
    weight = masked(site, torch.ones_like(site["unscaled_log_prob"]), site["scale"])
    inside = row_plate is not None and any(f.name == row_plate.name for f in site["cond_indep_stack"])
    if inside and row_weight is not None:
        weight = weight * row_weight.to(weight).reshape(-1, *[1] * (-row_plate.dim - 1))  # type: ignore[union-attr]
    return weight
