"""Flows of splines."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_lvm.flows._orders import couplings, orders
from pyro_lvm.flows.flow import Flow
from pyro_lvm.transforms import Autoregressive, Inverse, Layer, Spline

__all__ = ["NSF"]


class NSF(Flow):
    r"""A neural spline flow: autoregressive, with its density in one pass, or by couplings.

    Args:
        num_features: :math:`D`; at least two for couplings.
        num_transforms: How many transforms.
        num_bins: Of each spline.
        bound: Splines are the identity beyond; data should lie within.
        coupling: Whether the transforms are couplings, of even and odd features in turn, which are one pass in both
            directions.
        hidden: Widths of the hidden layers of each network.
        context: Size :math:`C` of the context `[*, C]`; 0 for none.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or there is one feature only and couplings.

    References:
        C. Durkan, A. Bekasov, I. Murray and G. Papamakarios, "Neural spline flows" (2019).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> lvm.flows.NSF(3)().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        num_features: int,
        num_transforms: int = 3,
        num_bins: int = 8,
        bound: float = 5.0,
        coupling: bool = False,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
    ) -> None:
        spline = Spline(num_bins, bound)
        layers: list[Layer]
        if coupling:
            layers = couplings(num_features, num_transforms, spline, hidden, context)
        else:
            layers = [
                Inverse(Autoregressive(num_features, spline, hidden, context, order=order))
                for order in orders(num_transforms, num_features)
            ]
        super().__init__(layers, num_features)
