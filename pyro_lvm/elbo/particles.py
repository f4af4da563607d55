"""The log-weight engine: particles drawn from a guide, and what they weigh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_lvm.elbo.contraction import enumerate_model, log_density
from pyro_lvm.elbo.detach import DetachSamples, copied_buffers, detached, detached_parameters, without_points
from pyro_lvm.elbo.look import takes_random_part
from pyro_lvm.elbo.scales import Scales, Weigh
from pyro_lvm.elbo.structure import Structure, refuse_tied_rows
from pyro_lvm.elbo.terms import Term, by_row, equal_numbers, masked, over_plates, unscaled_log_prob
from pyro_lvm.guides import is_delta
from pyro_lvm.sites import Site, sample_sites
from pyro_lvm.vectorize import each_draw

Path = Literal["total", "none", "stl", "dreg"]


class Run(NamedTuple):
    """A model and a guide on their arguments, and what is known of them.

    Attributes:
        structure: Of model and guide.
        model: The model.
        guide: The guide.
        args: Their arguments.
        kwargs: Their keyword arguments.
        step: Of the optimisation, if it is one.
        kl_weight: By which the log-densities of the guide's latents are multiplied.
    """

    structure: Structure
    model: Callable
    guide: Callable
    args: Sequence[Any]
    kwargs: dict[str, Any]
    step: int | Tensor | None = None
    kl_weight: float | Tensor = 1.0


class Cells(NamedTuple):
    """Log-weights of K particles in C cells: the rows, where they have latents of their own, or all in one.

    Attributes:
        log_p: log p(x, z), ``[K, C]``.
        log_q: log q(z), ``[K, C]``.
        score: log q of what has no reparametrised draw, ``[K, C]``, by whose gradient a bound is weighted.
        held: log p(x, z) with z held fixed, ``[K, C]``; for the path "dreg" alone.
        shared: log p(g) - log q(g) of one draw g of the latents that all rows share; a number.
        shared_score: As ``score``, for g.
        counts: How often each cell counts, a number or ``[C]``.
    """

    log_p: Tensor
    log_q: Tensor
    score: Tensor
    held: Tensor
    shared: Tensor
    shared_score: Tensor
    counts: float | Tensor

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z), ``[K, C]``."""
        return self.log_p - self.log_q


@dataclass
class Particles:
    """What K runs of a guide and a model say, every term with a leading dimension K.

    Attributes:
        log_p: Of the model, enumerated sites summed out; or, for a site with a closed form, minus its KL divergence.
        log_q: Of the guide, but for sites with a closed form.
        scored: Those of ``log_q`` that have no reparametrised draw.
        score: The same without scales and masks, with all its gradient.
        held: As ``log_p``, at latents held fixed; for the path "dreg" alone.
        structure: Of model and guide.
        scales: By which terms are still to be multiplied.
    """

    log_p: list[Term]
    log_q: list[Term]
    scored: list[Term]
    score: list[Term]
    held: list[Term]
    structure: Structure
    scales: Scales

    def scaled(self, terms: list[Term]) -> list[Term]:
        """Terms as they count in a sum over all rows."""
        return [self.scales.around(term, self.structure) for term in terms]

    def cells(self) -> Cells:
        """Log-weights by row, or all in one cell where rows have none of their own.

        Raises:
            ValueError: for a minibatch of a model whose rows cannot be told apart.
        """
        scales, zero = self.scales, self.log_p[0].value.new_zeros(())
        parts = [
            by_row(terms, self.structure.rows) if terms else (zero, None)
            for terms in (self.log_p, self.log_q, self.score, self.held)
        ]
        if self.structure.separate:
            (shared_p, _), (shared_q, _), (shared_score, _), (shared_held, _) = parts
            if self.held:  # the other log_p takes the shared latents for constants
                shared_p = shared_held
            log_p, log_q, score, held = (zero if inside is None else inside for _, inside in parts)
            counts = scales.ratio * scales.weight * scales.around_all(True)
            shared = (shared_p - shared_q).mean() * scales.around_all(False)  # every particle has the same g
            return Cells(log_p, log_q, score, held, shared, shared_score.mean(), counts)
        if scales.ratio != 1.0:
            raise ValueError(
                "the average over particles stands inside a logarithm or a power, and its latents belong to all rows: "
                "a minibatch has no unbiased estimate of it. Take all rows in each step, or an estimator without it, "
                "such as Trace_ELBO"
            )
        weights = (scales.weight, scales.weight, 1.0, scales.weight)  # a score is none of what is weighed
        whole = [o if rows is None else o + (rows * w).sum(-1) for (o, rows), w in zip(parts, weights, strict=True)]
        log_p, log_q, score, held = (w.unsqueeze(-1) if w.dim() else w for w in whole)
        return Cells(log_p, log_q, score, held, zero, zero, scales.around_all(True))


