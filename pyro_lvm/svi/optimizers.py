"""What the user may call an optimizer, made into a torch optimizer over named parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim import Optimizer


def make_optimizer(optim: Any, params: Mapping[str, Tensor]) -> Optimizer:
    """A torch optimizer over the parameters.

    Args:
        optim: Adam's learning rate, a function from a list of tensors to a torch optimizer, or a ``pyro.optim`` object,
            whose class and arguments are used (arguments by parameter name too).
        params: Leaf tensors by name.

    Raises:
        TypeError: for anything else.
        ValueError: for a learning rate that is not positive, and for Pyro's scheduled optimizers.
    """
    if isinstance(optim, PyroLRScheduler):
        raise ValueError(
            "pass the optimizer as optim= and the schedule as scheduler=, a function of the torch optimizer"
        )
    if isinstance(optim, PyroOptim):
        return _from_pyro(optim, params)
    if isinstance(optim, int | float) and not isinstance(optim, bool):
        if not 0 < optim < math.inf:
            raise ValueError(f"optim is Adam's learning rate and must be positive and finite; got {optim}")
        return torch.optim.Adam(list(params.values()), lr=float(optim))
    if not callable(optim):
        raise TypeError(
            "optim must be a learning rate, a function from parameters to a torch optimizer, or a pyro.optim object; "
            f"got {type(optim).__name__}"
        )
    optimizer = optim(list(params.values()))
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optim(params) must return a torch optimizer; it returned {type(optimizer).__name__}")
    return optimizer


def _from_pyro(optim: PyroOptim, params: Mapping[str, Tensor]) -> Optimizer:
    arguments = optim.pt_optim_args
    if not callable(arguments):
        return optim.pt_optim_constructor(list(params.values()), **arguments)
    return optim.pt_optim_constructor([{"params": [p], **arguments(name)} for name, p in params.items()])


def make_scheduler(scheduler: Any, optimizer: Optimizer) -> Any:
    """A learning-rate scheduler, stepped once after each optimizer step.

    Raises:
        TypeError: if the factory is not callable or returns no scheduler.
        ValueError: for ``ReduceLROnPlateau``, which a noisy loss would trigger at once.
    """
    if scheduler is None:
        return None
    if not callable(scheduler):
        raise TypeError(
            f"scheduler must be a function from an optimizer to a scheduler; got {type(scheduler).__name__}"
        )
    made = scheduler(optimizer)
    if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau reads single losses, which are noisy here: use a schedule in steps")
    if not isinstance(made, torch.optim.lr_scheduler.LRScheduler):
        raise TypeError(f"scheduler(optimizer) must return a torch LR scheduler; it returned {type(made).__name__}")
    return made


def make_clipping(clip: float | None, optim: Any) -> Callable[[list[Tensor]], Tensor]:
    """A function that clips gradients in place and returns their total norm before clipping.

    Raises:
        ValueError: if ``clip`` is not a positive number.
    """
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not clip > 0):
        raise ValueError(f"clip must be a positive gradient norm; got {clip!r}")
    per_parameter = optim.pt_clip_args if isinstance(optim, PyroOptim) else {}
    if callable(per_parameter):
        raise ValueError("clip_args of a pyro.optim object must be a dict here")

    def clip_gradients(leaves: list[Tensor]) -> Tensor:
        norm = get_total_norm([p.grad for p in leaves if p.grad is not None], foreach=False)
        for p in leaves:
            if "clip_norm" in per_parameter:
                clip_grad_norm_(p, per_parameter["clip_norm"], foreach=False)
            if "clip_value" in per_parameter:
                clip_grad_value_(p, per_parameter["clip_value"], foreach=False)
        if clip is not None:
            clip_grad_norm_(leaves, clip, foreach=False)
        return norm

    return clip_gradients
