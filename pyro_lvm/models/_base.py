"""What the models share: checks of what they are given, and parameters that can be assigned."""

from typing import Any

import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

_WORDS = {
    constraints.positive: "positive numbers",
    constraints.lower_cholesky: "lower triangular matrices with a positive diagonal",
    constraints.simplex: "non-negative numbers that sum to 1",
    constraints.unit_interval: "numbers from 0 to 1",
}
_SIMPLEX_TOLERANCE = 1e-5  # float32 weights of a thousand components still pass


def check_rows(name: str, rows: Tensor, num_features: int, dtype: torch.dtype) -> Tensor:
    """Return `rows` `[N, D]` in the parameters' `dtype`, or raise.

    Integers and booleans are converted. Looks at shapes and types only, so that it can be traced and mapped.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"{name}: expected a tensor of shape [N, {num_features}], got {type(rows).__name__}; "
            "convert it with torch.as_tensor"
        )
    if rows.dim() != 2 or rows.shape[-1] != num_features:
        raise ValueError(f"{name}: expected shape [N, {num_features}], got {list(rows.shape)}")
    if not rows.is_floating_point():
        return rows.to(dtype)
    if rows.dtype != dtype:
        raise ValueError(
            f"{name}: expected {dtype}, the dtype of the model, got {rows.dtype}; "
            f"convert one of them: {name}.to({dtype}) or model.to({rows.dtype})"
        )
    return rows


class AssignableModule(PyroModule):
    """A module whose Pyro parameters can be assigned, with checks, and that knows whether it has a start.

    Plain Pyro takes any value of any shape, shares the assigned tensor's memory, and lets a list or an array
    hide the parameter.
    """

    initialized: bool
    """Whether parameters were assigned, loaded or set by `initialize`, rather than left at their default."""

    def __init__(self) -> None:
        super().__init__()
        self.initialized = False

    def _add_param(self, name: str, value: Tensor, constraint: Constraint = constraints.real) -> None:
        setattr(self, name, PyroParam(value, constraint))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__.get("_pyro_params", ()) or isinstance(value, PyroParam | PyroSample):
            super().__setattr__(name, value)
            return
        super().__setattr__(name, self._checked(name, value))
        self.initialized = True

    def _checked(self, name: str, value: Any) -> Tensor:
        """A copy of `value` in the dtype of the parameter, or an error that says what is wrong with it."""
        old = getattr(self, name)
        new = torch.as_tensor(value, dtype=old.dtype, device=old.device).detach().clone()
        if new.shape != old.shape:
            raise ValueError(f"{name}: expected shape {list(old.shape)}, got {list(new.shape)}")
        if not new.isfinite().all():
            raise ValueError(f"{name}: expected finite values, got {new[~new.isfinite()][0].item()}")
        constraint, _ = self._pyro_params[name]
        if constraint is constraints.simplex:
            valid = bool((new >= 0).all() and ((new.sum(-1) - 1).abs() < _SIMPLEX_TOLERANCE).all())
        else:
            valid = bool(constraint.check(new).all())
        if not valid:
            raise ValueError(f"{name}: expected {_WORDS.get(constraint, constraint)}, got {new.tolist()}")
        return new

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.initialized = True  # else the next fit would overwrite what was loaded
