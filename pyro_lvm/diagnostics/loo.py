"""Leave-one-out cross-validation from draws of an approximate posterior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.psis import USEFUL, smooth
from pyro_lvm.verdict.finding import Finding
from pyro_lvm.verdict.weights import Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LOO:
    """Expected log pointwise predictive density of rows left out, in nats.

    Attributes:
        elpd: The sum over rows of log p(x_i | x_-i).
        standard_error: Of the sum, as an estimate for other rows: that of the N values.
        p_loo: The effective number of parameters, log p(x_i | x) less the same of a row left out, summed over rows.
        rows: log p(x_i | x_-i), ``[N]``.
        pareto_k: Of the weights by which each row is left out, ``[N]``; an estimate is not to be trusted above 0.7.
    """

    elpd: float
    standard_error: float
    p_loo: float
    rows: Tensor = field(repr=False, compare=False)
    pareto_k: Tensor = field(repr=False, compare=False)

    @property
    def num_unreliable(self) -> int:
        """Rows whose Pareto k is above 0.7."""
        return int((self.pareto_k > USEFUL).sum())

    @property
    def grade(self) -> str:
        """Good if all rows can be left out, doubtful if all but a twentieth, else bad."""
        return (
            "good" if not self.num_unreliable else "doubtful" if self.num_unreliable <= 0.05 * len(self.rows) else "bad"
        )

    def findings(self) -> list[Finding]:
        """Whether the estimate can be trusted."""
        text = f"elpd_loo {self.elpd:.2f} +- {self.standard_error:.2f} nats, p_loo {self.p_loo:.2f}"
        if not self.num_unreliable:
            return [Finding("LOO", "good", text)]
        text += f"; Pareto k above {USEFUL} for {self.num_unreliable} of {len(self.rows)} rows"
        return [Finding("LOO", self.grade, text, "the score of rows held out of the fit: result.score(*held_out)")]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The Pareto k of each row."""
        ax = plots.pareto_k(self.pareto_k, ax)
        ax.set_title("rows left out")
        return ax

    def __str__(self) -> str:
        return self.findings()[0].text


def left_out_weights(weights: Weights, corrected: bool = True) -> Iterator[tuple[Tensor, float]]:
    """For each row, the log-weights of draws given all other rows, ``[S]``, and their Pareto k.

    A draw g weighs p(g, x) / q(g) / p(x_i | g), smoothed (Magnusson et al. 2019, equation 7).

    Args:
        weights: Draws and their weights, with rows.
        corrected: Whether draws are weighted by p / q, too; without, they are taken for draws of the posterior.
    """
    assert weights.rows is not None
    posterior = weights.marginal.double() if corrected else torch.zeros(len(weights.rows), dtype=torch.float64)
    for row in weights.rows.double().unbind(1):
        yield smooth(posterior - row)


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
    return LOO(
        elpd=each.sum().item(),
        standard_error=(each.var() * len(each)).sqrt().item() if len(each) > 1 else math.nan,
        p_loo=(within - each).sum().item(),
        rows=each,
        pareto_k=torch.tensor(ks, dtype=torch.float64),
    )


def tail_probability(log_weights: Tensor, replicated: Tensor, observed: Tensor) -> Tensor:
    """The weight of smaller values than the observed one, and of a random part of the equal ones."""
    weights = log_weights.exp().to(replicated.device)
    below, same = weights @ (replicated < observed).double(), weights @ (replicated == observed).double()
    return (below + same * torch.rand(())).clamp(0, 1)
