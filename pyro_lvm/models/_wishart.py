"""The Wishart distribution, by the Cholesky factor of its inverse scale matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Chi2
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl


class Wishart(TorchDistribution):
    r"""Precision matrices :math:`\Lambda` whose inverses are inverse Wishart with scale matrix :math:`\Psi = L L^\top`.

    torch's has the scale matrix :math:`\Psi^{-1}`, reads values when it is made, so that no program with it can be
    traced, and takes valid draws for singular ones (torch 2.13).

    Args:
        df: Degrees of freedom, more than :math:`D - 1`.
        inverse_scale_tril: :math:`L`, `[*, D, D]`.
    """

    support = constraints.positive_definite
    has_rsample = True

    def __init__(self, df: Tensor, inverse_scale_tril: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(df.shape, inverse_scale_tril.shape[:-2])
        event_shape = inverse_scale_tril.shape[-2:]
        self.df = df.expand(batch_shape)
        self.inverse_scale_tril = inverse_scale_tril.expand(batch_shape + event_shape)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """What the arguments must be."""
        return {
            "df": constraints.greater_than(self.event_shape[-1] - 1),
            "inverse_scale_tril": constraints.lower_cholesky,
        }

    def expand(self, batch_shape: Any, _instance: Any = None) -> Wishart:
        """The same distribution with a larger batch."""
        batch_shape = torch.Size(batch_shape)
        scale_tril = self.inverse_scale_tril.expand(batch_shape + self.event_shape)
        new = type(self)(self.df.expand(batch_shape), scale_tril, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws by Bartlett's decomposition, with a diagonal that is larger by what rounding may take from it.

        Without it some draws of few degrees of freedom could not be factorised.
        """
        L, D = self.inverse_scale_tril, self.event_shape[-1]
        diagonal = Chi2(self.df.unsqueeze(-1) - torch.arange(D).to(L)).rsample(torch.Size(sample_shape)).sqrt()
        normal = torch.randn(self._extended_shape(sample_shape), dtype=L.dtype, device=L.device)
        root = torch.linalg.solve_triangular(L.mT, normal.tril(-1) + diagonal.diag_embed(), upper=True)
        draw = root @ root.mT
        growth = 8 * D * torch.finfo(L.dtype).eps * torch.eye(D, dtype=L.dtype, device=L.device)
        return (draw + draw.mT) / 2 * (1 + growth)  # a product is symmetric only up to rounding

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of a precision matrix."""
        if self._validate_args:
            self._validate_sample(value)
        root = torch.linalg.cholesky(value)
        trace = (self.inverse_scale_tril.mT @ root).square().sum((-2, -1))
        return (self.df - self.event_shape[-1] - 1) / 2 * log_det(root) - trace / 2 - self.log_normalizer

    @property
    def log_normalizer(self) -> Tensor:
        """Log of what the density is divided by."""
        D = self.event_shape[-1]
        log_gamma = self._halves.lgamma().sum(-1) + D * (D - 1) / 4 * math.log(math.pi)
        return self.df / 2 * (D * math.log(2) - log_det(self.inverse_scale_tril)) + log_gamma

    @property
    def mean_log_det(self) -> Tensor:
        r""":math:`\mathbb{E} \log |\Lambda|` (Bishop 2006, equation 10.65)."""
        return self._halves.digamma().sum(-1) + self.event_shape[-1] * math.log(2) - log_det(self.inverse_scale_tril)

    @property
    def _halves(self) -> Tensor:
        return (self.df.unsqueeze(-1) - torch.arange(self.event_shape[-1]).to(self.df)) / 2


@register_kl(Wishart, Wishart)
def _kl(q: Wishart, p: Wishart) -> Tensor:
    D = q.event_shape[-1]
    ratio = torch.linalg.solve_triangular(q.inverse_scale_tril, p.inverse_scale_tril, upper=False)
    mean = (q.df - p.df) * q.mean_log_det + q.df * (ratio.square().sum((-2, -1)) - D)
    return p.log_normalizer - q.log_normalizer + mean / 2


def log_det(root: Tensor) -> Tensor:
    """Log-determinant of the matrix of which this is the Cholesky factor."""
    return 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
