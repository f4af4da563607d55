"""Couplings of images: some pixels or channels choose the function that the others go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_lvm.checks import check_count
from pyro_lvm.nn import ConvNet
from pyro_lvm.transforms._base import Layer, Transform
from pyro_lvm.transforms._start import near_zero
from pyro_lvm.transforms.univariate import Univariate, check_univariate

__all__ = ["ImageCoupling", "channel_mask", "checkerboard_mask"]


class _ImageCoupling(Transform):
    def __init__(self, layer: ImageCoupling, context: Tensor | None) -> None:
        super().__init__(3)
        self.layer, self.context = layer, context

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(self.layer.univariate.forward, x)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(self.layer.univariate.inverse, y)

    def _through(self, function: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
        layer, mask = self.layer, self.layer.mask
        if self.context is not None:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-3], self.context.shape[:-1]), *x.shape[-3:])
        outputs = layer.network(torch.where(mask, x, 0.0), self.context)
        new, log_slope = function(x, outputs.unflatten(-3, (x.shape[-3], -1)).movedim(-3, -1))
        return torch.where(mask, x, new), torch.where(mask, 0.0, log_slope).sum((-3, -2, -1))


class ImageCoupling(Layer):
    r"""Some pixels or channels of images stay, and choose the functions of the others.

    Args:
        mask: True where an image stays, `[C, H, W]`, as :func:`checkerboard_mask` and :func:`channel_mask` make it.
        univariate: The function, as in :class:`Coupling`.
        hidden: Channels of the hidden layers of the network, a :class:`~pyro_lvm.nn.ConvNet`.
        context: Size :math:`C` of the context `[*, C]`, which the network sees; 0 for none.

    Raises:
        TypeError: If the mask is none, or `univariate` no function of one number.
        ValueError: If the mask has another shape, or nothing stays, or all.

    References:
        L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017), sections 3.4 to 3.6.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import ImageCoupling, checkerboard_mask
        >>> _ = torch.manual_seed(0)
        >>> layer = ImageCoupling(checkerboard_mask(1, 4, 4))
        >>> layer()(torch.ones(5, 1, 4, 4)).shape
        torch.Size([5, 1, 4, 4])
    """

    event_dim = 3
    mask: Tensor

    def __init__(
        self,
        mask: Tensor,
        univariate: Univariate | None = None,
        hidden: Sequence[int] = (32, 32),
        context: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask: expected a tensor of booleans [C, H, W], got {mask!r}")
        if mask.dim() != 3 or mask.all() or not mask.any():
            raise ValueError(f"mask: expected shape [C, H, W], some True and some False, got {list(mask.shape)}")
        self.context, self.univariate = context, check_univariate(univariate)
        self.register_buffer("mask", mask.clone())  # some are views that cannot be written to
        self.network = ConvNet(len(mask), hidden, len(mask) * self.univariate.num_params, context)
        near_zero(self.network.layers[-1])

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _ImageCoupling(self, context)


def checkerboard_mask(num_channels: int, height: int, width: int) -> Tensor:
    """True on the black fields of a checkerboard, `[C, H, W]`; `~mask` has the white ones.

    Args:
        num_channels: C.
        height: H.
        width: W.

    Example:
        >>> from pyro_lvm.transforms import checkerboard_mask
        >>> checkerboard_mask(1, 2, 3).int().tolist()
        [[[1, 0, 1], [0, 1, 0]]]
    """
    sizes = [check_count(n, s) for n, s in (("num_channels", num_channels), ("height", height), ("width", width))]
    return torch.stack(torch.meshgrid(*map(torch.arange, sizes[1:]), indexing="ij")).sum(0).expand(*sizes) % 2 == 0


def channel_mask(num_channels: int, height: int, width: int) -> Tensor:
    """True in the first half of the channels, `[C, H, W]`; `~mask` has the others.

    Args:
        num_channels: C, at least two.
        height: H.
        width: W.

    Example:
        >>> from pyro_lvm.transforms import channel_mask
        >>> channel_mask(2, 1, 2).int().tolist()
        [[[1, 1]], [[0, 0]]]
    """
    sizes = [check_count(n, s) for n, s in (("num_channels", num_channels), ("height", height), ("width", width))]
    return (torch.arange(num_channels) < num_channels // 2)[:, None, None].expand(*sizes)
