"""Layers whose parameters are a few tensors, which a context may move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pyro_lvm.checks import check_non_negative
from pyro_lvm.nn import MLP
from pyro_lvm.transforms._base import Layer
from pyro_lvm.transforms._start import near_zero


class ParametricLayer(Layer):
    """A layer of named tensors. With a context, a network adds to them.

    Args:
        start: The tensors.
        context: Size of the context; 0 for none.
        hidden: Widths of the network's hidden layers.
    """

    def __init__(self, start: Mapping[str, Tensor], context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.context, self.names = check_non_negative("context", context), tuple(start)
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value))
        self.network = MLP(context, hidden, sum(v.numel() for v in start.values())) if context else None
        if self.network is not None:
            near_zero(self.network[-1])

    def values(self, context: Tensor | None) -> list[Tensor]:
        """The tensors, in the order of their names, with the batch shape of the context in front."""
        values = [getattr(self, name) for name in self.names]
        if self.network is None:
            return values
        moves = self.network(context).split([value.numel() for value in values], -1)
        return [v + move.unflatten(-1, v.shape) for v, move in zip(values, moves, strict=True)]
