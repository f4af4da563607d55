"""The modes of a posterior that Newton steps from several starts come to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from pyro_lvm.sites import median_or_feasible
from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.laplace import Mode, find_mode
from pyro_lvm.svi.low_point import descend, deviations
from pyro_lvm.svi.objective import Objective

MOST_NEWTON = 1_000
"""Latent numbers, of which a matrix can still be decomposed at each step."""

_NUM_STARTS, _MOST_STARTED = 8, 100  # and the latent numbers up to which there are several
_RANGE = 2.0  # of the starts, about zero in unconstrained space
_NAMED_SCALE = 0.1  # of guides by name
_SAME = 0.3  # standard deviations between points that are the same mode


class Modes(NamedTuple):
    """Where the posterior has maxima.

    Attributes:
        found: The modes, that with the largest mass first; none if there was none, or too many latents to tell.
        places: Where guides can start. About the first mode; if there is none, about the medians of the prior. With too
            many latents to tell, about a low point, which may be far from most of the mass, and as guides by name do.
        num_starts: How often a search was begun; 0 if there are too many latents.
        num_reached: How many of them came to the first mode.
    """

    found: list[Mode]
    places: list[Coordinates]
    num_starts: int
    num_reached: int

    @property
    def elsewhere(self) -> float:
        """The share of the posterior's mass that Laplace approximations give to other modes than the first."""
        masses = torch.tensor([mode.log_mass for mode in self.found], dtype=torch.float64)
        return 1 - masses.softmax(0)[0].item() if len(masses) else 0.0

    def __str__(self) -> str:
        if not self.num_starts:
            return "more latents than can be looked through for modes: a low point, and where guides by name start"
        if not self.found:
            return f"no maximum was found from {self.num_starts} starts"
        told = f"{self.num_reached} of {self.num_starts} starts came to the mode taken"
        others = len(self.found) - 1
        if others:
            told += f", which has {1 - self.elsewhere:.0%} of the mass of {others + 1} modes"
        return told


def find_modes(
    prepare: Callable[[AutoLaplaceApproximation], Objective],
    model: Callable,
    seed: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> Modes:
    """Look for the modes of a model's latents in unconstrained space, its parameters as they are.

    One search starts at the medians of the prior, seven of at most 100 latents anywhere between -2 and 2. Of more than
    1,000 latents L-BFGS looks for a low point, with scales by random signs.

    Args:
        prepare: Makes the objective of a guide ready.
        model: Without enumerated sites.
        seed: Of the starts.
        interrupted: Whether to stop between two starts.
    """
    guide = AutoLaplaceApproximation(model, init_loc_fn=median_or_feasible)
    objective = prepare(guide)
    program = objective.program
    params = program.parameters.start()
    name = f"{guide._pyro_name}.loc"

    def loss(loc: Tensor) -> Tensor:
        with pyro.validation_enabled(False):  # where a scale has become zero, the loss is not finite
            return objective(params | {name: loc}, program.data.args)

    middle = params[name]
    size = len(middle)
    if size > MOST_NEWTON:
        low = descend(loss, middle, deviations(loss, middle, seed))
        named = Coordinates(middle, torch.full_like(middle, _NAMED_SCALE))
        return Modes([], [Coordinates(low, deviations(loss, low, seed)), named], 0, 0)
    generator = torch.Generator().manual_seed(seed)
    others = (
        torch.rand(_NUM_STARTS - 1, size, generator=generator, dtype=torch.float64, device="cpu") * 2 - 1
    ) * _RANGE
    starts = [middle, *others.to(middle).unbind()] if size <= _MOST_STARTED else [middle]
    found, num_starts = list[Mode](), 0
    for start in starts:
        if num_starts and interrupted():
            break
        num_starts += 1
        if (mode := find_mode(loss, start)) is not None:
            found.append(mode)
    found.sort(key=lambda mode: -mode.log_mass)
    distinct = list[Mode]()
    for mode in found:
        if all(other.distance(mode.loc) > _SAME for other in distinct):
            distinct.append(mode)
    reached = sum(distinct[0].distance(mode.loc) <= _SAME for mode in found) if distinct else 0
    place = distinct[0].coordinates() if distinct else Coordinates(middle, torch.ones_like(middle))
    return Modes(distinct, [place], num_starts, reached)
