"""Images of half the height and width, and four times the channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from pyro_lvm.transforms._base import Layer, Transform

__all__ = ["Squeeze"]


class _Squeeze(Transform):
    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return pixel_shuffle(x, 2), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return pixel_unshuffle(y, 2), y.new_zeros(y.shape[:-3])

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
