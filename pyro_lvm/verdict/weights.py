"""Draws of a fit and their log-weights, the latents of each row integrated out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.elbo import terms
from pyro_lvm.elbo.contraction import enumerate_model, log_density
from pyro_lvm.elbo.look import look
from pyro_lvm.importance import latents_of_prior, log_mean_and_error, total, weigh
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import sample_sites
from pyro_lvm.vectorize import repeat

_NUM_INNER = 20  # draws of a row's latents for each of those that all rows share
_NUM_PRIOR = 100  # the same from the prior, which is wider
_MOST_BIAS = 0.1  # nats of a row that are taken off its likelihood by draws of the prior
MOST_LATENTS = 1_000  # numbers of a fit whose marginals are looked at
MOST_ROWS = 5_000  # whose weights are kept


class Weights(NamedTuple):
    """Draws of the guide, g of what all rows share and z of the rows' own, and what they weigh, in nats.

    Enumerated sites are summed out. Of more than 5,000 rows, as many are kept, taken at random.

    Attributes:
        draws: The guide's latents, ``[S, ...]``; without those of the rows where there are more than 1,000 numbers.
        joint: log p(x, g, z) - log q(g, z), ``[S]``.
        marginal: log p(x, g) - log q(g), z integrated out, ``[S]``; ``joint`` where that cannot be.
        rows: log p(x_i | g), z integrated out by draws of the guide, or of the prior where the guide draws the latents
            of all rows together, ``[S, n]``; None without a row plate. Where nothing is shared, that is ``own``, and
            the mean over draws integrates.
        own: log p(x_i, z_i | g) - log q(z_i), ``[S, n]``; None where the guide does not draw a row's latents by
            themselves.
        spared: ``marginal`` without the one row that is impossible under a draw, ``[S]``; minus infinity where there
            are more.
        kept: The numbers of the rows kept, ``[n]``.
        num_rows: N; 0 where rows are not weighed.
    """

    draws: Draws
    joint: Tensor
    marginal: Tensor
    kept: Tensor
    num_rows: int
    rows: Tensor | None = None
    own: Tensor | None = None
    spared: Tensor | None = None

    def head(self, num_draws: int) -> Weights:
        """The first draws."""

        def first(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[:num_draws]

        return self._replace(
            draws={name: value[:num_draws] for name, value in self.draws.items()},
            joint=self.joint[:num_draws],
            marginal=self.marginal[:num_draws],
            rows=first(self.rows),
            own=first(self.own),
            spared=first(self.spared),
        )


def draw_weighted(result: Result, num_draws: int, seed: int | None = None, by_row: bool = True) -> Weights:
    """Draw from the guide of a fit, and weigh the draws.

    Args:
        result: The fit; its guide has a density.
        num_draws: S.
        seed: Of the draws; the fit's, if None.
        by_row: Whether to weigh rows, too, and integrate their latents out; else there are joint weights alone.

    Raises:
        ValueError: if rows are to be weighed by draws of a prior from which their likelihood cannot be had.
    """
    program, args = result._program, result._arguments(())
    sites = program.sites
    shared = sites.shared_latent
    looked_at = sites.latent if num_latents(result) <= MOST_LATENTS else shared
    num_rows = program.data.num_rows if by_row and sites.row_plate is not None else None
    kept = _kept(num_rows or 0)

    def run(given: poutine.Trace) -> poutine.Trace:
        guide = poutine.replay(result.guide, trace=given)
        return prune_subsample_sites(poutine.trace(guide).get_trace(*args, **program.model_kwargs))

    def shared_part(drawn: poutine.Trace) -> poutine.Trace:
        part = drawn.copy()
        for name, site in sample_sites(drawn).items():
            if program.row_dim(name, site) is not None:
                part.remove_node(name)
        return part

    def once() -> dict[str, Any]:
        drawn = run(poutine.Trace())
        outside, rows = weigh(program, result.model, args, drawn)
        latents = {name: drawn.nodes[name]["value"] for name in looked_at}
        joint = total(outside, rows)
        found = {"draws": latents, "joint": joint, "marginal": joint}
        if rows is None or num_rows is None:
            return found
        if sites.local_latent and not separate:
            rows, bias = _by_prior(result, args, shared_part(drawn))
            return found | {"rows": rows[kept], "spared": torch.full_like(joint, -math.inf), "bias": bias[kept]}
        if separate:
            found["own"] = rows[kept]
        if separate and shared:
            given = shared_part(drawn)
            again = (weigh(program, result.model, args, run(given))[1] for _ in range(_NUM_INNER - 1))
            rows = torch.stack([rows, *(r for r in again if r is not None)]).logsumexp(0) - math.log(_NUM_INNER)
            found["marginal"] = total(outside, rows)
        return found | {"rows": rows[kept], "spared": _spared(outside, rows)}

    with result._quiet(seed):
        separate = integrates(result)
        found = repeat(once, num_draws)
    if (found.pop("bias", torch.zeros(1, 1)).mean(0) > _MOST_BIAS).any():
        raise ValueError(
            "a row says so much of its own latents that draws of their prior cannot integrate them out, and the guide "
            "draws the latents of all rows together: a guide that draws them row by row, such as 'mean_field', can"
        )
    return Weights(**found, kept=kept, num_rows=num_rows or 0)


def integrates(result: Result) -> bool:
    """Whether the guide draws the latents of each row by themselves, so that they can be integrated out."""
    program, args = result._program, result._arguments(())
    if not program.sites.local_latent:
        return False
    return look(result.model, result.guide, args, program.model_kwargs, program.sites.row_plate).separate


def num_latents(result: Result) -> int:
    """How many numbers one draw of the guide has."""
    with result._quiet(None), torch.no_grad():
        drawn = poutine.trace(result.guide).get_trace(*result._arguments(()), **result._program.model_kwargs)
    return sum(drawn.nodes[name]["value"].numel() for name in result._program.sites.latent)


def _kept(num_rows: int) -> Tensor:
    """The numbers of the rows whose weights are kept, the same for all fits to as many rows."""
    if num_rows <= MOST_ROWS:
        return torch.arange(num_rows)
    return torch.from_numpy(np.sort(np.random.default_rng(0).choice(num_rows, MOST_ROWS, replace=False)))


def _spared(outside: Tensor, rows: Tensor) -> Tensor:
    """The weight of all rows but the one that is impossible; minus infinity where more are."""
    impossible = rows == -math.inf
    others = outside.double() + rows.double().masked_fill(impossible, 0.0).sum()
    return torch.where(impossible.sum() <= 1, others, -math.inf)


def _by_prior(result: Result, args: tuple[Any, ...], shared: poutine.Trace) -> tuple[Tensor, Tensor]:
    """log p(x_i | g) of each row, its latents drawn from their prior, and the bias that was taken off, ``[N]``.

    Rows are left out by its reciprocal, and that of a mean is too large by the mean's relative variance.

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
    value, error = log_mean_and_error([torch.stack([rows for rows in found if rows is not None])])
    bias = torch.where(value == -math.inf, 0.0, error.square())
    return value + bias, bias
