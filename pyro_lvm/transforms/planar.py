"""Planar flows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_lvm.checks import check_count
from pyro_lvm.transforms._base import Transform
from pyro_lvm.transforms._bend import slope, unbend
from pyro_lvm.transforms._parametric import ParametricLayer

__all__ = ["Planar"]

_ONE = math.log(math.expm1(1.0))  # softplus of it is 1


class _Planar(Transform):
    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = w, b.squeeze(-1)
        dot, square = (u * w).sum(-1), w.square().sum(-1)
        # the slope along w in the middle of the bend, 1 + w.u, which is positive though softplus may underflow
        self.middle = softplus(dot).clamp(min=torch.finfo(dot.dtype).tiny)
        self.u = u + ((self.middle - 1 - dot) / square).unsqueeze(-1) * w

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bent = ((x * self.w).sum(-1) + self.b).tanh()
        return x + self.u * bent.unsqueeze(-1), slope(bent, self.middle).log()

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        bent = unbend((y * self.w).sum(-1) + self.b, self.middle).tanh()
        return y - self.u * bent.unsqueeze(-1), -slope(bent, self.middle).log()


class Planar(ParametricLayer):
    r"""A planar flow: a bend across a hyperplane.

    .. math::

        y = x + \hat u \tanh(w^\top x + b), \qquad
        \hat u = u + \left( m(w^\top u) - w^\top u \right) \frac{w}{w^\top w}, \qquad m(a) = \log(1 + e^a) - 1, \\
        \log |\det \partial y / \partial x| = \log \left( 1 + \hat u^\top w \, (1 - \tanh^2(w^\top x + b)) \right)

    The inverse is a root in one variable, found by Newton's method, with implicit gradients. It starts
    at the identity.

    Args:
        num_features: :math:`D`.
        context: Size of the context, by which a network moves the parameters; 0 for none.
        hidden: Widths of that network's hidden layers.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive.

    References:
        D. J. Rezende and S. Mohamed, "Variational inference with normalizing flows" (2015), equations 10 to 12 and
        appendix A.1.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Planar
        >>> _ = torch.manual_seed(0)
        >>> Planar(3)()(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, num_features: int, context: int = 0, hidden: Sequence[int] = (64,)) -> None:
        D = check_count("num_features", num_features)
        w = torch.randn(D) / D**0.5
        start = {"u": _ONE * w / w.square().sum(), "w": w, "b": torch.zeros(1)}
        super().__init__(start, context, hidden)

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _Planar(*self.values(context))
