"""Linear flows."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_lvm.checks import check_choice
from pyro_lvm.flows.flow import Flow
from pyro_lvm.transforms import PLULinear, QRLinear

__all__ = ["LinearFlow"]


class LinearFlow(Flow):
    r"""A normal distribution with any covariance, by a matrix in factors.

    Args:
        num_features: :math:`D`.
        factors: "plu" for triangular factors, "qr" for an orthogonal and a triangular one.
        context: Size :math:`C` of the context `[*, C]`, on which mean and covariance then depend; 0 for none.
        hidden: Widths of the hidden layers of the network that sees the context.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive, or the factors are others.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> lvm.flows.LinearFlow(3, "qr")().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, num_features: int, factors: str = "plu", context: int = 0, hidden: Sequence[int] = (64,)
    ) -> None:
        kind = {"plu": PLULinear, "qr": QRLinear}[check_choice("factors", factors, ("plu", "qr"))]
        super().__init__([kind(num_features, context=context, hidden=hidden)], num_features)
