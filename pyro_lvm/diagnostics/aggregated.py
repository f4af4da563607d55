"""The aggregated posterior, the guide's distributions of all rows mixed, against the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.diagnostics.amortized import Amortized
from pyro_lvm.importance import Estimate, mean_of
from pyro_lvm.result import Draws
from pyro_lvm.vectorize import repeat
from pyro_lvm.verdict.finding import Finding

_MOST_ROWS = 2_000  # that are mixed
_NUM_PLACES = 500  # at which the mixture is evaluated
_NEAR, _FAR = 1.0, 3.0  # nats


@dataclass(frozen=True)
class Aggregated:
    r"""The two parts of the rate, in nats (Hoffman and Johnson 2016).

    .. math::

        \frac1N \sum_i \mathrm{KL}(q(z \mid x_i) \,\|\, p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z)),
        \qquad q(z) = \frac1N \sum_i q(z \mid x_i)

    The information of N rows cannot exceed :math:`\log N`, however well their latents tell them apart. Of all rows that
    there might be, it is a lower bound, and the divergence an upper one. A mixture of all rows but the one that a draw
    belongs to bounds the divergence from below (Poole et al. 2019).

    Attributes:
        information: :math:`I_q(x; z)`, how much a draw of the latents tells of the row that it belongs to.
        divergence: :math:`\mathrm{KL}(q(z) \,\|\, p(z))`.
        least: A lower bound of the divergence for all rows that there might be; one below 0 says nothing.
        num_rows: N: the rows of the fit, or 2,000 of them.
    """

    information: Estimate
    divergence: Estimate
    least: Estimate
    num_rows: int

    def findings(self) -> list[Finding]:
        """Whether draws of the prior are such latents as the decoder has learnt from."""
        about, most = "aggregated posterior", self.divergence
        sure = max(0.0, self.least.value - 2 * self.least.standard_error)
        text = f"the aggregated posterior is {most} from the prior"
        if most.value <= _NEAR:
            return [Finding(about, "good", text)]
        if sure <= _NEAR:
            text = f"the aggregated posterior is between {sure:.1f} and {most.value:.1f} nats from the prior"
            text += f": {self.num_rows:,} rows do not tell more"
            advice = "a look at draws of the prior: lvm.prior_predictive(result.model, *data)"
            return [Finding(about, "unknown", text, advice)]
        text += ": draws of the prior decode badly"
        advice = "a larger beta, fewer latents, a richer prior, or draws of a density fitted to the rows' latents"
        return [Finding(about, "bad" if sure > _FAR else "doubtful", text, advice)]


def aggregate(fit: Amortized) -> Aggregated | None:
    """Mix the guide's distributions of the rows, and evaluate the mixture at draws of it.

    Returns:
        None for a single row, and where the prior differs from row to row.
    """
    assert fit.data.num_rows is not None
    index = torch.randperm(fit.data.num_rows)[:_MOST_ROWS]
    args, M = fit.data.take(index), len(index)
    if M < 2 or not _has_one_prior(fit, args, fit.data.take(index.roll(1))):
        return None

    def draw() -> tuple[Draws, Tensor]:
        sites = fit.guide(args)
        values = fit.values(sites)
        log_p = fit.log_latents(fit.model(args, values))
        return {name: value.movedim(fit.row_dim(sites[name]), 0) for name, value in values.items()}, log_p

    drawn = repeat(draw, math.ceil(_NUM_PLACES / M))
    values, log_p = {name: v.flatten(0, 1)[:_NUM_PLACES] for name, v in drawn[0].items()}, drawn[1].flatten()
    with torch.no_grad():
        dims = {name: fit.row_dim(site) for name, site in fit.guide(args).items() if name in values}

    def densities(place: Draws) -> Tensor:
        """log q of one place by each row, ``[M]``."""
        given = {n: v.expand(M, *v.shape).movedim(0, dims[n]) for n, v in place.items()}
        return fit.log_latents(fit.guide(args, given))

    log_q = repeat(densities, _NUM_PLACES, values).double()
    row = (torch.arange(_NUM_PLACES, device=log_q.device) % M).unsqueeze(1)
    own, log_p = log_q.gather(1, row).squeeze(1), log_p[:_NUM_PLACES].double()
    mixture = log_q.logsumexp(1) - math.log(M)
    others = log_q.scatter(1, row, -torch.inf).logsumexp(1) - math.log(M - 1)
    return Aggregated(mean_of(own - mixture), mean_of(mixture - log_p), mean_of(others - log_p), M)


def _has_one_prior(fit: Amortized, args: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether latents are as likely before other rows are seen."""
    with torch.no_grad():
        latents = fit.values(fit.guide(args))
        one, other = (fit.log_latents(fit.model(rows, latents)) for rows in (args, others))
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)
