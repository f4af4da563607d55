"""Networks that other parts are made of: encoders, decoders, conditioners."""

from pyro_lvm.nn.conv_net import ConvNet
from pyro_lvm.nn.masked_mlp import MaskedMLP
from pyro_lvm.nn.mlp import MLP

__all__ = ["MLP", "ConvNet", "MaskedMLP"]
