"""What one look at a model and a guide tells an estimator: which latents belong to a row, and where parameters are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor, nn

from pyro_lvm import randomness
from pyro_lvm.elbo.contraction import check_scales, enumerate_model, log_density
from pyro_lvm.elbo.detach import Place, detached, parameter_places
from pyro_lvm.elbo.terms import Term, by_row, frames, unscaled_log_prob
from pyro_lvm.guides import is_delta
from pyro_lvm.modules import reachable_modules, unchanged_buffers
from pyro_lvm.params import leaves
from pyro_lvm.sites import RowPlate, Site, is_enumerated, is_observed, plate_nesting, sample_sites


@dataclass
class Structure:
    """A model and a guide as estimators see them.

    Attributes:
        max_plate_nesting: How many dimensions the plates take.
        row_plate: The plate of the rows, if there is one.
        rows: Its name, and the name that the guide gives it.
        local: The guide's latent sites inside it.
        shared: The guide's latent sites outside it, which all rows share.
        auxiliary: The guide's sites that the model does not have.
        enumerated: The model's sites that are summed out.
        tied_by: An enumerated site outside the row plate, through which rows depend on each other; empty if none.
        separate: Whether rows are independent of each other given the shared latents, and have latents of their own.
        score: The guide's sites that have no reparametrised draws.
        subsampled: Other plates that take a random part of their elements.
        draws_subsamples: Whether some plate draws its part by itself.
        common_parameter: A parameter that both model and guide use; empty if there is none.
        places: Where modules hold parameters.
        vectorizes: Whether several particles can be drawn at a time; None until it has been tried.
    """

    max_plate_nesting: int
    row_plate: RowPlate | None
    rows: frozenset[str]
    local: frozenset[str]
    shared: frozenset[str]
    auxiliary: frozenset[str]
    enumerated: tuple[str, ...]
    tied_by: str
    separate: bool
    score: tuple[str, ...]
    subsampled: tuple[str, ...]
    draws_subsamples: bool
    common_parameter: str
    places: list[Place]
    vectorizes: bool | None = None

    @property
    def shared_latents(self) -> list[str]:
        """Latents of the model that all rows share."""
        return sorted(self.shared - self.auxiliary)

    @property
    def why_together(self) -> str:
        """Why rows have no bounds of their own."""
        if self.row_plate is None:
            return "no plate was found around them"
        if self.tied_by:
            return f"they depend on the enumerated site {self.tied_by!r}"
        if not self.local:
            return f"they share the latents {self.shared_latents} and have none of their own"
        return "the guide draws their latents in one piece, or a site outside the plate depends on them"

    def in_rows(self, site: Site) -> bool:
        """Whether a site of model or guide belongs to a row."""
        return site["name"] in self.local or any(f.name in self.rows for f in site["cond_indep_stack"])


def look(
    model: Callable,
    guide: Callable,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    row_plate: RowPlate | None = None,
    plate: str | None = None,
) -> Structure:
    """Run a model and a guide a few times, and leave no trace of it.

    Args:
        model: The model.
        guide: The guide.
        args: Their arguments.
        kwargs: Their keyword arguments.
        row_plate: The plate of the rows, where it is known.
        plate: Its name, where it must be named. If neither is given, it is a plate that takes part of its elements,
            or else the outermost of those around the most observed sites.

    Raises:
        ValueError: if no plate has the given name, or the guide enumerates sites.
    """
    state = randomness.get_state()
    try:
        with unchanged_buffers(model, guide), torch.enable_grad():
            return _look(model, guide, args, kwargs, row_plate, plate)
    finally:
        randomness.set_state(state)


def _look(
    model: Callable,
    guide: Callable,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    row_plate: RowPlate | None,
    plate: str | None,
) -> Structure:
    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    plain = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    nesting = plate_nesting(plain, drawn)
    pruned = prune_subsample_sites(drawn)
    q, p = sample_sites(pruned), sample_sites(prune_subsample_sites(plain))
    latent = {name: site for name, site in q.items() if not site["is_observed"]}
    uncovered = [n for n, s in p.items() if not s["is_observed"] and not is_enumerated(s) and n not in latent]
    if uncovered:
        raise ValueError(
            f"the guide has no site {uncovered[0]!r}, which the model leaves latent: add it, or mark a discrete site with "
            "infer={'enumerate': 'parallel'}"
        )
    in_guide = [name for name, site in latent.items() if site["infer"].get("enumerate")]
    if in_guide:
        raise ValueError(
            f"the guide marks {in_guide[0]!r} for enumeration, and this estimator sums out sites of the model only: "
            "leave the site to the model, or use pyro.infer.TraceEnum_ELBO"
        )
    if is_validation_enabled():
        check_model_guide_match(_with_enumerated_dims(plain, q), drawn, nesting)
    if row_plate is None:
        row_plate = _find_row_plate(p, plate)
    rows = set() if row_plate is None else {row_plate.name}
    for name, site in latent.items():
        if row_plate is not None and name in p and any(f.name in rows for f in p[name]["cond_indep_stack"]):
            rows |= {f.name for f in frames(site) if f.dim == row_plate.dim}
    structure = Structure(
        max_plate_nesting=nesting,
        row_plate=row_plate,
        rows=frozenset(rows),
        local=frozenset(n for n, s in latent.items() if any(f.name in rows for f in s["cond_indep_stack"])),
        shared=frozenset(),
        auxiliary=frozenset(latent) - p.keys(),
        enumerated=tuple(n for n, s in p.items() if is_enumerated(s) and n not in latent),
        tied_by="",
        separate=False,
        score=tuple(n for n, s in latent.items() if not s["fn"].has_rsample),
        subsampled=_subsampled({**q, **p}, rows),
        draws_subsamples=any(takes_random_part(s) for t in (drawn, plain) for s in sample_sites(t).values()),
        common_parameter="",
        places=parameter_places(_modules(model, guide)),
    )
    structure.shared = frozenset(latent) - structure.local
    held = detached(drawn, latent.keys())

    def log_p(values: poutine.Trace) -> list[Term]:
        trace = enumerate_model(model, args, kwargs, nesting, values)
        check_scales(trace)
        return log_density(trace)

    terms = log_p(held)
    structure.common_parameter = _common_parameter(terms, pruned, plain, _modules(model, guide))
    tied_by = [n for n in structure.enumerated if not structure.in_rows(p[n])]
    structure.tied_by = tied_by[0] if row_plate is not None and tied_by else ""
    structure.separate = bool(structure.local) and not structure.tied_by and not _drawn_jointly(structure, latent)
    if structure.separate:
        others = drawn.copy()
        for name in structure.local:
            others.remove_node(name)
        again = poutine.trace(poutine.replay(guide, trace=others)).get_trace(*args, **kwargs)
        (outside, _), (outside_again, _) = by_row(terms, rows), by_row(log_p(again), rows)
        structure.separate = bool(torch.allclose(outside, outside_again, equal_nan=True))
    return structure


def refuse_tied_rows(structure: Structure) -> None:
    """Refuse to count rows more or less than once where they depend on each other through an enumerated site.

    Raises:
        ValueError: that names it.
    """
    if structure.tied_by:
        raise ValueError(
            f"the enumerated site {structure.tied_by!r} lies outside the row plate, so that rows have no evidence of "
            "their own to weight: take all rows, and repeat them instead of weighting them"
        )


def takes_random_part(site: Site) -> bool:
    """Whether a site is a plate's draw of some of its elements."""
    return site_is_subsample(site) and (site["fn"].subsample_size or site["fn"].size) < site["fn"].size


