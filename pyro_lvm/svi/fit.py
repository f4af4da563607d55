"""``fit``: stochastic variational inference from a model, a guide and data to a result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_lvm import files
from pyro_lvm.checks import check_callbacks, check_count, check_device, check_seed
from pyro_lvm.result import Result
from pyro_lvm.svi.auto import fit_auto
from pyro_lvm.svi.once import fit_once
from pyro_lvm.svi.restarts import best_of
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.stopping import FitState

_AUTO_LEAVES = ("plate", "rows", "model_kwargs", "compile", "seed", "device", "progress")  # to the user


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
    num_restarts: int = 1,
) -> SVIResult:
    """Fit a model and a guide by stochastic variational inference (Hoffman et al. 2013; Ranganath et al. 2014).

    Args:
        model: A Pyro model: a function, a ``PyroModule``, or a bound method.
        guide: A callable, an AutoGuide, one of "mean_field", "full_rank", "low_rank", "flow", "map", or None for
            ``model.guide`` if there is one, else for models whose latents are all enumerated. A
            :class:`~pyro_lvm.guides.FlowGuide` is fitted after its Gaussian, which takes half as many steps more.
            "auto" climbs from a Laplace approximation to a mean-field, a full-rank and a flow guide until
            :func:`pyro_lvm.diagnose` would call one good, and chooses steps, learning rates and particles by itself;
            its draws are resampled by their importance weights where these allow it. ``result.climb`` tells the way.
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
        num_restarts: How often to fit, with the seeds from ``seed`` on. The fit with the lowest loss at its end is
            kept, and ``result.restarts`` has what each has reached. From the second fit on, guides by name start at a
            draw from the prior; modules of your own start each time where they are.

    Returns:
        The fitted result. The user's modules hold the final values too.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for data that is not finite, latents that no guide covers, minibatches of a model without a row
            plate or with an AutoGuide over the rows' latents, options out of range, and options that "auto" chooses.
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
    num_restarts = check_count("num_restarts", num_restarts)
    check_seed(seed + num_restarts - 1)
    _check_compile(compile)
    check_callbacks(callbacks, progress)
    check_device(device)
    options: dict[str, Any] = {
        "num_steps": num_steps,
        "elbo": elbo,
        "optim": optim,
        "scheduler": scheduler,
        "clip": clip,
        "batch_size": batch_size,
        "plate": plate,
        "rows": rows,
        "num_rows": num_rows,
        "sample_weight": sample_weight,
        "model_kwargs": model_kwargs,
        "compile": compile,
        "callbacks": tuple(callbacks),
        "every": every,
        "validation": validation,
        "checkpoint": checkpoint,
        "init": init,
        "seed": seed,
        "device": device,
        "progress": progress,
    }
    if isinstance(guide, str) and guide == "auto":
        _refuse_for_auto(options | {"num_restarts": num_restarts})
        return fit_auto(model, data, **{name: options[name] for name in _AUTO_LEAVES})
    if num_restarts == 1:
        return fit_once(model, guide, data, **options)
    if checkpoint is not None:
        raise ValueError("checkpoint= keeps one fit: leave it out, or fit each seed by itself, with a file of its own")
    return best_of(num_restarts, model, guide, partial(fit_once, model, guide, data, **options), seed)


def _refuse_for_auto(options: Mapping[str, Any]) -> None:
    defaults = inspect.signature(fit).parameters
    for name, value in options.items():
        default = defaults[name].default
        if (
            name not in _AUTO_LEAVES
            and value is not default
            and not (type(value) is type(default) and value == default)
        ):
            raise ValueError(f"guide='auto' takes all rows and chooses how to fit by itself: leave out {name}=")


def _check_compile(compile: Any) -> None:
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f"compile must be 'auto', True or False; got {compile!r}")
