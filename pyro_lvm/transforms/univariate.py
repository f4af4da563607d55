"""Increasing functions of one number, with parameters: what couplings and autoregressive layers apply."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Affine", "Shift", "Univariate"]

_MOST_LOG_SCALE = 8.0
_ONE, _CURVE = torch.tensor(1.0), torch.tensor(_MOST_LOG_SCALE**-2)  # numbers of Python are converted at each use


class Univariate(ABC):
    """An increasing function of a number, given by some parameters.

    At parameters of zero it is the identity, or nearly.

    Attributes:
        num_params: How many parameters it has, :math:`P`.
    """

    num_params: int

    @abstractmethod
    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the logarithm of the slope.

        Args:
            x: Numbers, `[*]`.
            params: Parameters, `[*, P]`, of any real values.
        """

    @abstractmethod
    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The number that has the value `y`, and the logarithm of the slope of the inverse there.

        Args:
            y: Values, `[*]`.
            params: Parameters, `[*, P]`.
        """


class Shift(Univariate):
    """A shift: :math:`y = x + p_0`.

    References:
        L. Dinh, D. Krueger and Y. Bengio, "NICE: Non-linear independent components estimation" (2015).

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Shift
        >>> Shift().forward(torch.tensor(1.0), torch.tensor([2.0]))
        (tensor(3.), tensor(0.))
    """

    num_params = 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        y = x + params[..., 0]
        return y, torch.zeros_like(y)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        x = y - params[..., 0]
        return x, torch.zeros_like(x)


class Affine(Univariate):
    r"""A shift and a scale: :math:`y = e^{s} x + p_0`, with :math:`s = p_1 / \sqrt{1 + (p_1 / 8)^2}`, lest it overflow.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Affine
        >>> Affine().forward(torch.tensor(1.0), torch.tensor([2.0, 0.0]))
        (tensor(3.), tensor(0.))
    """

    num_params = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        loc, log_scale = self._parts(params)
        return x * log_scale.exp() + loc, log_scale

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Univariate`."""
        loc, log_scale = self._parts(params)
        log_slope = -log_scale
        return (y - loc) * log_slope.exp(), log_slope

    @staticmethod
    def _parts(params: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = params.unbind(-1)
        return loc, soft_clamp(raw)


def check_univariate(given: Univariate | None) -> Univariate:
    """What a layer applies, affine if nothing is given, or an error."""
    if given is not None and not isinstance(given, Univariate):
        raise TypeError(f"univariate: expected a function of one number such as Affine() or Spline(), got {given!r}")
    return given or Affine()


def soft_clamp(raw: Tensor) -> Tensor:
    """A logarithm of a scale from any real number: about the same near zero, and never far from it."""
    return raw * (_ONE + _CURVE * raw.square()).rsqrt()
