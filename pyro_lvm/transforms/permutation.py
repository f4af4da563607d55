"""Other orders of the features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_lvm.checks import check_order
from pyro_lvm.transforms._base import Layer, Transform

__all__ = ["Permutation"]


class _Permutation(Transform):
    def __init__(self, order: Tensor, back: Tensor) -> None:
        super().__init__()
        self.order, self.back = order, back

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y.index_select(-1, self.back), y.new_zeros(y.shape[:-1])


class Permutation(Layer):
    """The features in another order, which is not learned.

    Args:
        order: The numbers of the features in their new order.

    Raises:
        ValueError: If it is no permutation of the numbers from 0.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Permutation
        >>> Permutation([1, 2, 0])()(torch.tensor([1.0, 2.0, 3.0]))
        tensor([2., 3., 1.])
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("order", check_order(order, len(order)))
        self.register_buffer("back", self.order.argsort())

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _Permutation(self.order, self.back)
