"""``guide="auto"``: guides from the simplest to the richest, until the verdict on one is good."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm import randomness
from pyro_lvm.batches import WholeData
from pyro_lvm.data import Data, arguments_of
from pyro_lvm.elbo import Trace_ELBO
from pyro_lvm.guides import guided
from pyro_lvm.interrupts import interrupts
from pyro_lvm.modules import move, unchanged_if_it_fails
from pyro_lvm.params import Values
from pyro_lvm.svi.choice import choose_loop
from pyro_lvm.svi.climb import Climb, Step
from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.modes import MOST_NEWTON, Modes, find_modes
from pyro_lvm.svi.nonfinite import NonFiniteError
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.path import ParameterPath
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.rungs import Bent, FullRank, LowRank, MeanField, Rung
from pyro_lvm.svi.settle import Settled, settle
from pyro_lvm.verdict.judge import judge

_SHORT = 0.8  # of a posterior standard deviation: a guide that has less is bad
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


class _Foothold(NamedTuple):
    """Where a guide can start: at a Gaussian, and unconstrained parameters of the model."""

    coordinates: Coordinates
    shared: dict[str, Tensor]


class _Reached(NamedTuple):
    """What a guide has come to: the fit, whether its draws can be resampled, and where the next guide can start."""

    step: Step
    result: SVIResult
    resamples: bool
    foothold: _Foothold


def fit_auto(
    model: Callable,
    data: tuple[Any, ...],
    *,
    plate: str | None,
    rows: Sequence[int] | None,
    model_kwargs: Mapping[str, Any] | None,
    compile: bool | str,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
) -> SVIResult:
    """Fit by the first guide that is good, of those that are tried; see :func:`pyro_lvm.fit` for the arguments."""
    move([model], device)
    on_device = nullcontext() if device is None else torch.device(device)
    with randomness.one_at_a_time, randomness.seeded(seed), on_device, unchanged_if_it_fails(model):
        held = Data(arguments_of(model, data), rows, device)
        return climb(Task(model, held, plate, model_kwargs, compile, seed), progress)


def climb(task: Task, progress: bool) -> SVIResult:
    """Climb from a Laplace approximation to a mean-field guide, a full-rank one, and a flow, and take the first good.

    Every guide starts where the last came to. A guide that fails, or that the Laplace approximation rules out, is
    passed over; where none is good, that with the largest ELBO is taken.

    Args:
        task: What to fit.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: for a model that has no continuous latents to cover, or if every guide failed; it says why.
    """
    visible = guided(task.model, task.objective("mean_field").program.sites)
    began = time.perf_counter()
    modes = find_modes(task.objective, visible, task.seed)
    started = "start" if modes.found or not modes.num_starts else "failed"
    steps = [Step("laplace", started, seconds=time.perf_counter() - began, note=str(modes))]
    footholds = [_Foothold(modes.coordinates, {})]
    fitted = list[_Reached]()
    with interrupts() as interrupted, tqdm(disable=not progress, unit=" steps") as bar:
        for rung in _rungs(len(modes.coordinates.loc)):
            bar.set_description_str(rung.name)
            if reason := _ruled_out(rung, modes):
                steps.append(Step(rung.name, "skipped", note=reason))
                continue
            began = time.perf_counter()
            try:
                reached = _fitted(task, visible, rung, footholds, interrupted, bar.update)
            except (NonFiniteError, ValueError, torch.linalg.LinAlgError) as error:
                text = str(error).splitlines()[0]
                steps.append(Step(rung.name, "failed", seconds=time.perf_counter() - began, note=text))
                continue
            steps.append(replace(reached.step, seconds=time.perf_counter() - began))
            fitted.append(reached)
            footholds.append(reached.foothold)
            if reached.step.verdict == "good" or interrupted():
                break
    if not fitted:
        raise ValueError(f"guide='auto': no guide could be fitted: {'; '.join(map(str, steps))}")
    return _taken(fitted, steps, modes)


def _rungs(num_latents: int) -> list[Rung]:
    return [MeanField(), FullRank(), Bent()] if num_latents <= MOST_NEWTON else [MeanField(), LowRank()]


def _ruled_out(rung: Rung, modes: Modes) -> str:
    """Why a guide is not worth fitting; empty if it is."""
    if not isinstance(rung, MeanField) or not modes.found:
        return ""
    precision = modes.found[0].precision
    ratio = (precision.diagonal() * torch.linalg.inv(precision).diagonal()).rsqrt().min().item()
    return f"by the Laplace approximation a standard deviation would be {1 - ratio:.0%} short" if ratio < _SHORT else ""


def _fitted(
    task: Task,
    visible: Callable,
    rung: Rung,
    footholds: list[_Foothold],
    interrupted: Callable[[], bool],
    told: Callable[[int], object],
) -> _Reached:
    """Fit one guide from the best of some footholds, and judge it.

    Raises:
        NonFiniteError: at a loss or gradient that is not finite, before anything was reached.
    """
    guide = rung.guide(visible)
    objective = task.objective(guide)
    parameters, prefix = objective.program.parameters, f"{guide._pyro_name}."

    def start(foothold: _Foothold) -> dict[str, Tensor]:
        own = {prefix + name: value for name, value in rung.start(rung.frame(foothold.coordinates)).items()}
        return parameters.start() | foothold.shared | parameters.unconstrained(own)

    def loss(foothold: _Foothold) -> float:
        with randomness.seeded(task.seed):
            found = objective.with_elbo(Trace_ELBO(_COMPARING_DRAWS)).value(start(foothold), task.data.args)
        return found if math.isfinite(found) else math.inf

    best = min(footholds, key=loss)
    values, frame = start(best), rung.frame(best.coordinates)
    held = {prefix + name for name in rung.held(n.removeprefix(prefix) for n in values if n.startswith(prefix))}
    num_particles = _num_particles(objective, values, prefix + rung.place, frame)
    objective = objective.with_elbo(Trace_ELBO(num_particles))
    moved = [i for i, name in enumerate(values) if name not in held]
    loop = EagerLoop(
        objective,
        values,
        WholeData(task.data, None),
        task.data.num_rows,
        lambda params: torch.optim.Adam([params[i] for i in moved], rung.rates[0]),
        None,
        None,
    )
    with randomness.seeded(task.seed):
        chosen = choose_loop(loop, task.compile, _TYPICAL_STEPS, task.seed, watched=False)
        settled = settle(chosen, rung.rates, rung.length, task.seed, interrupted, told)
    own = {
        name.removeprefix(prefix): value
        for name, value in parameters.constrained(settled.values).items()
        if name.startswith(prefix)
    }
    shared = {name: value for name, value in settled.values.items() if not name.startswith(prefix)}
    result = _result(task, visible, rung, rung.finish(guide, own), shared, settled, chosen.compiled)
    verdict = judge(result, _JUDGED_DRAWS, task.seed, resamples=True)
    step = Step(
        rung.name,
        verdict.grade,
        verdict.khat.value,
        settled.elbo,
        len(settled.losses),
        num_particles,
        note=settled.note,
        epochs=tuple(settled.epochs),
    )
    resamples = verdict.khat.useful and verdict.drawn.own is None  # else the weights are not those of all latents
    return _Reached(step, result, resamples, _Foothold(rung.coordinates(own), shared))


def _num_particles(objective: Objective, values: Values, place: str, at: Coordinates) -> int:
    """The draws that bring the variance of a gradient, in coordinates, down to a quarter: 4 to 64, a power of two."""
    loc, gradients = values[place].detach().requires_grad_(), list[Tensor]()
    with randomness.seeded(0):
        for _ in range(_NOISE_DRAWS):
            loss = objective({**values, place: loc}, objective.program.data.args)
            gradients.append(torch.autograd.grad(loss, loc)[0])
    noise = (torch.stack(gradients).double() @ at.root).var(0).mean().item()
    least, most = _PARTICLES
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


def _taken(fitted: list[_Reached], steps: list[Step], modes: Modes) -> SVIResult:
    """The last, if it is good, else that with the largest ELBO."""
    last = fitted[-1]
    finite = [reached for reached in fitted if math.isfinite(reached.step.elbo.value)]
    best = max(finite or fitted, key=lambda reached: reached.step.elbo.value)
    taken = last if last.step.verdict == "good" else best
    result = taken.result
    result.climb = Climb(tuple(steps), taken.step.guide, taken.resamples, modes.elsewhere)
    result.seconds = sum(step.seconds for step in steps)
    result._program.parameters.write(result._values)
    return result
