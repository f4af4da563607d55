"""EM for mixtures of Gaussians whose data have missing entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.models._gaussian_posterior import Patterns, patterns_of, pieces, posterior
from pyro_lvm.models._gaussian_runs import as_runs, without_runs
from pyro_lvm.models._steps import Params, Sums
from pyro_lvm.models.gaussian_mixture_em import GaussianMixtureSteps

__all__ = ["MissingGaussianMixtureSteps"]


class MissingGaussianMixtureSteps(GaussianMixtureSteps):
    r"""EM for a mixture of Gaussians whose missing entries, NaN, are integrated out.

    The entries are missing at random: whether one is missing may depend on what is observed, not on what is missing.
    A row without any entry adds nothing to the log-likelihood.

    With :math:`\Sigma = L L^\top` and the observed rows of the factor :math:`L_o = R^\top Q^\top`, by a QR
    decomposition of :math:`L_o^\top`, a row's noise :math:`L^{-1} (x - \mu)` has, given :math:`x_o`, the mean and
    covariance

    .. math::

        Q R^{-\top} (x_o - \mu_o), \qquad I - Q Q^\top.

    Full and tied covariances take one decomposition a component for each pattern of missing entries.

    Args:
        floor: The smallest variance in any direction.

    References:
        Z. Ghahramani and M. I. Jordan, "Supervised learning from incomplete data via an EM approach" (1994).
        R. J. A. Little and D. B. Rubin, *Statistical Analysis with Missing Data* (2019), chapter 11.
    """

    _last: tuple[Tensor, Patterns] | None = None

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """See `GaussianMixtureSteps.expect`; the sums are the same, in expectation over the missing entries."""
        weights, locs, scale = as_runs(params)
        log_p = weights.new_zeros(len(weights))
        counts, first, second = (torch.zeros_like(value) for value in (weights, locs, scale))
        (x,) = args
        if scale.dim() == 4 and (self._last is None or self._last[0] is not x):
            self._last = x, patterns_of(x)
        for piece in pieces(x, locs, scale, self._last[1] if self._last is not None else None):
            row_log_p, shares = posterior(piece, weights)
            if weight is not None:
                row_weight = weight[piece.rows].to(row_log_p)
                row_log_p, shares = row_log_p * row_weight, shares * row_weight
            log_p += row_log_p.sum(-1)
            counts += shares.sum(-1)
            weighted = shares.unsqueeze(-1) * piece.mean
            first += weighted.sum(2)
            if scale.dim() == 4:
                known, unknown = weighted.mT @ piece.mean, shares.sum(-1)[..., None, None] * piece.covariance
            else:
                known, unknown = (weighted * piece.mean).sum(2), shares @ piece.covariance
            second += (known + unknown).sum_to_size(second.shape)
        return without_runs({"log_p": log_p, "counts": counts, "first": first, "second": second}, params)
