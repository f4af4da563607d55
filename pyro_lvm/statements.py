"""``pyro.param`` statements, answered without Pyro's global store."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_lvm.modules import reachable_modules


@contextmanager
def private_statements(*programs: Any) -> Iterator[Statements]:
    """These programs read and write no global parameters inside; what their ``pyro.param`` made is forgotten."""
    # AutoGuides run the model under poutine.block, which hides its statements from any handler; in a PyroModule Pyro
    # would then raise, though the store and the module's state are put back below.
    with local_params(*programs), pyro.settings.context(validate_poutine=False), Statements() as statements:
        yield statements


@contextmanager
def local_params(*programs: Any) -> Iterator[None]:
    """Pyro modules read their own tensors, not the global store's of the same name."""
    modules = [module for program in programs for _, module in reachable_modules(program)]
    contexts = {part._pyro_context for m in modules for part in m.modules() if isinstance(part, PyroModule)}
    # Pyro gives this attribute only to modules that were made while the setting was on
    before = {context: getattr(context, "param_state", {"params": {}, "constraints": {}}) for context in contexts}
    for context in contexts:
        context.param_state = {"params": {}, "constraints": {}}
    # To scope its store, Pyro strips the tensors in it of the marks by which its SVI knows them
    stored = [tensor for _, tensor in pyro.get_param_store().named_parameters()]
    marked = [(t, vars(t)["unconstrained"]) for t in stored if "unconstrained" in vars(t)]
    try:
        with pyro.settings.context(module_local_params=True):
            yield
    finally:
        for tensor, mark in marked:
            vars(tensor)["unconstrained"] = mark
        for context, state in before.items():
            context.param_state = state


def _is_statement(msg: dict[str, Any]) -> bool:
    """Whether a message is a real ``pyro.param`` (Pyro modules send look-alikes that carry their own tensors)."""
    return msg["fn"] == pyro.get_param_store().get_param


class Statements(Messenger):
    """Answers ``pyro.param`` in place of the global store, and remembers what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.unconstrained: dict[str, Tensor] = {}
        self.constraints: dict[str, constraints.Constraint] = {}
        self.modules: dict[str, nn.Module] = {}

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        msg["stop"] = True
        if not _is_statement(msg):
            return
        name, *init = msg["args"]
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if init and isinstance(init[0], nn.Parameter):
            module = calling_pyro_module()
            if module is not None:
                self.modules.setdefault(*module)
                msg["value"], msg["done"] = init[0], True  # without a mark, for it is the user's
                return
        if name not in self.unconstrained:
            if not init:
                raise ValueError(f"pyro.param({name!r}) was read before any statement gave it an initial value")
            value = init[0]() if callable(init[0]) else init[0]
            self.constraints[name] = constraint
            self.unconstrained[name] = transform_to(constraint).inv(value.detach()).clone().requires_grad_()
        unconstrained = self.unconstrained[name]
        msg["value"], msg["done"] = _mark(transform_to(self.constraints[name])(unconstrained), unconstrained), True


class Bind(Messenger):
    """Answers ``pyro.param`` with given values; statements from ``pyro.module`` keep the module's own tensors."""

    def __init__(self, values: Mapping[str, tuple[Tensor, constraints.Constraint]]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        msg["stop"] = True
        if not _is_statement(msg):
            return
        name, *init = msg["args"]
        if name in self.values:
            unconstrained, constraint = self.values[name]
            msg["value"] = _mark(transform_to(constraint)(unconstrained), unconstrained)
        elif init and calling_pyro_module() is not None:
            msg["value"] = _mark(init[0], init[0])
        else:
            raise ValueError(
                f"pyro.param({name!r}) appeared after the first run: every parameter must exist from the start"
            )
        msg["done"] = True


def _mark(value: Tensor, unconstrained: Tensor) -> Tensor:
    value.unconstrained = weakref.ref(unconstrained)  # type: ignore[attr-defined]
    return value


def calling_pyro_module() -> tuple[str, nn.Module] | None:
    """The name and module of the ``pyro.module`` call that is running, which sends no message of its own."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is pyro.module.__code__:
            return frame.f_locals["name"], frame.f_locals["nn_module"]
        frame = frame.f_back  # type: ignore[assignment]
    return None
