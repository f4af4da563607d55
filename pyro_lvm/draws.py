"""Posterior draws of a fit, and what its model and guide say at each of them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyro_lvm.guides import lacks_density
from pyro_lvm.importance import total, weigh
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import (
    RowPlate,
    Site,
    Uncondition,
    prior_trace,
    refuse_random_rows,
    sample_sites,
    sum_within_rows,
)
from pyro_lvm.sparse import is_sparse
from pyro_lvm.vectorize import repeat


class EvaluatedDraws(NamedTuple):
    """Posterior draws, and what model and guide say at each of them. All densities are in nats and unscaled.

    Attributes:
        values: Each latent site, enumerated and deterministic ones too, ``[S, ...]``.
        predictions: Each site with data, drawn anew, ``[S, ...]``; none whose observations are a sparse table.
        log_likelihood: log p of each site with data, ``[S, N]`` inside the row plate and ``[S]`` outside it; without a
            row plate ``[S, ...]``, a number for each element of the site's batch.
        log_joint: log p of all sites together, ``[S]``.
        log_guide: log q of what the guide drew, ``[S]``.
        log_weights: log p(x, z) - log q(z) with enumerated sites summed out, ``[S]``.
        lacks_density: Why ``log_guide`` is no density of the latents; empty if it is.
        sites: The model's sites at the first draw. Each value has all dimensions of its plates.
    """

    values: Draws
    predictions: Draws
    log_likelihood: Draws
    log_joint: Tensor
    log_guide: Tensor
    log_weights: Tensor
    lacks_density: str
    sites: dict[str, Site]


def posterior_draws(result: Result, num_draws: int, seed: int | None) -> Draws:
    """Draws of every latent site of the fitted rows, enumerated and deterministic ones too, ``[S, ...]`` each.

    The latents are those of ``result.sample(num_draws, seed)``.
    """
    args = result._arguments(())
    with result._quiet(seed):
        proposed = result._proposed(args, num_draws, result.resamples)
        return repeat(lambda given: _described(result, args, result._latents(args, given)[0]), num_draws, proposed)


def posterior_draws_at(result: Result, latents: Draws, seed: int | None) -> Draws:
    """The same at latents that are given, ``[S, ...]`` each."""
    with result._quiet(seed):
        return repeat(lambda given: _beside(result, given), len(next(iter(latents.values()))), latents)


def with_deterministic(result: Result, latents: Draws, most: int) -> Draws:
    """Latents ``[S, ...]``, and the values of deterministic sites that follow, of at most so many numbers together."""
    num_draws = len(next(iter(latents.values())))
    wanted, numbers = set(latents), 0
    first = repeat(lambda given: _beside(result, given), 1, {name: value[:1] for name, value in latents.items()})
    for name, value in first.items():
        if name not in latents and name not in result._program.sites.enumerated:
            numbers += value.numel()
            wanted |= {name} if numbers <= most else set()
    if wanted == set(latents):
        return latents
    return repeat(lambda given: {n: v for n, v in _beside(result, given).items() if n in wanted}, num_draws, latents)


def _beside(result: Result, latents: Draws) -> Draws:
    """Given latents, enumerated sites drawn beside them, and the deterministic sites that follow."""
    args = result._arguments(())
    return _described(result, args, result._with_enumerated(args, latents))


def _described(result: Result, args: tuple[Any, ...], values: Draws) -> Draws:
    """The values of the latents, and of the deterministic sites that follow from them."""
    conditioned = poutine.condition(result.model, data=values)
    sites = sample_sites(poutine.trace(conditioned).get_trace(*args, **result._program.model_kwargs))
    return {name: site["value"] for name, site in sites.items() if name in values or _is_deterministic(site)}


def with_shared_enumerated(result: Result, latents: Draws, num_draws: int) -> Draws:
    """Latents ``[S, ...]``, and the enumerated sites outside the rows, drawn from their posterior beside each.

    Latents that are not given, those of many rows, are drawn by the guide.
    """
    args, names = result._arguments(()), result._program.sites.shared_enumerated
    if latents.keys() >= set(names):
        return latents

    def once(given: Draws) -> Draws:
        drawn, _ = result._latents(args, given)
        return {name: drawn[name] for name in names}

    return latents | repeat(once, num_draws, latents)


def replicated(result: Result, latents: Draws, num_draws: int) -> Draws:
    """Data anew for each draw of the latents that all rows share, the rows' own drawn from the model, ``[S, ...]``.

    Args:
        result: The fit.
        latents: ``[S, ...]`` each; those of the rows are passed over.
        num_draws: S.

    Returns:
        The sites with data but those whose observations are a sparse table.
    """
    args, program = result._arguments(()), result._program
    held = sites_of(result, args)
    observed = [name for name in program.data_sites if not is_sparse(held[name]["value"])]
    shared = {name: value for name, value in latents.items() if name not in program.sites.local}

    def once(*given: Draws) -> Draws:
        model = poutine.condition(result.model, data=given[0]) if given else result.model
        with Uncondition(program.data_sites):
            sites = _run_sites(prior_trace(model, *args, **program.model_kwargs))
        return {name: sites[name]["value"] for name in observed}

    return repeat(once, num_draws, *([shared] if shared else []))


def prior_draws(result: Result, num_draws: int, seed: int | None) -> Draws:
    """Draws of every site of the model at its fitted parameters, those with data anew, ``[S, ...]`` each."""
    args, kwargs, observed = result._arguments(()), result._program.model_kwargs, result._program.data_sites

    def once() -> Draws:
        with Uncondition(observed):
            sites = _run_sites(poutine.trace(result.model).get_trace(*args, **kwargs))
        return {name: site["value"] for name, site in sites.items() if not isinstance(site["fn"], dist.Unit)}

    with result._quiet(seed):
        return repeat(once, num_draws)


def predictions_at(result: Result, args: tuple[Any, ...], params: Draws, seed: int | None) -> Draws:
    """Draws of every site with data for new inputs, one at each of some parameters ``[S, ...]``."""
    with result._quiet(seed):
        return repeat(lambda at: _moved(result, at)._predict(args, {}), len(next(iter(params.values()))), params)


def _moved(result: Result, params: Draws) -> Result:
    """The result at other parameters."""
    moved = copy.copy(result)
    moved._values = {**result._values, **params}
    return moved


def sites_of(result: Result, args: tuple[Any, ...]) -> dict[str, Site]:
    """The model's sites on some arguments, drawn from the prior, every value in its full shape."""
    with result._quiet(None), torch.no_grad(), pyro.validation_enabled(False):
        return _run_sites(prior_trace(result.model, *args, **result._program.model_kwargs))


