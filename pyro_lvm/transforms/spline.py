"""Monotone rational-quadratic splines."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from pyro_lvm.checks import check_count, check_positive
from pyro_lvm.transforms.univariate import Univariate

__all__ = ["Spline"]

_LEAST_BIN = 1e-3  # of the box's width or height
_LEAST_SLOPE = 1e-3
_ZERO = math.log(math.expm1(1 - _LEAST_SLOPE))  # where the slope is 1


class Spline(Univariate):
    r"""A monotone rational-quadratic spline in a box, the identity outside.

    With the knots :math:`(x_k, y_k)`, their slopes :math:`\delta_k`, :math:`s_k = (y_{k+1} - y_k) / (x_{k+1} - x_k)`
    and :math:`\xi = (x - x_k) / (x_{k+1} - x_k)`, between two knots

    .. math::

        y = y_k + \frac{(y_{k+1} - y_k) (s_k \xi^2 + \delta_k \xi (1 - \xi))}
            {s_k + (\delta_{k+1} + \delta_k - 2 s_k) \xi (1 - \xi)}

    The slopes at the ends are 1, as outside. No bin is narrower or lower than a thousandth of the box, and no slope at
    a knot less than a thousandth.

    Args:
        num_bins: :math:`K`. There are :math:`3 K - 1` parameters: of widths, heights and inner slopes.
        bound: Half the width and height of the box.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If there are no bins, too many for their least width, or the bound is not positive.

    References:
        C. Durkan, A. Bekasov, I. Murray and G. Papamakarios, "Neural spline flows" (2019), equations 4 to 8.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Spline
        >>> spline, params = Spline(num_bins=4), torch.zeros(11)
        >>> [round(found.item(), 6) for found in spline.forward(torch.tensor(0.5), params)]
        [0.5, 0.0]
    """

    def __init__(self, num_bins: int = 8, bound: float = 5.0) -> None:
        self.num_bins = check_count("num_bins", num_bins)
        if num_bins >= 1 / _LEAST_BIN:
            raise ValueError(f"num_bins: expected less than {1 / _LEAST_BIN:.0f}, got {num_bins}")
        self.bound = check_positive("bound", bound)
        self.num_params = 3 * num_bins - 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        inside, at, bin = self._locate(x, params, by_value=False)
        share = ((at - bin.left) / bin.width).clamp(0, 1)
        y = bin.bottom + bin.height * (bin.slope * share.square() + bin.before * share * (1 - share)) / bin.below(share)
        return torch.where(inside, y, x), torch.where(inside, bin.log_slope(share), 0.0)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        inside, at, bin = self._locate(y, params, by_value=True)
        up = at - bin.bottom
        bend = up * bin.excess
        a = bin.height * (bin.slope - bin.before) + bend
        b = bin.height * bin.before - bend
        c = -bin.slope * up
        discriminant = (b.square() - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny)  # negative by rounding
        share = (2 * c / (-b - discriminant.sqrt())).clamp(0, 1)
        return torch.where(inside, bin.left + share * bin.width, y), torch.where(inside, -bin.log_slope(share), 0.0)

    def _locate(self, at: Tensor, params: Tensor, by_value: bool) -> tuple[Tensor, Tensor, _Bin]:
        """Whether numbers are inside the box; these, and 0 for those that are not; the bins of all."""
        K = self.num_bins
        inside = at.abs() < self.bound
        at = torch.where(inside, at, 0.0)
        raw_widths, raw_heights, raw_slopes = params.split([K, K, K - 1], -1)
        left, width = self._edges(raw_widths)
        bottom, height = self._edges(raw_heights)
        slopes = pad(_LEAST_SLOPE + softplus(raw_slopes + _ZERO), (1, 1), value=1.0)
        edges = bottom if by_value else left
        bin = (edges[..., 1:] <= at.unsqueeze(-1)).sum(-1, keepdim=True)
        parts = (left, width, bottom, height, slopes[..., :-1], slopes[..., 1:])
        return inside, at, _Bin(*(part.gather(-1, bin).squeeze(-1) for part in parts))

    def _edges(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Where the bins begin, and their sizes, `[*, K]`."""
        size = 2 * self.bound * (_LEAST_BIN + (1 - self.num_bins * _LEAST_BIN) * raw.softmax(-1))
        return size.cumsum(-1) - size - self.bound, size


class _Bin:
    """The pieces of splines that numbers are in: their edges, and the slopes at these, `[*]`."""

    def __init__(
        self, left: Tensor, width: Tensor, bottom: Tensor, height: Tensor, before: Tensor, after: Tensor
    ) -> None:
        self.left, self.width, self.bottom, self.height = left, width, bottom, height
        self.before, self.after = before, after
        self.slope = height / width
        self.excess = before + after - 2 * self.slope

    def below(self, share: Tensor) -> Tensor:
        """The denominator, at a share of the width."""
        return self.slope + self.excess * share * (1 - share)

    def log_slope(self, share: Tensor) -> Tensor:
        """The logarithm of the slope (equation 5)."""
        rest = 1 - share
        above = self.after * share.square() + 2 * self.slope * share * rest + self.before * rest.square()
        return 2 * (self.slope / self.below(share)).log() + above.log()
