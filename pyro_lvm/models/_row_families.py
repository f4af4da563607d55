"""Families of distributions of rows, of which :class:`Mixture` and :class:`HMM` build components and states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_lvm.checks import check_count
from pyro_lvm.models._steps import Params, Sums
from pyro_lvm.newton import gamma_concentration

_LEAST_MEAN = 1e-30  # of a column of zeros, whose best rate would be infinite
_LEAST_SPREAD = 1e-6  # of a column that is constant, whose best concentration would be infinite


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
        """Log-density of rows `[N, D]` in each component, `[N, K]`."""
        return sum(density.log_prob(value) for _, density, value in self.observe(params, x.unsqueeze(-2)))

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


class _ByMeans(Family):
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


class _Counts(_ByMeans):
    neutral = 1.0

    def valid(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < torch.inf) & (x == x.floor())

    def words(self, column: int) -> str:
        return "a count (0, 1, 2, ...)"


@dataclass(frozen=True)
class Poisson(_Counts):
    """Counts without a limit, with a parameter `rate` `[K, D]`.

    Args:
        num_features: Number of columns, D.
    """

    num_features: int
    constraint = constraints.positive

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"rate": (self.num_features,)}

    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        return [Observed("", dist.Poisson(params["rate"]).to_event(1), x)]

    def features(self, x: Tensor) -> Tensor:
        return 2 * x.sqrt()  # of a variance of about 1, whatever the rate

    def from_means(self, means: Tensor) -> Params:
        return {"rate": means.clamp(min=_LEAST_MEAN)}


class _AnyTotal(dist.Multinomial):
    """A multinomial distribution of rows with totals of their own, without torch's mask, which vmap refuses."""

    def log_prob(self, value: Tensor) -> Tensor:
        orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return orders + (value * self.logits).sum(-1)


@dataclass(frozen=True)
class Multinomial(_Counts):
    """Counts that share out a total, with a parameter `probs` `[K, D]`.

    Args:
        num_features: Number of columns, D.
        total_count: The total of a row that is drawn. Observed rows have totals of their own, which are taken as given.
    """

    num_features: int
    total_count: int = 1
    constraint = constraints.simplex

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "total_count", check_count("total_count", self.total_count))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"probs": (self.num_features,)}

    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        return [Observed("", _AnyTotal(self.total_count, params["probs"], validate_args=False), x)]

    def features(self, x: Tensor) -> Tensor:
        totals = x.sum(-1, keepdim=True)
        return 2 * (totals.mean() * x / totals.clamp(min=1)).sqrt()

    def from_means(self, means: Tensor) -> Params:
        return {"probs": means / means.sum(-1, keepdim=True).clamp(min=_LEAST_MEAN)}


@dataclass(frozen=True)
class Bernoulli(_ByMeans):
    """Answers 0 and 1, with a parameter `probs` `[K, D]`; their mixture is a latent class analysis.

    Args:
        num_features: Number of items, D.
    """

    num_features: int
    constraint = constraints.unit_interval
    neutral = 0.5

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"probs": (self.num_features,)}

    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        return [Observed("", dist.Bernoulli(params["probs"]).to_event(1), x)]

    def valid(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)

    def words(self, column: int) -> str:
        return "0 or 1"

    def features(self, x: Tensor) -> Tensor:
        return 2 * x  # two different answers are as far apart as those of a categorical item

    def from_means(self, means: Tensor) -> Params:
        return {"probs": means.clamp(max=1.0)}


