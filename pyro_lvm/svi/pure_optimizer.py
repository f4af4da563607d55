"""A torch optimizer as a pure function of flat vectors, so that its steps can be traced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_lvm.compiling import as_if_compiling, bare_step
from pyro_lvm.tracing import NotCompilable

_ELEMENTWISE = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.ASGD,
    torch.optim.Rprop,
}
_PASSES_ON = _ELEMENTWISE - {torch.optim.Rprop}  # a gradient that is not finite to the parameters
_BRANCHING = {torch.optim.RAdam, torch.optim.ASGD}  # on a number, but for a form made for CUDA graphs
_NUMBERS = ("step", "mu_product", "eta", "mu")  # in their states; all else there has the shape of the parameter

_LARGE = 50_000  # numbers in a parameter: from here on a copy costs more than a vector of its own

State = dict[str, Tensor]


@dataclass(frozen=True)
class Unit:
    """Parameters that an optimizer updates together, as one vector.

    Attributes:
        group: The index of their parameter group.
        names: Of the parameters.
        shapes: Of the parameters.
        alone: Whether it is one parameter in its own shape.
    """

    group: int
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    alone: bool

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters, views of their vector."""
        parts = vector.split([shape.numel() for shape in self.shapes])
        return {n: part.view(s) for n, part, s in zip(self.names, parts, self.shapes, strict=True)}

    def shaped(self, vector: Tensor) -> Tensor:
        """The vector as the optimizer is to see it."""
        return vector.view(self.shapes[0]) if self.alone else vector


