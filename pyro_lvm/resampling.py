"""Draws of a guide, resampled towards the posterior by smoothed importance weights."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.guides import lacks_density
from pyro_lvm.importance import joint_khats, masked_apart, rows_are_cells, total, weigh
from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.psis import USEFUL, smooth
from pyro_lvm.sites import Site, sample_sites
from pyro_lvm.vectorize import repeat

_A_LOOK = 10  # draws that show whether rows can be taken one by one
_WEIGHED = 10_000  # draws in each of the runs whose Pareto k decides
_PROPOSED, _FEWEST = 10, 1_000  # draws of the guide for each that is kept, and for all of them


def resampled(
    program: Program, values: Values, args: tuple[Any, ...], num_draws: int, judged: bool = False
) -> dict[str, Tensor]:
    """Draws of all sites of the guide, ``[S, ...]``, each as often as its weight says.

    Where every latent belongs to a row, rows are resampled one by one, and else all latents together.

    Args:
        program: Model and guide.
        values: Of their parameters.
        args: Of both.
        num_draws: S.
        judged: Whether the weights of all latents together have been found useful before.

    Raises:
        ValueError: for a guide without a density, and for weights whose Pareto k is 0.7 or more: of all latents
            together in the median of five runs, of rows in the draws that are resampled.
    """
    latent, kwargs = program.sites.latent, program.model_kwargs
    model, guide = program.bind(values, program.model), program.bind(values, program.guide)
    trace = poutine.trace(guide).get_trace(*args, **kwargs)
    reason = "the guide draws no site" if not latent else lacks_density(program.guide, trace, latent)
    reason = reason or masked_apart(program, values, args, trace)
    if reason:
        raise ValueError(f"correct='psis' weights draws by the guide's density, but {reason}")

    def weighed() -> tuple[poutine.Trace, Tensor, Tensor | None]:
        drawn = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        return drawn, *weigh(program, model, args, drawn)

    by_row = not judged and rows_are_cells(program, repeat(lambda: weighed()[1], _A_LOOK))

    def once() -> tuple[dict[str, Tensor], Tensor]:
        drawn, outside, rows = weighed()
        draws = {name: site["value"] for name, site in sample_sites(drawn).items()}
        return draws, rows.double() if by_row and rows is not None else total(outside, rows)

    if not by_row and not judged:
        _check("of all latents together", statistics.median(joint_khats(program, values, args, _WEIGHED)))
    draws, log_weights = repeat(once, max(_FEWEST, _PROPOSED * num_draws))
    if not by_row:
        chosen = _chosen(smooth(log_weights).log_weights, num_draws).to(log_weights.device)
        return {name: value[chosen] for name, value in draws.items()}
    chosen_by_row = []
    for i, row in enumerate(log_weights.unbind(-1)):
        smoothed, pareto_k = smooth(row)
        _check(f"of row {i}", pareto_k)
        chosen_by_row.append(_chosen(smoothed, num_draws))
    index = torch.stack(chosen_by_row, -1).to(log_weights.device)
    return {name: _of_rows(value, index, _row_dim(program, trace.nodes[name])) for name, value in draws.items()}


def _check(whose: str, pareto_k: float) -> None:
    if not pareto_k < USEFUL:
        raise ValueError(
            f"correct='psis': the weights {whose} have a Pareto k of {pareto_k:.2f}, and from {USEFUL} on they correct "
            "nothing: take the draws as they are, or fit a richer guide, such as 'full_rank' or 'flow'"
        )


def _chosen(log_weights: Tensor, num_draws: int) -> Tensor:
    """The numbers of the draws to keep, by systematic resampling, in random order."""
    places = (torch.arange(num_draws) + torch.rand(1)).double() / num_draws
    found = torch.searchsorted(log_weights.exp().cumsum(0), places).clamp(max=len(log_weights) - 1)
    return found[torch.randperm(num_draws)]


def _row_dim(program: Program, site: Site) -> int:
    """The dimension of a value that the rows index, from the right."""
    dim = program.row_dim(site["name"], site)
    assert dim is not None
    return dim - site["fn"].event_dim


def _of_rows(value: Tensor, index: Tensor, dim: int) -> Tensor:
    """Draws ``[M, ...]`` of which each row has its own, ``[S, N]``."""
    rows = value.movedim(dim, 1)
    chosen = rows[index, torch.arange(index.shape[1], device=index.device)]
    return chosen.movedim(1, dim)
