"""Sylvester flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_lvm.checks import check_count
from pyro_lvm.transforms._base import Transform
from pyro_lvm.transforms._bend import slope, unbend
from pyro_lvm.transforms._matrices import apply, orthogonal, pairs_of_reflections
from pyro_lvm.transforms._parametric import ParametricLayer

__all__ = ["Sylvester"]

_MOST = 0.999  # of a diagonal element: slopes stay above a thousandth


class _Sylvester(Transform):
    def __init__(
        self, reflections: Tensor, r1: Tensor, r2: Tensor, diagonal1: Tensor, diagonal2: Tensor, b: Tensor
    ) -> None:
        super().__init__()
        diagonal1, self.diagonal2, self.b = _MOST * diagonal1.tanh(), _MOST * diagonal2.tanh(), b
        self.middle = 1 + diagonal1 * self.diagonal2
        self.q = orthogonal(reflections)[..., : b.shape[-1]]
        self.r1 = r1.triu(1) + torch.diag_embed(diagonal1)
        self.r2 = r2.triu(1) + torch.diag_embed(self.diagonal2)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bent = (_product(self.r2 @ self.q.mT, x) + self.b).tanh()
        return x + _product(self.q @ self.r1, bent), slope(bent, self.middle).log().sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        target = _product(self.q.mT, y)
        origin: list[Tensor] = []  # in the coordinates of Q, from the last, which depends on no other
        bent: list[Tensor] = []
        for i in reversed(range(target.shape[-1])):
            shift, goal = self.b[..., i], target[..., i]
            for j, (t, h) in enumerate(zip(origin, bent, strict=True), start=i + 1):
                shift, goal = shift + self.r2[..., i, j] * t, goal - self.r1[..., i, j] * h
            bent.insert(0, unbend(self.diagonal2[..., i] * goal + shift, self.middle[..., i]).tanh())
            origin.insert(0, goal - self.r1[..., i, i] * bent[0])
        found = torch.stack(bent, -1)
        return y - _product(self.q @ self.r1, found), -slope(found, self.middle).log().sum(-1)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    return apply(matrix, x.unsqueeze(-2)).squeeze(-2)


class Sylvester(ParametricLayer):
    r"""A Sylvester flow: bends across several hyperplanes at once.

    .. math::

        y = x + Q R \tanh(\tilde R Q^\top x + b), \qquad
        \log |\det \partial y / \partial x|
            = \sum_m \log \left( 1 + R_{mm} \tilde R_{mm} (1 - \tanh^2(\cdot)_m) \right)

    :math:`Q` has :math:`M` orthogonal columns, from Householder reflections; :math:`R` and :math:`\tilde R` are upper
    triangular, with diagonals between -1 and 1. The inverse is a root in one variable for each hyperplane, one after
    the other, with implicit gradients. It starts at the identity.

    Args:
        num_features: :math:`D`.
        num_planes: :math:`M`, at most :math:`D`. None for :math:`D`.
        context: Size of the context, by which a network moves the parameters; 0 for none.
        hidden: Widths of that network's hidden layers.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or there are more planes than features.

    References:
        R. van den Berg, L. Hasenclever, J. M. Tomczak and M. Welling, "Sylvester normalizing flows for variational
        inference" (2018), equations 8 to 13.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Sylvester
        >>> _ = torch.manual_seed(0)
        >>> Sylvester(3, num_planes=2)()(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_planes: int | None = None,
        context: int = 0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        D = check_count("num_features", num_features)
        M = D if num_planes is None else check_count("num_planes", num_planes)
        if M > D:
            raise ValueError(f"num_planes: expected at most the {D} features, got {M}")
        start = {
            "reflections": pairs_of_reflections(D, M + M % 2),
            "r1": torch.zeros(M, M),
            "r2": torch.zeros(M, M),
            "diagonal1": torch.zeros(M),
            "diagonal2": torch.ones(M),
            "b": torch.zeros(M),
        }
        super().__init__(start, context, hidden)

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _Sylvester(*self.values(context))
