"""How a site uses the parameters: which items stand where in its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from pyro_lvm.em.roles import IDENTITY, Items, Picked, Theta, find
from pyro_lvm.families import Family, family_of
from pyro_lvm.sites import Site


@dataclass(frozen=True)
class Use:
    """How one site uses the parameters.

    Attributes:
        site: Its name.
        family: Its family, if that is known.
        roles: For each argument of the family the items that it is made of; None where it was computed from them.
        params: All parameters on which its log-density depends.
        prior_of: The parameter that it is a prior of, if its value is one.
        event_dims: Dimensions that stand between those of its plates and of an item.
    """

    site: str
    family: Family | None
    roles: dict[str, Picked | None]
    params: frozenset[str]
    prior_of: str = ""
    event_dims: int = 0

    @property
    def fixed(self) -> bool:
        """Whether no argument depends on a parameter."""
        return not self.params - {self.prior_of}

    @property
    def picked(self) -> bool:
        """Whether all arguments are items as they are, or constants."""
        return self.family is not None and all(role is not None for role in self.roles.values())

    def index(self, argument: str) -> Tensor:
        """The number of the item in each place of an argument."""
        role = self.roles[argument]
        assert role is not None
        return role.index

    def given(self, argument: str) -> Use:
        """The same with this argument for a known number."""
        items = Items({}, 0, ())
        known = Picked(items, torch.full((1,), -1), IDENTITY)
        return replace(self, roles=self.roles | {argument: known})


def base(fn: Any) -> tuple[Any, int]:
    """A distribution without the wrappers that events and plates put around it, and the dimensions that events took."""
    dims = 0
    while isinstance(fn, torch.distributions.Independent | ExpandedDistribution):
        dims += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return fn, dims


def use_of(sites: tuple[Site, Site], thetas: tuple[Theta, Theta], leaves: Theta, points: Mapping[str, str]) -> Use:
    """How a site uses the parameters, by its distribution under two fillings of them.

    Args:
        sites: The site under the one and under the other.
        thetas: The fillings.
        leaves: The first filling again, as the trainable tensors on which the first site was computed.
        points: The parameters that are values of sites, by site.
    """
    name = sites[0]["name"]
    prior_of = points.get(name, "")
    (first, event_dims), (second, _) = (base(site["fn"]) for site in sites)
    family = family_of(first)
    roles: dict[str, Picked | None] = {}
    sources: dict[str, set[str]] = {}
    for argument, how in family.arguments.items() if family is not None else ():
        here, there = (_floating(how.read(fn)) for fn in (first, second))
        sources[argument] = depends_on(here, leaves)
        roles[argument] = find((here, there), thetas, how.item_dim, family.form) if here.shape == there.shape else None  # type: ignore[union-attr]
    picked = {argument: set(role.names) for argument, role in roles.items() if role is not None}
    for argument, names in picked.items():
        # what looks constant, or picked, in these rows may be more in others, as a slope is where all inputs are zero
        known = set().union(*picked.values()) if family.in_one_tensor else names  # type: ignore[union-attr]
        if not sources[argument] <= known:
            roles[argument] = None
    if family is not None and family.known is not None:
        argument, rest = family.known
        role = roles[argument]
        if role is not None and not role.names:
            del roles[argument]
            family = rest
    if family is not None and all(role is not None for role in roles.values()):
        params = {n for role in roles.values() for n in role.names}  # type: ignore[union-attr]
    else:
        params = depends_on(sites[0]["unscaled_log_prob"], leaves)
    return Use(name, family, roles, frozenset(params | {prior_of} - {""}), prior_of, event_dims)


def _floating(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def depends_on(tensor: Tensor, leaves: Theta) -> set[str]:
    """The names of the leaves from which a tensor was computed, read off its graph."""
    if not tensor.requires_grad:
        return set()
    open_nodes = [get_gradient_edge(tensor).node]
    nodes = set(open_nodes)
    while open_nodes:
        found = {node for node, _ in open_nodes.pop().next_functions if node is not None} - nodes
        nodes |= found
        open_nodes += found
    return {name for name, leaf in leaves.items() if get_gradient_edge(leaf).node in nodes}
