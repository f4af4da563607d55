"""One look at a model and a guide: a few runs that tell an estimator what it must know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_lvm import randomness
from pyro_lvm.elbo.contraction import check_scales, enumerate_model, log_density
from pyro_lvm.elbo.detach import DetachSamples, detached, without_points
from pyro_lvm.elbo.separation import drawn_jointly, rows_are_separate
from pyro_lvm.elbo.structure import Structure
from pyro_lvm.elbo.terms import Term, frames, unscaled_log_prob
from pyro_lvm.guides import is_delta
from pyro_lvm.modules import reachable_modules, unchanged_buffers
from pyro_lvm.params import Place, leaves
from pyro_lvm.sites import RowPlate, Site, is_enumerated, is_observed, plate_nesting, sample_sites


def look(
    model: Callable,
    guide: Callable,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    row_plate: RowPlate | None = None,
    plate: str | None = None,
    tell_apart: bool = True,
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
        tell_apart: Whether to find out if rows are separate; no, if not.

    Raises:
        ValueError: if no plate has the given name, or the guide misses latents of the model or enumerates sites.
    """
    state = randomness.get_state()
    try:
        with unchanged_buffers(model, guide), torch.enable_grad():
            return _look(model, guide, args, kwargs, row_plate, plate, tell_apart)
    finally:
        randomness.set_state(state)


def _look(
    model: Callable,
    guide: Callable,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    row_plate: RowPlate | None,
    plate: str | None,
    tell_apart: bool,
) -> Structure:
    def run_guide(values: poutine.Trace) -> poutine.Trace:
        return poutine.trace(poutine.replay(guide, trace=values)).get_trace(*args, **kwargs)

    drawn = run_guide(poutine.Trace())
    for site in sample_sites(prune_subsample_sites(drawn)).values():
        site["unscaled_log_prob"] = unscaled_log_prob(site)  # before a later run: some transforms keep only the last
    plain = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
    nesting = plate_nesting(plain, drawn)
    q, p = (sample_sites(prune_subsample_sites(trace)) for trace in (drawn, plain))
    latent = {name: site for name, site in q.items() if not site["is_observed"]}
    _check_latents(p, latent)
    if is_validation_enabled():
        check_model_guide_match(_without_enumerated(plain, q), drawn, nesting)
    for name, site in sample_sites(plain).items():
        if site_is_subsample(site) and name not in drawn:
            drawn.add_node(name, **site)

    def log_p(values: poutine.Trace) -> list[Term]:
        trace = enumerate_model(model, args, kwargs, nesting, values)
        check_scales(trace)
        return log_density(trace)

    row_plate = _find_row_plate(p, plate) if row_plate is None else row_plate
    rows = _names_of_rows(row_plate, p, latent)
    local = frozenset(name for name, site in latent.items() if _inside(site, rows))
    enumerated = tuple(name for name, site in p.items() if is_enumerated(site) and name not in latent)
    tied_by = [name for name in enumerated if row_plate is not None and not _inside(p[name], rows)]
    held = detached(drawn, latent.keys())
    state = randomness.get_state()
    terms = log_p(held)
    model_draws = _moved(state)
    state = randomness.get_state()
    run_guide(held)
    guide_draws = _moved(state)
    own_terms = {term.site for term in terms}
    modules = [module for program in (model, guide) for _, module in reachable_modules(program)]
    separate = (
        tell_apart
        and bool(rows)
        and not tied_by
        and not drawn_jointly(latent, local)
        and rows_are_separate(held, terms, log_p, run_guide, rows, local, latent)
    )
    with DetachSamples():
        points = sample_sites(run_guide(without_points(held)))
    return Structure(
        max_plate_nesting=nesting,
        row_plate=row_plate,
        rows=rows,
        local=local,
        shared=frozenset(latent) - local,
        auxiliary=frozenset(latent) - p.keys(),
        enumerated=enumerated,
        entangled=tuple(name for name in latent if name in p and name not in own_terms),
        outside=tuple(n for n, s in p.items() if n not in latent and n not in enumerated and not _inside(s, rows)),
        tied_by=tied_by[0] if tied_by else "",
        separate=separate,
        score=tuple(name for name, site in latent.items() if not site["fn"].has_rsample),
        points=tuple(name for name in latent if is_delta(points[name]) and points[name]["value"].requires_grad),
        guide_draws=guide_draws,
        model_draws=model_draws,
        subsampled=_subsampled({**q, **p}, rows),
        draws_subsamples=any(takes_random_part(site) for site in sample_sites(drawn).values()),
        common_parameter=_common_parameter(terms, drawn, plain, modules),
        parameters=_places(modules, "_parameters"),
        buffers=_places(modules, "_buffers"),
    )


def takes_random_part(site: Site) -> bool:
    """Whether a site is a plate's draw of some of its elements."""
    return site_is_subsample(site) and (site["fn"].subsample_size or site["fn"].size) < site["fn"].size


def _check_latents(p: dict[str, Site], latent: dict[str, Site]) -> None:
    """Refuse guides that miss latents of the model, and guides that enumerate.

    Raises:
        ValueError: that names the site.
    """
    uncovered = [n for n, s in p.items() if not s["is_observed"] and not is_enumerated(s) and n not in latent]
    if uncovered:
        raise ValueError(
            f"the guide has no site {uncovered[0]!r}, which the model leaves latent: add it, or mark a discrete site "
            "with infer={'enumerate': 'parallel'}"
        )
    in_guide = [name for name, site in latent.items() if site["infer"].get("enumerate")]
    if in_guide:
        raise ValueError(
            f"the guide marks {in_guide[0]!r} for enumeration, and this estimator sums out sites of the model only: "
            "leave the site to the model, or use pyro.infer.TraceEnum_ELBO"
        )


def _without_enumerated(trace: poutine.Trace, covered: dict[str, Site]) -> poutine.Trace:
    """The trace of a plain run, in which Pyro's check of model and guide shall know the sites that are summed out."""
    copy = trace.copy()
    for name, site in sample_sites(trace).items():
        if is_enumerated(site) and name not in covered:
            copy.remove_node(name)
    return copy


def _moved(state: dict[str, Tensor]) -> bool:
    """Whether random numbers have been drawn since."""
    return any(not torch.equal(state[device], now) for device, now in randomness.get_state().items())


def _places(modules: Iterable[nn.Module], kind: str) -> list[Place]:
    """Where modules hold their parameters, or their buffers."""
    held = [getattr(part, kind) for part in dict.fromkeys(part for module in modules for part in module.modules())]
    return [(tensors, name) for tensors in held for name, v in tensors.items() if v is not None and not is_lazy(v)]


def _names_of_rows(row_plate: RowPlate | None, p: dict[str, Site], latent: dict[str, Site]) -> frozenset[str]:
    """The name of the rows' plate in the model, and in the guide, if that calls it something else."""
    if row_plate is None:
        return frozenset()
    names = {row_plate.name}
    for name, site in latent.items():
        if name in p and _inside(p[name], {row_plate.name}):
            names |= {f.name for f in frames(site) if f.dim == row_plate.dim}
    return frozenset(names)


def _inside(site: Site, rows: Iterable[str]) -> bool:
    return any(f.name in rows for f in site["cond_indep_stack"])


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


def _subsampled(sites: dict[str, Site], rows: frozenset[str]) -> tuple[str, ...]:
    parts = {f.name for s in sites.values() for f in s["cond_indep_stack"] if f.full_size not in (None, f.size)}
    return tuple(sorted(parts - rows))


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
