"""Fits of one model and guide to many data sets of the same shapes, all at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm import tracing
from pyro_lvm.params import Values
from pyro_lvm.svi.objective import Objective
from pyro_lvm.vectorize import at_a_time

Arguments = Callable[[dict[str, Tensor]], tuple[Any, ...]]


def fit_many(
    objective: Objective,
    arguments: Arguments,
    observed: dict[str, Tensor],
    num_steps: int,
    learning_rate: float,
    progress: bool,
) -> dict[str, Tensor]:
    """Parameters after steps of Adam, whose learning rate falls to zero along a cosine.

    Adam moves every number by itself, so that one optimizer of stacked parameters is one for each data set.

    Args:
        objective: Made ready on data of the same shapes.
        arguments: The model's arguments that hold observations, by the names of their sites.
        observed: The data sets, ``[J, ...]`` each.
        num_steps: Of each fit.
        learning_rate: The first.
        progress: Whether to show a progress bar.

    Returns:
        Unconstrained values, ``[J, ...]`` each.

    Raises:
        NotCompilable: if the loss cannot be written down for all data sets at a time.
    """
    num_sets = len(next(iter(observed.values())))
    start = objective.program.parameters.start()
    names, sites = list(start), list(observed)
    leaves = [value.expand(num_sets, *value.shape).clone().requires_grad_() for value in start.values()]

    def loss(params: Values, data: dict[str, Tensor]) -> Tensor:
        return objective(params, arguments(data))

    def gradients(*tensors: Tensor) -> list[Tensor]:
        params = dict(zip(names, tensors, strict=False))
        data = dict(zip(sites, tensors[len(names) :], strict=True))
        found = at_a_time(torch.func.grad(loss), num_sets, num_sets, params, data)
        return [found[name] for name in names]

    graph = tracing.trace(gradients, [*leaves, *observed.values()])
    optimizer = torch.optim.Adam(leaves, learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in tqdm(range(num_steps), disable=not progress, unit=" steps"):
        with torch.no_grad():
            for leaf, gradient in zip(leaves, graph(*leaves, *observed.values()), strict=True):
                leaf.grad = gradient
        optimizer.step()
        scheduler.step()
    return {name: leaf.detach() for name, leaf in zip(names, leaves, strict=True)}
