"""The marginals of a guide, corrected by importance weights and by moves towards the posterior."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.draws import with_deterministic
from pyro_lvm.psis import smooth
from pyro_lvm.result import Draws, Result
from pyro_lvm.tracing import NotCompilable
from pyro_lvm.verdict.hmc import run_chains
from pyro_lvm.verdict.marginals import Marginals, Moments, columns, of_chains, of_weighted
from pyro_lvm.verdict.points import never_vary
from pyro_lvm.verdict.unconstrained import Unconstrained
from pyro_lvm.verdict.weights import MOST_LATENTS, Weights

WEIGHTS, MOVES = "importance weights", "Hamiltonian moves"
_NUM_CHAINS, _FEWEST_CHAINS = 500, 100
_NUMBERS = 1_000_000  # of the largest tensor of all chains together
_WARMUP, _KEPT = 40, 60
_FEWEST_ACCEPTED = 0.4  # of chains that adapt their step to 0.8


def corrected(
    result: Result,
    weights: Weights,
    at_a_point: Mapping[str, Tensor],
    useful: bool,
    seed: int,
    resamples: bool = False,
) -> Marginals:
    """Grade the marginals of what a guide draws, of the deterministic sites that follow, too.

    Weights are used if they are useful; those from which the latents of rows are integrated out correct what all rows
    share alone. Moves are made if there are at most 1,000 latent numbers, and a run of the model is small. Latents of
    rows that neither can correct are passed over, and so are numbers that never vary, unless they should. Draws that
    are resampled by their weights are graded by the moves.

    Args:
        result: The fit.
        weights: Draws of the guide, and what they weigh.
        at_a_point: Which numbers of latents should vary and do not, by site.
        useful: Whether the k-hat allows to use the weights.
        seed: Of the moves.
        resamples: Whether the fit's draws are to be resampled by their weights, if these are useful.

    Returns:
        The marginals, with no correction if there is none.

    Raises:
        ValueError: that says why there are no marginals.
    """
    sites, latents = result._program.sites, weights.draws
    if len(weights.joint) == 1:
        raise ValueError("a single draw has no standard deviation: take more, by num_draws=")
    shared = {name: draws for name, draws in latents.items() if name not in sites.local}
    with result._quiet(seed):
        chains = _moved(result, latents) if len(latents) == len(sites.latent) else None
        whole = len(latents) == len(sites.latent) and (chains is not None or weights.own is None)
        latents = latents if whole else shared
        if not latents:
            raise ValueError("every latent belongs to a row, and these are too many to be moved, or cannot be")
        if _size(latents) > MOST_LATENTS:
            raise ValueError(f"they are those of more than {MOST_LATENTS:,} numbers")
        described = with_deterministic(result, latents, MOST_LATENTS) if whole else latents
        moved = None if chains is None else with_deterministic(result, chains, MOST_LATENTS)
    points = [at_a_point.get(n, torch.tensor(False)).expand(v.shape[1:]).flatten() for n, v in described.items()]
    at_points = torch.cat(points).numpy()
    still = never_vary(described) if moved is None else never_vary(described) & never_vary(moved)
    graded = np.flatnonzero(at_points | ~still)
    if not len(graded):
        raise ValueError("no latent ever varies")
    names, of, draws = columns(described)
    own = of_weighted(draws[:, graded], np.full(len(draws), 1 / len(draws)))
    found: dict[str, Moments] = {}
    if useful and (weights.own is None or shared):
        corrects = np.array([weights.own is None or site in shared for site in of])
        log_weights = smooth(weights.marginal).log_weights
        found[WEIGHTS] = of_weighted(np.where(corrects, draws, np.nan)[:, graded], log_weights.exp().numpy())
    if moved is not None:
        beyond = np.where(at_points, np.nan, columns(moved)[-1])[:, graded]
        found[MOVES] = of_chains(beyond.reshape(_KEPT, -1, len(graded)))
        if resamples and weights.own is None and useful:
            own = found.pop(WEIGHTS)
    return Marginals(
        names=tuple(names[i] for i in graded),
        sites=tuple(of[i] for i in graded),
        guide=own,
        corrected=found,
        collapsed=at_points[graded],
    )


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
    moved = target.draws(chains.draws.flatten(0, 1))
    return moved if all(torch.isfinite(value).all() for value in moved.values()) else None


def _size(draws: Draws) -> int:
    """How many numbers one draw has."""
    return sum(value[0].numel() for value in draws.values())
