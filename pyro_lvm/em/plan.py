"""Which rule each parameter follows in the M-step, read off what the sites do with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.em.forms import Dirichlet, Ratio, Simplex, Sums, add
from pyro_lvm.em.pairs import Matched, MultivariateNormal, Normal
from pyro_lvm.em.priors import prior_sums
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.roles import Items, Picked, Theta
from pyro_lvm.em.use import Use, base, use_of
from pyro_lvm.families import Family
from pyro_lvm.sites import sample_sites

NUMERIC, LEAST_SQUARES = "L-BFGS on Q", "weighted least squares"
_RULES = {
    ("rate", "rate"): "weighted mean",
    ("probability", "probs"): "weighted proportion",
    ("simplex", "probs"): "expected counts, normalised",
    ("normal", "loc"): "weighted mean",
    ("normal", "scale"): "weighted standard deviation",
    ("multivariate_normal", "loc"): "weighted mean",
    ("multivariate_normal", "covariance"): "weighted covariance",
    ("gamma", "concentration"): "Newton's method",
    ("gamma", "rate"): "concentration over weighted mean",
    ("beta", "concentration1"): "Newton's method",
    ("beta", "concentration0"): "Newton's method",
    ("dirichlet", "concentration"): "Newton's method",
    ("negative_binomial", "total_count"): "bisection on a histogram of counts",
    ("negative_binomial", "probs"): "weighted proportion",
}

Claim = tuple[str, str, str]  # form, argument, link


class Plan:
    """The rule of each parameter.

    Args:
        program: The model.
        theta: Where the fit starts.
        args: Rows to look at.

    Attributes:
        uses: What each site does with the parameters.
        rules: For each parameter the name of its rule, by which it is told to users.
    """

    def __init__(self, program: EMProgram, theta: Theta, args: tuple[Any, ...]) -> None:
        self.program, self.theta = program, dict(theta)
        self.uses = self.uses_on(args)
        self._claims = self._collect()
        self.rules = {name: self._rule(name) for name in theta}
        self._settle_pairs()
        self.links = {name: claims[0][2] for name, claims in self._claims.items() if len(claims) == 1}

    def uses_on(self, args: tuple[Any, ...]) -> dict[str, Use]:
        """What each site does with the parameters on these rows."""
        thetas = tuple(self.program.filling(seed, self.theta) for seed in (1, 2))
        leaves = {name: v.clone().requires_grad_() for name, v in thetas[0].items()}
        with torch.enable_grad():
            first = sample_sites(self.program.trace(leaves, args))
        with torch.no_grad():
            second = sample_sites(self.program.trace(thetas[1], args))
        return {
            name: use_of((first[name], second[name]), thetas, leaves, self.program.points)  # type: ignore[arg-type]
            for name in first
        }
