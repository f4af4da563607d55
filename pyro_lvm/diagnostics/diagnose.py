"""``diagnose``: whether a fit can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.diagnostics.codes import examine_codes
from pyro_lvm.diagnostics.diagnosis import Diagnosis
from pyro_lvm.diagnostics.loo import check_rows_apart, leave_one_out
from pyro_lvm.diagnostics.mixtures import examine_mixture
from pyro_lvm.diagnostics.optimisation import examine
from pyro_lvm.diagnostics.predictive_checks import (
    STATISTICS,
    Statistic,
)
from pyro_lvm.diagnostics.replications import examine_predictions
from pyro_lvm.draws import sites_of
from pyro_lvm.importance import evidence_of, mean_of
from pyro_lvm.result import Result
from pyro_lvm.sparse import is_sparse
from pyro_lvm.verdict.judge import judge, lacks_posterior
from pyro_lvm.verdict.weights import Weights, draw_weighted

_NUM_LOO = 2_000
_NUM_COMPONENTS = 200


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
        The findings, each with its figure; ``verdict`` is "good", "doubtful" or "bad", "unknown" where nothing tells,
        or "not available" of a fit that has no posterior.

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
    drawn, useful = None, False
    if reason := lacks_posterior(result):
        missing["posterior"] = reason
    else:
        verdict = judge(result, num_draws, seed, result.resamples)
        khat, marginals, why_not, drawn = verdict
        parts |= {"khat": khat, "marginals": marginals, "elbo": mean_of(drawn.joint)}
        useful = khat.useful
        # where nothing is shared, rows have an evidence each
        parts["evidence"] = evidence_of(drawn.marginal) if khat.each else result.evidence(len(drawn.joint), seed=seed)
        if why_not:
            missing["marginals"] = why_not
        try:
            if marginals is not None and marginals.collapsed.any():
                raise ValueError("the guide has collapsed to a point, where draws cannot be weighed")
            drawn = _by_row(result, drawn, min(num_draws, _NUM_LOO), seed)
            parts["loo"] = leave_one_out(drawn)
        except ValueError as error:
            drawn, missing["LOO"] = drawn._replace(rows=None), str(error)
        if parts["loo"] is not None and parts["loo"].grade == "bad":
            drawn, missing["calibration"] = drawn._replace(rows=None), "too many rows cannot be left out by weights"
    held = sites_of(result, result._arguments(()))
    if not result._program.data_sites:
        missing["predictions"] = "no observed site holds data: what they hold depends on parameters of the model"
    for name in result._program.data_sites:
        if is_sparse(held[name]["value"]):
            missing[f"predictions of {name!r}"] = "its observations are a sparse table, of which none are drawn anew"
    ranked, checks = examine_predictions(result, drawn, useful, checked, seed)
    return Diagnosis(
        fit=str(result).splitlines()[0],
        optimisation=examine(result),
        pit=ranked,
        checks=checks,
        components=examine_mixture(result, _NUM_COMPONENTS, seed),
        codes=examine_codes(result, seed=seed),
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


def _by_row(result: Result, drawn: Weights, num_draws: int, seed: int) -> Weights:
    """Draws with the weights of rows.

    Raises:
        ValueError: that says why rows cannot be left out.
    """
    sites = result._program.sites
    check_rows_apart(sites)
    if not sites.shared_latent:
        raise ValueError("rows share no latent; parameters, if there are any, are at a point and have seen every row")
    return draw_weighted(result, num_draws, seed) if drawn.rows is None else drawn
