"""The parameters of a fit by EM, which stand beside the latents: points, or draws of the bootstrap."""

from __future__ import annotations

from collections.abc import Collection

from pyro_lvm.em.program import POINT
from pyro_lvm.em.result import EMResult
from pyro_lvm.result import Draws, Result


def sites_at_points(result: Result) -> set[str]:
    """The sites of the model that are parameters with a prior."""
    return {name.removeprefix(POINT) for name in result._values if name.startswith(POINT)}


def parameter_draws(result: Result, sites: Collection[str], num_draws: int, params: Draws | None) -> Draws:
    """The parameters of each draw, ``[S, ...]``, but those that are sites; none where the fit is not by EM.

    Args:
        result: The fit.
        sites: The names of the model's sites.
        num_draws: S.
        params: Those of each draw, ``[S, ...]``; the fitted ones for all, if None.

    Raises:
        ValueError: for a parameter that is called like another site, for both would be one variable.
    """
    if not isinstance(result, EMResult):
        return {}
    names = set(result.params) - sites_at_points(result)
    if both := sorted(names & set(sites)):
        raise ValueError(
            f"{both[0]!r} is the name of a parameter and of a site, and ArviZ would keep one of them only: give one "
            "another name"
        )
    if params is not None:
        return {name: value for name, value in params.items() if name in names}
    return {name: v.expand(num_draws, *v.shape) for name, v in result.params.items() if name in names}
