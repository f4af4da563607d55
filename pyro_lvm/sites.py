"""What a run of a model says: which sites are latent, enumerated or observed, its plates, and the row plate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from pyro_lvm.data import Data

Site = dict[str, Any]


@dataclass(frozen=True)
class RowPlate:
    """The plate that the rows of the data index.

    Attributes:
        name: Its name.
        dim: Its dimension, negative, counted from the right of a log-density.
        subsampled: Whether the model scales a minibatch itself (``plate(name, N, subsample=x)``).
        beside: Other plates that follow the rows.
    """

    name: str
    dim: int
    subsampled: bool
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sites:
    """The sample sites of a model, in the order in which they run.

    Attributes:
        latent: Sites that a guide must cover.
        enumerated: Latent sites that the model marks for enumeration.
        observed: Observed sites.
        local: Latent and observed sites inside the row plate; empty where there is no row plate.
        max_plate_nesting: How many dimensions the plates of the model take.
        row_plate: The row plate, if one was found.
        search: Why the search for a row plate failed, to be added to an error; empty where it did not.
    """

    latent: tuple[str, ...]
    enumerated: tuple[str, ...]
    observed: tuple[str, ...]
    local: tuple[str, ...]
    max_plate_nesting: int
    row_plate: RowPlate | None
    search: str = ""

    @property
    def local_latent(self) -> tuple[str, ...]:
        """Latent sites inside the row plate that are not enumerated."""
        return tuple(name for name in self.latent if name in self.local)

    @property
    def shared_latent(self) -> tuple[str, ...]:
        """Latent sites outside the row plate that are not enumerated."""
        return tuple(name for name in self.latent if name not in self.local)

    @property
    def shared_enumerated(self) -> tuple[str, ...]:
        """Enumerated sites outside the row plate, through which the rows depend on each other."""
        return tuple(name for name in self.enumerated if name not in self.local)


def prior_trace(model: Callable, *args: Any, **kwargs: Any) -> poutine.Trace:
    """One run of the model, latents drawn from the prior, or set to a feasible value where the prior is improper."""
    with InitMessenger(draw_or_feasible):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return prune_subsample_sites(trace)


def draw_or_feasible(site: Site) -> Tensor:
    """A draw of a site's distribution, or a value that it takes, where it is improper."""
    try:
        return site["fn"].sample(*site["args"], **site["kwargs"]).detach()
    except NotImplementedError:
        return _feasible(site)


def median_or_feasible(site: Site) -> Tensor:
    """The median of a few draws of a site's distribution, or a value that it takes, where it is improper."""
    try:
        return init_to_median(site)
    except NotImplementedError:
        return _feasible(site)


def _feasible(site: Site) -> Tensor:
    """The value in the middle of the unconstrained space."""
    to_support = biject_to(site["fn"].support)
    return to_support(torch.zeros(to_support.inverse_shape(site["fn"].shape())))


def lacks_prior(sites: dict[str, Site]) -> str:
    """Why nothing can be drawn from the prior of a model; empty if it can."""
    for name, site in sites.items():
        prior = site["fn"]
        while hasattr(prior, "base_dist"):
            prior = prior.base_dist
        if isinstance(prior, dist.ImproperUniform) and not site["is_observed"]:
            return f"the prior of {name!r} is improper, so that nothing can be drawn from it"
    return ""


def refuse_improper_priors(sites: dict[str, Site]) -> None:
    """Refuse models from whose prior nothing can be drawn.

    Raises:
        ValueError: if the prior of a latent is improper.
    """
    if reason := lacks_prior(sites):
        raise ValueError(reason)


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites of a trace by name."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name not in ("_INPUT",)}


def held_at(values: Mapping[str, Tensor]) -> poutine.Trace:
    """A trace that holds latents at these values, for a program to replay."""
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    return trace


def is_enumerated(site: Site) -> bool:
    """Whether a site is latent and marked for parallel enumeration, the kind that Pyro offers in models."""
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def is_observed(site: Site) -> bool:
    """Whether a site holds data: ``pyro.deterministic`` and ``pyro.factor`` make sites that only seem observed."""
    holds_none = site["infer"].get("_deterministic", False) or isinstance(site["fn"], dist.Unit)
    return site["is_observed"] and not holds_none


def plate_nesting(*traces: poutine.Trace) -> int:
    """How many dimensions the vectorised plates of these traces take."""
    dims = [f.dim for t in traces for s in sample_sites(t).values() for f in s["cond_indep_stack"] if f.vectorized]
    return max((-d for d in dims), default=0)


def describe(trace: poutine.Trace, row_plate: RowPlate | None, search: str = "") -> Sites:
    """Sort the sites of a trace of the model."""
    sites = sample_sites(trace)
    frames = {name: [f for f in s["cond_indep_stack"] if f.vectorized] for name, s in sites.items()}
    inside = {n: row_plate is not None and any(f.name == row_plate.name for f in fs) for n, fs in frames.items()}
    return Sites(
        latent=tuple(n for n, s in sites.items() if not s["is_observed"] and not is_enumerated(s)),
        enumerated=tuple(n for n, s in sites.items() if is_enumerated(s)),
        observed=tuple(n for n, s in sites.items() if is_observed(s)),
        local=tuple(n for n in sites if inside[n]),
        max_plate_nesting=plate_nesting(trace),
        row_plate=row_plate,
        search=search,
    )


