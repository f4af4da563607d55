"""``calibrate``: whether a guide is as wide as the posterior, over data sets that the model itself makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.checks import check_count, check_model, check_positive, check_seed
from pyro_lvm.data import Data, arguments_of
from pyro_lvm.diagnostics.calibration import FEWEST_SIMULATIONS, Calibration
from pyro_lvm.diagnostics.many_fits import fit_many
from pyro_lvm.modules import unchanged
from pyro_lvm.params import Parameters
from pyro_lvm.program import Program
from pyro_lvm.result import Draws
from pyro_lvm.sites import (
    Site,
    Uncondition,
    held_at,
    prior_trace,
    refuse_improper_priors,
    refuse_random_rows,
    sample_sites,
)
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.resolve import check_elbo
from pyro_lvm.tracing import NotCompilable
from pyro_lvm.vectorize import repeat

_COMPARED = 30  # simulations, by which a model is seen to read what it should not


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
            replaced, the rest is the same in all simulations. The model may use them as observations only.
        num_simulations: J, 50 or more.
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
        ValueError: for a model with parameters, an improper prior, weighted rows, random minibatches, masked latents or
            a ``pyro.factor`` of its latents, from which nothing can be simulated; observations that are no argument of
            the model, or that it uses elsewhere; fits that cannot run at the same time, and fewer than 50 that are
            finite.

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
    if num_simulations < FEWEST_SIMULATIONS:
        raise ValueError(
            f"num_simulations must be {FEWEST_SIMULATIONS} or more, to tell anything; got {num_simulations}"
        )
    optim = check_positive("optim", optim)
    if elbo is not None:
        check_elbo(elbo)
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
        _check_reads(program, model_alone, latents, observed, arguments)
        values: dict[str, Tensor] = {}
        if program.parameters.constraints:
            objective = Objective(model, program.guide, elbo, plate=plate, model_kwargs=model_kwargs)
            objective.prepare(held)
            program = objective.program
            try:
                values = fit_many(objective, arguments, observed, num_steps, optim, progress)
            except NotCompilable as error:
                raise ValueError(f"the fits cannot run at the same time: {error}") from error

        def once(values: Draws, observed: Draws) -> Draws:
            run = poutine.trace(program.guide).get_trace
            trace = program.parameters.call(values, run, *arguments(observed), **program.model_kwargs)
            return {name: trace.nodes[name]["value"] for name in latents}

        below, equal = (
            {name: torch.zeros_like(value, dtype=torch.float32) for name, value in latents.items()} for _ in range(2)
        )
        finite = torch.ones(num_simulations, dtype=torch.bool)
        with program.parameters.evaluating(), pyro.validation_enabled(False):
            for _ in range(num_draws):
                for name, drawn in repeat(once, num_simulations, values, observed).items():
                    below[name] += drawn < latents[name]
                    equal[name] += drawn == latents[name]
                    finite &= drawn.isfinite().reshape(num_simulations, -1).all(-1).cpu()
        if int(finite.sum()) < FEWEST_SIMULATIONS:
            raise ValueError(
                f"{int((~finite).sum())} of {num_simulations} fits were not finite: a smaller optim= often helps"
            )
        places_among_equals = {name: (torch.rand_like(n) * (n + 1)).floor() for name, n in equal.items()}
        ranks = {name: (rank + places_among_equals[name]).cpu()[finite] for name, rank in below.items()}
    return Calibration(ranks, num_draws, int((~finite).sum()), seed, time.perf_counter() - began)


def _check(program: Program, model: Callable) -> None:
    """Refuse models from which nothing can be simulated.

    Raises:
        ValueError: that says why.
    """
    if not program.sites.latent:
        raise ValueError("the model has no latent site that a guide covers, so that there is nothing to calibrate")
    args, kwargs = program.example, program.model_kwargs
    sites = sample_sites(prior_trace(model, *args, **kwargs))
    refuse_improper_priors(sites)
    refuse_random_rows(sites)
    for name, site in sites.items():
        if torch.as_tensor(site["scale"] != 1).any():
            raise ValueError(f"{name!r} is weighted, and simulations are not: leave out poutine.scale")
        if name in program.sites.latent and site["mask"] is not None and not torch.as_tensor(site["mask"]).all():
            raise ValueError(f"{name!r} is masked, so that its density leaves out what its prior draws")
    own = Parameters({"model": program.model}, lambda: prior_trace(program.model, *args, **kwargs).log_prob_sum())
    if own.constraints:
        raise ValueError(
            f"the model has the parameter {next(iter(own.constraints))!r}, which no prior draws: give it a prior, or "
            "hold it fixed"
        )


def _places(program: Program, model: Callable) -> dict[int, str]:
    """The arguments that hold observations, and the names of their sites."""
    sites = sample_sites(prior_trace(model, *program.example, **program.model_kwargs))
    found: dict[int, str] = {}
    for name in program.sites.observed:
        value = sites[name]["value"]
        same = [i for i, a in enumerate(program.example) if isinstance(a, Tensor) and _is_same(a, value)]
        if len(same) != 1 or same[0] in found:
            raise ValueError(
                f"the observations of {name!r} are no argument of the model of their own: pass them as one, and once, "
                f"as in pyro.sample({name!r}, ..., obs=y) of model(x, y), so that others can be put in their place"
            )
        found[same[0]] = name
    if not found:
        raise ValueError("the model observes nothing, so that there is nothing to simulate")
    return found


def _is_same(argument: Tensor, value: Tensor) -> bool:
    def place(t: Tensor) -> tuple[Any, ...]:
        return t.data_ptr(), t.shape, t.stride()

    return argument is value or place(argument) == place(value)


def _check_reads(
    program: Program, model: Callable, latents: Draws, observed: Draws, arguments: Callable[[Draws], tuple[Any, ...]]
) -> None:
    """Refuse models whose densities depend on more than their sites: the draws of their prior are not theirs.

    Raises:
        ValueError: if other observations among the arguments change a density at the same values of all sites, or if
            a factor depends on the latents.
    """

    def sites(of: int, given: int) -> dict[str, Site]:
        """At a simulation's values, where the arguments are those of another."""
        values = held_at({name: value[of] for name, value in (latents | observed).items()})
        args = arguments({name: value[given] for name, value in observed.items()})
        held = poutine.replay(Uncondition(program.sites.observed)(model), trace=values)
        with randomness.seeded(0):
            trace = prior_trace(held, *args, **program.model_kwargs)
        trace.compute_log_prob()
        return {n: site for n, site in sample_sites(trace).items() if not site["infer"].get("_deterministic")}

    own = sites(0, 0)
    for i in range(1, _COMPARED):
        for name in _differ(own, sites(0, i)):
            raise ValueError(
                f"the density of {name!r} depends on the observations among the arguments: use what pyro.sample "
                "returns in their place, so that what is simulated follows from what was simulated"
            )
        for name in _differ(_observed(own), _observed(sites(i, i))):
            raise ValueError(f"{name!r} is a factor of the latents or of the data, which no simulation follows")


def _observed(sites: Mapping[str, Site]) -> dict[str, Site]:
    return {name: site for name, site in sites.items() if site["is_observed"]}


def _differ(sites: Mapping[str, Site], others: Mapping[str, Site]) -> list[str]:
    """The names of the sites that do not have the same densities."""

    def agree(one: Tensor, other: Tensor) -> bool:
        return one.shape == other.shape and torch.allclose(one, other, equal_nan=True)

    return [
        name
        for name in {**sites, **others}
        if name not in sites or name not in others or not agree(sites[name]["log_prob"], others[name]["log_prob"])
    ]


def _simulated(program: Program, model: Callable, num_simulations: int) -> tuple[Draws, Draws]:
    """Latents from the prior and observations given them, ``[J, ...]`` each."""

    def once() -> tuple[Draws, Draws]:
        with Uncondition(program.sites.observed):
            trace = prior_trace(model, *program.example, **program.model_kwargs)
        latents, observed = program.sites.latent, program.sites.observed
        return tuple({name: trace.nodes[name]["value"] for name in names} for names in (latents, observed))  # type: ignore[return-value]

    return repeat(once, num_simulations)
