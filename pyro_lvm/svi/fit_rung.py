"""One guide of the climb of "auto": fitted from where others came to, and judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pyro_lvm import randomness
from pyro_lvm.params import Values
from pyro_lvm.svi.choice import choose_loop
from pyro_lvm.svi.climb import Step
from pyro_lvm.svi.nonfinite import FAILURES
from pyro_lvm.svi.path import ParameterPath
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.rung_start import Foothold, enough_particles, find_start, rung_loop
from pyro_lvm.svi.rungs import Bent, Rung
from pyro_lvm.svi.settle import Settled, settle
from pyro_lvm.svi.task import Task, parted
from pyro_lvm.tracing import first_line
from pyro_lvm.verdict.judge import judge, lacks_posterior

_TYPICAL_STEPS = 10_000  # by which compiling pays or not
_JUDGED_DRAWS = 10_000


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
    start = find_start(task, objective, guide, rung, footholds, interrupted)
    num_particles = enough_particles(objective, guide, rung, start)
    loop = rung_loop(task, objective, guide, rung, start.values, num_particles)
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
