"""The marginals of a guide, corrected by importance weights and by moves towards the posterior."""

from __future__ import annotations

import numpy as np
import torch

from pyro_lvm.draws import with_deterministic
from pyro_lvm.psis import smooth
from pyro_lvm.result import Draws, Result
from pyro_lvm.tracing import NotCompilable
from pyro_lvm.verdict.hmc import run_chains
from pyro_lvm.verdict.marginals import Marginals, Moments, columns, of_chains, of_weighted
from pyro_lvm.verdict.unconstrained import Unconstrained
from pyro_lvm.verdict.weights import Weights

WEIGHTS, MOVES = "importance weights", "Hamiltonian moves"
MOST_LATENTS = 1_000  # numbers of a fit whose draws are moved
_FEW = 100  # numbers that are weighed together
_NUM_CHAINS, _FEWEST_CHAINS = 500, 100
_NUMBERS = 1_000_000  # of the largest tensor of all chains together
_WARMUP, _KEPT = 40, 20
_FEWEST_ACCEPTED = 0.4  # of chains that adapt their step to 0.8
_ROUNDING = 1e-6  # by which constant numbers may vary, relative to their size


def corrected(result: Result, weights: Weights, useful: bool, seed: int, resamples: bool = False) -> Marginals | None:
    """Grade the marginals of what a guide draws, of the deterministic sites that follow, too.

    Weights are used if they are useful; moves are made if there are at most 1,000 latent numbers, and a run of the
    model is small. Latents of rows that are too many for either are passed over, and so are numbers that never vary.
    Draws that are resampled by their weights are graded by the moves.

    Args:
        result: The fit.
        weights: Draws of the guide, and what they weigh.
        useful: Whether the k-hat allows to use the weights.
        seed: Of the moves.
        resamples: Whether the fit's draws are to be resampled by their weights, if these are useful.

    Returns:
        The marginals, with no correction if there is none; None if there is nothing to grade.
    """
    local, latents = result._program.sites.local_latent, weights.draws
    with result._quiet(seed):
        chains = _moved(result, latents)
        jointly = chains is not None or not local or are_few(latents)
        if not jointly:
            latents = {name: draws for name, draws in latents.items() if name not in local}
        if not latents or _size(latents) > MOST_LATENTS:
            return None
        names, draws = columns(with_deterministic(result, latents, MOST_LATENTS) if jointly else latents)
        moved = None if chains is None else columns(with_deterministic(result, chains, MOST_LATENTS))[1]
    varies = np.flatnonzero(np.ptp(draws, axis=0) > _ROUNDING * abs(draws).max(0))
    if not len(varies):
        return None
    found: dict[str, Moments] = {}
    own = of_weighted(draws[:, varies], np.full(len(draws), 1 / len(draws)))
    if useful:
        log_weights = smooth(weights.joint if jointly else weights.marginal).log_weights
        found[WEIGHTS] = of_weighted(draws[:, varies], log_weights.exp().numpy())
    if moved is not None:
        found[MOVES] = of_chains(moved[:, varies].reshape(_KEPT, -1, len(varies)))
        if useful and resamples:
            own = found.pop(WEIGHTS)
    return Marginals(tuple(names[i] for i in varies), own, found)


def _moved(result: Result, latents: Draws) -> Draws | None:
    """The draws that chains come to that begin at those of the guide; None if they cannot be run, or do not move."""
    if _size(latents) > MOST_LATENTS:
        return None
    try:
        target = Unconstrained(result)
        start = target.points({name: draws[:_NUM_CHAINS] for name, draws in latents.items()})
        start = start[: _NUMBERS // target.numbers(start[0])]
        density = target.traced(start)
    except (ValueError, NotCompilable):
        return None
    finite = torch.isfinite(start).all(-1) & torch.isfinite(density(start)[0])
    if finite.sum() < _FEWEST_CHAINS:
        return None
    if not finite.all():
        start = start[finite]
        density = target.traced(start)
    chains = run_chains(density, start, _WARMUP, _KEPT)
    if chains.acceptance < _FEWEST_ACCEPTED:
        return None
    return target.draws(chains.draws.flatten(0, 1))


def are_few(draws: Draws) -> bool:
    """Whether the weights of all latents together say something of each."""
    return _size(draws) <= _FEW


def _size(draws: Draws) -> int:
    """How many numbers one draw has."""
    return sum(value[0].numel() for value in draws.values())
