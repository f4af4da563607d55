"""All rows of the data, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from pyro_lvm.batches import LoaderRows
from pyro_lvm.data import Data, joined_rows, rows_of


class Batch(NamedTuple):
    """Some rows.

    Attributes:
        args: Arguments of the model for these rows.
        weight: Of each row, ``[B]``; None where all count once.
        first: Whether what lies outside the rows counts with this batch, as it does with one of a sweep.
        values: Values at which latents of the model are held, by site.
        share: How often these values count.
    """

    args: tuple[Any, ...]
    weight: Tensor | None
    first: bool = True
    values: Mapping[str, Tensor] = {}
    share: float = 1.0


class Rows(Protocol):
    """Batches that make up all rows.

    Attributes:
        num_rows: N.
        total: N, or what the rows weigh together.
        at_once: Whether all rows come in one batch.
    """

    num_rows: int
    total: float
    at_once: bool

    def __iter__(self) -> Iterator[Batch]:
        """All rows, batch by batch."""

    def sample(self, count: int, seed: int) -> Batch:
        """Some rows that weigh anything, drawn without replacement, or all where they are no more."""


class AllRows:
    """Goes through all rows, as often as it is iterated over.

    Args:
        data: The rows; the first batch alone, if they come from a loader.
        weight: ``[N]``, or None.
        batch_size: Rows at a time; all, if None.
        loader: Where the rows come from instead.
        num_rows: N, which a loader may not know.

    Attributes:
        data: The rows.
        num_rows: N.
        total: N, or what the rows weigh together.
        at_once: Whether all rows come in one batch.
        is_shuffled: Whether they come in another order each time.

    Raises:
        ValueError: for a loader without a length, if N is not given.
    """

    def __init__(
        self,
        data: Data,
        weight: Tensor | None,
        batch_size: int | None,
        loader: LoaderRows | None,
        num_rows: int | None = None,
    ) -> None:
        self.data, self.weight, self.loader = data, weight, loader
        self.num_rows = num_rows or (data.num_rows or 1 if loader is None else loader.num_rows)
        self.total = float(self.num_rows if weight is None else weight.sum())
        self.size = batch_size or self.num_rows
        self.at_once = loader is None and self.size >= self.num_rows
        self.is_shuffled = loader is not None and isinstance(loader.loader.sampler, RandomSampler)
        self._whole = Batch(data.args, weight)

    def __iter__(self) -> Iterator[Batch]:
        if self.at_once:
            yield self._whole
        elif self.loader is not None:
            for i, (args, weight) in enumerate(self.loader.sweep()):
                yield Batch(args, weight, first=i == 0)
        else:
            for first in range(0, self.num_rows, self.size):
                rows = slice(first, first + self.size)
                yield Batch(self.data.take(rows), None if self.weight is None else self.weight[rows], first=first == 0)

    def sample(self, count: int, seed: int) -> Batch:
        """Some rows that weigh anything, drawn without replacement, or all where they are no more."""
        heavy = None if self.weight is None else self.weight.nonzero().flatten().cpu().numpy()
        there = self.num_rows if heavy is None else len(heavy)
        if self.at_once and there == self.num_rows <= count:
            return self._whole
        chosen = np.sort(np.random.default_rng(seed).choice(there, min(count, there), replace=False, shuffle=False))
        drawn = torch.from_numpy(chosen if heavy is None else heavy[chosen])
        parts, first = [], 0
        for batch in self:
            last = first + (self.data.count(batch.args) or 1)
            parts.append(self._rows(batch, drawn[(drawn >= first) & (drawn < last)] - first))
            first = last
        args = tuple(
            joined_rows(column) if has else column[0]
            for column, has in zip(zip(*(part.args for part in parts), strict=True), self.data.has_rows, strict=True)
        )
        return Batch(args, None if self.weight is None else torch.cat([p.weight for p in parts]))  # type: ignore[misc]

    def _rows(self, batch: Batch, kept: Tensor) -> Batch:
        args = tuple(rows_of(a, kept) if h else a for a, h in zip(batch.args, self.data.has_rows, strict=True))
        return Batch(args, None if batch.weight is None else batch.weight[kept.to(batch.weight.device)])