class PureOptimizer:
    """The steps of an optimizer as a function of values, gradients, state and learning rates.

    Args:
        optimizer: Whose settings to take, and whose state to read and write.
        params: Its parameters by name, those alone that a fit moves.

    Raises:
        NotCompilable: for hooks, which only an eager step calls.
    """

    def __init__(self, optimizer: Optimizer, params: Mapping[str, Tensor]) -> None:
        self.optimizer, self.params = optimizer, params
        _refuse_hooks(optimizer, params)
        names = {id(p): name for name, p in params.items()}
        self.units: list[Unit] = []
        for i, group in enumerate(optimizer.param_groups):
            held = [p for p in group["params"] if id(p) in names]
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for j, p in enumerate(held):
                together = type(optimizer) in _ELEMENTWISE and p.numel() < _LARGE
                alike[(p.dtype, p.device) if together else j].append(p)
            for key, parts in alike.items():
                unit_names = tuple(names[id(p)] for p in parts)
                self.units.append(Unit(i, unit_names, tuple(p.shape for p in parts), isinstance(key, int)))
        self.options = self._options()

    @property
    def passes_on(self) -> bool:
        """Whether a gradient that is not finite shows in the parameters."""
        return type(self.optimizer) in _PASSES_ON

    @property
    def rates(self) -> list[float]:
        """The learning rate of each group, now."""
        return [group.get("lr", 0.0) for group in self.optimizer.param_groups]

    def settings(self) -> list[dict[str, Any]]:
        """The settings of each group, learning rate included."""
        return [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]

    def load_settings(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Put back what :meth:`settings` gave."""
        for group, held in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(held)

    def _options(self) -> list[dict[str, Any]]:
        """What a traced step holds fixed."""
        return [{k: v for k, v in g.items() if k not in ("lr", "initial_lr")} for g in self.settings()]

    def changed_options(self) -> list[str]:
        """The settings that are no longer those of the traced step."""
        now = self._options()
        return sorted({k for old, new in zip(self.options, now, strict=True) for k in new if new[k] != old.get(k)})

    def example_state(self) -> list[State]:
        """A state of the right form: the optimizer's own, or that after a step along zero gradients."""
        if any(self.optimizer.state.get(p) for p in self.params.values()):
            return self.state()
        vectors = self.vectors()
        optimizer, leaves = self._on(vectors, [torch.zeros_like(v) for v in vectors], [{} for _ in vectors], self.rates)
        with torch.no_grad():
            type(optimizer).step(optimizer)  # schedulers put a step into the instance
        return [_flat(optimizer.state[p]) for p in leaves]

    def vectors(self) -> list[Tensor]:
        """The parameters now, a vector for each unit."""
        return [torch.cat([self.params[n].detach().reshape(-1) for n in u.names]) for u in self.units]

    def state(self) -> list[State]:
        """The optimizer's state now, a dict of vectors and numbers for each unit."""
        found = []
        for unit in self.units:
            states = [_flat(self.optimizer.state[self.params[name]]) for name in unit.names]
            found.append({k: v if k in _NUMBERS else torch.cat([s[k] for s in states]) for k, v in states[0].items()})
        return found

    def write(self, vectors: Sequence[Tensor], states: Sequence[State]) -> None:
        """Give parameters and optimizer the values that were reached."""
        with torch.no_grad():
            for unit, vector, state in zip(self.units, vectors, states, strict=True):
                for name, value in unit.split(vector).items():
                    self.params[name].copy_(value)
                for key, value in state.items():
                    parts = dict.fromkeys(unit.names, value) if key in _NUMBERS else unit.split(value)
                    for name, part in parts.items():
                        self._write(self.optimizer.state[self.params[name]], key, part)

    @staticmethod
    def _write(state: dict[str, Any], key: str, value: Tensor) -> None:
        if isinstance(state[key], Tensor):
            state[key].copy_(value)
        else:
            state[key] = type(state[key])(value.item())

    def __call__(
        self, vectors: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], rates: Sequence[Any]
    ) -> tuple[list[Tensor], list[State]]:
        """One step; it reads and writes nothing but its arguments and results."""
        optimizer, leaves = self._on(vectors, grads, states, rates)
        name = type(optimizer).__name__
        for group in optimizer.param_groups if type(optimizer) in _BRANCHING else []:
            group["capturable"] = True
        versions, counts = [rate._version for rate in rates], _python_numbers(optimizer)
        try:
            with as_if_compiling(), torch.no_grad():
                bare_step(optimizer)
        except NotCompilable as error:
            raise NotCompilable(f"the optimizer {name} cannot be traced ({error}); torch.optim.Adam can") from error
        if changed := [k for k, v in _python_numbers(optimizer).items() if counts.get(k) != v]:
            raise NotCompilable(f"the optimizer {name} counts in Python ({changed[0]}); torch.optim.Adam does not")
        now = [group.get("lr", rate) for group, rate in zip(optimizer.param_groups, rates, strict=True)]
        if any(n is not rate or n._version != v for n, rate, v in zip(now, rates, versions, strict=True)):
            raise NotCompilable(f"the optimizer {name} changes its learning rate by itself: use scheduler=")
        return [p.detach().reshape(-1) for p in leaves], [_flat(optimizer.state[p]) for p in leaves]

    def _on(
        self, vectors: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], rates: Sequence[Any]
    ) -> tuple[Optimizer, list[Tensor]]:
        """A copy of the optimizer that holds these values."""
        leaves = []
        for unit, vector, grad in zip(self.units, vectors, grads, strict=True):
            leaf = unit.shaped(vector.detach().clone()).detach().requires_grad_()
            leaf.grad = unit.shaped(grad)
            leaves.append(leaf)
        optimizer = object.__new__(type(self.optimizer))
        optimizer.__dict__.update(self.optimizer.__dict__)
        optimizer.param_groups = [
            group | {"params": [p for u, p in zip(self.units, leaves, strict=True) if u.group == i], "lr": rate}
            for i, (group, rate) in enumerate(zip(self.optimizer.param_groups, rates, strict=True))
        ]
        for group in optimizer.param_groups:
            group |= {k: False for k in ("foreach", "fused") if k in group}
        optimizer.state = defaultdict(dict)
        for unit, leaf, state in zip(self.units, leaves, states, strict=True):
            if state:
                shaped = {k: v if k in _NUMBERS else unit.shaped(v) for k, v in state.items()}
                optimizer.state[leaf] = {k: v.clone() for k, v in shaped.items()}
        return optimizer, leaves


def _refuse_hooks(optimizer: Optimizer, params: Mapping[str, Tensor]) -> None:
    whose = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    whose += [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    if any(whose):
        raise NotCompilable(f"the optimizer {type(optimizer).__name__} has hooks on its step")
    for name, p in params.items():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise NotCompilable(f"the parameter {name!r} has a hook on its gradient")


def _python_numbers(optimizer: Optimizer) -> dict[str, Any]:
    held = dict(vars(optimizer))
    for i, group in enumerate(optimizer.param_groups):
        held |= {f"{k} of group {i}": v for k, v in group.items() if k != "lr"}
    return {k: v for k, v in held.items() if isinstance(v, int | float | str | tuple)}


def _flat(state: Mapping[str, Any]) -> State:
    """Numbers in double precision, in which torch's optimizers compute with Python's numbers; vectors."""
    return {
        k: torch.as_tensor(v, dtype=torch.float64).detach().clone() if k in _NUMBERS else v.detach().reshape(-1)
        for k, v in state.items()
        if v is not None
    }
