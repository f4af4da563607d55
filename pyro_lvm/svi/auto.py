"""``guide="auto"``: guides from the simplest to the richest, until the verdict on one is good."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from pyro_lvm import randomness
from pyro_lvm.data import Data, arguments_of
from pyro_lvm.guides import guided
from pyro_lvm.interrupts import interrupts
from pyro_lvm.modules import move, unchanged_if_it_fails
from pyro_lvm.svi.climb import Climb, Step
from pyro_lvm.svi.fit_rung import Foothold, Reached, Task, fit_rung
from pyro_lvm.svi.modes import MOST_NEWTON, Modes, find_modes
from pyro_lvm.svi.nonfinite import NonFiniteError
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.rungs import Bent, FullRank, LowRank, MeanField, Rung

_SHORT = 0.8  # of a posterior standard deviation: a guide that has less is bad


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
    footholds = [Foothold(modes.coordinates, {})]
    fitted = list[Reached]()
    with interrupts() as interrupted, tqdm(disable=not progress, unit=" steps") as bar:
        for rung in _rungs(len(modes.coordinates.loc)):
            bar.set_description_str(rung.name)
            if reason := _ruled_out(rung, modes):
                steps.append(Step(rung.name, "skipped", note=reason))
                continue
            began = time.perf_counter()
            try:
                reached = fit_rung(task, visible, rung, footholds, interrupted, bar.update)
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


def _taken(fitted: list[Reached], steps: list[Step], modes: Modes) -> SVIResult:
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
