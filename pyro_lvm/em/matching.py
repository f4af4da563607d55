"""Components of one run put in the order of another's: likelihoods do not know how components are numbered."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_lvm.em.e_step import Expectation
from pyro_lvm.em.run import Theta
from pyro_lvm.em.use import Use
from pyro_lvm.sites import Site, sample_sites

Axes = dict[str, tuple[int, ...]]  # the dimensions of each parameter that count states
_Place = tuple[str, int]  # a dimension of a parameter


def state_axes(uses: Mapping[str, Use], theta: Theta, expectation: Expectation) -> Axes:
    """The dimensions of parameters in which the states of the model's latents stand.

    Latents share their states if some dimension counts those of both, as transitions of a chain do.

    Args:
        uses: What each site does with the parameters.
        theta: The parameters.
        expectation: With the trace of the sites.

    Returns:
        Empty where latents have different states.
    """
    sites = sample_sites(expectation.trace)
    groups: list[set[_Place]] = []
    for name, site in sites.items():
        if (symbol := site["infer"].get("_enumerate_symbol")) is None:
            continue
        places = {place for other, use in uses.items() for place in _picked_by(symbol, sites[other], use, theta)}
        own = uses[name].roles.get("probs")
        if own is not None and own.items.item_dim == 1:
            places |= {(param, theta[param].dim() - 1) for param in own.names}
        joined = [group for group in groups if not group.isdisjoint(places)]
        groups = [group for group in groups if group not in joined] + [places.union(*joined)]
    if len(groups) != 1:
        return {}
    return {param: tuple(sorted(dim for p, dim in groups[0] if p == param)) for param in {p for p, _ in groups[0]}}


def _picked_by(symbol: str, site: Site, use: Use, theta: Theta) -> set[_Place]:
    """The dimensions of parameters along which a latent picks what a site takes."""
    dims = [dim for dim, other in site["infer"].get("_dim_to_symbol", {}).items() if other == symbol]
    found: set[_Place] = set()
    for role in use.roles.values():
        axis = dims[0] - use.event_dims if dims else 0
        if role is None or not dims or role.index.dim() < -axis or role.index.shape[axis] == 1:
            continue
        picked = role.index.movedim(axis, 0).reshape(role.index.shape[axis], -1)[:, 0]
        names = role.items.owners(picked)
        if len(names) != 1 or (picked < 0).any():
            continue
        shape = theta[names[0]].shape[: theta[names[0]].dim() - role.items.item_dim]
        places = torch.unravel_index(picked - role.items.names[names[0]], shape)
        states = torch.arange(len(picked), device=picked.device)
        found |= {(names[0], dim) for dim, place in enumerate(places) if torch.equal(place, states)}
    return found


def in_the_order_of(best: Theta, other: Theta, axes: Axes) -> Theta:
    """Parameters with their components in the order in which they are most like the best ones."""
    return permuted(other, axes, order_of(best, other, axes))


def order_of(best: Theta, other: Theta, axes: Axes) -> Tensor:
    """The order of components, ``[K]``, in which parameters are most like the best ones.

    Squared distances are taken relative to how parameters vary between components (Hungarian method, by SciPy).
    """
    size = num_states(best, axes)
    cost = torch.zeros(size, size, dtype=torch.float64)
    for name, dims in axes.items():
        if len(dims) == 1:
            a, b = (v[name].detach().cpu().double().movedim(dims[0], 0).reshape(size, -1) for v in (best, other))
            spread = torch.cat([a, b]).var(0, correction=0).clamp(min=torch.finfo(torch.float64).tiny)
            cost += ((a.unsqueeze(1) - b).square() / spread).mean(-1)
    return torch.as_tensor(linear_sum_assignment(cost.numpy())[1])


def num_states(theta: Theta, axes: Axes) -> int:
    """K; 0 where nothing is known of states."""
    return next((theta[name].shape[dims[0]] for name, dims in axes.items()), 0)


def permuted(theta: Theta, axes: Axes, order: Tensor) -> Theta:
    """Parameters with their states in another order, ``[K]``."""
    found = dict(theta)
    for name, dims in axes.items():
        for dim in dims:
            found[name] = found[name].index_select(dim, order.to(found[name].device))
    return found