def draw(
    run: Run, num_particles: int, path: Path = "total", closed_form: bool = False, nested: bool = False
) -> Particles:
    """Draw particles from the guide and weigh them.

    Args:
        run: Model, guide and arguments.
        num_particles: K.
        path: Where gradients flow: through draws, values and parameters ("total"); not through draws ("none"); through
            draws, but not through the guide's parameters otherwise ("stl"), nor the model's ("dreg").
        closed_form: Whether a latent's KL divergence takes the place of its log-densities wherever torch knows it.
        nested: Whether all particles are to share one draw of the latents that all rows share.

    Returns:
        The particles.

    Raises:
        ValueError: where the K-sample bound would stand around a subsampled plate.
    """
    run = fix_subsamples(run)
    if not equal_numbers(run.kl_weight, 1.0):
        weighted = Weigh(run.structure.local | run.structure.shared, run.kl_weight)
        run = run._replace(model=weighted(run.model), guide=weighted(run.guide))
    layout: dict[str, Any] = {}
    given = _given(run, path, nested)

    def once() -> dict[str, tuple[Tensor, ...]]:
        found, layout["scales"] = _particle(run, path, closed_form, given)
        layout["terms"] = found
        return {kind: tuple(term.value for term in terms) for kind, terms in found.items()}

    values, run.structure.vectorizes = each_draw(once, num_particles, run.structure.vectorizes)
    terms = {
        kind: [term._replace(value=v) for term, v in zip(layout["terms"][kind], values[kind], strict=True)]
        for kind in values
    }
    return Particles(**terms, structure=run.structure, scales=layout["scales"])


def fix_subsamples(run: Run) -> Run:
    """The same run, in which plates that draw a part of their elements have drawn it, for all particles alike."""
    if not run.structure.draws_subsamples:
        return run
    drawn = poutine.trace(run.guide).get_trace(*run.args, **run.kwargs)
    plain = poutine.trace(poutine.replay(run.model, trace=drawn)).get_trace(*run.args, **run.kwargs)
    parts = poutine.Trace()
    for name, site in (sample_sites(drawn) | sample_sites(plain)).items():
        if takes_random_part(site):
            parts.add_node(name, **site)
    return run._replace(model=poutine.replay(run.model, trace=parts), guide=poutine.replay(run.guide, trace=parts))


def _given(run: Run, path: Path, nested: bool) -> poutine.Trace:
    """One draw of the latents that all particles are to share."""
    shared = poutine.Trace()
    if nested and run.structure.shared:
        for name, site in sample_sites(_draw_guide(run, path, shared)).items():
            if name in run.structure.shared:
                shared.add_node(name, **site)
    return shared


def _draw_guide(run: Run, path: Path, given: poutine.Trace) -> poutine.Trace:
    with DetachSamples() if path == "none" else nullcontext():
        return poutine.trace(poutine.replay(run.guide, trace=given)).get_trace(*run.args, **run.kwargs)


class _Traces(NamedTuple):
    """One draw of the guide, and the runs in which it is weighed.

    Attributes:
        drawn: The run of the guide that made the draws.
        q: The guide's sites, in the run whose log-densities count.
        p: The run of the model.
        held: A run of the model at draws held fixed, for the path "dreg".
    """

    drawn: dict[str, Site]
    q: dict[str, Site]
    p: poutine.Trace
    held: poutine.Trace | None


