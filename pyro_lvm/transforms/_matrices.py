"""Matrices that act on rows, one matrix for all or one for each batch of rows."""

import torch
from torch import Tensor


def apply(matrix: Tensor, rows: Tensor) -> Tensor:
    """The product of matrices `[*, D, D]` with each row of `[*, N, D]`."""
    return rows @ matrix.mT


def solve(matrix: Tensor, rows: Tensor, upper: bool, unitriangular: bool = False) -> Tensor:
    """The product of inverses of triangular matrices `[*, D, D]` with each row of `[*, N, D]`."""
    together = rows.flatten(0, -2) if matrix.dim() == 2 else rows
    found = torch.linalg.solve_triangular(matrix.mT, together, upper=not upper, left=False, unitriangular=unitriangular)
    return found.reshape(rows.shape) if matrix.dim() == 2 else found


def orthogonal(vectors: Tensor) -> Tensor:
    r"""The product of Householder reflections :math:`I - 2 v v^\top / v^\top v`, in their order.

    It is :math:`I - V^\top S^{-1} V` with :math:`S` upper triangular: :math:`V V^\top` above the diagonal, and half of
    it on the diagonal.

    Args:
        vectors: Of the reflections, not zero, `[*, H, D]`.

    Returns:
        Orthogonal matrices, `[*, D, D]`.

    References:
        T. Joffrain et al., "Accumulating Householder transformations, revisited" (2006).
    """
    v = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    overlap = v @ v.mT
    identity = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
    half = 0.5 * torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
    return identity - v.mT @ torch.linalg.solve_triangular(overlap.triu(1) + half, v, upper=True)


def pairs_of_reflections(num_features: int, count: int) -> Tensor:
    """Random vectors of an even number of reflections that cancel out, `[count, D]`."""
    return torch.randn(count // 2, num_features).repeat_interleave(2, 0)
