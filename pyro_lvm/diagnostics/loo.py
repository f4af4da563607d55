"""Leave-one-out cross-validation from draws of an approximate posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.importance import Estimate, mean_of
from pyro_lvm.psis import USEFUL, smooth
from pyro_lvm.sites import Sites
from pyro_lvm.verdict.finding import Finding
from pyro_lvm.verdict.weights import Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REFIT = (
    "K-fold cross-validation: fits without a part of the rows, and result.score(*part); a guide of rows' latents must "
    "be a function of the rows for that"
)


@dataclass(frozen=True)
class LOO:
    """Expected log pointwise predictive density of rows left out, in nats.

    Of more than 5,000 rows, as many are left out, and stand for all (Magnusson et al. 2019, section 3, with a simple
    random sample).

    Attributes:
        elpd: The sum over N rows of ``log p(x_i | x_-i)``.
        standard_error: See :func:`expanded`.
        p_loo: The effective number of parameters, log p(x_i | x) less the same of a row left out, summed over rows.
            Where rows' latents are integrated out by draws, it is too large by the relative variance of these means.
        rows: ``log p(x_i | x_-i)`` of the rows left out, ``[n]``.
        pareto_k: Of the weights by which each row is left out, ``[n]``; an estimate is not to be trusted from 0.7 on.
        num_rows: N.
    """

    elpd: float
    standard_error: float
    p_loo: float
    rows: Tensor = field(repr=False, compare=False)
    pareto_k: Tensor = field(repr=False, compare=False)
    num_rows: int

    @property
    def num_unreliable(self) -> int:
        """Rows whose Pareto k is 0.7 or above."""
        return int((self.pareto_k >= USEFUL).sum())

    @property
    def grade(self) -> str:
        """Good if all rows can be left out, doubtful if all but a twentieth, else bad."""
        return (
            "good" if not self.num_unreliable else "doubtful" if self.num_unreliable <= 0.05 * len(self.rows) else "bad"
        )

    def findings(self) -> list[Finding]:
        """Whether the estimate can be trusted."""
        error = f" +- {self.standard_error:.2f}" if len(self.rows) > 1 else ""
        text = f"elpd_loo {self.elpd:.2f}{error} nats, p_loo {self.p_loo:.2f}"
        if len(self.rows) < self.num_rows:
            text += f", by {len(self.rows):,} of {self.num_rows:,} rows"
        if not self.num_unreliable:
            return [Finding("LOO", "good", text)]
        text += f"; Pareto k of {USEFUL} or above for {self.num_unreliable:,} of {len(self.rows):,} rows"
        return [Finding("LOO", self.grade, text, _REFIT)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The Pareto k of each row."""
        ax = plots.pareto_k(self.pareto_k, ax)
        ax.set_title("rows left out")
        return ax

    def __str__(self) -> str:
        return self.findings()[0].text


def left_out_weights(weights: Weights, corrected: bool = True) -> Iterator[tuple[Tensor, float]]:
    """For each row, the log-weights of draws given all other rows, ``[S]``, and their Pareto k.

    A draw g weighs p(g, x) / q(g) / p(x_i | g), smoothed (Magnusson et al. 2019, equation 7). Where p(x_i | g) is zero,
    that is the weight of all other rows, if it can be told, and else nothing.

    Args:
        weights: Draws and their weights, with rows.
        corrected: Whether draws are weighted by p / q, too; without, they are taken for draws of the posterior.
    """
    assert weights.rows is not None
    assert weights.spared is not None
    posterior = weights.marginal.double() if corrected else torch.zeros(len(weights.rows), dtype=torch.float64)
    spared = weights.spared if corrected else torch.tensor(-math.inf)
    for row in weights.rows.double().unbind(1):
        yield smooth(torch.where(row == -math.inf, spared, posterior - row))


def check_rows_apart(sites: Sites) -> None:
    """Refuse models whose rows cannot be left out one by one.

    Raises:
        ValueError: that says why.
    """
    if sites.row_plate is None:
        raise ValueError("the model has no plate that follows the rows of the data" + sites.search)
    if sites.shared_enumerated:
        raise ValueError(f"the rows depend on the enumerated site {sites.shared_enumerated[0]!r}")


def leave_one_out(weights: Weights, corrected: bool = True) -> LOO:
    """Leave each row out, by importance sampling from draws of the guide.

    Args:
        weights: See :func:`left_out_weights`; the latents of a row are integrated out.
        corrected: See :func:`left_out_weights`.
    """
    assert weights.rows is not None
    rows = weights.rows.double()
    posterior = weights.marginal.double() if corrected else torch.zeros(len(rows), dtype=torch.float64)
    within = (smooth(posterior).log_weights[:, None] + rows).logsumexp(0)
    found, ks = [], []
    for row, (log_weights, k) in zip(rows.unbind(1), left_out_weights(weights, corrected), strict=True):
        found.append((log_weights + row).logsumexp(0))
        ks.append(k)
    each = torch.stack(found)
    elpd, error = expanded(each, weights.num_rows)
    return LOO(
        elpd=elpd,
        standard_error=error,
        p_loo=expanded(within - each, weights.num_rows).value,
        rows=each,
        pareto_k=torch.tensor(ks, dtype=torch.float64),
        num_rows=weights.num_rows,
    )


def expanded(rows: Tensor, num_rows: int) -> Estimate:
    """The sum over N rows of what n of them have, taken at random.

    Its standard error is that of an estimate for other rows: N times the variance of a row, for the N rows there are,
    and N (N - n) / n times it, since only n of them are known, make N^2 / n together.

    Args:
        rows: ``[n]``.
        num_rows: N.
    """
    return Estimate(num_rows * rows.mean().item(), num_rows * mean_of(rows).standard_error)


def tail_probability(log_weights: Tensor, replicated: Tensor, observed: Tensor) -> Tensor:
    """The weight of smaller values than the observed one, and of a random part of the equal ones."""
    weights = log_weights.exp().to(replicated.device)
    below, same = weights @ (replicated < observed).double(), weights @ (replicated == observed).double()
    return (below + same * torch.rand(())).clamp(0, 1)
