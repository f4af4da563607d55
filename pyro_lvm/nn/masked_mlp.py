"""Networks whose outputs for a feature see the features before it alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_lvm.nn.mlp import check_size, check_widths, make_activation

__all__ = ["MaskedMLP"]


class MaskedMLP(nn.Module):
    r"""A network with `num_outputs` numbers for each feature, which see the features before it and no others.

    Each hidden unit has a degree: it sees the first so many features. The units of a layer stand in the order of their
    degrees, which are spread evenly. All see the context.

    :meth:`by_degree` finds features that depend on their own outputs, one after the other, for about the operations of
    one pass: each hidden unit is computed once, as soon as the features that it sees are known.

    Args:
        num_features: Size :math:`D` of the last dimension of the input `[*, D]`.
        hidden: Width of each hidden layer.
        num_outputs: Numbers for each feature, :math:`P`.
        context: Size :math:`C` of the last dimension of the context `[*, C]`; 0 for none.
        residual: Whether the hidden layers, which then have one width, are each added to the one before.
        activation: Called without arguments for each hidden layer, it returns a module that acts on each number alone.

    Raises:
        TypeError: If a size is not an integer, or `activation` does not return a module.
        ValueError: If a size is not positive, or hidden layers to be added have different widths.

    References:
        M. Germain, K. Gregor, I. Murray and H. Larochelle, "MADE: Masked autoencoder for distribution estimation"
        (2015).

    Example:
        >>> import torch
        >>> from pyro_lvm.nn import MaskedMLP
        >>> _ = torch.manual_seed(0)
        >>> net = MaskedMLP(3, (16, 16), num_outputs=2)
        >>> x = torch.randn(5, 3)
        >>> net(x).shape
        torch.Size([5, 3, 2])
        >>> moved = net(x + torch.tensor([0.0, 1.0, 0.0])) != net(x)
        >>> moved.any(-1).any(0)  # what sees the second feature
        tensor([False, False,  True])
    """

    def __init__(
        self,
        num_features: int,
        hidden: Sequence[int],
        num_outputs: int,
        context: int = 0,
        residual: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.num_features = D = check_size("num_features", num_features)
        self.num_outputs = P = check_size("num_outputs", num_outputs)
        widths = check_widths(hidden)
        self.residual = residual
        if residual and len(set(widths)) > 1:
            raise ValueError(f"hidden: expected layers of one width, for they are added, got {widths}")
        lowest = min(D - 1, 0 if context else 1)
        spread = [[lowest + unit * (D - lowest) // width for unit in range(width)] for width in widths]
        degrees = [list(range(1, D + 1)), *spread]
        self._known = [[bisect_right(layer, num_known) for layer in degrees] for num_known in range(D)]
        sizes = [D, *widths, D * P]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.activations = nn.ModuleList(make_activation(activation) for _ in widths)
        self.context = nn.ModuleList(nn.Linear(context, size, bias=False) for size in sizes[1:]) if context else None
        of_outputs = [num_before for num_before in range(D) for _ in range(P)]
        for i, (before, after) in enumerate(pairwise([*degrees, of_outputs])):
            mask = torch.tensor(after).unsqueeze(-1) >= torch.tensor(before)
            self.register_buffer(f"mask_{i}", mask.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The outputs, `[*, D, P]`.

        Args:
            x: Features, `[*, D]`.
            context: Context, `[*, C]`, its batch shape that of the features or broadcast to it.
        """
        h = x
        for i, layer in enumerate(self._linears()):
            new = linear(h, layer.weight * getattr(self, f"mask_{i}"), layer.bias)
            if self.context is not None:
                new = new + self.context[i](context)
            if i < len(self.activations):
                new = self.activations[i](new)
                h = h + new if self.residual and i else new
        return new.unflatten(-1, (self.num_features, self.num_outputs))

    def by_degree(self, feature: Callable[[int, Tensor], Tensor], context: Tensor | None = None) -> Tensor:
        """Features of which each is a function of its outputs, `[B, D]`.

        Args:
            feature: Called with the number of a feature and its outputs, `[P, B]` or `[P, 1]`, it returns the feature,
                `[B]`.
            context: Context, `[B, C]`.
        """
        P, known = self.num_outputs, self._known
        shifts = None if self.context is None else [layer(context).mT for layer in self.context]
        columns: list[Tensor | None] = [None] * len(self.layers)
        for i in range(self.num_features):
            for j, activation in enumerate(self.activations):
                units = slice(known[i - 1][j + 1] if i else 0, known[i][j + 1])
                if units.start < units.stop:
                    new = activation(self._block(j, units, columns[j], shifts))
                    if self.residual and j:
                        new = new + cast("Tensor", columns[j])[units]
                    columns[j + 1] = _joined(columns[j + 1], new)
            outputs = self._block(-1, slice(i * P, (i + 1) * P), columns[-1], shifts)
            columns[0] = _joined(columns[0], feature(i, outputs).unsqueeze(0))
        return cast("Tensor", columns[0]).mT

    def _linears(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))

    def _block(self, layer: int, units: slice, below: Tensor | None, shifts: list[Tensor] | None) -> Tensor:
        """Some units of a layer before their activation, from the units below that are known, `[U, B]` or `[U, 1]`."""
        full = self._linears()[layer]
        weight, bias = full.weight[units], full.bias[units].unsqueeze(-1)
        shift = bias if shifts is None else bias + shifts[layer][units]
        return shift if below is None else torch.addmm(shift, weight[:, : len(below)], below)


def _joined(columns: Tensor | None, new: Tensor) -> Tensor:
    return new if columns is None else torch.cat([columns, new])
