"""What transforms and layers have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["Inverse", "Layer", "Stack", "Transform"]


class Transform(torch.distributions.Transform):
    """An invertible map of vectors or images, from the base to the data, that knows how it changes volumes.

    Two methods make one: :meth:`forward_and_log_det` and :meth:`inverse_and_log_det`. What torch and Pyro ask of a
    transform follows. Batch shapes are free.

    Args:
        event_dim: 1 for vectors `[*, D]`, 3 for images `[*, C, H, W]`.
    """

    bijective = True

    def __init__(self, event_dim: int = 1) -> None:
        super().__init__()
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    @abstractmethod
    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The image :math:`y = f(x)` and :math:`\log |\det \partial y / \partial x|`, `[*]`."""

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""The origin :math:`x = f^{-1}(y)` and :math:`\log |\det \partial x / \partial y|`, `[*]`."""

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\log |\det \partial y / \partial x|`, `[*]`."""
        return self.forward_and_log_det(x)[1]

    def with_cache(self, cache_size: int = 1) -> Transform:
        """A copy that remembers its last pair of points, as torch's transforms do."""
        other = copy.copy(self)
        other._cache_size, other._cached_x_y, other._inv = cache_size, (None, None), None
        return other


class _Inverse(Transform):
    def __init__(self, transform: Transform) -> None:
        super().__init__(transform.domain.event_dim)
        self.transform = transform

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.inverse_and_log_det(x)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.forward_and_log_det(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.transform.log_abs_det_jacobian(y, x)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self.transform.inverse_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self.transform.forward_shape(shape)


class _Stack(Transform):
    def __init__(self, parts: Sequence[Transform], event_dim: int) -> None:
        super().__init__(event_dim)
        self.parts = parts

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for part in self.parts:
            x, log_det = part.forward_and_log_det(x)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(())
        for part in reversed(self.parts):
            y, log_det = part.inverse_and_log_det(y)
            total = total + log_det
        return y, total

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        for part in self.parts:
            shape = part.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape)
        return shape


class Layer(nn.Module):
    """A module that owns the parameters of a transform: called with a context, it returns a fresh :class:`Transform`.

    Attributes:
        event_dim: 1 for vectors, 3 for images.
        context: Size of the last dimension of the context; 0 for none.
    """

    event_dim = 1
    context = 0

    def forward(self, context: Tensor | None = None) -> Transform:
        """The transform.

        Args:
            context: `[*, C]` for a layer that takes one, None for others. Its batch shape is that of what is
                transformed, or broadcast to it.

        Raises:
            TypeError: If the context is no tensor.
            ValueError: If a context is missing, unexpected, or of another size.
        """
        if context is None and self.context:
            raise ValueError(f"context: expected a tensor [*, {self.context}], got none")
        if not isinstance(context, Tensor | None):
            raise TypeError(f"context: expected a tensor, got {type(context).__name__}")
        if context is not None and context.shape[-1:] != (self.context,):
            expected = f"shape [*, {self.context}]" if self.context else "none, for this layer takes none"
            raise ValueError(f"context: expected {expected}, got shape {list(context.shape)}")
        return self.transform(context)

    @abstractmethod
    def transform(self, context: Tensor | None) -> Transform:
        """The transform for a context that has been checked."""


class Stack(Layer):
    """Layers one after the other, from the base to the data.

    Args:
        layers: The layers, of vectors or of images all; those that take a context take the same.

    Raises:
        ValueError: If there is no layer, or they do not fit together.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Permutation, PLULinear, Stack
        >>> stack = Stack([PLULinear(3), Permutation([2, 1, 0])])
        >>> stack()(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 2., 1.], grad_fn=<IndexSelectBackward0>)
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        contexts = {layer.context for layer in layers if layer.context}
        if len({layer.event_dim for layer in layers}) != 1 or len(contexts) > 1:
            raise ValueError("layers: expected some, all of vectors or all of images, with contexts of one size")
        self.event_dim = layers[0].event_dim
        self.context = max(contexts, default=0)

    def transform(self, context: Tensor | None) -> Transform:
        """The transform for a context that has been checked."""
        layers = cast("list[Layer]", list(self.layers))
        parts = [layer.transform(context if layer.context else None) for layer in layers]
        return _Stack(parts, self.event_dim)


class Inverse(Layer):
    """A layer with its two directions exchanged.

    Args:
        layer: The layer.

    Example:
        >>> import torch
        >>> from pyro_lvm.transforms import Inverse, Permutation
        >>> Inverse(Permutation([1, 2, 0]))()(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 1., 2.])
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer, self.event_dim, self.context = layer, layer.event_dim, layer.context

    def transform(self, context: Tensor | None) -> Transform:
        """The transform for a context that has been checked."""
        return _Inverse(self.layer.transform(context))
