"""The marginals of a guide, corrected by importance weights and by moves towards the posterior."""

from __future__ import annotations

import numpy as np

from pyro_lvm.diagnostics.draws import with_deterministic
from pyro_lvm.diagnostics.hmc import run_chains
from pyro_lvm.diagnostics.khat import USEFUL
from pyro_lvm.diagnostics.marginals import Marginals, Moments, columns, of_chains, of_weighted
from pyro_lvm.diagnostics.unconstrained import Unconstrained
from pyro_lvm.diagnostics.weights import Weights
from pyro_lvm.psis import smooth
from pyro_lvm.result import Draws, Result
from pyro_lvm.tracing import NotCompilable

WEIGHTS, MOVES = "importance weights", "Hamiltonian moves"
MOST_LATENTS = 1_000  # numbers of a fit whose draws are moved
_FEW = 100  # numbers that are weighed together
_NUM_CHAINS, _FEWEST_CHAINS = 500, 100
_NUMBERS = 1_000_000  # of the largest tensor of all chains together
_WARMUP, _KEPT = 40, 20


def corrected(result: Result, weights: Weights, seed: int) -> Marginals | None:
    """Grade the marginals of what a guide draws, of the deterministic sites that follow, too.

    Weights are used if their k-hat is below 0.7; moves are made if there are at most 1,000 latent numbers, and a run of
    the model is small. Latents of rows that are too many for either are passed over.

    Returns:
        The marginals, with no correction if there is none; None if there is nothing to grade.
    """
    local, latents = result._program.sites.local_latent, weights.draws
    chains = _moved(result, latents, seed)
    jointly = chains is not None or not local or are_few(latents)
    if not jointly:
        latents = {name: draws for name, draws in latents.items() if name not in local}
    if not latents or _size(latents) > MOST_LATENTS:
        return None
    with result._quiet(seed):
        own = with_deterministic(result, latents, MOST_LATENTS) if jointly else latents
        names, draws = columns(own)
        moved = None if chains is None else columns(with_deterministic(result, chains, MOST_LATENTS))[1]
    by_weights = smooth(weights.joint if jointly else weights.marginal)
    found: dict[str, Moments] = {}
    if by_weights.pareto_k < USEFUL:
        found[WEIGHTS] = of_weighted(draws, by_weights.log_weights.exp().numpy())
    if moved is not None:
        found[MOVES] = of_chains(moved.reshape(_KEPT, -1, moved.shape[1]))
    return Marginals(names, of_weighted(draws, np.full(len(draws), 1 / len(draws))), found)


def _moved(result: Result, latents: Draws, seed: int) -> Draws | None:
    """The draws that chains come to that begin at those of the guide; None if the model allows none."""
    if _size(latents) > MOST_LATENTS:
        return None
    try:
        target = Unconstrained(result)
    except ValueError:
        return None
    with result._quiet(seed):
        start = target.points({name: draws[:_NUM_CHAINS] for name, draws in latents.items()})
        count = min(len(start), _NUMBERS // target.numbers(start[0]))
        if count < _FEWEST_CHAINS:
            return None
        start = start[:count]
        try:
            density = target.traced(start)
        except NotCompilable:
            return None
        chains = run_chains(density, start, _WARMUP, _KEPT)
    return target.draws(chains.draws.flatten(0, 1))


def are_few(draws: Draws) -> bool:
    """Whether the weights of all latents together say something of each."""
    return _size(draws) <= _FEW


def _size(draws: Draws) -> int:
    """How many numbers one draw has."""
    return sum(value[0].numel() for value in draws.values())
