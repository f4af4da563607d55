"""The parameters of a fit by EM, which stand beside the latents: points, or draws of the bootstrap."""

from __future__ import annotations

from collections.abc import Collection

from pyro_lvm.em.program import POINT
from pyro_lvm.em.result import EMResult
from pyro_lvm.result import Draws, Result


def sites_at_points(result: Result) -> set[str]:
    """The sites of the model that are parameters with a prior."""
    return {name.removeprefix(POINT) for name in result._values if name.startswith(POINT)}


def own_names(result: Result, sites: Collection[str]) -> list[str]:
    """The parameters of a fit by EM, but those that are sites; none where the fit is not by EM.

    Raises:
        ValueError: for a parameter that is called like another site, for both would be one variable.
    """
    if not isinstance(result, EMResult):
        return []
    names = [name for name in result.params if name not in sites_at_points(result)]
    if both := [name for name in names if name in sites]:
        raise ValueError(
            f"{both[0]!r} is the name of a parameter and of a site, and ArviZ would keep one of them only: give one "
            "another name"
        )
    return names


def parameter_draws(result: Result, names: Collection[str], num_draws: int, params: Draws | None) -> Draws:
    """Parameters of each draw, ``[S, ...]``.

    Args:
        result: The fit.
        names: Which parameters.
        num_draws: S.
        params: Those of each draw, ``[S, ...]``; the fitted ones for all, if None.
    """
    if params is not None:
        return {name: params[name] for name in names}
    return {name: result.params[name].expand(num_draws, *result.params[name].shape) for name in names}
