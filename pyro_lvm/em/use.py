"""How a site uses the parameters: which items stand where in its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

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
    for argument, how in family.arguments.items() if family is not None else ():
        values = tuple(_floating(how.read(fn)) for fn in (first, second))
        same = values[0].shape == values[1].shape
        roles[argument] = find(values, thetas, how.item_dim, family.form) if same else None  # type: ignore[arg-type,union-attr]
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
    """The names of the leaves from which a tensor was computed."""
    if not tensor.requires_grad:
        return set()
    grads = torch.autograd.grad(tensor.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return {name for name, grad in zip(leaves, grads, strict=True) if grad is not None}
