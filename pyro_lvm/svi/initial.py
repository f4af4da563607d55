"""Where a fit starts: what ``init=`` and ``params=`` mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_lvm.program import Program
from pyro_lvm.result import Result


def initial_values(program: Program, given: Any, name: str = "init") -> dict[str, Tensor]:
    """The unconstrained values that a user gives, by name.

    Args:
        program: Of the parameters.
        given: A result, whose parameters of the same name and shape are taken; a dict of constrained values; or None.
        name: Of the argument, for errors.

    Raises:
        TypeError: if it is something else.
        ValueError: for a result that shares no parameter, and values that fit no parameter.
    """
    if given is None:
        return {}
    if isinstance(given, Result):
        shapes = {n: v.shape for n, v in program.parameters.constrained(program.parameters.start()).items()}
        shared = {n: v for n, v in given.params.items() if shapes.get(n) == v.shape}
        if not shared:
            raise ValueError(
                f"{name} shares no parameter with this fit: it has {list(given.params)}, this {list(shapes)}"
            )
        return program.parameters.unconstrained(shared)
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a result or a dict of values by name; got {type(given).__name__}")
    return program.parameters.unconstrained(given, name)
