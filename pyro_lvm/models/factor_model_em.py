"""EM for probabilistic PCA and factor analysis, in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.models._factor_posterior import posterior
from pyro_lvm.models._steps import Params, Steps, Sums

__all__ = ["FactorSteps", "MissingFactorSteps"]

_NUM_ROWS = 4096  # at a time


class FactorSteps(Steps):
    r"""EM for a linear model of Gaussian latents, `pyro_lvm.models.PPCA` and `pyro_lvm.models.FactorAnalysis`.

    Complete rows matter by their covariance alone. With the scatter :math:`S` about the loc, the posterior precision
    :math:`A = I + W^\top \Psi^{-1} W` and :math:`G = A^{-1} W^\top \Psi^{-1}`,

    .. math::

        \sum_i \mathrm{E} z_i z_i^\top = G S G^\top + N A^{-1}, \qquad
        \sum_i (x_i - \mu) \mathrm{E} z_i^\top = S G^\top,

    and the M-step is the regression of the features on the latents and a constant.

    Args:
        centre: About what the scatter is taken, ``[D]``.
        floor: The smallest noise variance of each feature, ``[D]``. The M-step finds the maximum under this constraint.

    References:
        D. Rubin and D. Thayer, "EM algorithms for ML factor analysis" (1982).
        M. E. Tipping and C. M. Bishop, "Probabilistic principal component analysis" (1999), appendix B.
    """

    def __init__(self, centre: Tensor, floor: Tensor) -> None:
        self.centre, self.floor = centre.double(), floor.double()
        self._last: tuple[Tensor, Tensor | None, tuple[Tensor, ...]] | None = None

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """See `Steps.expect`. The sums are those of `MissingFactorSteps`, over all features where they are alike."""
        loading, loc = params["loading"].double(), params["loc"].double()
        noise = params["noise"].double().expand_as(loc)
        n, first, second = self._moments(args[0], weight)
        shift = loc - self.centre
        cross = first.unsqueeze(-1) * shift
        scatter = second - cross - cross.mT + n * shift.unsqueeze(-1) * shift
        total = first - n * shift
        precision = torch.eye(loading.shape[1]).to(loading) + (loading.mT / noise) @ loading
        factor = torch.linalg.cholesky(precision)
        gain = torch.cholesky_solve(loading.mT / noise, factor)
        xz = scatter @ gain.mT
        log_det = 2 * factor.diagonal().log().sum() + (2 * math.pi * noise).log().sum()
        explained = (xz * loading / noise.unsqueeze(-1)).sum()
        log_p = -0.5 * (n * log_det + (scatter.diagonal() / noise).sum() - explained)
        zz = _bordered(gain @ xz + n * torch.cholesky_inverse(factor), gain @ total, n)
        xz = torch.cat([xz, total.unsqueeze(-1)], -1)
        return {"log_p": log_p, "n": n.expand(1), "zz": zz.unsqueeze(0), "xz": xz, "xx": scatter.diagonal()}

    def maximize(self, sums: Sums, params: Params) -> Params:
        """See `Steps.maximize`."""
        loading, loc, noise = (params[name].double() for name in ("loading", "loc", "noise"))
        n, zz, xz = sums["n"], sums["zz"], sums["xz"]
        seen = n > 0  # a feature without entries stays as it is
        zz = torch.where(seen[:, None, None], zz, torch.eye(zz.shape[-1]).to(zz))
        new = torch.linalg.solve(zz, xz.unsqueeze(-1)).squeeze(-1)
        squares = sums["xx"] - (new * xz).sum(-1)
        if noise.dim():
            variance = torch.where(seen, squares / n.clamp(min=1e-300), noise)
        else:
            variance = squares.sum() / n.expand_as(squares).sum()
        result = {
            "loading": torch.where(seen.unsqueeze(-1), new[:, :-1], loading),
            "loc": torch.where(seen, loc + new[:, -1], loc),
            "noise": torch.maximum(variance, torch.minimum(self._floor(noise), noise)),  # a start may lie below
        }
        return {name: value.to(params[name]) for name, value in result.items()}

    def remarks(self, params: Params) -> dict[str, str]:
        """See `Steps.remarks`: which noise is at its floor (a Heywood case)."""
        noise = params["noise"].double()
        low = noise <= self._floor(noise) * (1 + 1e-3)
        if not low.any():
            return {}
        which = f" for the features {', '.join(map(str, low.nonzero().flatten().tolist()))}" if noise.dim() else ""
        return {"noise": f"at its floor{which} (a Heywood case)"}

    def _floor(self, noise: Tensor) -> Tensor:
        return self.floor if noise.dim() else self.floor.mean()

    def _moments(self, x: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
        """The weight of the rows, their sum and their scatter about the centre; those of the last rows are kept."""
        if self._last is None or self._last[0] is not x or self._last[1] is not weight:
            D = len(self.centre)
            n, first, second = self.centre.new_zeros(()), torch.zeros_like(self.centre), self.centre.new_zeros(D, D)
            for start in range(0, len(x), _NUM_ROWS):
                part = slice(start, start + _NUM_ROWS)
                dtype = x.dtype if x.is_floating_point() else self.centre.dtype
                rows = x[part].to(self.centre.device, dtype) - self.centre.to(dtype)
                weighted = rows if weight is None else rows * weight[part].to(rows).unsqueeze(-1)
                n += len(rows) if weight is None else weight[part].sum(dtype=n.dtype)
                first += weighted.sum(0, dtype=n.dtype)
                second += weighted.mT @ rows
            self._last = x, weight, (n, first, second)
        return self._last[2]


class MissingFactorSteps(FactorSteps):
    r"""The same where entries are missing, NaN, and integrated out.

    The entries are missing at random. Every row has a posterior of its own, and every feature a regression on the rows
    in which it was observed: `n` ``[D]``, `zz` ``[D, L + 1, L + 1]``, `xz` ``[D, L + 1]`` and `xx` ``[D]`` sum over
    these, with a constant as the last latent.

    References:
        R. J. A. Little and D. B. Rubin, *Statistical Analysis with Missing Data* (2019), section 11.3.
    """

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """See `Steps.expect`."""
        (D, L), like = params["loading"].shape, self.centre
        shapes = {"log_p": (), "n": (D,), "zz": (D, (L + 1) ** 2), "xz": (D, L + 1), "xx": (D,)}
        sums = {name: like.new_zeros(shape) for name, shape in shapes.items()}
        for part in posterior(params, args[0]):
            row_weight = torch.ones_like(part.log_prob) if weight is None else weight[part.rows].to(like)
            seen = part.there * row_weight.unsqueeze(-1)
            design = torch.cat([part.mean, torch.ones_like(part.mean[:, :1])], -1)
            second = _bordered(
                part.covariance + part.mean.unsqueeze(-1) * part.mean.unsqueeze(-2),
                part.mean,
                torch.ones_like(part.log_prob),
            )
            sums["log_p"] += row_weight @ part.log_prob
            sums["n"] += seen.sum(0)
            sums["zz"] += seen.mT @ second.flatten(1)
            sums["xz"] += (seen * part.off).mT @ design
            sums["xx"] += (seen * part.off.square()).sum(0)
        sums["zz"] = sums["zz"].reshape(D, L + 1, L + 1)
        return sums


def _bordered(matrix: Tensor, vector: Tensor, corner: Tensor) -> Tensor:
    """``[[matrix, vector], [vector^T, corner]]``."""
    upper = torch.cat([matrix, vector.unsqueeze(-1)], -1)
    lower = torch.cat([vector, corner.unsqueeze(-1)], -1).unsqueeze(-2)
    return torch.cat([upper, lower], -2)
