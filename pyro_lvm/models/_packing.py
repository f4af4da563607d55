"""Chains of rows in the order of time.

The rows of all chains stand in one table, chain by chain. Recursions go through time, and at each moment through all
chains that are not over yet. So the rows are packed first: by time, and at each time by chain, the longest first.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Packing:
    """Rows of chains in the order of time.

    Attributes:
        chains: The chains by length, the longest first, ``[N]``.
        order: The place of each packed row in the table, ``[M]``.
        sizes: How many chains there are at each time.
        ends: The last row of each chain among the packed rows, by the order of ``chains``, ``[N]``.

    Args:
        lengths: Of the chains, at least 1, ``[N]``. The rows of each follow on those of the one before.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.chains = lengths.argsort(descending=True, stable=True)
        ordered = lengths[self.chains]
        time = torch.arange(int(ordered[0]), device=lengths.device).unsqueeze(-1)
        starts = (lengths.cumsum(0) - lengths)[self.chains]
        self.order = (starts + time)[time < ordered]
        sizes = (time < ordered).sum(-1)
        self.sizes: list[int] = sizes.tolist()
        self.ends = (sizes.cumsum(0) - sizes)[ordered - 1] + torch.arange(len(lengths), device=lengths.device)

    def by_chain(self, values: Tensor) -> Tensor:
        """What belongs to chains, the longest first, in the order of the table."""
        return torch.zeros_like(values).index_copy(0, self.chains, values)

    def unpack(self, packed: Tensor) -> Tensor:
        """Packed rows in the order of the table."""
        return torch.empty_like(packed).index_copy_(0, self.order, packed)
