"""Other places for EM to start: clusters of the rows where a model is a mixture, else noise."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributions import transform_to

from pyro_lvm.data import MOST_ROWS, Data
from pyro_lvm.em.assignment import features
from pyro_lvm.em.fused import FusedSteps
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.run import Theta
from pyro_lvm.em.variational import VariationalSteps
from pyro_lvm.models._mixture_base import clusters
from pyro_lvm.params import is_simplex
from pyro_lvm.program import Program


def other_starts(
    owner: Any,
    steps: FusedSteps | GenericSteps | VariationalSteps,
    program: Program,
    data: Data,
    count: int,
    seed: int,
    theta: Theta,
) -> Iterator[Theta]:
    """Starts beside the first.

    A model makes them from the data by itself, if its ``initialize`` takes a seed. One whose rows have one discrete
    latent starts with the M-step of a k-means++ clustering. In others, and where rows are fewer than components, normal
    noise is added to the parameters of the model, in unconstrained space.

    Args:
        owner: The model, or what it is a method of.
        steps: Of EM.
        program: Of the parameters.
        data: The rows.
        count: How many.
        seed: Of the random choices.
        theta: The first start.
    """
    initialize = getattr(owner, "initialize", None)
    makes_starts = callable(initialize) and "seed" in inspect.signature(initialize).parameters
    for i in range(1, count + 1):
        if makes_starts:
            owner.initialize(*data.args, seed=seed + i)
            yield program.parameters.start()
        elif isinstance(steps, GenericSteps):
            yield _other_start(steps, theta, seed + i)
        elif isinstance(steps, VariationalSteps):
            yield theta | _noisy(program, steps.of_model(theta), seed + i)


def stacked(starts: Sequence[Theta]) -> Theta:
    """Several starts in a leading dimension of all parameters; one alone as it is."""
    return starts[0] if len(starts) == 1 else {n: torch.stack([start[n] for start in starts]) for n in starts[0]}


def _other_start(steps: GenericSteps, theta: Theta, seed: int) -> Theta:
    components = steps.components
    if components is None:
        return _noisy(steps.program.program, theta, seed)
    batch = steps.rows.sample(MOST_ROWS, seed)
    table = features(steps.expect(theta, batch), components.row_dim)
    if table is None or len(table) < components.size:
        return _noisy(steps.program.program, theta, seed)
    labels = torch.as_tensor(clusters(table.cpu().numpy(), components.size, seed)).long()
    return steps.from_labels(theta, batch, labels)


def _noisy(program: Program, theta: Theta, seed: int) -> Theta:
    """Parameters with normal noise added in unconstrained space; zeros of a simplex stay."""
    constraints = program.parameters.constraints
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in theta.items():
        there = transform_to(constraints[name])
        free = there.inv(value)
        noise = torch.randn(free.shape, generator=generator, dtype=free.dtype, device="cpu")
        found[name] = there(free + noise.to(free.device))
        if is_simplex(constraints[name]):  # zeros are part of the model
            found[name] = torch.where(value > 0, found[name], 0.0)
            found[name] = found[name] / found[name].sum(-1, keepdim=True)
    return found
