"""``calibrate``: whether a guide is as wide as the posterior, over data sets that the model itself makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.checks import check_count, check_model, check_seed
from pyro_lvm.data import Data, arguments_of
from pyro_lvm.diagnostics.calibration import Calibration
from pyro_lvm.diagnostics.many_fits import fit_many
from pyro_lvm.modules import unchanged
from pyro_lvm.params import Parameters
from pyro_lvm.program import Program
from pyro_lvm.result import Draws
from pyro_lvm.sites import Uncondition, prior_trace, refuse_improper_priors, sample_sites
from pyro_lvm.svi.objective import Objective
from pyro_lvm.tracing import NotCompilable
from pyro_lvm.vectorize import repeat


def calibrate(
    model: Callable,
    guide: Any,
    *data: Any,
    num_simulations: int = 500,
    num_draws: int = 99,
    num_steps: int = 2_000,
    optim: float = 0.05,
    elbo: ELBO | None = None,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    r"""Whether a guide's posteriors are right on average, by simulation (Talts et al. 2018; Yao et al. 2018).

    Latents :math:`z` are drawn from the prior and observations from the model given them; the guide is fitted to
    these; and :math:`z` is ranked among draws of the guide. If the guide's posteriors were right, ranks would be
    uniform. All fits run at the same time, as one program.

    Args:
        model: A Pyro model, without parameters of its own.
        guide: As for :func:`pyro_lvm.fit`; one without parameters is taken as it is.
        data: Arguments of the model. Each observed site takes one of them as it stands; their observations are
            replaced, the rest is the same in all simulations.
        num_simulations: J.
        num_draws: L of the guide in each.
        num_steps: Of each fit.
        optim: Adam's learning rate, which falls to zero along a cosine.
        elbo: As for :func:`pyro_lvm.fit`.
        plate: As for :func:`pyro_lvm.fit`.
        rows: As for :func:`pyro_lvm.fit`.
        model_kwargs: Keyword arguments of model and guide.
        seed: Fixes every random choice.
        progress: Whether to show a progress bar.

    Returns:
        The ranks, and tests of them: ``print`` it, or ``plot()`` it.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for a model with parameters or an improper prior, observations that are no argument of the model,
            and fits that cannot run at the same time.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def guide(y):  # half as wide as the posterior
        ...     pyro.sample("mean", dist.Normal(y.sum() / (len(y) + 1), 0.5 * (len(y) + 1) ** -0.5))
        >>> found = lvm.calibrate(model, guide, torch.zeros(10), num_simulations=200, progress=False)
        >>> found.p_value < 0.01
        True
    """
    num_simulations = check_count("num_simulations", num_simulations)
    num_draws, num_steps = check_count("num_draws", num_draws), check_count("num_steps", num_steps)
    seed = check_seed(seed)
    if isinstance(optim, bool) or not isinstance(optim, int | float) or not optim > 0:
        raise ValueError(f"optim must be a positive learning rate; got {optim!r}")
    check_model(model, model_kwargs, plate)
    began = time.perf_counter()
    with randomness.one_at_a_time, randomness.seeded(seed), unchanged(model, guide):
        held = Data(arguments_of(model, data), rows)
        program = Program(model, guide, held, None, model_kwargs, plate)
        model_alone = program.bind(program.parameters.start(), program.model)
        _check(program, model_alone)
        places = _places(program, model_alone)

        def arguments(observed: Draws) -> tuple[Any, ...]:
            given = dict(zip(places, (observed[name] for name in places.values()), strict=True))
            return tuple(given.get(i, argument) for i, argument in enumerate(held.args))

        latents, observed = _simulated(program, model_alone, num_simulations)
        values: dict[str, Tensor] = {}
        if program.parameters.constraints:
            objective = Objective(model, program.guide, elbo, plate=plate, model_kwargs=model_kwargs)
            objective.prepare(held)
            program = objective.program
            try:
                values = fit_many(objective, arguments, observed, num_steps, float(optim), progress)
            except NotCompilable as error:
                raise ValueError(f"the fits cannot run at the same time: {error}") from error

        def once(values: Draws, observed: Draws) -> Draws:
            run = poutine.trace(program.guide).get_trace
            trace = program.parameters.call(values, run, *arguments(observed), **program.model_kwargs)
            return {name: trace.nodes[name]["value"] for name in latents}

        below, equal = ({name: torch.zeros(value.shape) for name, value in latents.items()} for _ in range(2))
        finite = torch.ones(num_simulations, dtype=torch.bool)
        with program.parameters.evaluating():
            for _ in range(num_draws):
                for name, drawn in repeat(once, num_simulations, values, observed).items():
                    below[name] += drawn < latents[name]
                    equal[name] += drawn == latents[name]
                    finite &= drawn.isfinite().reshape(num_simulations, -1).all(-1)
        places_among_equals = {name: (torch.rand(n.shape) * (n + 1)).floor() for name, n in equal.items()}
        ranks = {name: (rank + places_among_equals[name])[finite] for name, rank in below.items()}
    return Calibration(ranks, num_draws, int((~finite).sum()), seed, time.perf_counter() - began)


def _check(program: Program, model: Callable) -> None:
    """Refuse models from which nothing can be simulated.

    Raises:
        ValueError: that says why.
    """
    if not program.sites.latent:
        raise ValueError("the model has no latent site that a guide covers, so that there is nothing to calibrate")
    args, kwargs = program.example, program.model_kwargs
    refuse_improper_priors(sample_sites(prior_trace(model, *args, **kwargs)))
    own = Parameters({"model": program.model}, lambda: prior_trace(program.model, *args, **kwargs).log_prob_sum())
    if own.constraints:
        raise ValueError(
            f"the model has the parameter {next(iter(own.constraints))!r}, which no prior draws: give it a prior, or "
            "hold it fixed"
        )


def _places(program: Program, model: Callable) -> dict[int, str]:
    """The arguments that hold observations, and the names of their sites."""
    sites = sample_sites(prior_trace(model, *program.example, **program.model_kwargs))
    found = {}
    for name in program.sites.observed:
        value = sites[name]["value"]
        same = [i for i, a in enumerate(program.example) if isinstance(a, Tensor) and _is_same(a, value)]
        if not same or same[0] in found:
            raise ValueError(
                f"the observations of {name!r} are no argument of the model of their own: pass them as one, as in "
                f"pyro.sample({name!r}, ..., obs=y) of model(x, y), so that others can be put in their place"
            )
        found[same[0]] = name
    if not found:
        raise ValueError("the model observes nothing, so that there is nothing to simulate")
    return found


def _is_same(argument: Tensor, value: Tensor) -> bool:
    return argument is value or (argument.data_ptr() == value.data_ptr() and argument.shape == value.shape)


def _simulated(program: Program, model: Callable, num_simulations: int) -> tuple[Draws, Draws]:
    """Latents from the prior and observations given them, ``[J, ...]`` each."""

    def once() -> tuple[Draws, Draws]:
        with Uncondition(program.sites.observed):
            trace = prior_trace(model, *program.example, **program.model_kwargs)
        latents, observed = program.sites.latent, program.sites.observed
        return tuple({name: trace.nodes[name]["value"] for name in names} for names in (latents, observed))  # type: ignore[return-value]

    return repeat(once, num_simulations)
