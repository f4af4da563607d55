"""Documents of different lengths, a few at a time: the words that occur in each, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm import sparse

_NUM_ENTRIES = 2**20  # of the words' weights in all topics: what the caches of a processor hold
_PADDING = 1.2  # at most so many times the words of the shortest of some documents


class Documents(NamedTuple):
    """Some documents, their words padded to the largest number of different ones, M.

    Attributes:
        rows: Which documents they are, ``[B]``.
        words: Numbers of words, ``[B, M]``.
        counts: How often they occur, ``[B, M]``; 0 for padding.
        entries: The place of each among the entries of the table, ``[B, M]``.
    """

    rows: Tensor
    words: Tensor
    counts: Tensor
    entries: Tensor


def documents(counts: Tensor, num_topics: int) -> Iterator[Documents]:
    """All documents that have words, those of about the same length together.

    Args:
        counts: A sparse table, ``[N, V]``.
        num_topics: K.
    """
    starts, columns, values = sparse.parts(counts)
    lengths = starts.diff()
    order = lengths.argsort(stable=True)
    order = order[lengths[order] > 0]
    ordered = lengths[order].tolist()
    first = 0
    while first < len(ordered):
        last = first
        while last < len(ordered) and (
            last == first
            or (
                ordered[last] <= _PADDING * ordered[first] + 4
                and (last + 1 - first) * ordered[last] * num_topics <= _NUM_ENTRIES
            )
        ):
            last += 1
        rows = order[first:last]
        place = torch.arange(ordered[last - 1], device=starts.device)
        there = place < lengths[rows].unsqueeze(-1)
        entries = (starts[rows].unsqueeze(-1) + place).where(there, starts[rows].unsqueeze(-1))
        yield Documents(rows, columns[entries], values[entries].where(there, 0.0), entries)
        first = last
