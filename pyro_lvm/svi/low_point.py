"""A low point of a loss of many numbers, and the scale of each number there."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from pyro_lvm.svi.laplace import Loss
from pyro_lvm.svi.nonfinite import FAILURES

_NUM_SIGNS, _PASSES = 64, 3
_LEAST = 1e-3  # of the median curvature, which is noisy


def descend(loss: Loss, start: Tensor, scale: Tensor) -> Tensor:
    """The lowest point that L-BFGS comes to, of a loss of many numbers in some units, ``[D]``."""

    def expanded(steps: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = (start + scale * torch.as_tensor(steps).to(start)).requires_grad_()
        try:
            value = loss(leaf)
            (slope,) = torch.autograd.grad(value, leaf)
        except FAILURES:
            return math.inf, np.zeros_like(steps)
        return value.item(), (scale * slope).double().cpu().numpy()

    found = minimize(expanded, np.zeros(len(start)), jac=True, method="L-BFGS-B", options={"maxiter": 1_000})
    return start + scale * torch.as_tensor(found.x).to(start)


def deviations(loss: Loss, point: Tensor, seed: int) -> Tensor:
    """Standard deviations by the curvature of each number, ``[D]``; ones, where none is known or positive.

    An estimate has noise in the units of other numbers, and so is made better in some passes, in units of the scales so
    far. No pass makes a scale more than 1.4 times as large, for a curvature near zero, or below, may be noise. So none
    is more than a hundred times as large as most are.
    """
    ones = torch.ones_like(point)
    try:
        curvature = curvatures(loss, point, ones, seed)
        positive = curvature.isfinite() & (curvature > 0)
        if not positive.any():
            return ones
        typical = curvature[positive].median().item()
        scale = torch.where(curvature.isfinite(), curvature, typical).clamp(min=_LEAST * typical).rsqrt()
        for _ in range(_PASSES):
            curvature = curvatures(loss, point, scale, seed)
            scale = scale * torch.where(curvature.isfinite(), curvature, 1.0).clamp(min=0.5).rsqrt()
    except FAILURES:
        return ones
    return scale


def curvatures(loss: Loss, point: Tensor, scale: Tensor, seed: int) -> Tensor:
    """The diagonal of the Hessian in some units by random signs (Bekas, Kokiopoulou and Saad 2007), ``[D]``."""
    leaf = point.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    generator, total = torch.Generator().manual_seed(seed), torch.zeros_like(point)
    for _ in range(_NUM_SIGNS):
        signs = torch.randint(2, point.shape, generator=generator, device="cpu").to(point) * 2 - 1
        (product,) = torch.autograd.grad(slope, leaf, signs * scale, retain_graph=True)
        total += signs * scale * product
    return total / _NUM_SIGNS
