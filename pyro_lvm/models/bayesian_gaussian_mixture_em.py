"""Coordinate ascent variational inference for the Bayesian Gaussian mixture."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_lvm.models._steps import Params, Steps, Sums
from pyro_lvm.models._wishart import Wishart, log_det

__all__ = ["BayesianGaussianMixtureSteps"]

_NUMBERS_AT_ONCE = 2**17  # of the rows' deviations from all locs: 1 MB, which stays in a cache


class BayesianGaussianMixtureSteps(Steps):
    r"""Coordinate ascent on the ELBO of a Bayesian Gaussian mixture.

    With :math:`\Psi_k = W_k^{-1}`, the E-step is Bishop's (10.49), :math:`r_{ik} \propto \rho_{ik}` with

    .. math::

        \log \rho_{ik} = \mathbb{E} \log \pi_k + \tfrac12 \mathbb{E} \log |\Lambda_k| - \tfrac D2 \log 2\pi
            - \tfrac12 \big(D / \beta_k + \nu_k (x_i - m_k)^\top \Psi_k^{-1} (x_i - m_k)\big),

    and the M-step (10.58) and (10.60) to (10.63). At these responsibilities the lower bound (10.70) is :math:`\sum_i
    \log \sum_k \rho_{ik}`, the rows' part, less the Kullback-Leibler divergence of :math:`q(\pi, \mu, \Lambda)` from
    the prior.

    Rows are taken as deviations from the present locs, so that far-off data lose no digits.

    Args:
        prior: The prior in the form of the posterior: the same names, in shapes that broadcast with the posterior's.

    References:
        C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 10.2.
    """

    objective_name = "ELBO"

    def __init__(self, prior: Params) -> None:
        self.prior = _double(prior)

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """Counts ``[K]``, sums ``[K, D]`` and scatters ``[K, D, D]`` of the rows' deviations from the locs, and log_p.

        Args:
            params: The posterior's parameters.
            args: The rows ``[N, D]``.
            weight: ``[N]``, or None.
        """
        (x,), q = args, _double(params)
        K, D = q["locs"].shape
        mean_log_weights = q["concentration"].digamma() - q["concentration"].sum().digamma()
        constant = (
            mean_log_weights + (_precisions(q).mean_log_det - D * math.log(2 * math.pi) - D / q["loc_precision"]) / 2
        )
        weight = x.new_ones(len(x)) if weight is None else weight

        total: Sums = {}
        size = _rows_at_once(K, D)
        for rows, row_weight in zip(x.split(size), weight.split(size), strict=True):
            rows, row_weight = rows.double(), row_weight.double()
            log_rho = constant - q["degrees_of_freedom"] * _squares(rows, q) / 2
            log_p = log_rho.logsumexp(-1)
            responsibilities = (log_rho - log_p.unsqueeze(-1)).exp() * row_weight.unsqueeze(-1)
            sums = statistics(rows, responsibilities, q["locs"]) | {"log_p": row_weight @ log_p}
            total = {name: total[name] + value for name, value in sums.items()} if total else sums
        return total

    def maximize(self, sums: Sums, params: Params) -> Params:
        """The best posterior at the responsibilities behind the sums, which are about the locs in ``params``."""
        p, counts = self.prior, sums["counts"]
        loc_precision = p["loc_precision"] + counts
        to_prior = p["locs"] - params["locs"].double()
        to_new = (sums["sums"] + p["loc_precision"] * to_prior) / loc_precision.unsqueeze(-1)
        scale_matrix = (
            p["scale_tril"] @ p["scale_tril"].mT
            + sums["scatters"]
            + p["loc_precision"] * _outer(to_prior)
            - loc_precision[:, None, None] * _outer(to_new)
        )
        new = {
            "concentration": p["concentration"] + counts,
            "locs": params["locs"].double() + to_new,
            "loc_precision": loc_precision,
            "degrees_of_freedom": p["degrees_of_freedom"] + counts,
            "scale_tril": torch.linalg.cholesky(scale_matrix),
        }
        return {name: value.to(params[name]) for name, value in new.items()}

    def component_axes(self, params: Params) -> dict[str, tuple[int, ...]]:
        """See `Steps.component_axes`."""
        return dict.fromkeys(params, (0,))

    def outside(self, params: Params) -> Tensor:
        """The negative Kullback-Leibler divergence of the posterior from the prior."""
        q, p = _double(params), self.prior
        D = q["locs"].shape[-1]
        ratio = p["loc_precision"] / q["loc_precision"]
        kl_means = D * (ratio - 1 - ratio.log()) / 2
        kl_means = kl_means + p["loc_precision"] * q["degrees_of_freedom"] * _squares(p["locs"][None], q)[0] / 2
        kl_precisions = kl_divergence(_precisions(q), _precisions(p))
        kl_weights = kl_divergence(Dirichlet(q["concentration"]), Dirichlet(p["concentration"]))
        return -(kl_weights + (kl_means + kl_precisions).sum())


def statistics(x: Tensor, responsibilities: Tensor, locs: Tensor) -> Sums:
    """What an M-step needs of rows ``[N, D]`` that belong to the components by ``[N, K]``, about locs ``[K, D]``."""
    deviations = x - locs.unsqueeze(-2)
    weighted = responsibilities.mT.unsqueeze(-1) * deviations
    return {"counts": responsibilities.sum(0), "sums": weighted.sum(-2), "scatters": weighted.mT @ deviations}


def _squares(x: Tensor, params: Params) -> Tensor:
    r""":math:`(x_i - m_k)^\top \Psi_k^{-1} (x_i - m_k)`, ``[N, K]``."""
    deviations = x - params["locs"].unsqueeze(-2)
    return torch.linalg.solve_triangular(params["scale_tril"], deviations.mT, upper=False).square().sum(-2).mT


def log_student_mixture(x: Tensor, params: Params) -> Tensor:
    """Log-density of rows ``[N, D]``, averaged over the posterior: Bishop's (10.81), in double precision.

    In single precision the log-gamma functions of many degrees of freedom would leave two digits.
    """
    q = _double(params)
    (K, D), df = q["locs"].shape, q["degrees_of_freedom"]
    shrinkage = q["loc_precision"] / (1 + q["loc_precision"])
    constant = (
        (q["concentration"] / q["concentration"].sum()).log()
        + torch.lgamma((df + 1) / 2)
        - torch.lgamma((df + 1 - D) / 2)
        + (D * (shrinkage / math.pi).log() - log_det(q["scale_tril"])) / 2
    )
    densities = [
        (constant - (df + 1) / 2 * (shrinkage * _squares(rows.double(), q)).log1p()).logsumexp(-1)
        for rows in x.split(_rows_at_once(K, D))
    ]
    return torch.cat(densities)


def _rows_at_once(num_components: int, num_features: int) -> int:
    """How many rows to hold deviations of."""
    return max(1, _NUMBERS_AT_ONCE // (num_components * num_features))


def _precisions(params: Params) -> Wishart:
    return Wishart(params["degrees_of_freedom"], params["scale_tril"])


def _outer(vectors: Tensor) -> Tensor:
    return vectors.unsqueeze(-1) * vectors.unsqueeze(-2)


def _double(params: Params) -> Params:
    return {name: value.double() for name, value in params.items()}
