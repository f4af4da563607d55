"""Torch's random state on every device: seeded for a while, taken and put back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

one_at_a_time = threading.RLock()  # Pyro's handlers and torch's random state belong to the process, not to a thread


@contextmanager
def seeded(seed: int, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Random numbers from ``seed`` inside, those of the given generators too; the states from before afterwards."""
    before, theirs = get_state(), [generator.get_state() for generator in generators]
    torch.manual_seed(seed)
    for generator in generators:
        generator.manual_seed(int(torch.randint(2**62, ())))  # a stream of its own
    try:
        yield
    finally:
        set_state(before)
        for generator, state in zip(generators, theirs, strict=True):
            generator.set_state(state)


def get_state() -> dict[str, Tensor]:
    """The random state of the CPU and of every CUDA device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_state(state: dict[str, Tensor]) -> None:
    """Put back what :func:`get_state` took."""
    for device, value in state.items():
        if device == "cpu":
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, device)