def _run_programs(run: Run, path: Path, given: poutine.Trace) -> _Traces:
    structure = run.structure
    shared = structure.shared if structure.separate else frozenset()
    own = (structure.local | structure.shared) - shared

    def model(values: poutine.Trace) -> poutine.Trace:
        return enumerate_model(run.model, run.args, run.kwargs, structure.max_plate_nesting, values)

    def guide(values: poutine.Trace) -> dict[str, Site]:
        trace = poutine.trace(poutine.replay(run.guide, trace=without_points(values)))
        return weigh(sample_sites(prune_subsample_sites(trace.get_trace(*run.args, **run.kwargs))))

    def weigh(sites: dict[str, Site]) -> dict[str, Site]:
        """Take log-densities now: transforms that are modules look at their parameters only then."""
        for site in sites.values():
            site["unscaled_log_prob"] = unscaled_log_prob(site)
        return sites

    trace = _draw_guide(run, path, given)
    drawn = sample_sites(prune_subsample_sites(trace))
    if path == "stl":
        with copied_buffers(structure.buffers), detached_parameters(structure.parameters):
            q = guide(detached(trace))
        return _Traces(drawn, q, model(trace), None)
    if path == "dreg":  # for the rows' draws, what they share are parameters
        values = detached(trace, shared)
        with copied_buffers(structure.buffers), detached_parameters(structure.parameters):
            q, p = guide(values), model(detached(values))
            weigh(sample_sites(p))
        return _Traces(drawn, q | {name: drawn[name] for name in shared}, p, model(detached(trace, own)))
    return _Traces(drawn, drawn, model(trace), None)


def _particle(run: Run, path: Path, closed_form: bool, given: poutine.Trace) -> tuple[dict[str, list[Term]], Scales]:
    structure = run.structure
    drawn, q, trace, held = _run_programs(run, path, given)
    p = sample_sites(trace)
    scales = Scales.of(structure, [*p.values(), *q.values()])
    if not (scales.ratio == 1.0 and equal_numbers(scales.weight, 1.0)):
        refuse_tied_rows(structure)

    def within(site: Site) -> Any:
        return scales.within(site, structure)

    closed = _closed_forms(p, q, within) if closed_form else {}
    for name in closed:
        trace.remove_node(name)
    log_q = {name: _term(site, unscaled_log_prob(site), within) for name, site in q.items() if name not in closed}
    scored = {name: site for name, site in drawn.items() if name in log_q and _has_score(site, path)}
    found = {
        "log_p": log_density(trace, within) + list(closed.values()),
        "log_q": list(log_q.values()),
        "scored": [log_q[name] for name in scored],
        "score": [over_plates(site, unscaled_log_prob(site)) for site in scored.values()],
        "held": [] if held is None else log_density(held, within),
    }
    return found, scales


def _has_score(site: Site, path: Path) -> bool:
    """Whether the gradient of a site's log q must be weighted, because none flows through its draw."""
    drawn = not site["is_observed"] and not is_delta(site)
    return drawn and (path == "none" or not site["fn"].has_rsample)


def _term(site: Site, log_prob: Any, scale: Callable[[Site], Any]) -> Term:
    return over_plates(site, masked(site, log_prob, scale(site)))


def _closed_forms(p: dict[str, Site], q: dict[str, Site], scale: Callable[[Site], Any]) -> dict[str, Term]:
    """Minus the KL divergence of each latent for which torch or Pyro knows it."""
    found = {}
    for name in p.keys() & q.keys():
        if is_delta(q[name]):  # whose divergence, as Pyro has it, leaves out the Jacobian that the point may carry
            continue
        try:
            kl = kl_divergence(q[name]["fn"], p[name]["fn"])
        except NotImplementedError:
            continue
        kl = torch.as_tensor(kl).expand(q[name]["fn"].batch_shape)
        found[name] = _term(q[name], -kl, scale)
    return {name: found[name] for name in p if name in found}
