"""Autoregressive transforms: each feature by a function that the features before it choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_lvm.checks import check_non_negative
from pyro_lvm.nn import MaskedMLP
from pyro_lvm.transforms._base import Layer, Transform
from pyro_lvm.transforms._start import near_zero
from pyro_lvm.transforms.univariate import Univariate, check_univariate

__all__ = ["Autoregressive"]


class _Autoregressive(Transform):
    def __init__(self, network: MaskedMLP, univariate: Univariate, context: Tensor | None) -> None:
        super().__init__()
        self.network, self.univariate, self.context = network, univariate, context

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.univariate.forward(x, self.network(x, self.context))
        return y, log_slope.sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        context, batch, D = self.context, y.shape[:-1], y.shape[-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            context = context.expand(*batch, -1).reshape(-1, context.shape[-1])
        log_slopes = []

        def feature(column: Tensor, params: Tensor) -> Tensor:
            x, log_slope = self.univariate.inverse(column, params.mT)
            log_slopes.append(log_slope)
            return x

        x = self.network.by_degree(feature, y.expand(*batch, D).reshape(-1, D), context)
        return x.reshape(*batch, D), torch.stack(log_slopes).sum(0).reshape(batch)


class Autoregressive(Layer):
    r"""Each feature by an increasing function whose parameters are a network's of the features before it.

    .. math::

        y_d = \tau(x_d; h_d(x_1, \dots, x_{d - 1}, c))

    Forward it is one pass of the network, backward a loop over the features, in which each hidden unit is computed
    once. :class:`Inverse` exchanges the two: forward for draws and guides (IAF), inverse for densities (MAF).

    Args:
        num_features: :math:`D`.
        univariate: The function :math:`\tau`. None for :class:`Affine`.
        hidden: Widths of the network's hidden layers.
        context: Size :math:`C` of the context `[*, C]`, which the network sees; 0 for none.
        residual: Whether the network adds each hidden layer to the one before.
        order: The numbers of the features in the order in which they see one another. None for their own.

    Raises:
        TypeError: If a size is not an integer, or `univariate` no function of one number.
        ValueError: If a size is not positive, or `order` is no permutation.

    References:
        D. P. Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016).
        G. Papamakarios, T. Pavlakou and I. Murray, "Masked autoregressive flow for density estimation" (2017).

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Autoregressive
        >>> _ = torch.manual_seed(0)
        >>> layer, x = Autoregressive(3), torch.randn(5, 3)
        >>> torch.allclose(layer().inv(layer()(x)), x, atol=1e-6)
        True
    """

    def __init__(
        self,
        num_features: int,
        univariate: Univariate | None = None,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        residual: bool = False,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.context, self.univariate = check_non_negative("context", context), check_univariate(univariate)
        self.network = MaskedMLP(num_features, hidden, self.univariate.num_params, context, residual, order)
        near_zero(self.network.layers[-1])
        if self.network.context is not None:
            near_zero(self.network.context[-1])

    def transform(self, context: Tensor | None) -> Transform:
        """See :class:`Layer`."""
        return _Autoregressive(self.network, self.univariate, context)
