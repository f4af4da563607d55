"""Fitted models of the same data, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine

from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.data import fingerprint
from pyro_lvm.diagnostics.exchangeable import component_site
from pyro_lvm.diagnostics.loo import LOO, check_rows_apart, leave_one_out
from pyro_lvm.diagnostics.mixtures import examine_mixture
from pyro_lvm.diagnostics.model_comparison import ComparedModel, ModelComparison
from pyro_lvm.draws import sites_of
from pyro_lvm.elbo.contraction import log_density
from pyro_lvm.elbo.terms import by_row
from pyro_lvm.guides import points
from pyro_lvm.importance import Estimate
from pyro_lvm.params import leaves, num_free
from pyro_lvm.psis import USEFUL, pareto_k
from pyro_lvm.result import Result
from pyro_lvm.sites import sample_sites
from pyro_lvm.verdict.weights import draw_weighted

_NUM_LABELLINGS = 50  # draws in which labels are looked for


def compare_models(results: Mapping[str, Result], num_draws: int = 1_000, seed: int | None = None) -> ModelComparison:
    r"""Compare fitted models of the same data.

    Two kinds of fits answer different questions, and no number stands where it does not apply. Where all parameters are
    points, as after EM without a guide, there are the log-likelihood at these, and what is made of it with :math:`p`
    free parameters and N rows:

    .. math::

        \mathrm{BIC} &= p \log N - 2 \log p(x) \\
        \mathrm{ICL} &= \mathrm{BIC} - 2 \sum_{ik} r_{ik} \log r_{ik}

    with the responsibilities :math:`r_{ik}` of the rows' components. For both lower is better. Every number of a
    parameter counts as free, also where the likelihood does not know it, as the rotations of a loading.

    Where parameters have a posterior, there are the evidence :math:`\log p(x)`, with parameters integrated out, and the
    expected log-density of rows left out of the fit. For both higher is better. The evidence depends on the prior, also
    where the posterior hardly does.

    Args:
        results: What ``fit`` or ``fit_em`` returned, by name; at least two.
        num_draws: Of each guide, for the evidence and for leave-one-out.
        seed: Of the draws; that of each fit, if None.

    Returns:
        The comparison: print it, or see ``to_dataframe()``, ``plot()``, ``best()`` and ``differences()``.

    Raises:
        TypeError: if ``results`` are no results by name.
        ValueError: for fewer than two, for fits of different data, and for fits that kept no rows (a ``DataLoader``).

    References:
        C. Biernacki, G. Celeux and G. Govaert, "Assessing a mixture model for clustering with the integrated completed
        likelihood", *PAMI* 22 (2000), 719-725. A. Vehtari, A. Gelman and J. Gabry, "Practical Bayesian model evaluation
        using leave-one-out cross-validation and WAIC", *Statistics and Computing* 27 (2017), 1413-1432.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> x = torch.randn(90, 1, generator=torch.Generator().manual_seed(0))
        >>> x[:30] += 8
        >>> results = {}
        >>> for K in (1, 2, 3):
        ...     mixture = lvm.models.GaussianMixture(K, 1, covariance="tied").initialize(x)
        ...     results[f"K={K}"] = lvm.fit_em(mixture, x, progress=False)
        >>> comparison = lvm.compare_models(results)
        >>> comparison.best("bic"), comparison.best("icl")
        ('K=2', 'K=2')
        >>> comparison["K=2"].num_parameters
        4
        >>> comparison["K=2"].reasons["evidence"]
        'its parameters are at a point, and no evidence integrates them out'
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results must be a dict of results by name; got {type(results).__name__}")
    for name, result in results.items():
        if not isinstance(result, Result) or not isinstance(name, str):
            raise TypeError(f"results[{name!r}] must be the result of a fit under a name; got {type(result).__name__}")
    if len(results) < 2:
        raise ValueError(f"compare_models takes at least two results; got {len(results)}")
    num_draws, seed = check_count("num_draws", num_draws), None if seed is None else check_seed(seed)
    seen = {name: _look(result) for name, result in results.items()}
    _refuse_other_data(results)
    return ModelComparison({name: _compared(result, seen[name], num_draws, seed) for name, result in results.items()})


class _Seen(NamedTuple):
    """What a run of model and guide shows.

    Attributes:
        fixed: The latents that the guide has at a point.
        num_parameters: The free numbers of the parameters on which the model depends, points of latents among them.
    """

    fixed: tuple[str, ...]
    num_parameters: int


def _look(result: Result) -> _Seen:
    program, args = result._program, result._arguments(())
    constraints = program.parameters.constraints
    values = {n: v.detach().clone().requires_grad_(n in constraints) for n, v in result._values.items()}

    def run() -> tuple[list[str], poutine.Trace]:
        drawn = poutine.trace(program.guide).get_trace(*args, **program.model_kwargs)
        fixed = points(program.guide, drawn, program.sites.latent)
        for name in program.sites.latent:
            if name not in fixed:
                drawn.nodes[name]["value"] = drawn.nodes[name]["value"].detach()
        model = poutine.trace(poutine.replay(program.model, trace=drawn))
        trace = model.get_trace(*args, **program.model_kwargs)
        trace.compute_log_prob()
        return fixed, trace

    with result._quiet(None), pyro.validation_enabled(False):
        fixed, trace = program.call(values, run)
    used = leaves(torch.stack([site["log_prob_sum"] for site in sample_sites(trace).values()]).sum())
    held = program.parameters.constrained(result._values)
    return _Seen(
        fixed=tuple(fixed),
        num_parameters=sum(
            num_free(held[n], c) for n, c in constraints.items() if n in values and id(values[n]) in used
        ),
    )


