"""Linear maps by triangular factors: of vectors, and of the channels of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_lvm.checks import check_count, check_order
from pyro_lvm.transforms._base import Transform
from pyro_lvm.transforms._linear import LinearTransform
from pyro_lvm.transforms._matrices import apply, solve
from pyro_lvm.transforms._parametric import ParametricLayer

__all__ = ["Conv1x1", "PLULinear"]


class _PLU(LinearTransform):
    def __init__(
        self, images: bool, order: Tensor, lower: Tensor, upper: Tensor, log_diagonal: Tensor, loc: Tensor
    ) -> None:
        super().__init__(log_diagonal, loc, images)
        self.order = order
        self.lower = lower.tril(-1) + torch.eye(len(order), dtype=lower.dtype, device=lower.device)
        self.upper = upper.triu(1) + torch.diag_embed(log_diagonal.exp())

    def multiply(self, rows: Tensor) -> Tensor:
        return apply(self.lower @ self.upper, rows)[..., self.order]

    def solve(self, rows: Tensor) -> Tensor:
        below = solve(self.lower, rows[..., self.order.argsort()], upper=False, unitriangular=True)
        return solve(self.upper, below, upper=True)


class PLULinear(ParametricLayer):
    r"""A linear map by a permutation and two triangular matrices.

    .. math::

        y = P L U x + b, \qquad \log |\det \partial y / \partial x| = \sum_d \log U_{dd}

    :math:`L` has ones and :math:`U` positive numbers on its diagonal. Both directions cost :math:`D^2` for each row. It
    starts at :math:`P`.

    Args:
        num_features: :math:`D`.
        order: The permutation, which is not learned: the numbers of the features in their new order. None for
            :math:`P = I`.
        context: Size :math:`C` of the context `[*, C]`, by which a network moves the parameters; 0 for none.
        hidden: Widths of that network's hidden layers.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or `order` no permutation.

    References:
        D. P. Kingma and P. Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions" (2018), section 3.2.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import PLULinear
        >>> layer = PLULinear(2, order=[1, 0])
        >>> x = torch.tensor([1.0, 2.0])
        >>> layer()(x).tolist(), layer().inv(layer()(x)).tolist()
        ([2.0, 1.0], [1.0, 2.0])
    """

    _images = False
    order: Tensor

    def __init__(
        self,
        num_features: int,
        order: Sequence[int] | None = None,
        context: int = 0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        D = check_count("num_features", num_features)
        start = {
            "lower": torch.zeros(D, D),
            "upper": torch.zeros(D, D),
            "log_diagonal": torch.zeros(D),
            "loc": torch.zeros(D),
        }
        super().__init__(start, context, hidden)
        self.register_buffer("order", torch.arange(D) if order is None else check_order(order, D))

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _PLU(self._images, self.order, *self.values(context))


class Conv1x1(PLULinear):
    r"""An invertible 1 x 1 convolution: the same linear map, by triangular factors, of the channels of each pixel.

    .. math::

        y_{\cdot hw} = P L U x_{\cdot hw} + b, \qquad
            \log |\det \partial y / \partial x| = H W \sum_c \log U_{cc}

    Args:
        num_channels: :math:`C`, of images `[*, C, H, W]`.
        order: As in :class:`PLULinear`, and so `context` and `hidden`.
        context: Size of the context.
        hidden: Widths of hidden layers.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or `order` no permutation.

    References:
        D. P. Kingma and P. Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions" (2018).

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Conv1x1
        >>> Conv1x1(3)()(torch.ones(5, 3, 8, 8)).shape
        torch.Size([5, 3, 8, 8])
    """

    event_dim = 3
    _images = True

    def __init__(
        self,
        num_channels: int,
        order: Sequence[int] | None = None,
        context: int = 0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__(num_channels, order, context, hidden)
