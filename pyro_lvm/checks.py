"""Checks of plain arguments that several calls share."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def check_count(name: str, value: Any) -> int:
    """A positive integer as a plain one.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is not positive.
    """
    count = _integer(name, value, "a positive integer")
    if count < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}")
    return count


def check_non_negative(name: str, value: Any) -> int:
    """A non-negative integer as a plain one.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is negative.
    """
    size = _integer(name, value, "an integer, 0 or more")
    if size < 0:
        raise ValueError(f"{name} must be an integer, 0 or more; got {value!r}")
    return size


def check_positive(name: str, value: float) -> float:
    """A positive finite number as a plain float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive or not finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a positive number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def check_order(order: Sequence[int], num_features: int) -> Tensor:
    """A permutation of features as a tensor.

    Raises:
        ValueError: if it is none.
    """
    found = torch.as_tensor(order)
    if found.dtype != torch.int64 or sorted(found.tolist()) != list(range(num_features)):
        raise ValueError(f"order: expected the numbers from 0 to {num_features - 1}, each once, got {order}")
    return found


def check_seed(seed: Any) -> int:
    """A seed for torch as a plain integer.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is not in the range from 0 to 2^64 - 1.
    """
    number = _integer("seed", seed, "a non-negative integer")
    if not 0 <= number < 2**64:
        raise ValueError(f"seed must be a non-negative integer; got {seed!r}")
    return number


def _integer(name: str, value: Any, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {what}; got {value!r}") from None


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_model(model: Any, model_kwargs: Any, plate: Any = None) -> None:
    """Refuse what is no model with keyword arguments and the name of a plate.

    Raises:
        TypeError: if one of them is of another kind.
    """
    if not callable(model):
        raise TypeError(f"model must be a callable with Pyro statements; got {type(model).__name__}")
    if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
        raise TypeError(f"model_kwargs must be a dict of keyword arguments; got {type(model_kwargs).__name__}")
    if plate is not None and not isinstance(plate, str):
        raise TypeError(f"plate must be the name of a plate; got {plate!r}")


def check_callbacks(callbacks: Any, progress: Any) -> None:
    """Refuse what is no list of functions, and no answer to whether a progress bar is wanted.

    Raises:
        TypeError: that says what was given.
    """
    if not isinstance(callbacks, list | tuple) or not all(callable(c) for c in callbacks):
        raise TypeError(f"callbacks must be a list of functions of the fit's state; got {callbacks!r}")
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be True or False; got {progress!r}")


def check_device(device: Any) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: that names it.
    """
    try:
        torch.zeros((), device=device)
    except (RuntimeError, TypeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"device={device!r} is no device of this machine; try 'cpu' or 'cuda'") from error
