"""Planar flows."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_lvm import transforms
from pyro_lvm.checks import check_count
from pyro_lvm.flows.flow import Flow

__all__ = ["Planar"]


class Planar(Flow):
    r"""Planar flows one after the other: draws in one pass, densities of given points by a root for each.

    Args:
        num_features: :math:`D`.
        num_transforms: How many.
        context: Size :math:`C` of the context `[*, C]`; 0 for none.
        hidden: Widths of the hidden layers of the networks that see the context.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive.

    References:
        D. J. Rezende and S. Mohamed, "Variational inference with normalizing flows" (2015).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> lvm.flows.Planar(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, num_features: int, num_transforms: int = 10, context: int = 0, hidden: Sequence[int] = (64,)
    ) -> None:
        count = check_count("num_transforms", num_transforms)
        super().__init__([transforms.Planar(num_features, context, hidden) for _ in range(count)], num_features)
