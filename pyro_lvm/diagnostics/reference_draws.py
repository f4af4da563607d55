"""Draws of a posterior by name, from whatever holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_EXPECTED = "a dict of arrays, an MCMC run of Pyro or NumPyro, or ArviZ's InferenceData or DataTree"


def draws_by_name(given: Any, name: str = "reference_draws") -> dict[str, np.ndarray]:
    """Draws as arrays ``[S, ...]``.

    Args:
        given: A dict of arrays or tensors ``[S, ...]``; an MCMC run of Pyro or NumPyro; an object of ArviZ, whose
            chains are joined.
        name: Of the argument, for errors.

    Raises:
        TypeError: if it is nothing of these.
        ValueError: if it holds no draws, other numbers of draws of one variable than of another, or numbers that are
            not finite.
    """
    if callable(getattr(given, "get_samples", None)):
        found = {key: _array(value) for key, value in given.get_samples().items()}
    elif isinstance(given, Mapping) and not hasattr(given, "groups"):
        found = {key: _array(value) for key, value in given.items()}
    elif hasattr(given, "groups"):
        found = _of_arviz(given, name)
    else:
        raise TypeError(f"{name}: expected {_EXPECTED}; got {type(given).__name__}")
    counts = {key: len(value) if value.ndim else 0 for key, value in found.items()}
    if not counts or len(set(counts.values())) > 1 or min(counts.values()) < 2:
        raise ValueError(
            f"{name}: expected at least two draws of each variable, as many of one as of another; got {counts}"
        )
    for key, value in found.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: {key!r} has draws that are not finite")
    return found


def _of_arviz(given: Any, name: str) -> dict[str, np.ndarray]:
    groups = given.groups() if callable(given.groups) else given.groups
    if not any(group.strip("/") == "posterior" for group in groups):
        raise ValueError(f"{name}: the object of ArviZ has no group 'posterior', only {sorted(groups)}")
    found = {}
    for key, variable in given["posterior"].data_vars.items():
        array = variable.transpose("chain", "draw", ...).to_numpy()
        found[str(key)] = array.reshape(-1, *array.shape[2:])
    return {key: _array(value) for key, value in found.items()}


def _array(value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return array.astype(float)
