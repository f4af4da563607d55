"""Flows: a standard normal distribution through layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyro_lvm.checks import check_count
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
        self.shape = torch.Size(shape if isinstance(shape, Sequence) else [check_count("shape", shape)])
        self.context = self.stack.context
        if len(self.shape) != self.stack.event_dim:
            what = "a number of features" if self.stack.event_dim == 1 else "(C, H, W)"
            raise ValueError(f"shape: expected {what}, got {shape!r}")
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self._check_shapes()

    @torch.no_grad()
    def _check_shapes(self) -> None:
        like = next(self.parameters(), self.zero)
        transform = self.stack(like.new_zeros(self.context) if self.context else None)
        try:
            found = transform.forward_and_log_det(like.new_zeros(self.shape))[0].shape
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"shape: {list(self.shape)} does not fit the layers: {error}") from error
        if found != transform.forward_shape(self.shape):
            raise ValueError(f"shape: {list(self.shape)} does not fit the layers, which make {list(found)} of it")

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """The distribution.

        Args:
            context: `[*, C]` for a flow that takes one; its batch shape is that of the distribution.

        Raises:
            TypeError: If the context is no tensor.
            ValueError: If a context is missing, unexpected, or of another size or dtype.
        """
        if isinstance(context, Tensor) and context.dtype != self.zero.dtype:
            raise ValueError(f"context: expected {self.zero.dtype}, the dtype of the flow, got {context.dtype}")
        transform = self.stack(context)
        zeros = self.zero.expand(*(() if context is None else context.shape[:-1]), *self.shape)
        base = Independent(Normal(zeros, torch.ones_like(zeros), validate_args=False), len(self.shape))
        return FlowDistribution(base, transform)

    @torch.no_grad()
    def initialize(self, data: Tensor, context: Tensor | None = None) -> Flow:
        """Start the :class:`~pyro_lvm.transforms.ActNorm` layers from data, but for inverted ones.

        Args:
            data: Rows, `[N, *event]`.
            context: Of each, `[N, C]`.

        Returns:
            The flow itself.
        """
        _initialize(self.stack, data, context)
        return self


def _initialize(layer: Layer, data: Tensor, context: Tensor | None) -> Tensor:
    """Start a layer and those within it from data; the data on its side of the base."""
    if isinstance(layer, Stack):
        for part in reversed(cast("list[Layer]", list(layer.layers))):
            data = _initialize(part, data, context)
        return data
    if isinstance(layer, ActNorm):
        layer.initialize(data)
    return layer(context if layer.context else None).inverse_and_log_det(data)[0]