def evaluate(result: Result, num_draws: int, seed: int | None, params: Draws | None = None) -> EvaluatedDraws:
    """Draw from the posterior of the fitted rows, and evaluate model and guide at the draws.

    Args:
        result: The fit.
        num_draws: S.
        seed: Of the draws; the fit's, if None. The latents are those of ``result.sample(num_draws, seed)``.
        params: Parameters of each draw, ``[S, ...]``, in the place of the fitted ones.

    Raises:
        ValueError: if the fit kept no rows, or the model takes a random part of its rows.
    """
    program = result._program
    kwargs, row_plate, args = program.model_kwargs, program.sites.row_plate, result._arguments(())
    params = params or {}

    def draw(at: Draws, given: Draws) -> tuple[Draws, Tensor, Draws]:
        here = _moved(result, at)
        values, guide = here._latents(args, given)
        summed_out = {"log_weight": _weight(here, args, guide)} if program.sites.enumerated else {}
        return values, _total(_run_sites(guide)), summed_out

    def run(values: Draws, at: Draws) -> dict[str, Site]:
        model = poutine.condition(_moved(result, at).model, data=values)
        return _run_sites(poutine.trace(model).get_trace(*args, **kwargs))

    def describe(values: Draws, at: Draws) -> tuple[Draws, Draws, Draws, Tensor]:
        sites = run(values, at)
        with Uncondition(observed):
            drawn = run(values, at)
        return (
            {name: site["value"] for name, site in sites.items() if name in values or _is_deterministic(site)},
            {name: drawn[name]["value"] for name in observed if not is_sparse(sites[name]["value"])},
            {name: _log_likelihood(sites[name], row_plate) for name in observed},
            _total(sites),
        )

    with result._quiet(seed):
        proposed = result._proposed(args, num_draws, result.resamples)
        values, log_guide, summed_out = repeat(draw, num_draws, params, proposed)
        with torch.no_grad(), pyro.validation_enabled(False):
            sites = run(*({name: value[0] for name, value in draws.items()} for draws in (values, params)))
        refuse_random_rows(sites)
        observed = program.data_sites
        drawn, predictions, log_likelihood, log_joint = repeat(describe, num_draws, values, params)
        with torch.no_grad():
            reason = lacks_density(program.guide, result._latents(args, {})[1], program.sites.latent)
        reason = reason if program.sites.latent else "the guide draws no site"
        log_weights = summed_out.get("log_weight", log_joint - log_guide)
        return EvaluatedDraws(drawn, predictions, log_likelihood, log_joint, log_guide, log_weights, reason, sites)


