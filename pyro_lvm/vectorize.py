"""Run a Pyro program once per draw, all draws at a time where the program allows it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_lvm import randomness

_log = logging.getLogger(__name__)

_NUMBERS_AT_ONCE = 5_000_000  # of the largest tensor: some 20 MB in float32, which a few copies of it multiply


def repeat(fn: Callable[..., Any], num_draws: int, *per_draw: Any, width: int = 1) -> Any:
    """Call ``fn`` once per draw and stack what it returns.

    A batched call by ``torch.func.vmap`` means just what a loop would: each draw sees the shapes of one run, and has
    random numbers of its own. Programs that vmap refuses (a value read into Python, an operation without a batching
    rule) run in that loop.

    Args:
        fn: Returns a tensor, or tuples and dicts of tensors.
        num_draws: S.
        per_draw: Arguments, or dicts of them, with a leading dimension S that the calls share out.
        width: How many draws of its own a call makes at a time, which its tensors do not show.

    Returns:
        What ``fn`` returns, with a leading dimension S on every tensor.
    """
    state = randomness.get_state()
    with torch.no_grad(), LargestTensor() as largest:
        fn(*_take(per_draw, 0))  # with Pyro's validation, which looks into values and so cannot be mapped
    randomness.set_state(state)
    with torch.no_grad():
        chunk = max(1, min(num_draws, _NUMBERS_AT_ONCE // (largest.numbers * width)))
        try:
            return at_a_time(fn, num_draws, chunk, *per_draw)
        except Exception as error:  # whatever vmap refuses; what is wrong with the program itself the loop raises again
            _log.info("draws are made one by one, since vmap refused the program: %s", error)
            randomness.set_state(state)
            with pyro.validation_enabled(False):
                return _stack([fn(*_take(per_draw, i)) for i in range(num_draws)])


def each_draw(fn: Callable[[], Any], num_draws: int, vectorizes: bool | None) -> tuple[Any, bool | None]:
    """As :func:`repeat`, all draws at a time, with gradients, and for programs that have been run before.

    Args:
        fn: Returns a tensor, or tuples and dicts of tensors.
        num_draws: S.
        vectorizes: What an earlier call has found; None at first.

    Returns:
        What ``fn`` returns, with a leading dimension S on every tensor, and whether vmap takes it (None if that was not
        tried). A program that vmap refuses is run in a loop.
    """
    if num_draws == 1:
        return _map(lambda t: t.unsqueeze(0), fn()), vectorizes
    if vectorizes is False:
        return _stack([fn() for _ in range(num_draws)]), False
    state = randomness.get_state() if vectorizes is None else None
    try:
        return at_a_time(fn, num_draws, num_draws), True
    except Exception as error:
        if state is None:
            raise
        _log.info("particles are drawn one by one, since vmap refused the program: %s", error)
        randomness.set_state(state)
        return _stack([fn() for _ in range(num_draws)]), False


def at_a_time(fn: Callable[..., Any], num_draws: int, chunk: int, *per_draw: Any) -> Any:
    """The batched call of :func:`repeat`, so many draws at a time; it raises where vmap refuses the program."""

    def each(index: Tensor, *arguments: Any) -> Any:
        with _OwnNoise(index):
            return fn(*arguments)

    with pyro.validation_enabled(False), warnings.catch_warnings():
        # vmap loops over an operation without a batching rule, and says so each time
        warnings.filterwarnings("ignore", "There is a performance drop")
        mapped = torch.func.vmap(each, randomness="different", chunk_size=chunk)
        return mapped(torch.arange(num_draws), *per_draw)


class LargestTensor(TorchFunctionMode):
    """Measures the largest tensor of a run, by which the memory of many runs is bounded."""

    numbers = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


_IN_PLACE = {
    getattr(torch.Tensor, name)
    for name in ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_", "bernoulli_", "random_")
}


class _OwnNoise(TorchFunctionMode):
    """Give each draw its own memory for in-place random numbers, which vmap asks for and distributions do not have.

    Pyro reads shapes through ``Tensor.data``, which vmap refuses; a detached tensor has the same.
    """

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.index = index

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        if func in _IN_PLACE:
            args = (
                torch.zeros_like(args[0]) + torch.zeros_like(self.index, dtype=args[0].dtype, device=args[0].device),
                *args[1:],
            )
        return func(*args, **(kwargs or {}))


def _take(tree: Any, i: int) -> Any:
    return _map(lambda t: t[i], tree)


def _map(fn: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply ``fn`` to the tensors that stand at the same place in nested tuples and dicts."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: _map(fn, *(t[key] for t in trees)) for key in first}
    if isinstance(first, tuple):
        return tuple(_map(fn, *parts) for parts in zip(*trees, strict=True))
    return first if first is None else fn(*trees)


def _stack(trees: list[Any]) -> Any:
    return _map(lambda *tensors: torch.stack(tensors), *trees)
