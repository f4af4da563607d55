"""Flows: a standard normal distribution through layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyro_lvm.flows.distribution import FlowDistribution
from pyro_lvm.transforms import ActNorm, Layer, Stack

__all__ = ["Flow"]


class Flow(nn.Module):
    r"""A flow: a standard normal distribution through layers.

    .. math::

        x \sim \mathrm{Normal}(0, I), \qquad y = f(x; c), \qquad
        \log p(y \mid c) = \log \mathrm{Normal}(f^{-1}(y; c)) + \log |\det \partial f^{-1} / \partial y|

    `flow(context)` is a :class:`FlowDistribution`: a prior, a likelihood or a guide in `pyro.sample`.

    Args:
        layers: From the base to the data.
        shape: Of the base: a number of features, or `(C, H, W)`.

    Raises:
        ValueError: If the layers do not fit together, or the shape does not fit them.

    References:
        G. Papamakarios et al., "Normalizing flows for probabilistic modeling and inference" (2021).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> from pyro_lvm.transforms import Permutation, PLULinear
        >>> flow = lvm.flows.Flow([PLULinear(2), Permutation([1, 0])], 2)
        >>> flow().log_prob(torch.zeros(2)).item()
        -1.8378770351409912
    """

    zero: Tensor

    def __init__(self, layers: Sequence[Layer], shape: int | Sequence[int]) -> None:
        super().__init__()
        self.stack = Stack(layers)
        self.shape = torch.Size([shape] if isinstance(shape, int) else shape)
        self.context = self.stack.context
        if len(self.shape) != self.stack.event_dim:
            what = "a number of features" if self.stack.event_dim == 1 else "(C, H, W)"
            raise ValueError(f"shape: expected {what}, got {shape!r}")
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """The distribution.

        Args:
            context: `[*, C]` for a flow that takes one; its batch shape is that of the distribution.

        Raises:
            ValueError: If a context is missing, unexpected, or of another size.
        """
        transform = self.stack(context)
        zeros = self.zero.expand(*(() if context is None else context.shape[:-1]), *self.shape)
        base = Independent(Normal(zeros, torch.ones_like(zeros), validate_args=False), len(self.shape))
        return FlowDistribution(base, transform)

    @torch.no_grad()
    def initialize(self, data: Tensor, context: Tensor | None = None) -> Flow:
        """Start the :class:`~pyro_lvm.transforms.ActNorm` layers from data.

        Args:
            data: Rows, `[N, *event]`.
            context: Of each, `[N, C]`.

        Returns:
            The flow itself.
        """
        for layer in reversed(cast("list[Layer]", list(self.stack.layers))):
            if isinstance(layer, ActNorm):
                layer.initialize(data)
            data, _ = layer(context if layer.context else None).inverse_and_log_det(data)
        return self
