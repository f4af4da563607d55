"""Draws of a fit and their log-weights, the latents of each row integrated out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.elbo import terms
from pyro_lvm.elbo.contraction import enumerate_model, log_density
from pyro_lvm.elbo.look import look
from pyro_lvm.importance import latents_of_prior, weigh
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import sample_sites
from pyro_lvm.vectorize import repeat

_NUM_INNER = 20  # draws of a row's latents for each of those that all rows share
_NUM_PRIOR = 100  # the same from the prior, which is wider


class Weights(NamedTuple):
    """Draws of the guide, g of what all rows share and z of the rows' own, and what they weigh, in nats.

    Enumerated sites are summed out.

    Attributes:
        draws: The guide's latents, ``[S, ...]``.
        joint: log p(x, g, z) - log q(g, z), ``[S]``.
        marginal: log p(x, g) - log q(g), z integrated out, ``[S]``; ``joint`` where that cannot be.
        rows: log p(x_i | g), z integrated out by draws of the guide, or of the prior where the guide draws the latents
            of all rows together, ``[S, N]``; None without a row plate. Where nothing is shared, that is ``own``, and
            the mean over draws integrates.
        own: log p(x_i, z_i | g) - log q(z_i), ``[S, N]``; None where the guide does not draw a row's latents by
            themselves.
    """

    draws: Draws
    joint: Tensor
    marginal: Tensor
    rows: Tensor | None
    own: Tensor | None

    def head(self, num_draws: int) -> Weights:
        """The first draws."""
        draws = {name: value[:num_draws] for name, value in self.draws.items()}
        return Weights(draws, *(None if part is None else part[:num_draws] for part in self[1:]))  # type: ignore[arg-type]


def draw_weighted(result: Result, num_draws: int, seed: int | None = None, by_row: bool = True) -> Weights:
    """Draw from the guide of a fit, and weigh the draws.

    Args:
        result: The fit; its guide has a density.
        num_draws: S.
        seed: Of the draws; the fit's, if None.
        by_row: Whether to weigh rows, too, and integrate their latents out; else there are joint weights alone.
    """
    program, args = result._program, result._arguments(())
    sites = program.sites

    def run(given: poutine.Trace) -> poutine.Trace:
        guide = poutine.replay(result.guide, trace=given)
        return prune_subsample_sites(poutine.trace(guide).get_trace(*args, **program.model_kwargs))

    def shared_part(drawn: poutine.Trace) -> poutine.Trace:
        shared = drawn.copy()
        for name, site in sample_sites(drawn).items():
            if program.row_dim(name, site) is not None:
                shared.remove_node(name)
        return shared

    def once() -> dict[str, Any]:
        drawn = run(poutine.Trace())
        outside, rows = weigh(program, result.model, args, drawn)
        latents = {name: drawn.nodes[name]["value"] for name in sites.latent}
        joint = outside.double() if rows is None else outside.double() + rows.double().sum()
        if rows is None or not by_row:
            return {"draws": latents, "joint": joint, "marginal": joint}
        if not separate:
            rows = _by_prior(result, args, shared_part(drawn)) if sites.local_latent else rows
            return {"draws": latents, "joint": joint, "marginal": joint, "rows": rows}
        if set(sites.latent) <= set(sites.local):
            return {"draws": latents, "joint": joint, "marginal": joint, "rows": rows, "own": rows}
        shared = shared_part(drawn)
        again = (weigh(program, result.model, args, run(shared))[1] for _ in range(_NUM_INNER - 1))
        integrated = torch.stack([rows, *(r for r in again if r is not None)]).logsumexp(0) - math.log(_NUM_INNER)
        marginal = outside.double() + integrated.double().sum()
        return {"draws": latents, "joint": joint, "marginal": marginal, "rows": integrated, "own": rows}

    with result._quiet(seed):
        look_at = (result.model, result.guide, args, program.model_kwargs, sites.row_plate)
        separate = bool(sites.local_latent) and look(*look_at).separate
        found = repeat(once, num_draws)
    return Weights(rows=found.pop("rows", None), own=found.pop("own", None), **found)


def _by_prior(result: Result, args: tuple[Any, ...], shared: poutine.Trace) -> Tensor:
    """log p(x_i | g) of each row, its latents drawn from their prior, ``[N]``.

    It is biased down by half the relative variance of the likelihood under the prior, over the number of draws.

    Raises:
        ValueError: if the density of a latent depends on an enumerated site, so that the likelihood is no factor.
    """
    program, kwargs = result._program, result._program.model_kwargs
    assert program.sites.row_plate is not None
    found = []
    for _ in range(_NUM_PRIOR):
        drawn = latents_of_prior(program, poutine.replay(result.model, trace=shared), args)
        trace = enumerate_model(result.model, args, kwargs, program.max_plate_nesting, drawn)
        for name in program.sites.latent:
            if terms.unscaled_log_prob(trace.nodes[name]).dim() > program.max_plate_nesting:
                raise ValueError(f"the prior of {name!r} depends on an enumerated site: rows have no likelihood by it")
            trace.remove_node(name)
        found.append(terms.by_row(log_density(trace), (program.sites.row_plate.name,))[1])
    return torch.stack([rows for rows in found if rows is not None]).logsumexp(0) - math.log(_NUM_PRIOR)
