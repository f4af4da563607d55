"""Long chains cut into segments that can go through time together: a product of matrices may be bracketed anyhow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_lvm.models._packing import Packing

_FEWEST_SEGMENTS, _MOST_STATES = 4, 32  # for which cutting pays: it needs K times the operations


def segments_of(lengths: Tensor, num_states: int) -> tuple[Tensor, Tensor]:
    """Lengths of the segments of chains, in their order, and the chain of each; chains are cut where that is faster.

    Args:
        lengths: Of the chains, ``[N]``.
        num_states: K.
    """
    longest, chains = int(lengths.max()), torch.arange(len(lengths), device=lengths.device)
    count = int(math.sqrt(longest / len(lengths)))
    if count < _FEWEST_SEGMENTS or num_states > _MOST_STATES:
        return lengths, chains
    length = math.ceil(longest / count)
    counts = (lengths + length - 1) // length
    owner = torch.repeat_interleave(chains, counts)
    segments = torch.full_like(owner, length)
    segments[counts.cumsum(0) - 1] = lengths - (counts - 1) * length
    return segments, owner


def messages(
    density: Tensor, packing: Packing, owner: Tensor, initial: Tensor, transition: Tensor
) -> tuple[Tensor, Tensor]:
    """What the segments before and after have to say to each segment.

    Args:
        density: Of packed rows, ``[M, K]``.
        packing: Of the segments.
        owner: The chain of each segment.
        initial: Probabilities of the first state, ``[K]``.
        transition: Of the next state given the last, ``[K, K]``.

    Returns:
        Probabilities of the first state of each segment given the rows before, and by how much the rows after make its
        last state more probable. By the order of the packing, ``[S, K]``.
    """
    ways, log_scale = (packing.by_chain(value) for value in _through(density, packing.sizes, transition))
    counts = owner.bincount()
    starts, most = counts.cumsum(0) - counts, int(counts.max())
    first, last, end = (torch.ones_like(log_scale) for _ in range(3))
    predicted = initial.expand(len(counts), -1)
    for s in range(most):
        at = starts[counts > s] + s
        first[at] = predicted[counts[counts >= s] > s]
        weight = (first[at].log() + log_scale[at]).softmax(-1)
        end[at] = (weight.unsqueeze(-2) @ ways[at]).squeeze(-2)
        predicted = end[at] @ transition
    for s in range(most - 1, 0, -1):
        at = starts[counts > s] + s
        value = log_scale[at] + (ways[at] @ last[at].unsqueeze(-1)).squeeze(-1).log()
        before = (value - value.amax(-1, keepdim=True)).exp() @ transition.mT
        last[at - 1] = before / (before * end[at - 1]).sum(-1, keepdim=True)
    return first[packing.chains], last[packing.chains]


def _through(density: Tensor, sizes: list[int], transition: Tensor) -> tuple[Tensor, Tensor]:
    """From each first to each last state of packed segments, ``[S, K, K]``, and the logarithms of their scale."""
    tiny = torch.finfo(density.dtype).tiny
    ways = torch.eye(len(transition), dtype=density.dtype, device=density.device).expand(sizes[0], -1, -1).clone()
    log_scale = density.new_zeros(ways.shape[:2])
    for t, here in enumerate(density.split(sizes)):
        part = ways[: len(here)]
        part = (part @ transition if t else part) * here.unsqueeze(-2)
        total = part.sum(-1, keepdim=True).clamp(min=tiny)
        ways[: len(here)] = part / total
        log_scale[: len(here)] += total.squeeze(-1).log()
    return ways, log_scale
