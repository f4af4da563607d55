"""Sums of weighted statistics for each place that an argument's index tells apart."""

from __future__ import annotations

import string

import torch
from torch import Tensor

_NUMBERS_AT_ONCE = 2**18  # of weighted rows: what the caches of a processor hold
_FEWEST_ROWS = 64


def weighted_sums(weights: Tensor, statistic: Tensor, places: torch.Size, item_dim: int = 0) -> Tensor:
    """Sums of ``weights * statistic`` over all dimensions in which ``places`` is 1, in double precision.

    Nothing of the size of the product is ever made: a sum over rows is one matrix product.

    Args:
        weights: ``[*batch]``.
        statistic: Of the observations, ``[*batch, *item]``; it may lack dimensions that the weights have.
        places: Sizes of the last dimensions of the batch, each full or 1.
        item_dim: The dimensions of an item.

    Returns:
        ``[*places, *item]``.
    """
    wanted, rank = places, max(len(places), weights.dim(), statistic.dim() - item_dim)
    places = torch.Size([1] * (rank - len(places)) + list(places))
    weights, statistic = (_padded(t.double(), rank + d) for t, d in ((weights, 0), (statistic, item_dim)))
    letters, item = string.ascii_lowercase[:rank], string.ascii_uppercase[:item_dim]
    operands, terms = [], []
    for tensor, names in ((weights, letters), (statistic, letters + item)):
        kept = [d for d in range(tensor.dim()) if tensor.shape[d] > 1 or d >= rank]
        operands.append(tensor.reshape([tensor.shape[d] for d in kept]))
        terms.append("".join(names[d] for d in kept))
    out = "".join(x for x, size in zip(letters, places, strict=True) if size > 1 and any(x in t for t in terms))
    result = torch.einsum(f"{terms[0]},{terms[1]}->{out}{item}", *operands)
    shape = [size if x in out else 1 for x, size in zip(letters, places, strict=True)]
    item_shape = statistic.shape[rank:]
    return result.reshape((*shape, *item_shape)).expand((*places, *item_shape)).reshape((*wanted, *item_shape))


def scatters(weights: Tensor, deviations: Tensor, places: torch.Size) -> Tensor:
    """Sums of ``weights * outer(deviation, deviation)``, by matrix products of few rows, in double precision.

    Args:
        weights: ``[*batch]``.
        deviations: ``[*batch, D]``; it may lack dimensions that the weights have.
        places: As in :func:`weighted_sums`.

    Returns:
        ``[*places, D, D]``.
    """
    wanted, size = places, deviations.shape[-1]
    rank = max(len(places), weights.dim(), deviations.dim() - 1)
    places = torch.Size([1] * (rank - len(places)) + list(places))
    weights, deviations = _padded(weights.double(), rank), _padded(deviations.double(), rank + 1)
    full = torch.broadcast_shapes(weights.shape, deviations.shape[:-1])
    kept = [d for d in range(rank) if places[d] > 1]
    summed = [d for d in range(rank) if places[d] == 1]
    alone = all(deviations.shape[d] == 1 for d in kept)  # the same in every place
    rows = deviations.expand(*(1 if d in kept and alone else full[d] for d in range(rank)), size)
    rows = rows.permute(*kept, *summed, rank).reshape(-1, _product(full, summed), size)
    each = weights.expand(full).permute(*kept, *summed).reshape(_product(full, kept), -1)
    found = rows.new_zeros(len(each), size, size)
    at_once = max(_FEWEST_ROWS, _NUMBERS_AT_ONCE // max(1, len(each) * size))
    for w, r in zip(each.split(at_once, 1), rows.split(at_once, 1), strict=True):
        found += (r * w.unsqueeze(-1)).mT @ r
    return found.reshape((*wanted, size, size))


def histograms(weights: Tensor, index: Tensor, places: torch.Size, size: int) -> Tensor:
    """Sums of weights for each value of a whole number, in double precision.

    Args:
        weights: ``[*batch]``.
        index: Numbers from 0 to ``size - 1``, ``[*batch]``; it may lack dimensions that the weights have.
        places: As in :func:`weighted_sums`.
        size: How many values there may be.

    Returns:
        ``[*places, size]``.
    """
    rank = max(len(places), weights.dim(), index.dim())
    wanted, places = places, torch.Size([1] * (rank - len(places)) + list(places))
    weights, index = _padded(weights.double(), rank), _padded(index, rank)
    idle = [d for d in range(rank) if index.shape[d] == places[d] == 1 and weights.shape[d] > 1]
    weights = weights.sum(idle, keepdim=True) if idle else weights
    full = torch.broadcast_shapes(weights.shape, index.shape, places)
    alike = [d for d in range(rank) if places[d] > 1 and index.shape[d] == 1]  # in which places see the same numbers
    apart = [d for d in range(rank) if places[d] > 1 and d not in alike]
    summed = [d for d in range(rank) if places[d] == 1]
    order = [*apart, *summed, *alike]
    weights = weights.expand(full).permute(order).reshape(-1, _product(full, alike))
    number = torch.arange(_product(full, apart), device=index.device).reshape(
        [full[d] for d in apart] + [1] * len(summed)
    )
    cell = number * size + index.permute(order).reshape([index.shape[d] for d in (*apart, *summed)])
    cell = cell.expand([full[d] for d in (*apart, *summed)]).flatten()
    found = weights.new_zeros(_product(full, apart) * size, weights.shape[1]).index_add_(0, cell, weights)
    found = found.reshape([full[d] for d in apart] + [size] + [full[d] for d in alike])
    back = [*apart, -1, *alike]  # the dimensions as they stand, those of places first in their own order
    kept = sorted(apart + alike)
    found = found.permute([back.index(d) for d in kept] + [len(apart)])
    return found.reshape((*wanted, size))


def _product(sizes: torch.Size, dims: list[int]) -> int:
    count = 1
    for dim in dims:
        count *= sizes[dim]
    return count


def _padded(tensor: Tensor, dims: int) -> Tensor:
    return tensor.reshape([1] * (dims - tensor.dim()) + list(tensor.shape))