def _with_enumerated_dims(trace: poutine.Trace, covered: dict[str, Site]) -> poutine.Trace:
    """The trace of a plain run, in which Pyro's check of model and guide shall know the sites that are summed out."""
    copy = trace.copy()
    for name, site in sample_sites(trace).items():
        if is_enumerated(site) and name not in covered:
            copy.remove_node(name)
    return copy


def _modules(*programs: Callable) -> list[nn.Module]:
    return [module for program in programs for _, module in reachable_modules(program)]


def _find_row_plate(sites: dict[str, Site], name: str | None) -> RowPlate | None:
    """The plate of the rows, as far as one run of the model can tell."""
    around = {n: [f for f in site["cond_indep_stack"] if f.vectorized] for n, site in sites.items()}
    every = {f.name: f for fs in around.values() for f in fs}
    if name is not None and name not in every:
        raise ValueError(f"plate={name!r} is no plate of the model; its plates are {sorted(every)}")
    observed = [[f.name for f in around[n]] for n, site in sites.items() if is_observed(site)]
    counts = Counter(f for fs in observed for f in fs)
    most = {f for f, count in counts.items() if count == max(counts.values())}
    common = [f for f in next((fs for fs in observed if most <= set(fs)), []) if f in most]
    parts = [n for n, f in every.items() if f.full_size not in (None, f.size)]
    candidates = [name] if name is not None else parts + common
    if not candidates:
        return None
    frame = every[candidates[0]]
    return RowPlate(frame.name, frame.dim, frame.full_size not in (None, frame.size))


def _subsampled(sites: dict[str, Site], rows: set[str]) -> tuple[str, ...]:
    parts = {f.name for s in sites.values() for f in s["cond_indep_stack"] if f.full_size not in (None, f.size)}
    return tuple(sorted(parts - rows))


def _drawn_jointly(structure: Structure, latent: dict[str, Site]) -> bool:
    """Whether the guide draws the rows' latents in one piece, outside the rows, as AutoMultivariateNormal does."""
    drawn_inside = any(not is_delta(latent[name]) for name in structure.local)
    outside = [latent[name] for name in structure.shared]
    return not drawn_inside and any(s["infer"].get("is_auxiliary") and not is_delta(s) for s in outside)


def _common_parameter(
    log_p: list[Term], guide_trace: poutine.Trace, model_trace: poutine.Trace, modules: list[nn.Module]
) -> str:
    """The name of a parameter on which both the model, at given latents, and the guide depend; empty if none does."""
    q = sample_sites(guide_trace).values()
    of_guide = _leaves_of([s["value"] for s in q] + [unscaled_log_prob(s) for s in q])
    both = of_guide.keys() & _leaves_of([term.value for term in log_p]).keys()
    if not both:
        return ""
    names = {id(v): name for module in modules for name, v in module.named_parameters()}
    for trace in (guide_trace, model_trace):
        for name, site in trace.nodes.items():
            if site["type"] == "param":
                unconstrained = getattr(site["value"], "unconstrained", lambda value=site["value"]: value)()
                names[id(unconstrained)] = name
    first = min(both, key=lambda i: names.get(i, ""))
    return names.get(first, f"a tensor of shape {list(of_guide[first].shape)}")


def _leaves_of(tensors: list[Any]) -> dict[int, Tensor]:
    found = [t.sum().to(torch.float64) for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    return leaves(torch.stack(found).sum()) if found else {}
