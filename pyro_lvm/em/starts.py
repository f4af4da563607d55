"""Other places for EM to start: clusters of the rows where a model is a mixture, else noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_lvm.em.e_step import Expectation
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.run import Theta
from pyro_lvm.models._mixture_base import clusters
from pyro_lvm.params import is_simplex
from pyro_lvm.sites import Site, is_observed, sample_sites

_SURE = 0.9  # the share of a row that goes to its cluster; the rest leaves no component without rows


def other_start(steps: GenericSteps, theta: Theta, seed: int) -> Theta:
    """A start of its own for each seed.

    A model whose rows have one discrete latent starts with the M-step of a k-means++ clustering; in others normal noise
    is added to the parameters in unconstrained space.

    Args:
        steps: Of the model.
        theta: The first start.
        seed: Of the random choices.
    """
    args, weight = next(iter(steps.batches()))
    expectation = steps.expect(theta, args, weight)
    sites = sample_sites(expectation.trace)
    latent = [s for s in sites.values() if s["infer"].get("_enumerate_dim") is not None]
    plate = steps.program.program.sites.row_plate
    if plate is None or len(latent) != 1 or latent[0]["name"] not in steps.program.program.sites.local:
        return _noisy(steps, theta, seed)
    features = _features(list(sites.values()), plate.dim, len(expectation.rows))  # type: ignore[arg-type]
    if features is None:
        return _noisy(steps, theta, seed)
    dim, count = latent[0]["infer"]["_enumerate_dim"], len(latent[0]["fn"].enumerate_support(expand=False))
    labels = torch.as_tensor(clusters(features.double().cpu().numpy(), count, seed)).long()
    share = _SURE * torch.eye(count)[labels] + (1 - _SURE) / count  # [N, K]
    return steps.m_step.closed(steps.m_step.sums(args, _assigned(expectation, share, dim, plate.dim)), theta)


def _assigned(expectation: Expectation, share: Tensor, dim: int, row_dim: int) -> Expectation:
    """The expectation with these shares of the states for each row."""
    shaped = share.T.reshape(*[share.shape[1]], *[1] * (row_dim - dim - 1), share.shape[0], *[1] * (-row_dim - 1))
    weights = {}
    for name, old in expectation.weights.items():
        depends = old.dim() >= -dim and old.shape[dim] == share.shape[1]
        rows = old.sum(dim, keepdim=True) if depends else old
        weights[name] = rows * shaped.to(old) if depends else old
    return expectation._replace(weights=weights)


def _features(sites: list[Site], row_dim: int, num_rows: int) -> Tensor | None:
    """What was observed of each row, standardised, ``[N, D]``."""
    found = []
    for site in sites:
        value: Any = site["value"]
        event = site["fn"].event_dim
        if is_observed(site) and value.dim() >= event - row_dim and value.shape[row_dim - event] == num_rows:
            found.append(value.movedim(row_dim - event, 0).reshape(num_rows, -1).double())
    if not found:
        return None
    table = torch.cat(found, 1)
    spread = table.std(0)
    return (table - table.mean(0)) / torch.where(spread > 0, spread, 1.0)


def _noisy(steps: GenericSteps, theta: Theta, seed: int) -> Theta:
    constraints = steps.program.program.parameters.constraints
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in theta.items():
        there = transform_to(constraints[name])
        free = there.inv(value)
        found[name] = there(free + torch.randn(free.shape, generator=generator, dtype=free.dtype))
        if is_simplex(constraints[name]):  # zeros are part of the model
            found[name] = torch.where(value > 0, found[name], 0.0)
            found[name] = found[name] / found[name].sum(-1, keepdim=True)
    return found
