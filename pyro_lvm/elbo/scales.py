"""What stands within the log-weight of a cell, and what around it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm.elbo.structure import Structure
from pyro_lvm.elbo.terms import Term, equal_numbers
from pyro_lvm.sites import RowScale, Site


@dataclass
class Scales:
    """What scales there are around the cells.

    What all sites of a cell share stands around its log-weight, other scales and all masks within. So it is with the
    sites outside the rows, where these are cells.

    Attributes:
        ratio: N / B, by which a minibatch stands for all rows.
        weight: Row weights ``[N]``, or 1.
        common: A ``poutine.scale`` that all sites of a cell share; None if theirs differ.
        outside: The same for the sites outside the cells.
    """

    ratio: float
    weight: float | Tensor
    common: Any
    outside: Any

    @staticmethod
    def of(structure: Structure, sites: Sequence[Site]) -> Scales:
        """Found on the sites of model and guide."""
        inside = [site for site in sites if structure.in_rows(site)]
        given = next((s["infer"]["row_scale"] for s in inside if "row_scale" in s["infer"]), RowScale(1.0, 1.0, None))
        outside = [site for site in sites if not structure.in_rows(site)] if structure.separate else sites
        return Scales(
            ratio=given.ratio * next((_part(site, structure.rows) for site in inside), 1.0),
            weight=1.0 if given.weight is None else given.weight,
            common=_common(inside if structure.separate else sites, structure),
            outside=_common(outside, structure),
        )

    def within(self, site: Site, structure: Structure) -> Any:
        """The scale of a site within its cell."""
        common = self.common if structure.in_rows(site) else self.outside
        return _without_rows(site, structure) if common is None else 1.0

    def around_all(self, inside: bool) -> Any:
        """The scale that stands around a cell, or around all outside the cells."""
        scale = self.common if inside else self.outside
        return 1.0 if scale is None else scale

    def around(self, term: Term, structure: Structure) -> Term:
        """A term times all that stands around it."""
        inside = [plate for plate in term.plates if plate in structure.rows]
        scale = self.around_all(bool(inside))
        if inside:
            weight = self.weight
            if isinstance(weight, Tensor):
                weight = weight.reshape(-1, *[1] * (len(term.plates) - 1 - term.plates.index(inside[0])))
            scale = scale * self.ratio * weight
        return term if equal_numbers(scale, 1.0) else term._replace(value=term.value * scale)


def _common(sites: Sequence[Site], structure: Structure) -> Any:
    scales = [_without_rows(site, structure) for site in sites]
    return scales[0] if scales and all(equal_numbers(scale, scales[0]) for scale in scales) else None


def _without_rows(site: Site, structure: Structure) -> Any:
    """The scale of a site but for what its rows count."""
    given = site["infer"].get("row_scale")
    scale = site["scale"] if given is None else given.within
    part = _part(site, structure.rows)
    return scale if part == 1.0 else scale / part


def _part(site: Site, rows: frozenset[str]) -> float:
    """N / B of a plate that takes a part of the rows by itself."""
    for frame in site["cond_indep_stack"]:
        if frame.name in rows and frame.full_size not in (None, frame.size):
            return frame.full_size / frame.size
    return 1.0


class Weigh(Messenger):
    """Weigh the log-densities of the named latents."""

    def __init__(self, names: Collection[str], weight: float | Tensor) -> None:
        super().__init__()
        self.names, self.weight = names, weight

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] not in self.names or msg["is_observed"]:
            return
        msg["scale"] = msg["scale"] * self.weight
        rows = msg["infer"].get("row_scale")
        if rows is not None:  # what has scaled the rows has come before
            msg["infer"] = {**msg["infer"], "row_scale": rows._replace(within=rows.within * self.weight)}