_PROBE_ROWS = 64


def find_row_plate(
    model: Callable, data: Data, kwargs: dict[str, Any], name: str | None = None
) -> tuple[RowPlate | None, str]:
    """The plate whose size follows the number of rows, found by two runs on different numbers of rows.

    Args:
        model: A model that can be run as it is.
        data: Its data; the two runs see at most 64 rows.
        kwargs: Its keyword arguments.
        name: The plate to take, if the user names one.

    Returns:
        The row plate, or None if no plate follows the rows; and why the search failed, if it did.

    Raises:
        ValueError: if several plates follow the rows and none is named, or if the named one does not.
    """
    if data.num_rows is None:
        return None, ""
    count = max(3, min(data.num_rows, _PROBE_ROWS))
    index = torch.arange(count) % data.num_rows
    try:
        more, fewer = (_plates(prior_trace(model, *data.take(i), **kwargs)) for i in (index, index[:-1]))
    except Exception as error:
        if name is not None:
            raise ValueError(f"plate={name!r}: the model does not run on a part of the rows: {error}") from error
        return None, f" (the search for it failed: the model does not run on a part of the rows: {error})"
    following = [n for n, f in more.items() if n in fewer and (f.size, fewer[n].size) == (count, count - 1)]
    if name is not None and name not in following:
        raise ValueError(f"plate={name!r} does not follow the rows of the data; those that do: {following}")
    if name is None and len(following) > 1:
        raise ValueError(f"several plates follow the rows of the data: {following}; name one with plate=")
    if not following:
        return None, ""
    chosen = name or following[0]
    full_size = more[chosen].full_size
    subsampled = full_size is not None and full_size == fewer[chosen].full_size
    beside = tuple(other for other in following if other != chosen)
    return RowPlate(chosen, more[chosen].dim, subsampled, beside), ""


def _plates(trace: poutine.Trace) -> dict[str, Any]:
    return {f.name: f for s in sample_sites(trace).values() for f in s["cond_indep_stack"] if f.vectorized}


def sum_within_rows(tensor: Tensor, dim: int) -> Tensor:
    """A tensor summed over all dimensions but that of the rows, ``[N]``."""
    rows = tensor.movedim(dim, 0)
    return rows.reshape(len(rows), -1).sum(-1)


def refuse_random_rows(sites: dict[str, Site], row_plate: RowPlate | None = None) -> None:
    """Refuse models that take a random part of their rows by themselves, so that two runs see different ones.

    Args:
        sites: Of a model.
        row_plate: A plate that may be smaller, for it has the rows that it was given.

    Raises:
        ValueError: if a plate is smaller than the size it claims.
    """
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            given = row_plate is not None and frame.name == row_plate.name
            if frame.vectorized and frame.full_size not in (None, frame.size) and not given:
                raise ValueError(
                    f"the plate {frame.name!r} around {name!r} takes {frame.size} of its {frame.full_size} elements by "
                    "itself, so that no two runs would see the same rows: leave minibatches to batch_size="
                )


class RowScale(NamedTuple):
    """What stands in ``infer["row_scale"]`` of a site that :class:`ScaleRows` has scaled.

    Attributes:
        within: The scale that it had before.
        ratio: N / B, by which a minibatch stands for all rows.
        weight: Row weights ``[B]``, or None.
    """

    within: Any
    ratio: float
    weight: Tensor | None


class ScaleRows(Messenger):
    """Multiply the log-density of every row by a common scale and by the row's weight.

    Estimators find in ``infer["row_scale"]`` what has been multiplied.

    Args:
        sites: What is known of the model; guide sites count by the name of the plate, or of the model's local latents.
        scale: The common factor, N / B for a minibatch.
        weight: Row weights ``[B]``, or None.
    """

    def __init__(self, sites: Sites, scale: float, weight: Tensor | None) -> None:
        super().__init__()
        self.sites, self.scale, self.weight = sites, scale, weight
        self.factor: float | Tensor = scale
        if weight is not None and sites.row_plate is not None:
            self.factor = scale * weight.reshape(-1, *[1] * (-sites.row_plate.dim - 1))

    def _pyro_sample(self, msg: Site) -> None:
        assert self.sites.row_plate is not None
        in_plate = any(f.name == self.sites.row_plate.name for f in msg["cond_indep_stack"])
        if in_plate or msg["name"] in self.sites.local_latent:
            row_scale = RowScale(msg["scale"], self.scale, self.weight)
            msg["infer"] = {**msg["infer"], "row_scale": row_scale}
            msg["scale"] = msg["scale"] * self.factor


class Uncondition(Messenger):
    """Draw the named observed sites anew instead of holding them at the data."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.names and msg["is_observed"]:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
