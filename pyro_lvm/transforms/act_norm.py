"""A shift and a scale of each feature, started from data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_lvm.checks import check_count
from pyro_lvm.transforms._base import Transform
from pyro_lvm.transforms._parametric import ParametricLayer

__all__ = ["ActNorm"]

_LEAST_SCALE = 1e-6  # of a feature that is the same in all rows


class _ActNorm(Transform):
    def __init__(self, images: bool, log_scale: Tensor, loc: Tensor) -> None:
        super().__init__(3 if images else 1)
        pixels = (..., None, None) if images else (...,)
        self.log_scale, self.loc = log_scale[pixels], loc[pixels]

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * self.log_scale.exp() + self.loc
        return y, self._log_det(y)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = (y - self.loc) * (-self.log_scale).exp()
        return x, -self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.log_scale.expand(x.shape).flatten(-self.domain.event_dim).sum(-1)


class ActNorm(ParametricLayer):
    r"""A shift and a scale of each feature, or of each channel of images.

    .. math::

        y_d = e^{s_d} x_d + b_d

    It starts at the identity. :meth:`initialize` makes data standardized at the base.

    Args:
        num_features: :math:`D` of vectors `[*, D]`, or :math:`C` of images `[*, C, H, W]`.
        images: Whether it is of channels of images.
        context: Size of the context, by which a network moves the parameters; 0 for none.
        hidden: Widths of that network's hidden layers.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive.

    References:
        D. P. Kingma and P. Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions" (2018), section 3.1.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import ActNorm
        >>> layer = ActNorm(2)
        >>> data = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> layer.initialize(data)
        >>> layer().inv(data).round().tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """

    log_scale: Tensor
    loc: Tensor

    def __init__(
        self, num_features: int, images: bool = False, context: int = 0, hidden: Sequence[int] = (64,)
    ) -> None:
        D = check_count("num_features", num_features)
        super().__init__({"log_scale": torch.zeros(D), "loc": torch.zeros(D)}, context, hidden)
        self.event_dim = 3 if images else 1

    @torch.no_grad()
    def initialize(self, y: Tensor) -> None:
        """Standardize the features of data on their way to the base.

        Args:
            y: Vectors `[N, D]` or images `[N, C, H, W]`, as they reach this layer.
        """
        rows = y if self.event_dim == 1 else y.movedim(1, -1).flatten(0, -2)
        self.loc.copy_(rows.mean(0))
        self.log_scale.copy_(rows.std(0, correction=0).clamp(min=_LEAST_SCALE).log())

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _ActNorm(self.event_dim == 3, *self.values(context))