def _refuse_other_data(results: Mapping[str, Result]) -> None:
    """Models may call their data otherwise, or take other covariates; what they observe must be the same.

    A model may also split its observations into sites in another way: then its rows and their size must be the same.
    """
    prints = {}
    for name, result in results.items():
        data, args = result._program.data, result._arguments(())
        sites = sites_of(result, args)
        observed = [sites[site]["value"] for site in result._program.data_sites]
        rows = [arg for arg, has_rows in zip(args, data.has_rows, strict=True) if has_rows]
        size = sum(value.numel() for value in observed)
        prints[name] = (fingerprint(observed), (fingerprint(rows), size) if rows else None)
    first, *others = prints
    for name in others:
        one, other = prints[name], prints[first]
        if one[0] != other[0] and (one[1] is None or one[1] != other[1]):
            raise ValueError(f"{name!r} and {first!r} are fits of different data, whose densities are not comparable")


def _compared(result: Result, seen: _Seen, num_draws: int, seed: int | None) -> ComparedModel:
    program, count = result._program, seen.num_parameters
    drawn = [name for name in result._program.sites.shared_latent if name not in seen.fixed]
    found: dict[str, Any] = dict.fromkeys(("log_likelihood", "bic", "icl", "evidence", "loo"))
    reasons: dict[str, str] = {}
    notes: list[str] = []
    doubtful: list[str] = []

    def attempt(what: str, compute: Callable[[], Any]) -> Any:
        try:
            found[what] = compute()
        except ValueError as error:
            reasons[what] = str(error)
        return found[what]

    if drawn:
        reason = f"{drawn[0]!r} has a posterior and is at no point"
        reasons |= dict.fromkeys(("log_likelihood", "bic", "icl"), reason)
        evidence = attempt("evidence", lambda: result.evidence(num_draws, seed=seed))
        loo = attempt("loo", lambda: _leave_one_out(result, seen, num_draws, seed))
        if evidence is not None:
            found["evidence"] = Estimate(*evidence)
            if (k := pareto_k(evidence.log_weights)) >= USEFUL:
                doubtful.append("evidence")
                notes.append(f"log p(x) is not to be trusted: Pareto k {k:.2f} of its weights")
        if loo is not None and loo.findings()[0].grade != "good":
            doubtful.append("loo")
            notes.append(f"elpd_loo is not to be trusted for {loo.num_unreliable:,} of {len(loo.rows):,} rows")
        if count:
            notes.append(f"with {count:,} more parameters at a point, which have seen all rows")
        notes += _labellings(result, seed)
    else:
        reason = "its parameters are at a point, and "
        reasons |= {"evidence": reason + "no evidence integrates them out", "loo": reason + "have seen every row"}
        likelihood = attempt("log_likelihood", lambda: _log_likelihood(result, seen, num_draws, seed))
        if likelihood is None:
            reasons |= dict.fromkeys(("bic", "icl"), "it has no log-likelihood")
        elif program.data.num_rows is None:
            reasons |= dict.fromkeys(("bic", "icl"), "its data has no rows")
        else:
            found["bic"] = count * math.log(program.data.num_rows) - 2 * likelihood.value
            attempt("icl", lambda: found["bic"] + 2 * _entropy(result))
    return ComparedModel(
        kind=type(result).__name__.removesuffix("Result"),
        num_parameters=count,
        reasons=reasons,
        notes=tuple(notes),
        doubtful=tuple(doubtful),
        **found,
    )


def _log_likelihood(result: Result, seen: _Seen, num_draws: int, seed: int | None) -> Estimate:
    """log p(x) at the parameters; exact where what is not at a point is enumerated."""
    program = result._program
    at_a_point = [name for name in seen.fixed if name in program.sites.local]
    if at_a_point:
        raise ValueError(f"the rows' own {at_a_point[0]!r} is at a point, and is not integrated out")
    if set(program.sites.latent) - set(seen.fixed):
        if outside := [name for name in program.data_sites if name not in program.sites.local]:
            raise ValueError(f"{outside[0]!r} is observed outside the rows, whose latents are integrated out")
        rows = result.score(num_draws=num_draws, seed=seed)
        return Estimate(rows.value.double().sum().item(), rows.standard_error.double().square().sum().sqrt().item())
    args = result._arguments(())
    with result._quiet(seed), torch.no_grad():
        drawn = poutine.trace(result.guide).get_trace(*args, **program.model_kwargs)
        trace = result._enumerated_trace(args, drawn)
        for name, site in list(trace.nodes.items()):
            held = site["type"] == "sample" and site["infer"].get("_deterministic", False)
            if held or name in seen.fixed or name in set(program.sites.observed) - set(program.data_sites):
                trace.remove_node(name)  # a prior
        terms = [term._replace(value=term.value.double()) for term in log_density(trace)]
        return Estimate(by_row(terms, ())[0].item(), 0.0)


def _entropy(result: Result) -> float:
    """Of the rows' components given the data, in nats."""
    site = component_site(result)
    if site is None:
        raise ValueError("no single enumerated site inside the row plate gives each row a component")
    if result._program.sites.local_latent:
        raise ValueError("the rows have other latents besides their components")
    with result._quiet(None), torch.no_grad():
        probs = result._responsibilities(result._arguments(()), 1)[site]
    return torch.special.entr(probs.double()).sum().item()


def _leave_one_out(result: Result, seen: _Seen, num_draws: int, seed: int | None) -> LOO:
    if seen.fixed:
        raise ValueError(f"the guide puts {seen.fixed[0]!r} at a point and has no density there")
    check_rows_apart(result._program.sites)
    return leave_one_out(draw_weighted(result, num_draws, seed))


def _labellings(result: Result, seed: int | None) -> list[str]:
    found = examine_mixture(result, _NUM_LABELLINGS, seed)
    return [found.one_numbering] if found is not None and found.one_numbering else []
