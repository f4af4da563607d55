"""Images of half the height and width, and four times the channels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.transforms._base import Layer, Transform

__all__ = ["Squeeze"]


class _Squeeze(Transform):
    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        squares = x.unflatten(-3, (-1, 2, 2)).movedim((-4, -3), (-3, -1))  # pixel_shuffle fails at no images
        return squares.flatten(-2).flatten(-3, -2), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        squares = y.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))
        return squares.movedim((-3, -1), (-4, -3)).flatten(-5, -3), y.new_zeros(y.shape[:-3])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        *batch, C, H, W = shape
        return torch.Size([*batch, C // 4, 2 * H, 2 * W])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        *batch, C, H, W = shape
        return torch.Size([*batch, 4 * C, H // 2, W // 2])


class Squeeze(Layer):
    """From the base `[*, 4 C, H, W]` to images `[*, C, 2 H, 2 W]`: four channels become a square of pixels.

    References:
        L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017), section 3.6.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Squeeze
        >>> Squeeze()()(torch.arange(4.0).reshape(4, 1, 1))
        tensor([[[0., 1.],
                 [2., 3.]]])
    """

    event_dim = 3

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _Squeeze(3)
