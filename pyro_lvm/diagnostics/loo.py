"""Leave-one-out cross-validation from draws of an approximate posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_lvm.diagnostics.weights import Weights
from pyro_lvm.psis import smooth


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
        return int((self.pareto_k > 0.7).sum())

    def __str__(self) -> str:
        lines = [f"elpd_loo {self.elpd:.2f} +- {self.standard_error:.2f} nats, p_loo {self.p_loo:.2f}"]
        if self.num_unreliable:
            lines.append(f"Pareto k above 0.7 for {self.num_unreliable} of {len(self.rows)} rows: not to be trusted")
        return "; ".join(lines)


def leave_one_out(weights: Weights, corrected: bool = True) -> LOO:
    """Leave each row out, by importance sampling from draws of the guide (Magnusson et al. 2019, equation 7).

    A draw g weighs p(g, x) / q(g) / p(x_i | g), smoothed for each row; the latents of a row are integrated out.

    Args:
        weights: Draws and their weights, with rows.
        corrected: Whether draws are weighted by p / q, too; without, they are taken for draws of the posterior.
    """
    assert weights.rows is not None
    rows = weights.rows.double()
    posterior = weights.marginal.double() if corrected else torch.zeros(len(rows), dtype=torch.float64)
    within = (smooth(posterior).log_weights[:, None] + rows).logsumexp(0)
    found, ks = [], []
    for i in range(rows.shape[1]):
        log_weights, k = smooth(posterior - rows[:, i])
        found.append((log_weights + rows[:, i]).logsumexp(0))
        ks.append(k)
    each = torch.stack(found)
    return LOO(
        elpd=each.sum().item(),
        standard_error=(each.var() * len(each)).sqrt().item() if len(each) > 1 else math.nan,
        p_loo=(within - each).sum().item(),
        rows=each,
        pareto_k=torch.tensor(ks, dtype=torch.float64),
    )