def unconstrained_draws(result: Result, latents: Draws, params: Draws | None = None) -> Draws:
    """Latents ``[S, ...]`` in the space in which guides draw them, but those whose support has no way to it.

    Args:
        result: The fit.
        latents: All latents of the model; deterministic sites may be among them.
        params: Parameters of each draw, ``[S, ...]``, in the place of the fitted ones.
    """
    args, program = result._arguments(()), result._program

    def once(given: Draws, at: Draws) -> Draws:
        model = poutine.condition(_moved(result, at).model, data=given)
        sites = sample_sites(poutine.trace(model).get_trace(*args, **program.model_kwargs))
        ways = {name: _way(sites[name]) for name in program.sites.latent}
        return {name: way.inv(sites[name]["value"]) for name, way in ways.items() if way is not None}

    if not program.sites.latent:
        return {}
    with result._quiet(None):
        return repeat(once, len(latents[program.sites.latent[0]]), latents, params or {})


def _way(site: Site) -> Transform | None:
    """From unconstrained space to the support of a site, which may depend on other sites."""
    support = site["fn"].support
    try:
        return None if support.is_discrete else biject_to(support)
    except NotImplementedError:
        return None


def _weight(result: Result, args: tuple[Any, ...], guide: poutine.Trace) -> Tensor:
    """log p(x, z) - log q(z) of all rows, enumerated sites summed out."""
    return total(*weigh(result._program, result.model, args, prune_subsample_sites(guide)))


def _run_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites of a run, with ``masked_log_prob`` in nats and every value in its full shape."""
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    sites = sample_sites(trace)
    for site in sites.values():
        log_prob = site["unscaled_log_prob"]
        site["masked_log_prob"] = scale_and_mask(log_prob, mask=site["mask"])
        if not _is_deterministic(site) and not is_sparse(site["value"]):
            value = torch.as_tensor(site["value"])
            event_shape = value.shape[value.dim() - site["fn"].event_dim :]
            site["value"] = value.expand(log_prob.shape + event_shape)
    return sites


def _total(sites: dict[str, Site]) -> Tensor:
    """In double precision, since a sum over many rows has more digits than its terms."""
    terms = [site["masked_log_prob"].double().sum() for site in sites.values()]  # a deterministic site has none
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


def _is_deterministic(site: Site) -> bool:
    return site["infer"].get("_deterministic", False)


def _log_likelihood(site: Site, row_plate: RowPlate | None) -> Tensor:
    log_prob = site["masked_log_prob"]
    if row_plate is None:
        return log_prob
    if all(frame.name != row_plate.name for frame in site["cond_indep_stack"]):
        return log_prob.sum()
    return sum_within_rows(log_prob, row_plate.dim)
