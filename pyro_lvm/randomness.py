"""Torch's random state on every device: seeded for a while, taken and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` inside; the state from before afterwards."""
    before = get_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_state(before)


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
