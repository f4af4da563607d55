"""Autoregressive flows, fast as densities or as guides."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_lvm.flows._orders import orders
from pyro_lvm.flows.flow import Flow
from pyro_lvm.transforms import Autoregressive, Inverse

__all__ = ["IAF", "MAF"]


class MAF(Flow):
    r"""A masked autoregressive flow: a density in one pass, draws feature by feature.

    Each transform sees the features in the reverse order of the one before.

    Args:
        num_features: :math:`D`.
        num_transforms: How many autoregressive transforms.
        hidden: Widths of the hidden layers of each network.
        context: Size :math:`C` of the context `[*, C]`; 0 for none.
        residual: Whether the networks add each hidden layer to the one before.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive.

    References:
        G. Papamakarios, T. Pavlakou and I. Murray, "Masked autoregressive flow for density estimation" (2017).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> flow = lvm.flows.MAF(3, context=2)
        >>> flow(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_transforms: int = 5,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        residual: bool = False,
    ) -> None:
        layers = [
            Inverse(Autoregressive(num_features, hidden=hidden, context=context, residual=residual, order=order))
            for order in orders(num_transforms, num_features)
        ]
        super().__init__(layers, num_features)


class IAF(Flow):
    r"""An inverse autoregressive flow: draws with their densities in one pass, densities of given points by feature.

    Each transform sees the features in the reverse order of the one before.

    Args:
        num_features: :math:`D`.
        num_transforms: How many autoregressive transforms.
        hidden: Widths of the hidden layers of each network.
        context: Size :math:`C` of the context `[*, C]`; 0 for none.
        residual: Whether the networks add each hidden layer to the one before.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is not positive.

    References:
        D. P. Kingma et al., "Improved variational inference with inverse autoregressive flow" (2016).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> draws, log_prob = lvm.flows.IAF(3)().rsample_and_log_prob((5,))
        >>> draws.shape, log_prob.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        num_features: int,
        num_transforms: int = 5,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        residual: bool = False,
    ) -> None:
        layers = [
            Autoregressive(num_features, hidden=hidden, context=context, residual=residual, order=order)
            for order in orders(num_transforms, num_features)
        ]
        super().__init__(layers, num_features)
