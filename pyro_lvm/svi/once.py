"""One fit, from its arguments to its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from pyro_lvm import files, randomness
from pyro_lvm.batches import Batches, LoaderRows, ShuffledRows, WholeData
from pyro_lvm.checkpoint import Checkpoint, name_of
from pyro_lvm.data import Data, arguments_of, as_arguments, check_num_rows, converts
from pyro_lvm.guides import FlowGuide
from pyro_lvm.modules import move, unchanged_if_it_fails
from pyro_lvm.program import Program
from pyro_lvm.sites import median_or_feasible
from pyro_lvm.svi.best import Best
from pyro_lvm.svi.choice import choose_loop
from pyro_lvm.svi.gaussian_start import fitted_gaussian
from pyro_lvm.svi.initial import initial_values
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.run import STATE, Run, was_compiled
from pyro_lvm.svi.stopping import FitState


def fit_once(
    model: Callable,
    guide: Any,
    data: tuple[Any, ...],
    *,
    num_steps: int,
    elbo: ELBO | None,
    optim: Any,
    scheduler: Callable | None,
    clip: float | None,
    batch_size: int | None,
    plate: str | None,
    rows: Sequence[int] | None,
    num_rows: int | None,
    sample_weight: Any,
    model_kwargs: Mapping[str, Any] | None,
    compile: bool | str,
    callbacks: Sequence[Callable[[FitState], Any]],
    every: int,
    validation: Any,
    checkpoint: files.FilePath | None,
    init: Any,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
    init_loc_fn: Callable = median_or_feasible,
) -> SVIResult:
    """Fit a model and a guide once; see :func:`pyro_lvm.fit`, which has checked what is plain.

    Args: as there, and
        init_loc_fn: Where a guide by name starts, as for Pyro's guides.
    """
    path = None if checkpoint is None else files.check_writable(checkpoint, "checkpoint")
    objective = Objective(model, guide, elbo, plate=plate, model_kwargs=model_kwargs, init_loc_fn=init_loc_fn)
    loader = LoaderRows(data[0], device, model) if len(data) == 1 and isinstance(data[0], DataLoader) else None
    generators = [] if loader is None else loader.generators
    move([model, guide], device)
    on_device = nullcontext() if device is None else torch.device(device)
    with randomness.one_at_a_time, randomness.seeded(seed, generators), on_device, unchanged_if_it_fails(model, guide):
        if loader is None:
            tensors = Data(arguments_of(model, data), rows, device)
            check_num_rows(num_rows, tensors.num_rows)
            total = num_rows or tensors.num_rows
        else:
            _check_loader(batch_size=batch_size, rows=rows, sample_weight=sample_weight)
            tensors = Data(loader.first())
            tensors.complete = False
            total = num_rows or loader.num_rows
        example = tensors.args if batch_size is None else tensors.take(slice(0, batch_size))
        batch_rows = batch_size or tensors.num_rows
        objective.prepare(tensors, example, weighted=sample_weight is not None)
        program = objective.program
        weight = objective.check_weight(sample_weight, tensors.num_rows)
        if loader is not None or batch_size is not None:
            _check_batches(batch_size, total)
            objective.check_minibatches(scaled=total != batch_rows)
        batches: Batches
        if loader is not None:
            batches = loader
        elif batch_size is not None:
            batches = ShuffledRows(tensors, weight, batch_size, seed)
        else:
            batches = WholeData(tensors, weight)
        held_out = _validation(program, validation, rows, device)
        initial = initial_values(program, init)
        start = program.parameters.start() | initial
        objective.check_start(start, program.example)
        best = gaussian = None
        half = -(-num_steps // 2)
        if isinstance(program.guide, FlowGuide):
            best = Best(objective, tensors, weight, total, seed)
            if init is None and not program.guide.fitted and (path is None or not path.exists()):
                options = (batches, total, optim, clip, compile, half, seed, progress)
                values, gaussian = fitted_gaussian(objective, program.guide, example, *options)
                start |= values
        loop = EagerLoop(objective, start, batches, total, optim, scheduler, clip)
        kept = None
        if path is not None:
            what: dict[str, Any] = {
                "model": name_of(model),
                "guide": name_of(program.guide),
                "elbo": objective.elbo,
                "optim": [loop.optimizer, _groups(loop.optimizer), getattr(optim, "pt_clip_args", None)],
                "scheduler": loop.scheduler,
                "data": tensors.args,
                "loader": None if loader is None else f"{total} rows",
                "sample_weight": weight,
                "validation": held_out,
                "init": initial,
                "shapes": {name: list(v.shape) for name, v in start.items()},
                "model_kwargs": model_kwargs or {},
                "compile": compile,
            }
            what |= {"num_steps": num_steps, "batch_size": batch_size, "clip": clip, "every": every}
            what |= {"plate": plate, "rows": rows, "num_rows": num_rows, "seed": seed, "device": device}
            kept = Checkpoint(path, what, STATE)
        began = time.perf_counter()
        recorded = None if kept is None or kept.state is None else was_compiled(kept.state)
        chosen = choose_loop(loop, compile, num_steps, seed, watched=bool(callbacks or scheduler), recorded=recorded)
        run = Run(objective, chosen, held_out, num_steps, every, list(callbacks), kept, seed, best)
        run.seconds = time.perf_counter() - began
        if gaussian is not None:
            run.seconds += gaussian.seconds
            run.finished = gaussian.num_steps < half  # by Ctrl-C
        result = run.finish(progress)
        if isinstance(program.guide, FlowGuide):
            program.guide.fitted = True
        return result


def _check_batches(batch_size: int | None, num_rows: int | None) -> None:
    if num_rows is None:
        raise ValueError("batch_size was given, but the data has no rows")
    if batch_size is not None and batch_size > num_rows:
        raise ValueError(f"batch_size={batch_size} exceeds the number of rows, {num_rows}")


def _check_loader(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} cannot be given with a DataLoader, which makes the batches itself")


def _validation(program: Program, validation: Any, rows: Any, device: Any) -> tuple[Any, ...] | None:
    if validation is None:
        return None
    given = arguments_of(program.model, as_arguments(validation))
    if len(given) != len(program.data.args):
        raise ValueError(f"validation has {len(given)} arguments, but the model was given {len(program.data.args)}")
    if program.covers_fitted_rows_only:
        raise ValueError(
            f"validation rows have latents {list(program.sites.local_latent)} of their own, which this guide does not "
            "know: it needs an amortized guide, a function of the rows"
        )
    held_out = Data(given, rows, device, what="validation").args
    program.check_dtypes(held_out)
    known = () if converts(program.model) else zip(held_out, program.data.args, program.data.has_rows, strict=True)
    for i, (new, old, has) in enumerate(known):
        if isinstance(new, Tensor) and isinstance(old, Tensor) and new.shape[has:] != old.shape[has:]:
            raise ValueError(f"validation argument {i} has shape {list(new.shape)}, in the fit {list(old.shape)}")
    return held_out


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group, with shapes in place of the parameters."""
    return [group | {"params": [list(p.shape) for p in group["params"]]} for group in optimizer.param_groups]
