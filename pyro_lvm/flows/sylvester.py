"""Sylvester flows."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_lvm import transforms
from pyro_lvm.checks import check_count
from pyro_lvm.flows.flow import Flow

__all__ = ["Sylvester"]


class Sylvester(Flow):
    r"""Sylvester flows one after the other: draws in one pass, densities of given points by roots.

    Args:
        num_features: :math:`D`.
        num_transforms: How many.
        num_planes: Of each, at most :math:`D`, which None stands for.
        context: Size :math:`C` of the context `[*, C]`; 0 for none.
        hidden: Widths of the hidden layers of the networks that see the context.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or there are more planes than features.

    References:
        R. van den Berg, L. Hasenclever, J. M. Tomczak and M. Welling, "Sylvester normalizing flows for variational
        inference" (2018).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> lvm.flows.Sylvester(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_transforms: int = 4,
        num_planes: int | None = None,
        context: int = 0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        count = check_count("num_transforms", num_transforms)
        layers = [transforms.Sylvester(num_features, num_planes, context, hidden) for _ in range(count)]
        super().__init__(layers, num_features)
