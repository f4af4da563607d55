"""Latents that a guide has at a point, though they have a distribution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.importance import latents_of_prior
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import Site, lacks_prior
from pyro_lvm.vectorize import repeat

_NUM_PRIOR = 10
_ROUNDING = 8  # units in the last place by which constant numbers may vary


def never_vary(draws: Draws) -> np.ndarray:
    """Whether numbers are the same in all draws, up to rounding, ``[P]``.

    Args:
        draws: ``[S, ...]`` each.
    """
    return np.concatenate([_constant(value).reshape(-1).cpu().numpy() for value in draws.values()])


def collapsed(result: Result, draws: Draws, seed: int) -> dict[str, Tensor]:
    """Which numbers of continuous latents are the same in all draws of the guide, but not in those of the prior.

    Some numbers are the same in every draw by their support, such as the corner of a correlation's root.

    Args:
        result: The fit.
        draws: Of latents, ``[S, ...]`` each.
        seed: Of the draws of the prior.

    Returns:
        For each site that has any, whether each number is one, ``[...]``.
    """
    constant = {name: _constant(value) for name, value in draws.items() if len(value) > 1 and _constant(value).any()}
    if not constant:
        return {}
    program, args = result._program, result._arguments(())

    def prior() -> dict[str, Site]:
        return latents_of_prior(program, result.model, args).nodes

    with result._quiet(seed):
        sites = prior()
        drawn = repeat(lambda: {name: prior()[name]["value"] for name in constant}, _NUM_PRIOR)
    found = {}
    for name, still in constant.items():
        varies = ~_constant(drawn[name]) | bool(lacks_prior({name: sites[name]}))
        found[name] = still & varies & (not sites[name]["fn"].support.is_discrete)
    return {name: at_a_point for name, at_a_point in found.items() if at_a_point.any()}


def _constant(draws: Tensor) -> Tensor:
    unit = torch.finfo(draws.dtype).eps if draws.is_floating_point() else 0.0
    return draws.amax(0) - draws.amin(0) <= _ROUNDING * unit * draws.abs().amax(0)
