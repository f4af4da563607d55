"""Invertible layers that flows are made of, one family a file.

A layer is a module that owns parameters. Called with a context, or without one, it returns a fresh transform: from the
base to the data, invertible, with log-determinants.
"""

from pyro_lvm.transforms._base import Inverse, Layer, Stack, Transform
from pyro_lvm.transforms.act_norm import ActNorm
from pyro_lvm.transforms.autoregressive import Autoregressive
from pyro_lvm.transforms.coupling import Coupling
from pyro_lvm.transforms.emerging import EmergingConv
from pyro_lvm.transforms.image_coupling import ImageCoupling, channel_mask, checkerboard_mask
from pyro_lvm.transforms.monotone import Monotone
from pyro_lvm.transforms.permutation import Permutation
from pyro_lvm.transforms.planar import Planar
from pyro_lvm.transforms.plu import Conv1x1, PLULinear
from pyro_lvm.transforms.qr import QRLinear
from pyro_lvm.transforms.spline import Spline
from pyro_lvm.transforms.squeeze import Squeeze
from pyro_lvm.transforms.sylvester import Sylvester
from pyro_lvm.transforms.univariate import Affine, Shift, Univariate

__all__ = [
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Conv1x1",
    "Coupling",
    "EmergingConv",
    "ImageCoupling",
    "Inverse",
    "Layer",
    "Monotone",
    "PLULinear",
    "Permutation",
    "Planar",
    "QRLinear",
    "Shift",
    "Spline",
    "Squeeze",
    "Stack",
    "Sylvester",
    "Transform",
    "Univariate",
    "channel_mask",
    "checkerboard_mask",
]
