"""Gaussians bent by flows: what guides are."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.flows.distribution import FlowDistribution
from pyro_lvm.transforms import Transform


def bent_gaussian(flow: FlowDistribution, loc: Tensor, scale: Tensor, tril: Tensor | None = None) -> FlowDistribution:
    r"""The distribution of :math:`\mu + S L f(x)`, at :math:`f(x) = x` a Gaussian.

    Args:
        flow: Of :math:`f(x)`, with the batch shape of the locs, or one to be broadcast to it.
        loc: :math:`\mu`, `[*, D]`.
        scale: The diagonal of :math:`S`, `[*, D]`.
        tril: :math:`L`, lower triangular with a unit diagonal, `[D, D]`. None for none.
    """
    base = flow.base_dist.expand(torch.broadcast_shapes(flow.batch_shape, loc.shape[:-1]))
    return FlowDistribution(base, _Scaled(flow.transform, loc, scale, tril))


class _Scaled(Transform):
    """A transform, and then a location and a triangular matrix, diagonal or not."""

    def __init__(self, transform: Transform, loc: Tensor, scale: Tensor, tril: Tensor | None) -> None:
        super().__init__()
        self.transform, self.loc, self.scale, self.tril = transform, loc, scale, tril

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = self.transform.forward_and_log_det(x)
        y = y if self.tril is None else y @ self.tril.mT
        return self.loc + self.scale * y, log_det + self.scale.log().sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y = (y - self.loc) / self.scale
        if self.tril is not None:
            y = torch.linalg.solve_triangular(self.tril, y.unsqueeze(-1), upper=False).squeeze(-1)
        x, log_det = self.transform.inverse_and_log_det(y)
        return x, log_det - self.scale.log().sum(-1)
