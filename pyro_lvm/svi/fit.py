"""``fit``: stochastic variational inference from a model, a guide and data to a result."""

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
from pyro_lvm.checks import check_callbacks, check_count, check_device, check_seed
from pyro_lvm.data import Data, arguments_of, as_arguments, check_num_rows, converts
from pyro_lvm.guides import FlowGuide
from pyro_lvm.modules import move, unchanged_if_it_fails
from pyro_lvm.program import Program
from pyro_lvm.result import Result
from pyro_lvm.svi.auto import Task, fit_auto
from pyro_lvm.svi.best import Best
from pyro_lvm.svi.choice import choose_loop
from pyro_lvm.svi.gaussian_start import fitted_gaussian
from pyro_lvm.svi.initial import initial_values
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.run import STATE, Run, was_compiled
from pyro_lvm.svi.stopping import FitState


def fit(
    model: Callable,
    guide: Any,
    *data: Any,
    num_steps: int = 2_000,
    elbo: ELBO | None = None,
    optim: Any = 1e-2,
    scheduler: Callable | None = None,
    clip: float | None = None,
    batch_size: int | None = None,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    num_rows: int | None = None,
    sample_weight: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    compile: bool | str = "auto",
    callbacks: Sequence[Callable[[FitState], Any]] = (),
    every: int = 100,
    validation: Any = None,
    checkpoint: files.FilePath | None = None,
    init: Result | Mapping[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SVIResult:
    """Fit a model and a guide by stochastic variational inference (Hoffman et al. 2013; Ranganath et al. 2014).

    Args:
        model: A Pyro model: a function, a ``PyroModule``, or a bound method.
        guide: A callable, an AutoGuide, one of "mean_field", "full_rank", "low_rank", "flow", "map", or None for
            ``model.guide`` if there is one, else for models whose latents are all enumerated. A
            :class:`~pyro_lvm.guides.FlowGuide` is fitted after its Gaussian, which takes half as many steps more.
        data: Arguments of model and guide: tensors, arrays, data frames, lists of numbers, or one ``DataLoader``. An
            argument has rows if its first dimension is that of the first argument; the others pass whole.
        num_steps: Optimisation steps.
        elbo: A ``pyro.infer.ELBO``, of :mod:`pyro_lvm.elbo` or Pyro's own; the ELBO, enumerated sites summed out, if
            None.
        optim: Adam's learning rate, a function from parameters to a torch optimizer, or a ``pyro.optim`` object.
        scheduler: A function from an optimizer to a torch LR scheduler, stepped once a step.
        clip: The gradient norm beyond which gradients are scaled down.
        batch_size: Rows a step, drawn without replacement and newly shuffled each epoch; all rows, if None.
        plate: The name of the plate that the rows index, where it must be named.
        rows: Positions of the data arguments that have rows, instead of the rule above.
        num_rows: N, where the data cannot tell (a ``DataLoader`` without a length).
        sample_weight: One weight for each row, ``[N]``.
        model_kwargs: Keyword arguments of model and guide.
        compile: Whether the steps run as one compiled program: True (an error if they cannot), False, or "auto", which
            compiles where the steps are many enough to pay for it, and else runs eagerly.
        callbacks: Called every ``every`` steps with a :class:`FitState`; a true answer stops the fit.
        every: Steps between validations, callbacks and checkpoints.
        validation: Held-out data, a tuple or list of arguments or one alone, whose loss is recorded every ``every``
            steps.
        checkpoint: A file that makes the fit survive its process; a call like the first continues it. Data and options
            are compared with those of the first call, but not the bodies of model and guide: delete the file when
            you edit them.
        init: Constrained starting values by name, or a result whose parameters to start from.
        seed: Fixes every random choice.
        device: Where to compute; where the data and modules are, if None.
        progress: Whether to show a progress bar.

    Returns:
        The fitted result. The user's modules hold the final values too.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for data that is not finite, latents that no guide covers, minibatches of a model without a row
            plate or with an AutoGuide over the rows' latents, options out of range.
        NonFiniteError: if a loss or gradient is not finite; it names the site and carries the last good parameters.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> result = lvm.fit(model, "mean_field", y, num_steps=1_000, optim=0.05, progress=False)
        >>> print(f"{result.sample(2_000)['mean'].mean():.1f}")
        2.5
    """
    num_steps, every, seed = check_count("num_steps", num_steps), check_count("every", every), check_seed(seed)
    batch_size = None if batch_size is None else check_count("batch_size", batch_size)
    num_rows = None if num_rows is None else check_count("num_rows", num_rows)
    _check_compile(compile)
    check_callbacks(callbacks, progress)
    check_device(device)
    if guide == "auto":
        refused = {"num_steps": num_steps != 2_000, "optim": optim != 1e-2, "every": every != 100} | {
            name: value is not None
            for name, value in (
                ("elbo", elbo),
                ("scheduler", scheduler),
                ("clip", clip),
                ("batch_size", batch_size),
                ("sample_weight", sample_weight),
                ("validation", validation),
                ("checkpoint", checkpoint),
                ("init", init),
                ("num_rows", num_rows),
            )
        }
        if given := [name for name, is_given in refused.items() if is_given] + ["callbacks"] * bool(callbacks):
            raise ValueError(f"guide='auto' chooses how to fit by itself and takes all rows: leave out {given[0]}=")
        move([model], device)
        on_device = nullcontext() if device is None else torch.device(device)
        with randomness.one_at_a_time, randomness.seeded(seed), on_device, unchanged_if_it_fails(model):
            held = Data(arguments_of(model, data), rows, device)
            return fit_auto(Task(model, held, plate, model_kwargs, compile, seed), progress)
    path = None if checkpoint is None else files.check_writable(checkpoint, "checkpoint")
    objective = Objective(model, guide, elbo, plate=plate, model_kwargs=model_kwargs)
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


def _check_compile(compile: Any) -> None:
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f"compile must be 'auto', True or False; got {compile!r}")


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
