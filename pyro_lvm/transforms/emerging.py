"""Invertible convolutions of larger kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from pyro_lvm.checks import check_count
from pyro_lvm.transforms._base import Transform
from pyro_lvm.transforms._linear import diagonal_log_det
from pyro_lvm.transforms._parametric import ParametricLayer

__all__ = ["EmergingConv"]

_PIXELS_AND_CHANNELS = (-3, -2, -1)


class _Emerging(Transform):
    def __init__(self, before: Tensor, after: Tensor, log_diagonals: Tensor, loc: Tensor) -> None:
        super().__init__(3)
        first, second = log_diagonals.unbind(-2)
        self.kernels = _triangular(before, first), _triangular(after, second)
        self.log_diagonal, self.loc = first + second, loc[..., None, None]

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before, after = self.kernels
        y = _convolve(_convolve(x, before).flip(_PIXELS_AND_CHANNELS), after).flip(_PIXELS_AND_CHANNELS)
        return y + self.loc, self._log_det(y)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        before, after = self.kernels
        x = _solve((y - self.loc).flip(_PIXELS_AND_CHANNELS), after).flip(_PIXELS_AND_CHANNELS)
        x = _solve(x, before)
        return x, -self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        return diagonal_log_det(self.log_diagonal, x, images=True)


def _triangular(weight: Tensor, log_diagonal: Tensor) -> Tensor:
    """The kernel `[*, C, C, S, S]` that sees the pixels before, and of the pixel itself the channels before."""
    C, S = weight.shape[-3], weight.shape[-1]
    centre = torch.zeros(S * S, dtype=weight.dtype, device=weight.device)
    centre[S * S // 2] = 1
    earlier = (centre.cumsum(0) == 0).to(weight)
    mask = earlier + torch.ones(C, C, dtype=weight.dtype, device=weight.device).tril(-1)[..., None] * centre
    diagonal = torch.diag_embed(log_diagonal.exp())[..., None] * centre
    return weight * mask.unflatten(-1, (S, S)) + diagonal.unflatten(-1, (S, S))


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Images `[*, C, H, W]` by one kernel, or each by its own."""
    padding = kernel.shape[-1] // 2
    if kernel.dim() == 4:
        return conv2d(x.reshape(-1, *x.shape[-3:]), kernel, padding=padding).reshape(x.shape)
    batch = torch.broadcast_shapes(x.shape[:-3], kernel.shape[:-4])
    if not batch.numel():
        return x.expand(*batch, *x.shape[-3:])
    images = x.expand(*batch, *x.shape[-3:]).reshape(1, -1, *x.shape[-2:])
    kernels = kernel.expand(*batch, *kernel.shape[-4:]).reshape(-1, *kernel.shape[-3:])
    return conv2d(images, kernels, padding=padding, groups=batch.numel()).reshape(*batch, *x.shape[-3:])


def _solve(y: Tensor, kernel: Tensor) -> Tensor:
    """What :func:`_convolve` makes `y` of, by the triangular matrix that it is."""
    C, H, W = y.shape[-3:]
    units = torch.eye(H * W * C, dtype=y.dtype, device=y.device).unflatten(-1, (H, W, C)).movedim(-1, -3)
    columns = _convolve(units, kernel.unsqueeze(-5)) if kernel.dim() > 4 else _convolve(units, kernel)
    matrix = _flat(columns).mT
    rows = _flat(y)
    if kernel.dim() == 4:
        x = torch.linalg.solve_triangular(matrix, rows.reshape(-1, H * W * C).mT, upper=False).mT.reshape(rows.shape)
    else:
        x = torch.linalg.solve_triangular(matrix, rows.unsqueeze(-1), upper=False).squeeze(-1)
    return x.unflatten(-1, (H, W, C)).movedim(-1, -3)


def _flat(images: Tensor) -> Tensor:
    return images.movedim(-3, -1).flatten(-3)


class EmergingConv(ParametricLayer):
    r"""An emerging convolution: one that sees the pixels before each, then one that sees those after it.

    Each is a triangular matrix :math:`L`, in the order of pixels row by row, and of channels within a pixel.

    .. math::

        y = L_2^\top L_1 x + b, \qquad
            \log |\det \partial y / \partial x| = H W \sum_c (\log l_{1c} + \log l_{2c})

    The inverse solves the two triangular systems in the :math:`C H W` numbers of an image. It starts at the identity.

    Args:
        num_channels: :math:`C`, of images `[*, C, H, W]`.
        kernel_size: Height and width of the kernels, an odd number.
        context: Size of the context, by which a network moves the parameters; 0 for none.
        hidden: Widths of that network's hidden layers.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or that of the kernel even.

    References:
        E. Hoogeboom, R. van den Berg and M. Welling, "Emerging convolutions for generative normalizing flows" (2019).

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import EmergingConv
        >>> EmergingConv(3)()(torch.ones(5, 3, 8, 8)).shape
        torch.Size([5, 3, 8, 8])
    """

    event_dim = 3

    def __init__(
        self, num_channels: int, kernel_size: int = 3, context: int = 0, hidden: Sequence[int] = (64,)
    ) -> None:
        C, S = check_count("num_channels", num_channels), check_count("kernel_size", kernel_size)
        if S % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, for kernels have a centre, got {S}")
        start = {
            "before": torch.zeros(C, C, S, S),
            "after": torch.zeros(C, C, S, S),
            "log_diagonals": torch.zeros(2, C),
            "loc": torch.zeros(C),
        }
        super().__init__(start, context, hidden)

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _Emerging(*self.values(context))
