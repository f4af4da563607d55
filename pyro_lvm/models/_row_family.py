"""What a family of distributions of rows must say of itself to be that of components or states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_lvm.checks import check_count
from pyro_lvm.densities import log_prob
from pyro_lvm.models._steps import Params, Sums


class Observed(NamedTuple):
    """An observed site: what its name ends with, its distribution, and its value."""

    suffix: str
    distribution: dist.Distribution
    value: Tensor


class Family(ABC):
    """A family of distributions of the columns of one data argument.

    Attributes:
        num_features: Number of columns, D.
    """

    num_features: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_features", check_count("num_features", self.num_features))

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names of the parameters, and their shapes in one component."""

    @abstractmethod
    def constraint_of(self, name: str) -> Constraint:
        """Of a parameter."""

    @abstractmethod
    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        """The sites that observe rows `[..., D]`, at parameters that broadcast with them."""

    @abstractmethod
    def valid(self, x: Tensor) -> Tensor:
        """Which entries of the rows the family can have, `[N, D]`."""

    @abstractmethod
    def words(self, column: int) -> str:
        """What an entry of a column must be."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Columns for k-means, in which rows of any component spread about as far."""

    @abstractmethod
    def start(self, x: Tensor, membership: Tensor) -> Params:
        """Parameters of clusters, each with one pseudo-row.

        Args:
            x: Rows, `[N, D]`.
            membership: Ones and zeros that say which rows a cluster has, `[N, K]`.
        """

    @abstractmethod
    def sums(self, params: Params, x: Tensor, posterior: Tensor) -> Sums:
        """Sums of what rows say about parameters, in double precision.

        Args:
            params: The parameters.
            x: Rows, `[N, D]`.
            posterior: How much of each row belongs to each component, `[N, K]`, in double precision.
        """

    @abstractmethod
    def maximize(self, sums: Sums, params: Params, floor: float) -> Params:
        """The parameters at which the expected log-density is largest; those of a component without rows stay.

        Args:
            sums: From :meth:`sums`, of all rows.
            params: The parameters to which they belong.
            floor: From :meth:`floor`.
        """

    def log_prob(self, params: Params, x: Tensor) -> Tensor:
        """Log-density of rows `[N, D]` in each component, `[N, K]`; minus infinity where a row is impossible."""
        return torch.stack(
            [log_prob(density, value) for _, density, value in self.observe(params, x.unsqueeze(-2))]
        ).sum(0)

    def floor(self, x: Tensor) -> float:
        """The smallest variance that rows allow, of families that need one."""
        return 0.0

    def draw(self, params: Params) -> Tensor:
        """A row for each of some parameters, `[..., D]`.

        Args:
            params: With the parameters' own shape behind that of the rows.
        """
        batch = next(iter(params.values())).shape[: -len(next(iter(self.shapes().values())))]
        nothing = next(iter(params.values())).new_zeros(*batch, self.num_features)
        drawn = [density.sample() for _, density, _ in self.observe(params, nothing)]
        return drawn[0] if len(drawn) == 1 else torch.stack(drawn, -1)


class ByMeans(Family):
    """A family in which means of statistics of the rows are all that the maximum of the likelihood depends on.

    Attributes:
        constraint: Of all its parameters.
        neutral: Statistics of a row that says nothing; None where data of any scale may come.
    """

    constraint: ClassVar[Constraint]
    neutral: ClassVar[float | None] = None

    def constraint_of(self, name: str) -> Constraint:
        return self.constraint

    def statistics(self, x: Tensor) -> Tensor:
        """What a row says about parameters, `[N, S]`."""
        return x

    @abstractmethod
    def from_means(self, means: Tensor) -> Params:
        """Parameters of components from the means of their statistics, `[K, S]`."""

    def start(self, x: Tensor, membership: Tensor) -> Params:
        """Parameters of clusters, each with the mean of all rows and of a neutral one as a pseudo-row."""
        rows = self.statistics(x)
        pseudo = rows.mean(0) if self.neutral is None else (rows.sum(0) + self.neutral) / (len(rows) + 1)
        return self.from_means((membership.mT @ rows + pseudo) / (membership.sum(0).unsqueeze(-1) + 1))

    def sums(self, params: Params, x: Tensor, posterior: Tensor) -> Sums:
        return {"counts": posterior.sum(0), "statistics": posterior.mT @ self.statistics(x).double()}

    def maximize(self, sums: Sums, params: Params, floor: float) -> Params:
        counts = sums["counts"]
        some = counts > 0
        means = sums["statistics"] / counts.where(some, 1.0).unsqueeze(-1)
        found = self.from_means(means)
        return {
            name: value.where(some.reshape(-1, *[1] * (value.dim() - 1)), params[name].double())
            for name, value in found.items()
        }


def log_densities(families: Mapping[str, Family], params: Mapping[str, Params], rows: Mapping[str, Tensor]) -> Tensor:
    """Log-density of rows in each component, `[N, K]`, of all families together.

    Args:
        families: By part.
        params: Of each part, by the family's own names.
        rows: Of each part, `[N, D]`.
    """
    return sum(families[part].log_prob(params[part], x) for part, x in rows.items())  # type: ignore[return-value]
