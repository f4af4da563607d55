"""Monotone networks of one number."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_lvm.checks import check_count
from pyro_lvm.transforms._root import solve
from pyro_lvm.transforms.univariate import Univariate, soft_clamp

__all__ = ["Monotone"]

_LITTLE = -5.0  # softplus of it is the weight of a unit at the start
_ONE = math.log(math.expm1(1.0))
_SPREAD = 2.0  # the units bend at numbers from minus to plus this


class Monotone(Univariate):
    r"""A monotone network with one hidden layer, and a line.

    .. math::

        y = a x + b + \sum_{j=1}^J w_j \tanh(v_j x + c_j), \qquad a, w_j, v_j > 0

    The inverse is numerical: Newton's method in a bracket, with implicit gradients.

    Args:
        num_units: :math:`J`. There are :math:`3 J + 2` parameters.

    Raises:
        TypeError: If the number is no integer.
        ValueError: If it is not positive.

    References:
        J. Sill, "Monotonic networks" (1998).
        C.-W. Huang, D. Krueger, A. Lacoste and A. Courville, "Neural autoregressive flows" (2018).

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Monotone
        >>> monotone, params = Monotone(num_units=2), torch.ones(8)
        >>> y, _ = monotone.forward(torch.tensor(0.5), params)
        >>> round(monotone.inverse(y, params)[0].item(), 6)
        0.5
    """

    def __init__(self, num_units: int = 8) -> None:
        self.num_units = check_count("num_units", num_units)
        self.num_params = 3 * num_units + 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        y, slope = self._evaluate(x, *self._parts(params))
        return y, slope.log()

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        a, b, w, v, c = self._parts(params)
        middle, reach = (y - b) / a, w.sum(-1) / a
        x = solve(lambda x: self._evaluate(x, a, b, w, v, c), y, middle - reach, middle + reach)
        return x, -self._evaluate(x, a, b, w, v, c)[1].log()

    def _parts(self, params: Tensor) -> tuple[Tensor, ...]:
        J = self.num_units
        line, heights, steepness, places = params.split([2, J, J, J], -1)
        spread = torch.linspace(-_SPREAD, _SPREAD, J, dtype=params.dtype, device=params.device)
        weights, slopes = softplus(heights + _LITTLE), softplus(steepness + _ONE)
        return soft_clamp(line[..., 0]).exp(), line[..., 1], weights, slopes, places + spread

    @staticmethod
    def _evaluate(x: Tensor, a: Tensor, b: Tensor, w: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        bent = (v * x.unsqueeze(-1) + c).tanh()
        return a * x + b + (w * bent).sum(-1), a + (w * v * (1 - bent.square())).sum(-1)
