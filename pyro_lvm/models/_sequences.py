"""Sequences of different lengths, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.data import as_tensor

_NO_LENGTHS = (torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_list_of_sequences(value: Any) -> bool:
    """Whether a data argument is a list of sequences, rather than one table or tensor."""
    return isinstance(value, list | tuple) and bool(value) and all(_has_length(v) for v in value)


def _has_length(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


def pad(sequences: Sequence[Any], num_features: int, name: str) -> tuple[Tensor, Tensor]:
    """Sequences as one tensor, with zeros behind their ends, and their lengths.

    Args:
        sequences: Tables `[T_n, D]`, as tensors, arrays, data frames or lists; or `[T_n]`, of a single feature.
        num_features: D.
        name: How errors call them.

    Returns:
        `[N, T, D]`, with the largest of the lengths T, and lengths `[N]`.

    Raises:
        ValueError: If a sequence has another shape, or no rows, or they differ in floating dtype.
    """
    tables = [one_table(s, num_features, f"{name}: sequence {i}") for i, s in enumerate(sequences)]
    if len(dtypes := {table.dtype for table in tables if table.is_floating_point()}) > 1:
        raise ValueError(f"{name}: expected sequences of one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    dtype = next(iter(dtypes), tables[0].dtype)
    tables = [table.to(dtype) for table in tables]
    lengths = torch.tensor([len(table) for table in tables])
    if not lengths.all():
        raise ValueError(
            f"{name}: expected at least one row in each sequence, sequence {int(lengths.argmin())} has none"
        )
    return torch.nn.utils.rnn.pad_sequence(tables, batch_first=True), lengths


def one_table(sequence: Any, num_features: int, name: str) -> Tensor:
    """A sequence as a tensor `[T, D]`; one of a single feature may have one dimension."""
    table = as_tensor(sequence)
    table = table if isinstance(table, Tensor) else torch.as_tensor(table)
    table = table.unsqueeze(-1) if table.dim() == num_features == 1 else table
    if table.dim() != 2 or table.shape[1] != num_features:
        raise ValueError(f"{name}: expected shape [T, {num_features}], got {list(table.shape)}")
    return table


def inside(lengths: Tensor, width: int) -> Tensor:
    """Which places of padded sequences hold rows, `[N, T]`."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(-1)


def check_lengths(lengths: Any, num_sequences: int, width: int) -> Tensor:
    """Return the lengths of padded sequences, `[N]`, or raise."""
    if not isinstance(lengths, Tensor) or lengths.shape != (num_sequences,) or lengths.dtype in _NO_LENGTHS:
        got = list(lengths.shape) if isinstance(lengths, Tensor) else lengths
        raise ValueError(f"lengths: expected {num_sequences} whole numbers, one for each sequence, got {got}")
    if not ((lengths >= 1) & (lengths <= width)).all():
        raise ValueError(f"lengths: expected numbers from 1 to {width}, got {lengths.tolist()}")
    return lengths


def without_nan_behind(x: Any, lengths: Any) -> Any:
    """Sequences `[N, T, D]` with zeros instead of NaN behind their ends."""
    lengths = as_tensor(lengths)
    if not (isinstance(x, Tensor) and isinstance(lengths, Tensor) and x.dim() == 3 and lengths.shape == x.shape[:1]):
        return x
    behind = ~inside(lengths, x.shape[1]).unsqueeze(-1)
    return x.masked_fill(behind & x.isnan(), 0.0) if x.is_floating_point() and x.isnan().any() else x


def stretches(lengths: Tensor, size: int) -> Tensor:
    """The number of the stretch that each row belongs to, of so many successive rows of a sequence, `[M]`."""
    time = torch.cat([torch.arange(int(length)) for length in lengths])
    return (time % size == 0).cumsum(0) - 1


def mean_and_spread(rows: Tensor, stretch: Tensor) -> Tensor:
    """Means and standard deviations of the rows in each stretch, `[S, 2 D]`."""
    counts = stretch.bincount().unsqueeze(-1).to(rows)
    mean = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, stretch, rows) / counts
    square = torch.zeros_like(mean).index_add_(0, stretch, (rows - mean[stretch]).square()) / counts
    return torch.cat([mean, square.sqrt()], -1)
