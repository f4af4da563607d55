"""What clusters of rows say of the states of chains, for hidden Markov models to start from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_lvm.models._mixture_base import clusters
from pyro_lvm.models._sequences import mean_and_spread, stretches

_STRETCHES = (1, 8, 32)  # rows that are looked at together


def labelings(features: Tensor, lengths: Tensor, num_states: int, seed: int) -> Iterator[NDArray]:
    """Ways to give every row a state, by clusters of rows and of stretches of time, ``[M]`` each.

    Args:
        features: Of the rows of all sequences, one after the other, ``[M, F]``.
        lengths: Of the sequences, ``[N]``.
        num_states: K, which are numbered by the mean time at which they are seen.
        seed: Of the clusters.
    """
    for size in _STRETCHES:
        stretch = stretches(lengths, size)
        table = features if size == 1 else mean_and_spread(features, stretch)
        if len(table) >= num_states:
            yield _by_time(clusters(table.numpy(), num_states, seed)[stretch], lengths.numpy(), num_states)


def counts(labels: NDArray, lengths: Tensor, num_states: int) -> tuple[NDArray, NDArray]:
    """First states ``[K]`` and moves ``[K, K]``, each counted once more than it is seen."""
    starts = (lengths.cumsum(0) - lengths).numpy()
    later = np.setdiff1d(np.arange(len(labels)), starts)
    moves = np.ones((num_states, num_states))
    np.add.at(moves, (labels[later - 1], labels[later]), 1)
    return np.bincount(labels[starts], minlength=num_states) + 1, moves


def probabilities(counts: NDArray, possible: Tensor) -> Tensor:
    """Shares of counts along the last dimension; where a probability is zero it stays so."""
    counts = counts * (possible.detach().cpu().numpy() > 0)
    return torch.as_tensor(counts / counts.sum(-1, keepdims=True))


def _by_time(labels: NDArray, lengths: NDArray, num_states: int) -> NDArray:
    """Labels renumbered, so that their mean times increase."""
    times = np.arange(len(labels)) - np.repeat(lengths.cumsum() - lengths, lengths)
    mean = np.bincount(labels, times, num_states) / np.bincount(labels, minlength=num_states).clip(1)
    return mean.argsort(kind="stable").argsort()[labels]
