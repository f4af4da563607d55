"""The data of a fit beside data that the model draws anew, a bounded part of them at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.diagnostics.pit import PIT, pit
from pyro_lvm.diagnostics.predictive_checks import (
    PredictiveChecks,
    Quantities,
    Statistic,
    check_predictions,
    quantities,
)
from pyro_lvm.draws import replicated, sites_of, with_shared_enumerated
from pyro_lvm.psis import smooth
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import Site
from pyro_lvm.sparse import is_sparse
from pyro_lvm.verdict.weights import Weights

_MOST_DRAWS, _FEWEST_DRAWS = 2_000, 50
_NUMBERS, _NUMBERS_AT_ONCE = 100_000_000, 20_000_000


def examine_predictions(
    result: Result, weights: Weights | None, useful: bool, statistics: Mapping[str, Statistic], seed: int
) -> tuple[tuple[PIT, ...], PredictiveChecks]:
    """LOO-PIT of each observed site with a number a row, and test quantities of all.

    Args:
        result: The fit.
        weights: Draws and what they weigh, with rows if these can be left out; None of a fit to points.
        useful: Whether the weights can be used.
        statistics: Test quantities by name.
        seed: Of the draws.

    Returns:
        Nothing of sites whose observations are a sparse table.
    """
    sites = result._program.sites
    held = sites_of(result, result._arguments(()))
    if all(is_sparse(held[name]["value"]) for name in result._program.data_sites):
        return (), PredictiveChecks(())
    numbers = max(
        (torch.as_tensor(site["value"]).numel() for site in held.values() if not is_sparse(site["value"])), default=1
    )
    num_draws = min(_MOST_DRAWS, max(_FEWEST_DRAWS, _NUMBERS // numbers))
    if weights is None:
        latents = result.sample(num_draws, seed)
    else:
        weights = weights.head(num_draws)
        latents, num_draws = weights.draws, len(weights.joint)
    with result._quiet(seed):
        latents = with_shared_enumerated(result, latents, num_draws)
        chosen = int(torch.multinomial(smooth(weights.marginal).log_weights.exp(), 1)) if weights and useful else 0
        one = {name: value[chosen].expand_as(value) for name, value in latents.items()}
        kept = replicated(result, one, 1)
        data = _rows_first(result, held, {name: held[name]["value"][None] for name in kept})
        rows = None if weights is None or weights.rows is None else (weights.num_rows,)
        single = [name for name, y in data.items() if y[0].shape == rows]
        at_once = max(1, _NUMBERS_AT_ONCE // numbers)
        many: list[Quantities] = []
        at_one: list[Quantities] = []
        ranked: list[Draws] = []
        for start in range(0, num_draws, at_once):
            count = min(at_once, num_draws - start)
            for given, found in ((latents, many), (one, at_one)):
                part = {name: value[start : start + count] for name, value in given.items()}
                drawn = _rows_first(result, held, replicated(result, part, count))
                found.append(quantities(drawn, statistics))
                if given is latents:
                    ranked.append({name: drawn[name][:, weights.kept] for name in single} if weights else {})
        calibrated = weights is not None and bool(sites.shared_latent)
        checks = check_predictions(quantities(data, statistics), _joined(many), _joined(at_one), calibrated)
        if weights is None:
            return (), checks
        return tuple(pit(name, weights, y, data[name][0][weights.kept]) for name, y in _joined(ranked).items()), checks


def _joined(parts: Sequence[Mapping[Any, Tensor]]) -> dict[Any, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _rows_first(result: Result, held: Mapping[str, Site], data: Draws) -> Draws:
    """Data of each site, ``[S, ...]``, as ``[S, N, ...]``; a site outside the row plate is one row."""
    found = {}
    for name, value in data.items():
        dim = result._program.row_dim(name, held[name])
        found[name] = value.unsqueeze(1) if dim is None else value.movedim(dim - held[name]["fn"].event_dim, 1)
    return found
