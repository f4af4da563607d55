"""Conjugate priors: what they add to the sums of an M-step, as so many observations more."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.em.use import base
from pyro_lvm.sites import Site

_DENSITIES: dict[tuple[str, str, str], tuple[type, Any]] = {
    # by form, argument and link: the prior, and the sums that it stands for
    ("rate", "rate", "identity"): (dist.Gamma, lambda p: (p.concentration - 1, p.rate)),
    ("probability", "probs", "identity"): (
        dist.Beta,
        lambda p: (p.concentration1 - 1, p.concentration1 + p.concentration0 - 2),
    ),
    ("normal", "loc", "identity"): (dist.Normal, lambda p: (p.scale**-2, p.loc * p.scale**-2)),
    ("normal", "scale", "sqrt"): (dist.InverseGamma, lambda p: (2 * (p.concentration + 1), 2 * p.rate)),
    ("normal", "scale", "rsqrt"): (dist.Gamma, lambda p: (2 * (p.concentration - 1), 2 * p.rate)),
}


def pseudo_sums(site: Site, claim: tuple[str, str, str]) -> Tensor | None:
    """What a prior adds to the sums of each item of its parameter, ``[I, ...]``; None if it is not conjugate.

    Args:
        site: The prior's site.
        claim: Form, argument and link of the parameter in the likelihood.
    """
    prior, _ = base(site["fn"])
    if site["mask"] is not None or isinstance(site["scale"], Tensor):
        return None
    shape = site["value"].shape
    if claim[:2] == ("simplex", "probs") and claim[2] == "identity" and isinstance(prior, dist.Dirichlet):
        return site["scale"] * (prior.concentration - 1).expand(shape).reshape(-1, shape[-1]).double()
    kind, pseudo = _DENSITIES.get(claim, (None, None))
    if kind is None or not isinstance(prior, kind):
        return None
    return site["scale"] * torch.stack([p.expand(shape).flatten().double() for p in pseudo(prior)], -1)  # type: ignore[misc]
