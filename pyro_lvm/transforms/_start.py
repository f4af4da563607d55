"""How layers start: near the identity."""

from typing import Any

from torch import nn

_SHARE = 0.01  # of the usual weights: gradients reach what lies before


def near_zero(layer: Any) -> None:
    """Shrink the weights of a network's last layer, so that its outputs are near zero."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    layer.weight.data.mul_(_SHARE)
