"""Linear maps whose inputs become known in groups, each of which some outputs wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Groups = Callable[[Tensor], Sequence[Tensor]]  # the rows of a tensor, in parts


class Joined:
    """Outputs from the inputs known so far, which are joined: gradients find each.

    Args:
        weight: `[O, I]`.
        shift: `[O, B]`.
        outputs: The groups of outputs.
    """

    def __init__(self, weight: Tensor, shift: Tensor, outputs: Groups) -> None:
        self.weights, self.shifts = outputs(weight), outputs(shift)
        self.known: Tensor | None = None

    def add(self, _: int, inputs: Tensor) -> None:
        """The next group of inputs is known, `[G, B]`."""
        self.known = inputs if self.known is None else torch.cat([self.known, inputs])

    def outputs(self, group: int) -> Tensor:
        """A group of outputs for all inputs known, `[U, B]`."""
        shift, weight = self.shifts[group], self.weights[group]
        return shift if self.known is None else torch.addmm(shift, weight.narrow(1, 0, len(self.known)), self.known)


class InPlace:
    """Outputs to which each group of inputs is added in place as soon as it is known: without gradients.

    Args:
        weight: `[O, I]`.
        table: What the outputs begin with, `[O, B]`, to be written in.
        outputs: The groups of outputs.
        inputs: How many inputs there are in each group.
        first: The first output that still waits when a group of inputs becomes known.
    """

    def __init__(
        self, weight: Tensor, table: Tensor, outputs: Groups, inputs: Sequence[int], first: Sequence[int]
    ) -> None:
        self.groups = outputs(table)
        self.waiting = [table[start:] for start in first]
        self.weights = [columns[start:] for columns, start in zip(weight.split(inputs, 1), first, strict=True)]

    def add(self, group: int, inputs: Tensor) -> None:
        """A group of inputs is known, `[G, B]`."""
        self.waiting[group].addmm_(self.weights[group], inputs)

    def outputs(self, group: int) -> Tensor:
        """A group of outputs for all inputs known, `[U, B]`."""
        return self.groups[group]
