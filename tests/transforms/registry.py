"""One constructor for each layer and each function of one number: contract tests run over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from pyro_lvm.transforms import (
    ActNorm,
    Affine,
    Autoregressive,
    Conv1x1,
    Coupling,
    EmergingConv,
    ImageCoupling,
    Inverse,
    Monotone,
    Permutation,
    Planar,
    PLULinear,
    QRLinear,
    Shift,
    Spline,
    Squeeze,
    Stack,
    Sylvester,
    channel_mask,
    checkerboard_mask,
)

CONTEXT = 2


@dataclass
class Case:
    """A layer.

    Attributes:
        make: Called with the size of the context, it makes one.
        shape: Of what is transformed.
        takes_context: Whether the size may be other than 0.
    """

    make: Callable
    shape: tuple[int, ...] = (5,)
    takes_context: bool = True

    def layer(self, context=0, seed=0, spread=0.3):
        """A layer with random parameters, in double precision."""
        torch.manual_seed(seed)
        layer = self.make(context=context) if self.takes_context else self.make()
        for parameter in layer.parameters():
            width = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.data.add_(spread * torch.randn_like(parameter) / width**0.5)
        return layer.double()


UNIVARIATES = {"shift": Shift(), "affine": Affine(), "spline": Spline(4, bound=3.0), "monotone": Monotone(3)}

LAYERS = {
    "permutation": Case(partial(Permutation, [2, 0, 1, 4, 3]), takes_context=False),
    "plu": Case(partial(PLULinear, 5)),
    "plu-ordered": Case(partial(PLULinear, 5, order=[2, 0, 1, 4, 3])),
    "qr": Case(partial(QRLinear, 5)),
    "qr-two": Case(partial(QRLinear, 4, num_reflections=2), (4,)),
    "act-norm": Case(partial(ActNorm, 5)),
    "act-norm-images": Case(partial(ActNorm, 3, images=True), (3, 2, 4)),
    "conv1x1": Case(partial(Conv1x1, 3), (3, 2, 4)),
    "emerging": Case(partial(EmergingConv, 2), (2, 3, 4)),
    "emerging-5": Case(partial(EmergingConv, 1, kernel_size=5), (1, 4, 3)),
    "squeeze": Case(Squeeze, (4, 2, 3), takes_context=False),
    "planar": Case(partial(Planar, 5)),
    "planar-1": Case(partial(Planar, 1), (1,)),
    "sylvester": Case(partial(Sylvester, 5, num_planes=3)),
    "sylvester-square": Case(partial(Sylvester, 4), (4,)),
    **{f"autoregressive-{n}": Case(partial(Autoregressive, 5, u, hidden=(7, 6))) for n, u in UNIVARIATES.items()},
    "autoregressive-residual": Case(partial(Autoregressive, 5, hidden=(8, 8, 8), residual=True)),
    "autoregressive-ordered": Case(partial(Autoregressive, 5, hidden=(7, 7), residual=True, order=[2, 0, 1, 4, 3])),
    "autoregressive-linear": Case(partial(Autoregressive, 5, hidden=())),
    "autoregressive-narrow": Case(partial(Autoregressive, 5, hidden=(2, 3))),
    "autoregressive-1": Case(partial(Autoregressive, 1), (1,)),
    "autoregressive-2": Case(partial(Autoregressive, 2, hidden=(4,)), (2,)),
    **{f"coupling-{n}": Case(partial(Coupling, 5, univariate=u, hidden=(7, 6))) for n, u in UNIVARIATES.items()},
    "coupling-odd": Case(partial(Coupling, 5, kept=[1, 3], hidden=(8,))),
    "image-coupling-checkerboard": Case(partial(ImageCoupling, checkerboard_mask(2, 3, 4), hidden=(6,)), (2, 3, 4)),
    "image-coupling-channels": Case(partial(ImageCoupling, channel_mask(3, 2, 2), Spline(4)), (3, 2, 2)),
    "inverse": Case(lambda context=0: Inverse(Autoregressive(5, context=context))),
    "stack": Case(lambda context=0: Stack([PLULinear(5), Permutation([4, 3, 2, 1, 0]), Planar(5, context)])),
}
