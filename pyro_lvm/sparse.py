"""Sparse tables, such as word counts: tensors in compressed sparse row format, whose rows torch cannot select."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_sparse(value: Any) -> bool:
    """Whether a value is a tensor in compressed sparse row format."""
    return isinstance(value, Tensor) and value.layout is torch.sparse_csr


def from_scipy(matrix: Any) -> Tensor:
    """A sparse matrix or array of SciPy as a tensor of torch's default dtype."""
    given, matrix = matrix, matrix.tocsr()
    if not matrix.has_canonical_format:
        matrix = matrix.copy() if matrix is given else matrix
        matrix.sum_duplicates()
    values = torch.as_tensor(matrix.data).to(torch.get_default_dtype())
    return table(torch.as_tensor(matrix.indptr), torch.as_tensor(matrix.indices), values, matrix.shape[1])


def from_torch(tensor: Tensor) -> Tensor:
    """A table in this format from a matrix in any other of torch's."""
    if is_sparse(tensor):
        return tensor
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CS[RC] tensor support is in beta state", UserWarning)
        return from_dense(tensor) if tensor.layout is torch.strided else tensor.to_sparse_csr()


def from_dense(tensor: Tensor) -> Tensor:
    """The entries of a matrix that are not zero."""
    rows, columns = tensor.nonzero(as_tuple=True)
    starts = torch.searchsorted(rows, torch.arange(len(tensor) + 1, device=rows.device))
    return table(starts, columns, tensor[rows, columns], tensor.shape[1])


def table(starts: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """A sparse table.

    Args:
        starts: Where each row starts among the entries, and the last one ends, ``[N + 1]``.
        columns: Of the entries, ``[E]``.
        values: The entries, ``[E]``.
        num_columns: How many columns there are.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        shape = (len(starts) - 1, num_columns)
        return torch.sparse_csr_tensor(starts.long(), columns.long(), values, shape, check_invariants=False)


def take(sparse: Tensor, index: Tensor | slice) -> Tensor:
    """Some rows of a sparse table."""
    starts, columns, values = parts(sparse)
    rows = torch.arange(len(sparse), device=starts.device)[index]
    lengths = starts[rows + 1] - starts[rows]
    new = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    places = torch.repeat_interleave(starts[rows] - new[:-1], lengths) + torch.arange(int(new[-1]), device=rows.device)
    return table(new, columns[places], values[places], sparse.shape[1])


def concatenate(tables: Sequence[Tensor]) -> Tensor:
    """The rows of several sparse tables."""
    starts, columns, values = zip(*map(parts, tables), strict=True)
    lengths = torch.cat([s.diff() for s in starts])
    new = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return table(new, torch.cat(columns), torch.cat(values), tables[0].shape[1])


def parts(sparse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows start, the columns of entries, and the entries."""
    return sparse.crow_indices(), sparse.col_indices(), sparse.values()


def row_of_entries(sparse: Tensor) -> Tensor:
    """The row of each entry."""
    lengths = sparse.crow_indices().diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