@dataclass(frozen=True)
class Categorical(_ByMeans):
    """Answers 0 to C - 1; their mixture is a latent class analysis.

    Items with equally many answers share a parameter `probs` `[K, D, C]` and a site. Else item j has a parameter
    `probs_j` `[K, C_j]` and a site of its own, whose name ends with `_j`.

    Args:
        num_categories: Number of answers, C; a list with one number for each item, where they differ.
        num_features: Number of items, D; by default as many as the list has, or one.
    """

    num_categories: int | Sequence[int]
    num_features: int = None  # type: ignore[assignment]
    sizes: tuple[int, ...] = field(init=False, repr=False)
    constraint = constraints.simplex
    neutral = 1.0

    def __post_init__(self) -> None:
        given = self.num_categories
        if self.num_features is None:
            object.__setattr__(self, "num_features", len(given) if isinstance(given, Sequence) else 1)
        super().__post_init__()
        sizes = given if isinstance(given, Sequence) else [given] * self.num_features
        sizes = [check_count("num_categories", size) for size in sizes]
        if len(sizes) != self.num_features:
            raise ValueError(f"num_categories: expected one for each of {self.num_features} items, got {given}")
        if min(sizes) < 2:
            raise ValueError(f"num_categories: expected at least 2, got {given}")
        object.__setattr__(self, "sizes", tuple(sizes))

    @property
    def _alike(self) -> bool:
        return len(set(self.sizes)) == 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        if self._alike:
            return {"probs": (self.num_features, self.sizes[0])}
        return {f"probs_{j}": (size,) for j, size in enumerate(self.sizes)}

    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        if self._alike:
            return [Observed("", dist.Categorical(params["probs"]).to_event(1), x)]
        return [Observed(f"_{j}", dist.Categorical(params[f"probs_{j}"]), x[..., j]) for j in range(self.num_features)]

    def valid(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < x.new_tensor(self.sizes)) & (x == x.floor())

    def words(self, column: int) -> str:
        return f"a category from 0 to {self.sizes[column] - 1}"

    def statistics(self, x: Tensor) -> Tensor:
        return torch.cat([torch.eye(size).to(x)[x[:, j].long()] for j, size in enumerate(self.sizes)], -1)

    def features(self, x: Tensor) -> Tensor:
        return 2**0.5 * self.statistics(x)

    def from_means(self, means: Tensor) -> Params:
        probs = [part / part.sum(-1, keepdim=True) for part in means.split(self.sizes, -1)]
        return {"probs": torch.stack(probs, -2)} if self._alike else dict(zip(self.shapes(), probs, strict=True))


class _Positive(_ByMeans):
    constraint = constraints.positive

    def features(self, x: Tensor) -> Tensor:
        least = torch.where(x > 0, x, torch.inf).amin(0)
        logs = x.clamp(min=torch.where(least < torch.inf, least, 1.0)).log()  # of one variance, whatever the rate
        std = logs.std(0, correction=0)
        return logs / torch.where(std > 0, std, 1.0)


@dataclass(frozen=True)
class Exponential(_Positive):
    """Waiting times, with a parameter `rate` `[K, D]`.

    Args:
        num_features: Number of columns, D.
    """

    num_features: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"rate": (self.num_features,)}

    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        return [Observed("", dist.Exponential(params["rate"]).to_event(1), x)]

    def valid(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < torch.inf)

    def words(self, column: int) -> str:
        return "a finite number that is not negative"

    def from_means(self, means: Tensor) -> Params:
        return {"rate": 1 / means.clamp(min=_LEAST_MEAN)}


@dataclass(frozen=True)
class Gamma(_Positive):
    """Positive numbers, with parameters `concentration` and `rate`, both `[K, D]`.

    Args:
        num_features: Number of columns, D.
    """

    num_features: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"concentration": (self.num_features,), "rate": (self.num_features,)}

    def observe(self, params: Params, x: Tensor) -> list[Observed]:
        return [Observed("", dist.Gamma(params["concentration"], params["rate"]).to_event(1), x)]

    def valid(self, x: Tensor) -> Tensor:
        return (x > 0) & (x < torch.inf)

    def words(self, column: int) -> str:
        return "a finite positive number"

    def statistics(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.log()], -1)

    def from_means(self, means: Tensor) -> Params:
        mean, mean_log = means.chunk(2, -1)
        mean_log = torch.minimum(mean_log, mean.log() - _LEAST_SPREAD)
        concentration = gamma_concentration(mean, mean_log)
        return {"concentration": concentration, "rate": concentration / mean}
