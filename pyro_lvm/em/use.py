"""How a site uses the parameters: which items stand where in its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.em.roles import Picked, Theta, find
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
    """

    site: str
    family: Family | None
    roles: dict[str, Picked | None]
    params: frozenset[str]
    prior_of: str = ""

    @property
    def fixed(self) -> bool:
        """Whether no argument depends on a parameter."""
        return not self.params - {self.prior_of}

    @property
    def picked(self) -> bool:
        """Whether all arguments are items as they are, or constants."""
        return self.family is not None and all(role is not None for role in self.roles.values())


def base(fn: Any) -> tuple[Any, int]:
    """A distribution without the wrappers that events put around it, and how many dimensions they took."""
    dims = 0
    while isinstance(fn, torch.distributions.Independent):
        dims, fn = dims + fn.reinterpreted_batch_ndims, fn.base_dist
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return fn, dims


def use_of(sites: tuple[Site, Site], thetas: tuple[Theta, Theta], leaves: Theta, points: set[str]) -> Use:
    """How a site uses the parameters, by its distribution under two fillings of them.

    Args:
        sites: The site under the one and under the other.
        thetas: The fillings.
        leaves: The first filling again, as the trainable tensors on which the first site was computed.
        points: The sites whose values are parameters.
    """
    name = sites[0]["name"]
    prior_of = name if name in points else ""
    (first, _), (second, _) = (base(site["fn"]) for site in sites)
    family = family_of(first)
    roles: dict[str, Picked | None] = {}
    for argument, how in family.arguments.items() if family is not None else ():
        values = how.read(first), how.read(second)
        if not values[0].is_floating_point():
            values = values[0].double(), values[1].double()
        same = values[0].shape == values[1].shape
        roles[argument] = find(values, thetas, how.item_dim, family.form) if same else None  # type: ignore[union-attr]
    if family is not None and all(role is not None for role in roles.values()):
        params = {n for role in roles.values() for n in role.names}  # type: ignore[union-attr]
    else:
        params = _depends(sites[0], leaves)
    return Use(name, family, roles, frozenset(params | {prior_of} - {""}), prior_of)


def _depends(site: Site, leaves: Theta) -> set[str]:
    log_prob = site["unscaled_log_prob"]
    if not log_prob.requires_grad:
        return set()
    grads = torch.autograd.grad(log_prob.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return {name for name, grad in zip(leaves, grads, strict=True) if grad is not None}
