"""Fully connected networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    r"""A fully connected network, acting on the last dimension.

    .. math::

        h_0 = x, \qquad h_l = \phi(A_l h_{l-1} + b_l), \qquad y = A_{L+1} h_L + b_{L+1}

    Args:
        num_inputs: Size of the last dimension of the input `[*, num_inputs]`.
        hidden: Width of each hidden layer. Empty for an affine map.
        num_outputs: Size of the last dimension of the output `[*, num_outputs]`.
        activation: Called without arguments for each hidden layer, it returns :math:`\phi` as a module.

    Raises:
        TypeError: If a size is not an integer, or `activation` does not return a module.
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> from pyro_lvm.nn import MLP
        >>> _ = torch.manual_seed(0)
        >>> MLP(3, (16, 16), 2)(torch.randn(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: Sequence[int],
        num_outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        sizes = [
            check_size("num_inputs", num_inputs),
            *check_widths(hidden),
            check_size("num_outputs", num_outputs),
        ]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), make_activation(activation)]
        super().__init__(*layers[:-1])


def check_widths(hidden: Sequence[int]) -> list[int]:
    """The widths of hidden layers, or an error."""
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise TypeError(f"hidden: expected a sequence of layer widths such as (64, 64), got {hidden!r}")
    return [check_size("hidden", width) for width in hidden]


def check_size(name: str, size: int) -> int:
    """A positive integer, or an error."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"{name}: expected positive integers, got {size!r}")
    if size < 1:
        raise ValueError(f"{name}: expected positive integers, got {size}")
    return size


def make_activation(activation: Callable[[], nn.Module]) -> nn.Module:
    """A new activation, or an error."""
    layer = activation() if callable(activation) and not isinstance(activation, nn.Module) else None
    if not isinstance(layer, nn.Module):
        raise TypeError(
            "activation: expected a class or function that returns a torch module, such as "
            f"torch.nn.ReLU, got {activation!r}"
        )
    return layer
