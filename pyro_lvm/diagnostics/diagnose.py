"""``diagnose``: whether a fit can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.diagnostics.corrections import are_few, corrected
from pyro_lvm.diagnostics.diagnosis import Diagnosis
from pyro_lvm.diagnostics.draws import replicated, sites_of
from pyro_lvm.diagnostics.khat import KHat
from pyro_lvm.diagnostics.loo import leave_one_out
from pyro_lvm.diagnostics.optimisation import examine
from pyro_lvm.diagnostics.pit import PIT, pit
from pyro_lvm.diagnostics.predictive_checks import STATISTICS, PredictiveChecks, Statistic, check_predictions
from pyro_lvm.diagnostics.weights import Weights, draw_weighted
from pyro_lvm.guides import lacks_density
from pyro_lvm.importance import Estimate, masked_apart
from pyro_lvm.psis import pareto_k
from pyro_lvm.result import Result

_RUNS = 5
_NESTED = 10  # times fewer draws where the latents of each row are integrated out
_NUM_LOO, _FEWEST_REPLICATED = 2_000, 100
_NUMBERS = 20_000_000  # of all data drawn anew


def diagnose(
    result: Result,
    num_draws: int = 10_000,
    *,
    statistics: Mapping[str, Statistic] | None = None,
    seed: int | None = None,
) -> Diagnosis:
    """Whether a fit can be trusted, in numbers, in words and in pictures.

    Means and standard deviations of the guide are compared with better ones: with those of its draws weighted by
    Pareto-smoothed importance weights, where their k-hat is below 0.7, and with those of chains of Hamiltonian Monte
    Carlo that begin at its draws, where the model has at most 1,000 latent numbers, all continuous, and a run of it is
    small. Neither finds a mode of the posterior that the guide has missed.

    Args:
        result: What ``fit`` or ``fit_em`` returned.
        num_draws: Of the guide, in each of the five runs whose median is the k-hat; a tenth where rows have more than
            100 latent numbers, which are integrated out.
        statistics: Test quantities by name, each a function from the rows of an observed site, ``[n, ...]``, to a
            number; mean, standard deviation, minimum and maximum, if None.
        seed: Of the draws; the fit's, if None.

    Returns:
        The findings, each with its figure; ``verdict`` is "good", "doubtful" or "bad".

    Raises:
        TypeError: if ``result`` is no result, or a test quantity no function.
        ValueError: if a test quantity returns no number, or the fit has kept no rows (a ``DataLoader``).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.randn(50, generator=torch.Generator().manual_seed(0))
        >>> result = lvm.fit(model, "mean_field", y, num_steps=1_000, optim=0.02, progress=False)
        >>> lvm.diagnose(result, num_draws=1_000).verdict
        'good'
    """
    if not isinstance(result, Result):
        raise TypeError(f"diagnose takes the result of a fit; got {type(result).__name__}")
    num_draws = check_count("num_draws", num_draws)
    seed = result.seed if seed is None else check_seed(seed)
    checked = _check_statistics(statistics)
    missing: dict[str, str] = {}
    parts: dict[str, Any] = dict.fromkeys(("khat", "evidence", "elbo", "marginals", "loo"))
    weights = None
    if reason := _no_density(result):
        missing["posterior"] = reason
    else:
        parts["khat"], first = _khat(result, num_draws, seed)
        parts["evidence"] = evidence = result.evidence(len(first.joint), seed=seed)
        parts["elbo"] = _elbo(evidence.log_weights)
        parts["marginals"] = corrected(result, first, seed)
        weights, reason = _by_row(result, first, min(num_draws, _NUM_LOO), seed)
        if reason:
            missing["LOO"] = reason
        elif weights is not None:
            parts["loo"] = leave_one_out(weights)
    ranked, checks = _predictions(result, weights, checked, seed)
    return Diagnosis(
        fit=str(result).splitlines()[0],
        optimisation=examine(result),
        pit=ranked,
        checks=checks,
        not_available=missing,
        **parts,
    )


def _check_statistics(statistics: Any) -> Mapping[str, Statistic]:
    if statistics is None:
        return STATISTICS
    if not isinstance(statistics, Mapping):
        raise TypeError(f"statistics: expected a dict of functions by name; got {type(statistics).__name__}")
    for name, statistic in statistics.items():
        if not callable(statistic):
            raise TypeError(f"statistics: {name!r} must be a function; got {statistic!r}")
    return statistics


def _no_density(result: Result) -> str:
    """Why the fit has no posterior to judge; empty if it has one."""
    program, args = result._program, result._arguments(())
    if not program.sites.latent:
        return "no latent is drawn by a guide"
    with result._quiet(None):
        trace = poutine.trace(result.guide).get_trace(*args, **program.model_kwargs)
        reason = lacks_density(program.guide, trace, program.sites.latent)
        return reason or masked_apart(program, result._values, args, trace)


def _khat(result: Result, num_draws: int, seed: int) -> tuple[KHat, Weights]:
    """The Pareto k of five runs, and the draws of the first."""
    sites = result._program.sites
    shared = [name for name in sites.latent if name not in sites.local]
    integrated = bool(sites.local_latent) and not are_few(draw_weighted(result, 1, seed, by_row=False).draws)
    num_draws = max(1, num_draws // _NESTED) if integrated else num_draws
    first = draw_weighted(result, num_draws, seed, by_row=integrated)
    others = (draw_weighted(result, num_draws, seed + i, by_row=integrated) for i in range(1, _RUNS))
    runs = [first.marginal, *(run.marginal for run in others)] if shared or not integrated else []
    rows = None if first.own is None else torch.tensor([pareto_k(row) for row in first.own.unbind(1)])
    return KHat(tuple(pareto_k(run) for run in runs), num_draws, integrated, rows), first


def _elbo(log_weights: Tensor) -> Estimate:
    return Estimate(log_weights.mean().item(), (log_weights.std() / len(log_weights) ** 0.5).item())


def _by_row(result: Result, first: Weights, num_draws: int, seed: int) -> tuple[Weights | None, str]:
    """Draws with the weights of rows, or why rows cannot be left out."""
    sites = result._program.sites
    if sites.row_plate is None:
        return None, "the model has no plate that follows the rows of the data" + sites.search
    if sites.shared_enumerated:
        return None, f"the rows depend on the enumerated site {sites.shared_enumerated[0]!r}"
    if set(sites.latent) <= set(sites.local):
        return None, "what rows share is a point, which has seen every row"
    if first.rows is not None:
        return first, ""
    try:
        return draw_weighted(result, num_draws, seed), ""
    except ValueError as error:
        return None, str(error)


def _predictions(
    result: Result, weights: Weights | None, statistics: Mapping[str, Statistic], seed: int
) -> tuple[tuple[PIT, ...], PredictiveChecks]:
    """LOO-PIT of each observed site with a number a row, and checks of all."""
    program, args = result._program, result._arguments(())
    sites = sites_of(result, args)
    numbers = max(sites[name]["value"].numel() for name in program.sites.observed)
    num_draws = min(_NUM_LOO, max(_FEWEST_REPLICATED, _NUMBERS // numbers))
    if weights is None:
        latents = result.sample(num_draws, seed)
    else:
        weights = weights.head(num_draws)
        latents, num_draws = weights.draws, len(weights.joint)
    with result._quiet(seed):
        drawn = replicated(result, latents, num_draws)
        observed, by_row = {}, set()
        for name, values in drawn.items():
            y, dim = sites[name]["value"], program.row_dim(name, sites[name])
            if dim is None:
                observed[name], drawn[name] = y[None], values[:, None]
            else:
                dim -= sites[name]["fn"].event_dim
                observed[name], drawn[name] = y.movedim(dim, 0), values.movedim(dim, 1)
                by_row.add(name)
        ranked: tuple[PIT, ...] = ()
        if weights is not None and weights.rows is not None:
            single = [name for name in observed if name in by_row and observed[name].dim() == 1]
            ranked = tuple(pit(name, weights, drawn[name], observed[name]) for name in single)
        return ranked, check_predictions(weights, drawn, observed, statistics)
