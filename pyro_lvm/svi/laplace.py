"""The mode of a posterior, and the Gaussian that has its curvature: where the climb of "auto" starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.nonfinite import FAILURES

_MOST_ITERATIONS = 200
_CLOSE = 1e-4  # nats that a step is still to gain
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-3, 1e-9, 1e12
_LESS, _MORE = 10.0, 4.0

Loss = Callable[[Tensor], Tensor]


class Mode(NamedTuple):
    """A minimum of a loss.

    Attributes:
        loc: Where it is, ``[D]``.
        precision: The loss's Hessian there, positive definite, ``[D, D]``, in double precision.
        log_mass: Laplace's approximation of the log-integral of exp(-loss) around it, in nats.
    """

    loc: Tensor
    precision: Tensor
    log_mass: float

    def coordinates(self) -> Coordinates:
        """Those in which the loss is half a squared distance, near the mode."""
        return Coordinates.of_covariance(self.loc, torch.linalg.inv(self.precision))

    def distance(self, other: Tensor) -> float:
        """To another point, in standard deviations, averaged over the coordinates."""
        gap = (other - self.loc).double()
        return math.sqrt(max(0.0, float(gap @ self.precision @ gap)) / len(gap))


def find_mode(loss: Loss, start: Tensor) -> Mode | None:
    """Minimise a loss of few numbers by Newton steps, damped in the units of each number (Marquardt 1963).

    The damping makes every step a descent, wherever the loss curves the wrong way, and does not depend on the scales of
    the numbers.

    Args:
        loss: In nats, twice differentiable; it is infinite where it raises a ``ValueError`` or ``RuntimeError``, as a
            matrix without a Cholesky factor does.
        start: ``[D]``.

    Returns:
        None where no minimum was found.
    """
    try:
        return _descended(loss, start)
    except FAILURES:
        return None


def _descended(loss: Loss, point: Tensor) -> Mode | None:
    damping = _FIRST_DAMPING
    value, slope, hessian = _expanded(loss, point)
    for _ in range(_MOST_ITERATIONS):
        if not (math.isfinite(value) and torch.isfinite(slope).all() and torch.isfinite(hessian).all()):
            return None
        curvature = hessian.diagonal().abs()
        unit = torch.diag(torch.where(curvature > 0, curvature, curvature.max()))
        while True:
            factor, failed = torch.linalg.cholesky_ex(hessian + damping * unit)
            if not failed:
                step = -torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
                gain = -0.5 * float(slope @ step)
                new = point + step.to(point.dtype)
                new_value = _value(loss, new.detach())
                if new_value <= value:
                    break
                if gain < _CLOSE or gain < 4 * torch.finfo(point.dtype).eps * abs(value):
                    return _mode(point, value, hessian)
            damping = max(damping * _MORE, _FIRST_DAMPING)
            if damping > _MOST_DAMPING:
                return None
        point, done = new, gain < _CLOSE and damping < 1
        value, slope, hessian = _expanded(loss, point)
        if done:
            return _mode(point, value, hessian)
        damping = damping / _LESS if damping > _LEAST_DAMPING else 0.0
    return None


def _value(loss: Loss, point: Tensor) -> float:
    with torch.no_grad():
        try:
            return loss(point).item()
        except FAILURES:
            return math.inf


def _mode(loc: Tensor, value: float, hessian: Tensor) -> Mode | None:
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        return None
    half_log_det = factor.diagonal().log().sum().item()
    return Mode(loc, hessian, 0.5 * len(loc) * math.log(2 * math.pi) - value - half_log_det)


def _expanded(loss: Loss, point: Tensor) -> tuple[float, Tensor, Tensor]:
    """Value, gradient and Hessian, in double precision."""
    leaf = point.detach().requires_grad_()
    value = loss(leaf)
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    each = torch.eye(len(leaf), dtype=leaf.dtype, device=leaf.device)
    hessian = torch.zeros_like(each)
    if slope.requires_grad:  # as no slope of a straight line does
        (hessian,) = torch.autograd.grad(slope, leaf, each, is_grads_batched=True)
    return value.item(), slope.detach().double(), 0.5 * (hessian + hessian.T).detach().double()
