"""Estimators of the ELBO and its relatives, side by side at the same parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.data import Data
from pyro_lvm.diagnostics.elbo_comparison import Compared, ELBOComparison, Training
from pyro_lvm.diagnostics.gradients import costs, draw_gradients, parameters_of_sites
from pyro_lvm.diagnostics.reference_gradients import Reference, reference
from pyro_lvm.elbo.bounds import TraceIWAE_ELBO, TraceRenyi_ELBO, TraceVIMCO_ELBO
from pyro_lvm.elbo.estimator import Estimator
from pyro_lvm.elbo.linear import Trace_ELBO, TraceMeanField_ELBO, TraceScore_ELBO, TraceSTL_ELBO
from pyro_lvm.modules import unchanged, unchanged_if_it_fails
from pyro_lvm.result import Result
from pyro_lvm.svi.fit import fit
from pyro_lvm.svi.initial import initial_values
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.resolve import check_elbo
from pyro_lvm.svi.stopping import FitState


def compare_elbos(
    model: Callable,
    guide: Any,
    *data: Any,
    params: Any = None,
    elbos: Mapping[str, ELBO] | None = None,
    num_repeats: int = 100,
    plate: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train: bool = False,
    num_steps: int = 1_000,
    optim: Any = 1e-2,
    seed: int = 0,
) -> ELBOComparison:
    """Measure what estimators of the ELBO and its relatives say at the same parameters, and how their gradients vary.

    The variance of a gradient times the time that it takes is the figure that decides between estimators of one target:
    half the variance is worth twice the particles. It is summed over all unconstrained parameters, so that large
    gradients dominate; ``parameters_dataframe()`` tells them apart.

    The bias is measured against a reference: the exact gradient of the estimator's target where the guide's latents are
    discrete and few or the model is linear and Gaussian, else the mean of ten times as many gradients of the least
    noisy unbiased estimator. The reference of the inclusive KL divergence has a thousand particles.

    Args:
        model: A Pyro model.
        guide: A guide, as for :func:`pyro_lvm.fit`.
        data: The model's arguments.
        params: Where to compare: a result, or constrained values by name; where a fit would start, if None.
        elbos: Estimators by name; eight or nine of 5 particles each, if None.
        num_repeats: Gradients of each estimator; at least 2.
        plate: The name of the plate of the rows, where it must be named.
        model_kwargs: Keyword arguments of model and guide.
        train: Whether to fit with each estimator from the same parameters, too, and watch the ELBO.
        num_steps: Of these fits.
        optim: Of these fits; see :func:`pyro_lvm.fit`.
        seed: Of all draws.

    Returns:
        The comparison: print it, or see ``to_dataframe()``, ``plot()`` and ``recommendation``.

    Raises:
        TypeError: for ``elbos`` that are no estimators by name.
        ValueError: for parameters that do not fit the model, a result that lacks some, and if no estimator has a right
            form.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> elbos = {"score": lvm.elbo.TraceScore_ELBO(5), "draws": lvm.elbo.Trace_ELBO(5)}
        >>> comparison = lvm.compare_elbos(model, "mean_field", y, elbos=elbos)
        >>> comparison["draws"].sd < comparison["score"].sd
        True
        >>> comparison["draws"].reference
        'exact, for a linear Gaussian model'
    """
    num_repeats, num_steps = check_count("num_repeats", num_repeats), check_count("num_steps", num_steps)
    if num_repeats < 2:
        raise ValueError("num_repeats must be at least 2, or gradients have no variance")
    elbos = None if elbos is None else _check_elbos(elbos)
    compared: dict[str, Compared] = {}
    refused: dict[str, str] = {}
    first = Objective(model, guide, plate=plate, model_kwargs=model_kwargs)
    with randomness.seeded(check_seed(seed)):
        with unchanged_if_it_fails(model, guide):
            first.prepare(Data(data))
            given = initial_values(first.program, params, "params")
            start = first.program.parameters.start() | given
            lacking = start.keys() - given.keys()
            if isinstance(params, Result) and lacking:
                raise ValueError(f"params is a result of another model or guide: it has no {sorted(lacking)}")
            values = {name: v.requires_grad_() for name, v in start.items()}  # as modules expect of their parameters
        with unchanged(model, first.program.guide):
            elbos = _usual(first) if elbos is None else elbos
            objectives = {}
            for name, elbo in elbos.items():
                try:
                    objective = first.with_elbo(elbo)
                    objective.check_start(values, first.program.data.args)
                    objectives[name] = objective
                except ValueError as error:
                    refused[name] = str(error)
            if not objectives:
                raise ValueError(f"no estimator has a right form for this model and guide: {refused}")
            references: dict[str, Reference] = {}
            sites = parameters_of_sites(first, values)
            spent = costs(objectives, values, first.program.data.args)
            for name, objective in objectives.items():
                compared[name] = _compare(objective, values, num_repeats, references, sites, spent[name])
            chosen = objectives if train else {}
            training = {name: _train(first, elbos[name], data, values, num_steps, optim, seed) for name in chosen}
    return ELBOComparison(compared, refused, training)


def _usual(objective: Objective) -> dict[str, ELBO]:
    usual: dict[str, ELBO] = {
        "Trace_ELBO": Trace_ELBO(5),
        "TraceMeanField_ELBO": TraceMeanField_ELBO(5),
        "TraceSTL_ELBO": TraceSTL_ELBO(5),
        "TraceScore_ELBO": TraceScore_ELBO(5),
        "TraceIWAE_ELBO": TraceIWAE_ELBO(5),
        "TraceIWAE_ELBO, stl": TraceIWAE_ELBO(5, "stl"),
        "TraceIWAE_ELBO, dreg": TraceIWAE_ELBO(5, "dreg"),
        "TraceRenyi_ELBO, 0.5": TraceRenyi_ELBO(0.5, 5),
    }
    if isinstance(objective.elbo, Estimator) and objective.structure.score:  # elsewhere it is TraceIWAE_ELBO
        usual["TraceVIMCO_ELBO"] = TraceVIMCO_ELBO(5)
    return usual


def _check_elbos(elbos: Any) -> dict[str, ELBO]:
    if not isinstance(elbos, Mapping) or not elbos or not all(isinstance(name, str) for name in elbos):
        raise TypeError(f"elbos must be a dict of estimators by name; got {elbos!r}")
    for name, elbo in elbos.items():
        check_elbo(elbo, f"elbos[{name!r}]")
    return dict(elbos)


def _compare(
    objective: Objective,
    values: dict[str, Tensor],
    num_repeats: int,
    references: dict[str, Reference],
    sites: dict[str, list[str]],
    spent: tuple[float, int | None],
) -> Compared:
    args, target = objective.program.data.args, objective.target
    draws = draw_gradients(objective, values, args, num_repeats)
    if target not in references:
        references[target] = reference(objective, values, args, 10 * num_repeats)
    expected = references[target]
    gradients = draws.flat()
    error = gradients.var(0) / num_repeats + expected.error.square()
    squares = (gradients - gradients.mean(0)).square().sum(1)
    difference = (gradients.mean(0) - expected.gradient).square()
    rounding = 10 * torch.finfo(draws.losses.dtype).eps * (gradients.norm(dim=1).mean() + draws.losses.abs().mean())
    where = draws.places()
    _, sd, signal_to_noise = _spread(gradients)
    biases = {
        name: (difference[place].sum().sqrt().item(), (error[place].sum().sqrt() + rounding).item())
        for name, place in where.items()
    }
    return Compared(
        target=target,
        unbiased=objective.elbo.unbiased if isinstance(objective.elbo, Estimator) else True,
        value=-draws.losses.mean().item(),
        standard_error=draws.losses.std().item() / math.sqrt(num_repeats),
        bias=difference.sum().sqrt().item(),
        bias_error=(error.sum().sqrt() + rounding).item(),
        biases=biases,
        reference=expected.source,
        sd=sd,
        signal_to_noise=signal_to_noise,
        parameters={name: _spread(gradients[:, place]) for name, place in where.items()},
        sites={
            site: _spread(torch.cat([gradients[:, where[name]] for name in names], 1)) for site, names in sites.items()
        },
        variance_error=(squares.std() / squares.mean()).item() / math.sqrt(num_repeats) if squares.any() else 0.0,
        seconds=spent[0],
        bytes=spent[1],
    )


def _spread(gradients: Tensor) -> tuple[float, float, float]:
    """The length of the mean of ``[R, P]``, its standard deviation, and the ratio of the two."""
    length, sd = gradients.mean(0).norm().item(), gradients.var(0).sum().sqrt().item()
    return length, sd, length / sd if sd else math.inf


_MEASURED = 25  # times during a fit


def _train(
    first: Objective,
    elbo: ELBO,
    data: tuple[Any, ...],
    values: dict[str, Tensor],
    num_steps: int,
    optim: Any,
    seed: int,
) -> Training:
    measure, parameters = first.with_elbo(Trace_ELBO(100)), first.program.parameters
    result = Training()
    spent = time.perf_counter()

    def watch(step: int, at: dict[str, Tensor]) -> None:
        nonlocal spent
        began = time.perf_counter()
        result.steps.append(step)
        result.seconds.append(began - spent)
        with randomness.seeded(seed):
            result.elbo.append(-measure.value(at, measure.program.data.args))
        spent += time.perf_counter() - began

    def callback(state: FitState) -> None:
        watch(state.step, {n: v.requires_grad_() for n, v in parameters.unconstrained(state.params).items()})

    watch(0, values)
    fit(
        first.model,
        first.program.guide,
        *data,
        elbo=elbo,
        num_steps=num_steps,
        optim=optim,
        plate=first.plate,
        model_kwargs=first.model_kwargs,
        every=max(1, num_steps // _MEASURED),
        callbacks=[callback],
        init=parameters.constrained(values),
        seed=seed,
        progress=False,
    )
    return result
