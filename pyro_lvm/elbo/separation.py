"""Whether rows are independent of each other, given the latents that they share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.elbo.terms import Term, by_row, frames
from pyro_lvm.guides import is_delta
from pyro_lvm.sites import Site, sample_sites


def drawn_jointly(latent: dict[str, Site], local: Collection[str]) -> bool:
    """Whether the guide draws the rows' latents in one piece, outside the rows, as AutoMultivariateNormal does."""
    drawn_inside = any(not is_delta(latent[name]) for name in local)
    outside = [site for name, site in latent.items() if name not in local]
    return bool(local) and not drawn_inside and any(s["infer"].get("is_auxiliary") and not is_delta(s) for s in outside)


def rows_are_separate(
    values: poutine.Trace,
    terms: list[Term],
    log_p: Callable[[poutine.Trace], list[Term]],
    run_guide: Callable[[poutine.Trace], poutine.Trace],
    rows: frozenset[str],
    local: Collection[str],
    latent: dict[str, Site],
) -> bool:
    """Whether latents of a row move nothing but the density of that row, as far as trying shows.

    The latents of all rows are moved, which must leave alone what lies outside the rows. Then those of one half of the
    rows are moved, which must leave alone the other half, for some ways to halve them that tell neighbours apart as
    well as distant rows.

    Args:
        values: All latents.
        terms: Of the model, at these values.
        log_p: Gives its terms at other values.
        run_guide: Draws latents, given some.
        rows: The names of the plate of the rows.
        local: The latents inside it.
        latent: The guide's sites.
    """
    outside, of_rows = by_row(terms, rows)
    if of_rows is None:
        return False
    if not local:
        return not latent  # nothing is drawn: rows have their exact evidence
    shared = values.copy()
    for name in local:
        shared.remove_node(name)
    redrawn = sample_sites(run_guide(shared))
    others = {name: redrawn[name]["value"].detach() for name in local}
    sites = {name: site for name, site in sample_sites(values).items() if name in local}

    def log_p_moved(which: Tensor, elsewhere: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        trace = values.copy()
        for name, site in sites.items():
            dim = next(f.dim for f in frames(site) if f.name in rows) - site["fn"].event_dim
            chosen = which.to(site["value"].device).reshape(-1, *[1] * (-dim - 1))
            moved = torch.where(chosen, elsewhere[name], site["value"].detach())
            trace.nodes[name] = {**site, "value": moved}
        return by_row(log_p(trace), rows)

    with pyro.validation_enabled(False):  # a nudged value may be outside the support of what depends on it
        try:
            nudged = {name: _nudged(site, others[name]) for name, site in sites.items()}
            return _stand_apart(outside, of_rows, partial(log_p_moved, elsewhere=nudged))
        except (RuntimeError, ValueError, IndexError):  # nor need the model take it
            return _stand_apart(outside, of_rows, partial(log_p_moved, elsewhere=others))


def _stand_apart(
    outside: Tensor, of_rows: Tensor, log_p_moved: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> bool:
    row = torch.arange(len(of_rows))
    if not _equal(outside, log_p_moved(row >= 0)[0]):
        return False
    bits = range(max(len(of_rows) - 1, 0).bit_length())
    for bit in sorted({*bits[:2], *bits[-2:]}):
        for half in (False, True):
            which = ((row >> bit) % 2 == 1) ^ half
            _, rows_moved = log_p_moved(which)
            still = (~which).to(of_rows.device)
            assert rows_moved is not None
            if not _equal(of_rows[still], rows_moved[still]):
                return False
    return True


def _nudged(site: Site, redrawn: Tensor) -> Tensor:
    """Another draw of a site, and where that is what it was, the next place of a finite support."""
    value, fn = site["value"].detach(), site["fn"]
    if not fn.has_enumerate_support:
        return redrawn
    if fn.event_dim:
        following = value.roll(1, -1)  # the next category
    else:
        try:
            support = fn.enumerate_support(expand=False).reshape(-1)
        except NotImplementedError:  # elements that differ in their supports
            return redrawn
        if not torch.equal(support, torch.arange(len(support)).to(support)):
            return redrawn
        following = (value + 1) % len(support)
    return torch.where(redrawn == value, following, redrawn)


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, equal_nan=True))
