"""Couplings: some features choose the function that the others go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_lvm.checks import check_count, check_non_negative
from pyro_lvm.nn import MLP
from pyro_lvm.transforms._base import Layer, Transform
from pyro_lvm.transforms._start import near_zero
from pyro_lvm.transforms.univariate import Univariate, check_univariate

__all__ = ["Coupling"]


class _Coupling(Transform):
    def __init__(self, layer: Coupling, context: Tensor | None) -> None:
        super().__init__()
        self.layer, self.context = layer, context

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(self.layer.univariate.forward, x)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(self.layer.univariate.inverse, y)

    def _through(self, function: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layer
        if self.context is not None:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1]), -1)
        kept, moved = x.index_select(-1, layer.kept), x.index_select(-1, layer.moved)
        seen = kept if self.context is None else torch.cat([kept, self.context.expand(*x.shape[:-1], -1)], -1)
        new, log_slope = function(moved, layer.network(seen).unflatten(-1, (len(layer.moved), -1)))
        return torch.cat([kept, new], -1).index_select(-1, layer.back), log_slope.sum(-1)


class Coupling(Layer):
    r"""Some features stay, and choose the functions of the others.

    .. math::

        y_d = x_d \;\; (d \in A), \qquad y_d = \tau(x_d; h_d(x_A, c)) \;\; (d \notin A)

    Both directions are one pass of the network.

    Args:
        num_features: :math:`D`, at least two.
        kept: The numbers of the features that stay, :math:`A`. None for the first half.
        univariate: The function :math:`\tau`: :class:`Shift` (NICE), :class:`Affine` (RealNVP), :class:`Spline` (NSF),
            or another. None for :class:`Affine`.
        hidden: Widths of the network's hidden layers.
        context: Size :math:`C` of the context `[*, C]`, which the network sees; 0 for none.

    Raises:
        TypeError: If a size is not an integer, or `univariate` no function of one number.
        ValueError: If a size is not positive, or no feature stays, or all.

    References:
        L. Dinh, D. Krueger and Y. Bengio, "NICE: Non-linear independent components estimation" (2015).
        L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017).

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Coupling
        >>> _ = torch.manual_seed(0)
        >>> layer, x = Coupling(3), torch.randn(5, 3)
        >>> torch.equal(layer()(x)[:, 0], x[:, 0])
        True
    """

    kept: Tensor
    moved: Tensor
    back: Tensor

    def __init__(
        self,
        num_features: int,
        kept: Sequence[int] | None = None,
        univariate: Univariate | None = None,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
    ) -> None:
        super().__init__()
        D = check_count("num_features", num_features)
        kept = sorted({check_non_negative("kept", d) for d in (range(D // 2) if kept is None else kept)})
        moved = [d for d in range(D) if d not in kept]
        if not moved or not kept or len(kept) + len(moved) != D:
            raise ValueError(f"kept: expected some of the numbers from 0 to {D - 1}, and not all, got {kept}")
        self.context, self.univariate = check_non_negative("context", context), check_univariate(univariate)
        self.register_buffer("kept", torch.tensor(kept))
        self.register_buffer("moved", torch.tensor(moved))
        self.register_buffer("back", torch.tensor(kept + moved).argsort())
        self.network = MLP(len(kept) + context, hidden, len(moved) * self.univariate.num_params)
        near_zero(self.network[-1])

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _Coupling(self, context)
