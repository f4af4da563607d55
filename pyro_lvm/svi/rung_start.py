"""Where a guide of the climb of "auto" starts: at the best of the places that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.batches import WholeData
from pyro_lvm.elbo import Trace_ELBO
from pyro_lvm.params import Values
from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.directions import wide_directions
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.nonfinite import FAILURES
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.rungs import Rung
from pyro_lvm.svi.task import Task, parted

_NOISE_DRAWS, _NOISE = 64, 0.25  # gradients that are looked at, and the variance that a step's may have
_PARTICLES = (4, 64)
_COMPARING_DRAWS, _CURVATURE_DRAWS = 200, 16


class Foothold(NamedTuple):
    """Where a guide can start: at a Gaussian, and unconstrained parameters of the model."""

    coordinates: Coordinates
    shared: dict[str, Tensor]


class Start(NamedTuple):
    """Unconstrained parameters of a guide and of the model, and the coordinates that the guide is moved in."""

    values: dict[str, Tensor]
    coordinates: Coordinates


def find_start(
    task: Task,
    objective: Objective,
    guide: AutoGuide,
    rung: Rung,
    footholds: list[Foothold],
    interrupted: Callable[[], bool],
) -> Start:
    """The start with the largest ELBO, also after some steps from each where the rung asks for them.

    Raises:
        ValueError: if a guide can start at none of them.
    """
    starts = _possible(objective, guide, rung, footholds)
    if rung.trial and len(starts) > 1:
        further = [_after_steps(task, objective, guide, rung, start, interrupted) for start in starts]
        starts = _possible(objective, guide, rung, footholds + further)
    compared = objective.with_elbo(Trace_ELBO(_COMPARING_DRAWS))
    losses = [_loss(task, compared, start.values) for start in starts]
    best = starts[losses.index(min(losses))]
    if rung.widens and not interrupted() and (wider := _widened(task, objective, guide, rung, best)) is not None:
        return wider if _loss(task, compared, wider.values) < min(losses) else best
    return best


def rung_loop(
    task: Task, objective: Objective, guide: AutoGuide, rung: Rung, values: dict[str, Tensor], num_particles: int
) -> EagerLoop:
    """Steps of all parameters but those that the rung holds."""
    held = {f"{guide._pyro_name}.{name}" for name in rung.held(parted(values, guide)[0])}
    moved = [i for i, name in enumerate(values) if name not in held]

    def optimizer(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam([params[i] for i in moved], rung.rates[0])

    noisy = objective.with_elbo(rung.elbo(num_particles))
    return EagerLoop(noisy, values, WholeData(task.data, None), task.data.num_rows, optimizer, None, None)


def enough_particles(objective: Objective, guide: AutoGuide, rung: Rung, start: Start) -> int:
    """The draws that bring the variance of a gradient, in coordinates, down to a quarter: 4 to 64, a power of two."""
    place, noisy = _place(guide, rung), objective.with_elbo(rung.elbo())
    loc, gradients = start.values[place].detach().requires_grad_(), list[Tensor]()
    least, most = _PARTICLES
    with randomness.seeded(0):
        for _ in range(_NOISE_DRAWS):
            try:
                loss = noisy({**start.values, place: loc}, objective.program.data.args)
                gradients.append(torch.autograd.grad(loss, loc)[0])
            except FAILURES:
                return most
    noise = start.coordinates.pulled(torch.stack(gradients).double()).var(0).mean().item()
    if not math.isfinite(noise):
        return most
    return min(most, max(least, 2 ** math.ceil(math.log2(max(1.0, noise / _NOISE)))))


def _possible(objective: Objective, guide: AutoGuide, rung: Rung, footholds: list[Foothold]) -> list[Start]:
    """The starts that are finite.

    Raises:
        ValueError: if there is none.
    """
    starts, failure = list[Start](), None
    for foothold in footholds:
        try:
            starts.append(_start(objective, guide, rung, foothold))
        except ValueError as error:
            failure = error
    if failure and not starts:
        raise failure
    return starts


def _start(objective: Objective, guide: AutoGuide, rung: Rung, foothold: Foothold) -> Start:
    parameters, at = objective.program.parameters, rung.frame(foothold.coordinates)
    own = {f"{guide._pyro_name}.{name}": value for name, value in rung.start(at).items()}
    return Start(parameters.start() | foothold.shared | parameters.unconstrained(own), at)


def _after_steps(
    task: Task, objective: Objective, guide: AutoGuide, rung: Rung, start: Start, interrupted: Callable[[], bool]
) -> Foothold:
    """Where some steps lead, or those before one that fails."""
    values = {name: value.clone() for name, value in start.values.items()}
    with randomness.seeded(task.seed), suppress(*FAILURES):
        rung_loop(task, objective, guide, rung, values, _PARTICLES[0]).run(0, rung.trial, interrupted)
    reached = {name: value.detach() for name, value in values.items()}  # moved where they are
    own, _ = parted(objective.program.parameters.constrained(reached), guide)
    return Foothold(rung.coordinates(own), parted(reached, guide)[1])


def _widened(task: Task, objective: Objective, guide: AutoGuide, rung: Rung, start: Start) -> Start | None:
    """With the directions in which the posterior, at draws of the guide, is the widest; None where they are unknown.

    The curvature is that by the place of all draws: its mean over the guide, which at the Gaussian with the largest
    ELBO is the precision (Opper and Archambeau 2009).
    """
    leaf = start.values[place := _place(guide, rung)].detach().requires_grad_()
    _, shared = parted(start.values, guide)
    try:
        with randomness.seeded(task.seed):
            expected = objective.with_elbo(Trace_ELBO(_CURVATURE_DRAWS))({**start.values, place: leaf}, task.data.args)
        (slope,) = torch.autograd.grad(expected, leaf, create_graph=True)
        wide = wide_directions(slope, leaf, start.coordinates.scale, task.seed)
        return _start(objective, guide, rung, Foothold(start.coordinates._replace(wide=wide), shared))
    except FAILURES:
        return None


def _place(guide: AutoGuide, rung: Rung) -> str:
    return f"{guide._pyro_name}.{rung.place}"


def _loss(task: Task, compared: Objective, values: Values) -> float:
    """Of common draws; infinite where it is not finite, or where the model raises."""
    with randomness.seeded(task.seed):
        try:
            found = compared.value(values, task.data.args)
        except FAILURES:
            return math.inf
    return found if math.isfinite(found) else math.inf
