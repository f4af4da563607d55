"""Linear maps by an orthogonal and a triangular factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_lvm.checks import check_count
from pyro_lvm.transforms._base import Transform
from pyro_lvm.transforms._linear import LinearTransform
from pyro_lvm.transforms._matrices import apply, orthogonal, pairs_of_reflections, solve
from pyro_lvm.transforms._parametric import ParametricLayer

__all__ = ["QRLinear"]


class _QR(LinearTransform):
    def __init__(self, reflections: Tensor, upper: Tensor, log_diagonal: Tensor, loc: Tensor) -> None:
        super().__init__(log_diagonal, loc)
        self.q = orthogonal(reflections)
        self.r = upper.triu(1) + torch.diag_embed(log_diagonal.exp())

    def multiply(self, rows: Tensor) -> Tensor:
        return apply(self.q @ self.r, rows)

    def solve(self, rows: Tensor) -> Tensor:
        return solve(self.r, rows @ self.q, upper=True)


class QRLinear(ParametricLayer):
    r"""A linear map by Householder reflections and a triangular matrix.

    .. math::

        y = Q R x + b, \qquad Q = \prod_h \left( I - 2 \frac{v_h v_h^\top}{v_h^\top v_h} \right), \qquad
            \log |\det \partial y / \partial x| = \sum_d \log R_{dd}

    :math:`R` has positive numbers on its diagonal. Any matrix with a positive determinant is such a product. It starts
    at the identity.

    Args:
        num_features: :math:`D`.
        num_reflections: An even number. None for the first from :math:`D` on, which gives all rotations.
        context: Size :math:`C` of the context `[*, C]`, by which a network moves the parameters; 0 for none.
        hidden: Widths of that network's hidden layers.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or the number of reflections odd.

    References:
        E. Hoogeboom, R. van den Berg and M. Welling, "Emerging convolutions for generative normalizing flows" (2019),
        section 4.
        J. M. Tomczak and M. Welling, "Improving variational auto-encoders using Householder flow" (2016).

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import QRLinear
        >>> _ = torch.manual_seed(0)
        >>> layer = QRLinear(3)
        >>> torch.allclose(layer()(torch.ones(3)), torch.ones(3), atol=1e-6)
        True
    """

    def __init__(
        self,
        num_features: int,
        num_reflections: int | None = None,
        context: int = 0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        D = check_count("num_features", num_features)
        count = D + D % 2 if num_reflections is None else check_count("num_reflections", num_reflections)
        if count % 2:
            raise ValueError(f"num_reflections: expected an even number, for pairs start at the identity, got {count}")
        start = {
            "reflections": pairs_of_reflections(D, count),
            "upper": torch.zeros(D, D),
            "log_diagonal": torch.zeros(D),
            "loc": torch.zeros(D),
        }
        super().__init__(start, context, hidden)

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _QR(*self.values(context))
