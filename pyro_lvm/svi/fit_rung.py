"""One guide of the climb of "auto": fitted from where others came to, and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.batches import WholeData
from pyro_lvm.data import Data
from pyro_lvm.elbo import Trace_ELBO
from pyro_lvm.params import Values
from pyro_lvm.svi.choice import choose_loop
from pyro_lvm.svi.climb import Step
from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.nonfinite import FAILURES
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.path import ParameterPath
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.rungs import Bent, Rung
from pyro_lvm.svi.settle import Settled, settle
from pyro_lvm.tracing import first_line
from pyro_lvm.verdict.judge import judge, lacks_posterior

_NOISE_DRAWS, _NOISE = 64, 0.25  # gradients that are looked at, and the variance that a step's may have
_PARTICLES = (4, 64)
_TYPICAL_STEPS = 10_000  # by which compiling pays or not
_COMPARING_DRAWS, _JUDGED_DRAWS = 200, 10_000


class Task(NamedTuple):
    """What is to be fitted, and how.

    Attributes:
        model: The model.
        data: All of it.
        plate: See :func:`pyro_lvm.fit`.
        model_kwargs: See :func:`pyro_lvm.fit`.
        compile: See :func:`pyro_lvm.fit`.
        seed: Of every random choice.
    """

    model: Callable
    data: Data
    plate: str | None
    model_kwargs: Mapping[str, Any] | None
    compile: bool | str
    seed: int

    def objective(self, guide: Any, num_particles: int = 1) -> Objective:
        """Made ready for a guide."""
        elbo = Trace_ELBO(num_particles)
        made = Objective(self.model, guide, elbo, plate=self.plate, model_kwargs=self.model_kwargs)
        made.prepare(self.data)
        return made


class Foothold(NamedTuple):
    """Where a guide can start: at a Gaussian, and unconstrained parameters of the model."""

    coordinates: Coordinates
    shared: dict[str, Tensor]


class Reached(NamedTuple):
    """What a guide has come to: the fit, whether its draws can be resampled, and where the next guide can start."""

    step: Step
    result: SVIResult
    resamples: bool
    foothold: Foothold


def fit_rung(
    task: Task,
    visible: Callable,
    rung: Rung,
    footholds: list[Foothold],
    interrupted: Callable[[], bool],
    told: Callable[[int], object],
) -> Reached:
    """Fit one guide from the best of some footholds, and judge it.

    Raises:
        NonFiniteError: at a loss or gradient that is not finite, before anything was reached; likewise whatever else
            the model raises.
    """
    guide = rung.guide(visible)
    objective = task.objective(guide)
    best = min(footholds, key=lambda foothold: _loss(task, objective, _start(objective, guide, rung, foothold)))
    values = _start(objective, guide, rung, best)
    place = f"{guide._pyro_name}.{rung.place}"
    num_particles = _num_particles(objective, values, place, rung.frame(best.coordinates))
    loop = _loop(task, objective.with_elbo(Trace_ELBO(num_particles)), guide, rung, values)
    with randomness.seeded(task.seed):
        chosen = choose_loop(loop, task.compile, _TYPICAL_STEPS, task.seed, watched=False)
        settled = settle(chosen, rung.rates, rung.length, task.seed, interrupted, told)
    own, _ = parted(objective.program.parameters.constrained(settled.values), guide)
    _, shared = parted(settled.values, guide)
    result = _result(task, visible, rung, rung.finish(guide, own), shared, settled, chosen.compiled)
    grade, khat, resamples, note = _judged(result, task.seed)
    step = Step(
        rung.name,
        grade,
        khat,
        settled.elbo,
        len(settled.losses),
        num_particles,
        note="; ".join(filter(None, [settled.note, note])),
        epochs=tuple(settled.epochs),
    )
    return Reached(step, result, resamples, Foothold(rung.coordinates(own), shared))


def _start(objective: Objective, guide: AutoGuide, rung: Rung, foothold: Foothold) -> dict[str, Tensor]:
    """Unconstrained parameters of the guide, and of the model, at a foothold."""
    parameters = objective.program.parameters
    own = {f"{guide._pyro_name}.{n}": value for n, value in rung.start(rung.frame(foothold.coordinates)).items()}
    return parameters.start() | foothold.shared | parameters.unconstrained(own)


def _loss(task: Task, objective: Objective, values: Values) -> float:
    """Of common draws; infinite where it is not finite, or where the model raises."""
    with randomness.seeded(task.seed):
        try:
            found = objective.with_elbo(Trace_ELBO(_COMPARING_DRAWS)).value(values, task.data.args)
        except FAILURES:
            return math.inf
    return found if math.isfinite(found) else math.inf


def _loop(task: Task, objective: Objective, guide: AutoGuide, rung: Rung, values: dict[str, Tensor]) -> EagerLoop:
    """Steps of all parameters but those that the rung holds."""
    held = {f"{guide._pyro_name}.{name}" for name in rung.held(parted(values, guide)[0])}
    moved = [i for i, name in enumerate(values) if name not in held]

    def optimizer(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam([params[i] for i in moved], rung.rates[0])

    return EagerLoop(objective, values, WholeData(task.data, None), task.data.num_rows, optimizer, None, None)


def parted(values: Values, guide: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The guide's own, by its own names, and the model's."""
    prefix = f"{guide._pyro_name}."
    own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return own, {name: value for name, value in values.items() if not name.startswith(prefix)}


def _judged(result: SVIResult, seed: int) -> tuple[str, float, bool, str]:
    """The verdict, the Pareto k, whether draws can be resampled, and why there is no verdict."""
    if reason := lacks_posterior(result):
        return "not available", math.nan, False, reason
    try:
        verdict = judge(result, _JUDGED_DRAWS, seed, resamples=True)
    except FAILURES as error:
        return "unknown", math.nan, False, f"it cannot be judged: {first_line(error)}"
    resamples = verdict.khat.useful and verdict.drawn.own is None  # else the weights are not those of all latents
    return verdict.grade, verdict.khat.value, resamples, ""


def _num_particles(objective: Objective, values: Values, place: str, at: Coordinates) -> int:
    """The draws that bring the variance of a gradient, in coordinates, down to a quarter: 4 to 64, a power of two."""
    loc, gradients = values[place].detach().requires_grad_(), list[Tensor]()
    least, most = _PARTICLES
    with randomness.seeded(0):
        for _ in range(_NOISE_DRAWS):
            try:
                loss = objective({**values, place: loc}, objective.program.data.args)
            except FAILURES:
                return most
            gradients.append(torch.autograd.grad(loss, loc)[0])
    noise = (torch.stack(gradients).double() @ at.root).var(0).mean().item()
    if not math.isfinite(noise):
        return most
    return min(most, max(least, 2 ** math.ceil(math.log2(max(1.0, noise / _NOISE)))))


def _result(
    task: Task, visible: Callable, rung: Rung, params: Values, shared: Values, settled: Settled, compiled: bool
) -> SVIResult:
    """The fit of the guide by its name."""
    guide: Any = rung.guide(visible) if isinstance(rung, Bent) else rung.name
    program = task.objective(guide).program
    prefix = program.guide._pyro_name  # type: ignore[attr-defined]
    own = {f"{prefix}.{name}": value for name, value in params.items()}
    values = {**program.parameters.start(), **shared, **program.parameters.unconstrained(own)}
    return SVIResult(
        program,
        values,
        losses=settled.losses,
        target="ELBO",
        path=ParameterPath(1, 1),
        validation={},
        seconds=0.0,
        seed=task.seed,
        compiled=compiled,
    )
