"""How far the means and standard deviations of a guide can be trusted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro import poutine

from pyro_lvm.draws import sites_of
from pyro_lvm.guides import lacks_density
from pyro_lvm.importance import RUNS, joint_khats, masked_apart
from pyro_lvm.psis import pareto_k
from pyro_lvm.result import Result
from pyro_lvm.verdict.corrections import MOVES, corrected
from pyro_lvm.verdict.finding import GRADES
from pyro_lvm.verdict.khat import KHat
from pyro_lvm.verdict.marginals import Marginals
from pyro_lvm.verdict.points import collapsed
from pyro_lvm.verdict.weights import Weights, draw_weighted, integrates, num_latents

_FEW = 100  # numbers that are weighed together
_NESTED = 10  # times fewer draws where latents of rows are more, and are to be integrated out


class Verdict(NamedTuple):
    """What importance weights, and moves towards the posterior, say of a guide.

    Attributes:
        khat: The Pareto k of the weights.
        marginals: Means and standard deviations beside corrected ones; None where there is nothing to correct.
        lacks_marginals: Why there are none; empty if there are.
        drawn: The weighted draws of the first of the runs.
    """

    khat: KHat
    marginals: Marginals | None
    lacks_marginals: str
    drawn: Weights

    @property
    def grade(self) -> str:
        """The verdict in a word."""
        return grade_of(self.khat, self.marginals)


def grade_of(khat: KHat | None, marginals: Marginals | None) -> str:
    """The verdict in a word; see :attr:`pyro_lvm.diagnostics.diagnosis.Diagnosis.verdict`.

    The k-hats of rows say nothing of marginals, and where these are not graded, by moves, they can but raise a doubt.
    """
    grades = [] if marginals is None else [marginals.grade]
    moved = marginals is not None and MOVES in marginals.corrected
    if khat is not None and khat.rows is not None and not moved:
        grades.append("good" if khat.findings()[-1].grade == "good" else "doubtful")
    return max(grades, key=GRADES.index) if grades else "not available" if khat is None else "unknown"


def judge(result: Result, num_draws: int, seed: int, resamples: bool) -> Verdict:
    """Weigh a guide that has a density.

    Args:
        result: The fit.
        num_draws: In each of five runs; a tenth of it where there are more than 100 latent numbers, some of rows.
        seed: Of the draws.
        resamples: Whether it is the draws resampled by their weights that are graded, if these are useful.
    """
    many = num_latents(result) > _FEW
    nested = many and bool(result._program.sites.local_latent)
    num_draws = max(1, num_draws // _NESTED) if nested else num_draws
    drawn = draw_weighted(result, num_draws, seed, by_row=nested and integrates(result))
    at_a_point = collapsed(result, drawn.draws, seed)
    # a point has no density to weigh by, and what the guide has in its place makes all weights look equal
    khat = KHat((math.inf,) * RUNS, num_draws) if at_a_point else _khat(result, drawn, seed)
    try:
        return Verdict(khat, corrected(result, drawn, at_a_point, khat.useful, seed, resamples), "", drawn)
    except ValueError as error:
        return Verdict(khat, None, str(error), drawn)


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


def _khat(result: Result, drawn: Weights, seed: int) -> KHat:
    """The Pareto k of five runs, of which there is the first."""
    program, num_draws = result._program, len(drawn.joint)
    if drawn.own is None:
        with result._quiet(seed + 1):
            others = joint_khats(program, result._values, result._arguments(()), num_draws, RUNS - 1)
        return KHat((pareto_k(drawn.joint), *others), num_draws)
    rows = torch.tensor([pareto_k(row) for row in drawn.own.unbind(1)])
    if not program.sites.shared_latent:
        return KHat((), num_draws, True, rows)
    runs = (drawn, *(draw_weighted(result, num_draws, seed + i) for i in range(1, RUNS)))
    return KHat(tuple(pareto_k(run.marginal) for run in runs), num_draws, True, rows)
