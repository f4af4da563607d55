"""Where the batch of each step comes from: all rows, shuffled minibatches, or a ``DataLoader``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_lvm import randomness
from pyro_lvm.data import Data, arguments_of, as_arguments, rows_of

Batch = tuple[tuple[Any, ...], Tensor | None]


class Batches(ABC):
    """Where each step's batch comes from."""

    @abstractmethod
    def get(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must carry, beside the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue where ``state_dict`` was taken."""


class HeldBatches(Batches):
    """Batches of rows that are all in memory, so that a batch is a pure function of the data and of a few indices."""

    def __init__(self, data: Data, weight: Tensor | None) -> None:
        self.data, self.weight = data, weight

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The data, and the weights of rows, by name."""
        named = {str(i): a for i, a in enumerate(self.data.args) if isinstance(a, Tensor)}
        return named if self.weight is None else named | {"weight": self.weight}

    def indices(self, start: int, stop: int) -> dict[str, Tensor]:
        """What tells the batches of these steps apart, each with a leading dimension of steps."""
        return {}

    def select(self, tensors: dict[str, Tensor], indices: dict[str, Tensor]) -> Batch:
        """One step's batch as a pure function of ``tensors`` and the step's ``indices``."""
        args = tuple(tensors.get(str(i), a) for i, a in enumerate(self.data.args))
        return args, tensors.get("weight")


class WholeData(HeldBatches):
    """Every batch is the whole data."""

    def get(self, step: int) -> Batch:
        """The whole data, whatever the step."""
        return self.data.args, self.weight


class ShuffledRows(HeldBatches):
    """Minibatches without replacement, newly shuffled each epoch; the last of an epoch may be short.

    The order of epoch e is a pure function of (seed, e), so that no state is carried.
    """

    def __init__(self, data: Data, weight: Tensor | None, batch_size: int, seed: int) -> None:
        super().__init__(data, weight)
        assert data.num_rows is not None
        self.num_rows, self.batch_size, self.seed = data.num_rows, batch_size, seed
        self.num_batches = -(-data.num_rows // batch_size)
        self.epoch = -1

    def get(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, position = divmod(step, self.num_batches)
        self._shuffle(epoch)
        index = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        return self.data.take(index), None if self.weight is None else rows_of(self.weight, index)

    def _shuffle(self, epoch: int) -> None:
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
            )
            self.order = torch.randperm(self.num_rows, generator=generator, device="cpu")
            self.epoch = epoch

    @property
    def short(self) -> int:
        """How many rows the last batch of an epoch has, if it is short; else 0."""
        return self.num_rows % self.batch_size

    def indices(self, start: int, stop: int) -> dict[str, Tensor]:
        """The rows of each batch, and how many of them count: a short batch is filled up with rows that do not."""
        rows = []
        first = start
        while first < stop:
            epoch, position = divmod(first, self.num_batches)
            self._shuffle(epoch)
            filled = self.order.repeat(2)[: self.num_batches * self.batch_size].view(self.num_batches, -1)
            rows.append(filled[position : position + stop - first])
            first += len(rows[-1])
        found = {"rows": torch.cat(rows)}
        if self.short:
            last = torch.arange(start, stop) % self.num_batches == self.num_batches - 1
            found["count"] = torch.where(last, self.short, self.batch_size)
        return found

    def select(self, tensors: dict[str, Tensor], indices: dict[str, Tensor]) -> Batch:
        """The rows of a batch; those that do not count weigh nothing, the others as much more."""
        rows = indices["rows"]
        args = tuple(
            tensors[str(i)][rows] if has else tensors.get(str(i), a)
            for i, (a, has) in enumerate(zip(self.data.args, self.data.has_rows, strict=True))
        )
        weight = tensors["weight"][rows] if "weight" in tensors else None
        if not self.short:
            return args, weight
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
        counts = torch.arange(self.batch_size, device=rows.device) < indices["count"]
        padded = counts.to(dtype) * (self.batch_size / indices["count"]).to(dtype)
        return args, padded if weight is None else padded * weight


class LoaderRows(Batches):
    """Batches from a torch ``DataLoader``, begun anew whenever it ends.

    Attributes:
        generators: Those that the loader and its samplers draw from instead of torch's own.

    The loader works on the CPU, whatever the device of the fit: its samplers draw from generators of the CPU.
    A checkpoint carries the random state at the start of the epoch; continuing replays the epoch up to its place.
    """

    def __init__(
        self, loader: DataLoader, device: torch.device | str | None, model: Any, missing: bool = False
    ) -> None:
        self.loader, self.device, self.model, self.missing = loader, device, model, missing
        parts = (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
        own = [getattr(part, "generator", None) for part in parts]
        self.generators = list(dict.fromkeys(g for g in own if isinstance(g, torch.Generator)))
        self.iterator: Iterator | None = None
        self.start: dict[str, Any] = {}
        self.taken = 0

    @property
    def num_rows(self) -> int:
        """N.

        Raises:
            ValueError: for a dataset without a length.
        """
        try:
            return len(self.loader.dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError("the DataLoader's dataset has no length: pass num_rows=") from error

    def first(self) -> tuple[Any, ...]:
        """The first batch of a pass of its own."""
        with self._on_cpu():
            return self._arguments(next(iter(self.loader)))

    def sweep(self) -> Iterator[Batch]:
        """All batches of a pass of its own."""
        with self._on_cpu():
            for batch in self.loader:
                yield self._arguments(batch), None

    def get(self, step: int) -> Batch:
        """The next batch; the loader keeps its own count."""
        with self._on_cpu():
            if self.iterator is None:
                self._begin()
            try:
                batch = next(self.iterator)  # type: ignore[arg-type]
            except StopIteration:
                self._begin()
                batch = next(self.iterator)  # type: ignore[arg-type]
        self.taken += 1
        return self._arguments(batch), None

    def _on_cpu(self) -> AbstractContextManager:
        return nullcontext() if self.device is None else torch.device("cpu")

    def _arguments(self, batch: Any) -> tuple[Any, ...]:
        return Data(arguments_of(self.model, as_arguments(batch)), device=self.device, missing=self.missing).args

    def _begin(self) -> None:
        self.start = {"torch": randomness.get_state(), "own": [g.get_state() for g in self.generators]}
        self.iterator, self.taken = iter(self.loader), 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must carry."""
        return {"start": self.start, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        if not state["start"]:
            return
        now = randomness.get_state()
        randomness.set_state(state["start"]["torch"])
        for generator, own in zip(self.generators, state["start"]["own"], strict=True):
            generator.set_state(own)
        with self._on_cpu():
            self._begin()
            for _ in range(state["taken"]):
                next(self.iterator)  # type: ignore[arg-type]
        self.taken = state["taken"]
        randomness.set_state(now)
