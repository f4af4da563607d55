"""Flows of affine couplings."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_lvm.flows._orders import couplings
from pyro_lvm.flows.flow import Flow

__all__ = ["RealNVP"]


class RealNVP(Flow):
    r"""Affine couplings, of even and odd features in turn: one pass in both directions.

    Args:
        num_features: :math:`D`, at least two.
        num_transforms: How many couplings.
        hidden: Widths of the hidden layers of each network.
        context: Size :math:`C` of the context `[*, C]`; 0 for none.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or there is one feature only.

    References:
        L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> lvm.flows.RealNVP(3)().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        num_features: int,
        num_transforms: int = 8,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
    ) -> None:
        super().__init__(couplings(num_features, num_transforms, None, hidden, context), num_features)
