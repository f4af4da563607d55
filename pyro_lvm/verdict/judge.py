"""How far the means and standard deviations of a guide can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro import poutine

from pyro_lvm.draws import sites_of
from pyro_lvm.guides import lacks_density
from pyro_lvm.importance import masked_apart
from pyro_lvm.psis import USEFUL, pareto_k
from pyro_lvm.result import Result
from pyro_lvm.verdict.corrections import are_few, corrected
from pyro_lvm.verdict.finding import GRADES
from pyro_lvm.verdict.khat import KHat
from pyro_lvm.verdict.marginals import Marginals
from pyro_lvm.verdict.weights import Weights, draw_weighted

_RUNS = 5
_NESTED = 10  # times fewer draws where the latents of each row are integrated out


class Verdict(NamedTuple):
    """What importance weights, and moves towards the posterior, say of a guide.

    Attributes:
        khat: The Pareto k of the weights.
        marginals: Means and standard deviations beside corrected ones; None where there is nothing to correct.
        drawn: The weighted draws of the first of the runs.
    """

    khat: KHat
    marginals: Marginals | None
    drawn: Weights

    @property
    def useful(self) -> bool:
        """Whether weights can correct the guide."""
        return self.khat.value < USEFUL

    @property
    def grade(self) -> str:
        """The verdict in a word."""
        return grade_of(self.khat, self.marginals)


def grade_of(khat: KHat | None, marginals: Marginals | None) -> str:
    """The verdict in a word; see :attr:`pyro_lvm.diagnostics.diagnosis.Diagnosis.verdict`."""
    grades = [] if marginals is None else [marginals.grade]
    if khat is not None and khat.rows is not None:
        grades.append(khat.findings()[-1].grade)
    return max(grades, key=GRADES.index) if grades else "not available" if khat is None else "unknown"


def judge(result: Result, num_draws: int, seed: int, resamples: bool) -> Verdict:
    """Weigh a guide that has a density.

    Args:
        result: The fit.
        num_draws: In each of five runs; a tenth of it where the latents of rows are integrated out.
        seed: Of the draws.
        resamples: Whether it is the draws resampled by their weights that are graded, if these are useful.
    """
    khat, drawn = _khat(result, num_draws, seed)
    return Verdict(khat, corrected(result, drawn, khat.value < USEFUL, seed, resamples), drawn)


def lacks_posterior(result: Result) -> str:
    """Why the fit has no posterior to judge; empty if it has one."""
    program, args = result._program, result._arguments(())
    if not program.sites.latent:
        return "no latent is drawn by a guide"
    if program.weighted or any(torch.as_tensor(site["scale"] != 1).any() for site in sites_of(result, args).values()):
        return "rows or sites are weighted, and the guide is near another distribution than the posterior"
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
