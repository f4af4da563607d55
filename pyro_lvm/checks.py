"""Checks of plain arguments that several calls share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_count(name: str, value: Any) -> None:
    """Refuse what is no positive integer.

    Raises:
        ValueError: if it is none.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}")


def check_seed(seed: Any) -> None:
    """Refuse what torch could not seed with.

    Raises:
        ValueError: if it is no integer from 0 to 2^64 - 1.
    """
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a non-negative integer; got {seed!r}")


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
