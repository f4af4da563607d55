"""``guide="auto"``: guides from the simplest to the richest, until the verdict on one is good."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pyro_lvm import randomness
from pyro_lvm.data import Data, arguments_of
from pyro_lvm.guides import guided
from pyro_lvm.interrupts import interrupts
from pyro_lvm.modules import move, unchanged_if_it_fails
from pyro_lvm.program import Program
from pyro_lvm.sites import prior_trace, refuse_random_rows, sample_sites
from pyro_lvm.svi.climb import Climb, Step
from pyro_lvm.svi.fit_rung import Reached, fit_rung
from pyro_lvm.svi.modes import MOST_NEWTON, Modes, find_modes
from pyro_lvm.svi.nonfinite import FAILURES
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.rung_start import Foothold
from pyro_lvm.svi.rungs import Bent, FullRank, LowRank, MeanField, Rung
from pyro_lvm.svi.task import Task, parted
from pyro_lvm.tracing import first_line

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
    if len(data) == 1 and isinstance(data[0], DataLoader):
        raise TypeError("guide='auto' takes all rows in every step: pass them as tensors, and no DataLoader")
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
    program = task.objective("mean_field").program
    _refuse_own_rows(program)
    visible = guided(task.model, program.sites)
    learns = bool(parted(program.parameters.start(), program.guide)[1])
    steps, fitted = list[Step](), list[Reached]()
    with interrupts() as interrupted, tqdm(disable=not progress, unit=" steps") as bar:
        bar.set_description_str("laplace")
        began = time.perf_counter()
        modes = find_modes(task.objective, visible, task.seed, interrupted)
        started = "start" if modes.found or not modes.num_starts else "failed"
        steps.append(Step("laplace", started, seconds=time.perf_counter() - began, note=str(modes)))
        footholds = [Foothold(place, {}) for place in modes.places]
        for rung in _rungs(len(modes.places[0].loc)):
            bar.set_description_str(rung.name)
            if not learns and (reason := _ruled_out(rung, modes)):
                steps.append(Step(rung.name, "skipped", note=reason))
                continue
            began = time.perf_counter()
            try:
                reached = fit_rung(task, visible, rung, footholds, interrupted, bar.update)
            except FAILURES as error:
                steps.append(Step(rung.name, "failed", seconds=time.perf_counter() - began, note=first_line(error)))
                continue
            steps.append(replace(reached.step, seconds=time.perf_counter() - began))
            fitted.append(reached)
            footholds.append(reached.foothold)
            if reached.step.verdict == "good" or interrupted():
                break
    if not fitted:
        raise ValueError(f"guide='auto': no guide could be fitted: {'; '.join(map(str, steps))}")
    return _taken(fitted, steps, math.nan if learns else modes.elsewhere)


def _refuse_own_rows(program: Program) -> None:
    """Refuse models that take a random part of their rows, which no two runs would agree on.

    Raises:
        ValueError: if a plate is smaller than the size it claims.
    """
    model = program.bind(program.parameters.start(), program.model)
    try:
        run = prior_trace(model, *program.example, **program.model_kwargs)
    except RuntimeError:  # of this draw
        return
    refuse_random_rows(sample_sites(run))


def _rungs(num_latents: int) -> list[Rung]:
    return [MeanField(), FullRank(), Bent()] if num_latents <= MOST_NEWTON else [MeanField(), LowRank()]


def _ruled_out(rung: Rung, modes: Modes) -> str:
    """Why a guide is not worth fitting; empty if it is."""
    if not isinstance(rung, MeanField) or not modes.found:
        return ""
    precision = modes.found[0].precision
    ratio = (precision.diagonal() * torch.linalg.inv(precision).diagonal()).rsqrt().min().item()
    return f"by the Laplace approximation a standard deviation would be {1 - ratio:.0%} short" if ratio < _SHORT else ""


def _taken(fitted: list[Reached], steps: list[Step], other_modes: float) -> SVIResult:
    """The last, if it is good, else that with the largest ELBO."""
    last = fitted[-1]
    finite = [reached for reached in fitted if math.isfinite(reached.step.elbo.value)]
    best = max(finite or fitted, key=lambda reached: reached.step.elbo.value)
    taken = last if last.step.verdict == "good" else best
    result = taken.result
    result.climb = Climb(tuple(steps), taken.step.guide, taken.resamples, other_modes)
    result.seconds = sum(step.seconds for step in steps)
    result._program.parameters.write(result._values)
    return result
