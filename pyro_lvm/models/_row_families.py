"""Families of distributions of rows, of which :class:`Mixture` and :class:`HMM` build components and states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.checks import check_count
from pyro_lvm.models._row_family import ByMeans, Observed
from pyro_lvm.models._steps import Params
from pyro_lvm.newton import gamma_concentration

_LEAST_MEAN = 1e-30  # of a column of zeros, whose best rate would be infinite
_LEAST_SPREAD = 1e-6  # of a column that is constant, whose best concentration would be infinite


class _Counts(ByMeans):
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

    def log_prob(self, params: Params, x: Tensor) -> Tensor:
        orders = (x.sum(-1, keepdim=True) + 1).lgamma() - (x + 1).lgamma().sum(-1, keepdim=True)
        rows = x.unsqueeze(-2)
        return orders + (rows * torch.where(rows > 0, params["probs"], 1.0).log()).sum(-1)

    def features(self, x: Tensor) -> Tensor:
        totals = x.sum(-1, keepdim=True)
        return 2 * (totals.mean() * x / totals.clamp(min=1)).sqrt()

    def from_means(self, means: Tensor) -> Params:
        return {"probs": means / means.sum(-1, keepdim=True).clamp(min=_LEAST_MEAN)}


@dataclass(frozen=True)
class Bernoulli(ByMeans):
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

    def log_prob(self, params: Params, x: Tensor) -> Tensor:
        return torch.where(x.unsqueeze(-2) > 0.5, params["probs"], 1 - params["probs"]).log().sum(-1)

    def valid(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)

    def words(self, column: int) -> str:
        return "0 or 1"

    def features(self, x: Tensor) -> Tensor:
        return 2 * x  # two different answers are as far apart as those of a categorical item

    def from_means(self, means: Tensor) -> Params:
        return {"probs": means.clamp(max=1.0)}


@dataclass(frozen=True)
class Categorical(ByMeans):
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

    def log_prob(self, params: Params, x: Tensor) -> Tensor:
        tables = params["probs"].unbind(-2) if self._alike else [params[name] for name in self.shapes()]
        columns = x.long().unbind(-1)
        return torch.stack([probs.log().mT[x] for probs, x in zip(tables, columns, strict=True)]).sum(0)

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


class _Positive(ByMeans):
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
