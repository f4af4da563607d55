"""The error of a fit whose loss or gradient is not finite, and the site to blame."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.sites import sample_sites


class NonFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite.

    Attributes:
        step: The step at which it happened, counted from 0.
        site: The first site whose log-density, or its gradient, is not finite; None if no single site shows it.
        params: The last parameters with a finite loss and gradient, constrained, by name; pass them as ``init=`` to
            continue.
    """

    def __init__(self, step: int, site: str | None, reason: str, params: dict[str, Tensor]) -> None:
        self.step, self.site, self.params = step, site, params
        place = f"site {site!r}" if site else "no single site"
        super().__init__(
            f"step {step}: {reason}; first to blame is {place}. The last good parameters are in .params "
            "(pass them as init= to continue). A smaller learning rate, clip=, or a bounded scale often helps"
        )


FAILURES = (NonFiniteError, ValueError, RuntimeError)
"""What a program may raise where its parameters are too far off."""


def blame(program: Program, values: Values, args: tuple[Any, ...]) -> tuple[str | None, str]:
    """Run guide and model once more and find the first site that is not finite.

    Args:
        program: The model and guide.
        values: The parameters before the step.
        args: The batch of the step. Torch's random state must be that of the step.

    Returns:
        The site, or None, and what is wrong with it.
    """
    leaves = {name: v.detach().requires_grad_() for name, v in values.items()}

    def run() -> list[tuple[str, Tensor]]:
        guide = poutine.trace(program.guide).get_trace(*args, **program.model_kwargs)
        model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(*args, **program.model_kwargs)
        return [
            (name, site["fn"].log_prob(site["value"]).sum())
            for trace in (guide, model)
            for name, site in sample_sites(trace).items()
        ]

    with pyro.validation_enabled(False), torch.enable_grad():
        log_probs = program.call(leaves, run)
    for name, log_prob in log_probs:
        if not torch.isfinite(log_prob):
            return name, f"its log-density is {log_prob.item()}"
    for name, log_prob in log_probs:
        if log_prob.requires_grad:
            grads = torch.autograd.grad(log_prob, list(leaves.values()), retain_graph=True, allow_unused=True)
            if not all(g is None or torch.isfinite(g).all() for g in grads):
                return name, "the gradient of its log-density is not finite"
    return None, "the loss or its gradient is not finite"
