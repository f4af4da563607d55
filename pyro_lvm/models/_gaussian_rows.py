"""The Gaussian as a family of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_lvm.checks import check_choice
from pyro_lvm.models._gaussian_runs import inverse, log_constant
from pyro_lvm.models._gaussian_start import cluster_moments
from pyro_lvm.models._row_family import Family, Observed
from pyro_lvm.models._spread import variance_floor, variances
from pyro_lvm.models._steps import Params, Sums
from pyro_lvm.models.gaussian_mixture_em import GaussianMixtureSteps

_NUM_ENTRIES = 2**17  # of whitened rows: what the caches of a processor hold


@dataclass(frozen=True)
class Gaussian(Family):
    """Real numbers, with parameters `locs` `[K, D]` and `scale_tril` `[K, D, D]` or, if diagonal, `scale` `[K, D]`.

    Args:
        num_features: Number of columns, D.
        covariance: "full" or "diag".
    """

    num_features: int
    covariance: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("covariance", self.covariance, ("full", "diag"))

    @property
    def _scale(self) -> str:
        return "scale_tril" if self.covariance == "full" else "scale"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        D = self.num_features
        return {"locs": (D,), self._scale: (D, D) if self.covariance == "full" else (D,)}

    def constraint_of(self, name: str) -> Constraint:
        return {"scale_tril": constraints.lower_cholesky, "scale": constraints.positive}.get(name, constraints.real)

    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        locs, scale = params["locs"], params[self._scale]
        full = self.covariance == "full"
        density = dist.MultivariateNormal(locs, scale_tril=scale) if full else dist.Normal(locs, scale).to_event(1)
        return [Observed("", density, x)]

    def log_prob(self, params: Params, x: Tensor) -> Tensor:
        constant = log_constant(params["locs"].unsqueeze(0), params[self._scale].unsqueeze(0)).squeeze(0)
        distances = [whitened.square().sum(-1).mT for whitened in self._whitened(params, x)]
        return torch.add(constant, torch.cat(distances), alpha=-0.5)

    def valid(self, x: Tensor) -> Tensor:
        return x.isfinite()

    def words(self, column: int) -> str:
        return "a finite number"

    def features(self, x: Tensor) -> Tensor:
        return x / variances(x).to(x).sqrt()

    def start(self, x: Tensor, membership: Tensor) -> Params:
        labels = membership.argmax(-1).cpu().numpy()
        locs, covariances = map(torch.as_tensor, cluster_moments(x, labels, membership.shape[1], self.covariance))
        scale = torch.linalg.cholesky(covariances) if self.covariance == "full" else covariances.sqrt()
        return {"locs": locs, self._scale: scale}

    def floor(self, x: Tensor) -> float:
        return variance_floor(x)

    def sums(self, params: Params, x: Tensor, posterior: Tensor) -> Sums:
        scale = params[self._scale]
        first, second = (torch.zeros_like(p, dtype=torch.float64) for p in (params["locs"], scale))
        parts = posterior.split(_num_rows(params))
        for some, part in zip(self._whitened(params, x), parts, strict=True):
            whitened, each = some.double(), part.mT.unsqueeze(1)
            first += (each @ whitened).squeeze(1)
            if self.covariance == "full":
                second += (whitened * each.mT).mT @ whitened
            else:
                second += (each @ whitened.square_()).squeeze(1)
        return {"counts": posterior.sum(0), "first": first, "second": second}

    def maximize(self, sums: Sums, params: Params, floor: float) -> Params:
        found = GaussianMixtureSteps(floor).maximize(sums, {"weights": sums["counts"], **params})
        return {name: found[name] for name in params}

    def _whitened(self, params: Params, x: Tensor) -> Iterator[Tensor]:
        """Deviations of some rows at a time from the locs, in units of the covariances, `[K, n, D]`."""
        locs, scale = params["locs"].unsqueeze(-2), params[self._scale]
        full = self.covariance == "full"
        unit = inverse(scale).mT if full else scale.unsqueeze(-2)
        for rows in x.split(_num_rows(params)):
            yield (rows - locs) @ unit if full else (rows - locs) / unit


def _num_rows(params: Params) -> int:
    return max(64, _NUM_ENTRIES // params["locs"].numel())
