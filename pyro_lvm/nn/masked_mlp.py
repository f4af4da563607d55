"""Networks whose outputs for a feature see the features before it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_lvm.checks import check_order
from pyro_lvm.compiling import is_mapped
from pyro_lvm.nn._by_degree import Groups, InPlace, Joined
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
        order: The numbers of the features in the order in which they see one another. None for their own.
        activation: Called without arguments for each hidden layer, it returns a module that acts on each number alone.

    Raises:
        TypeError: If a size is not an integer, or `activation` does not return a module.
        ValueError: If a size is not positive, hidden layers to be added have different widths, or `order` is no
            permutation.

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
        order: Sequence[int] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.num_features = D = check_size("num_features", num_features)
        self.num_outputs = P = check_size("num_outputs", num_outputs)
        widths = check_widths(hidden)
        self.residual = residual
        if residual and len(set(widths)) > 1:
            raise ValueError(f"hidden: expected layers of one width, for they are added, got {widths}")
        self.order = list(range(D)) if order is None else check_order(order, D).tolist()
        places = torch.tensor(self.order).argsort()
        self.register_buffer("places", places, persistent=False)
        lowest = min(D - 1, 0 if context else 1)
        spread = [[lowest + unit * (D - lowest) // width for unit in range(width)] for width in widths]
        self._counts = [[units.count(degree) for degree in range(D)] for units in spread]
        sizes = [D, *widths, D * P]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.activations = nn.ModuleList(make_activation(activation) for _ in widths)
        self.context = nn.ModuleList(nn.Linear(context, size, bias=False) for size in sizes[1:]) if context else None
        degrees = [places + 1, *map(torch.tensor, spread), places.repeat(P)]
        for i, (before, after) in enumerate(pairwise(degrees)):
            mask = after.unsqueeze(-1) >= before
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
        return new.unflatten(-1, (self.num_outputs, self.num_features)).mT

    def by_degree(
        self, feature: Callable[[Tensor, Tensor], Tensor], x: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Features of which each is a function of a given number and of its outputs, `[B, D]`.

        Args:
            feature: Called with a column of `x`, `[B]`, and the outputs of that feature, `[P, B]`, it returns the
                feature, `[B]`.
            x: The given numbers, `[B, D]`.
            context: Context, `[B, C]`.
        """
        maps, columns, known = self._maps(x, context), x.mT.unbind(0), []
        for degree, i in enumerate(self.order):
            units: Tensor | None = None
            for j, activation in enumerate(self.activations):
                if self._counts[j][degree]:
                    new = activation(maps[j].outputs(degree))
                    units = new if units is None or not self.residual else units + new
                    maps[j + 1].add(degree, units)
            known.append(feature(columns[i], maps[-1].outputs(i)))
            maps[0].add(degree, known[-1].unsqueeze(0))
        return torch.stack(known, -1).index_select(-1, cast("Tensor", self.places))

    def _maps(self, x: Tensor, context: Tensor | None) -> list[Joined | InPlace]:
        """The linear maps of the layers, with inputs and outputs in groups by degree, the last outputs by feature."""
        linears, pure = self._linears(), torch.is_grad_enabled() or torch.compiler.is_compiling() or is_mapped()
        weights = [linears[0].weight[:, self.order], *(layer.weight for layer in linears[1:])]
        shifts = [layer.bias.unsqueeze(-1).expand(-1, len(x)) for layer in linears]
        if self.context is not None:
            shifts = [shift + layer(context).mT for shift, layer in zip(shifts, self.context, strict=True)]
        inputs = [[1] * self.num_features, *self._counts]
        outputs: list[Groups] = [partial(torch.split, split_size_or_sections=counts) for counts in self._counts]
        outputs.append(lambda rows: rows.unflatten(0, (self.num_outputs, self.num_features)).unbind(1))
        first = [*([0, *accumulate(counts[:-1])] for counts in self._counts), [0] * self.num_features]
        return [
            Joined(weight, shift, groups)
            if pure or (groups is outputs[-1] and len(weight) > weight.shape[1])
            else InPlace(weight, shift.clone(), groups, counts, start)
            for weight, shift, groups, counts, start in zip(weights, shifts, outputs, inputs, first, strict=True)
        ]

    def _linears(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))
