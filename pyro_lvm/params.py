"""The trainable parameters of a model and a guide as one flat dict, and programs bound to values of them."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.func import functional_call

Values = Mapping[str, Tensor]


class Parameters:
    """Every trainable tensor that a set of programs uses, under one name each, in unconstrained space.

    Tensors are found where Pyro users keep them: ``pyro.param`` statements, Pyro modules, torch modules that are the
    program, own it as a method, are registered by ``pyro.module``, or are reached by its closure and globals. Pyro's
    global store is neither read nor written.

    Args:
        programs: The programs by role, such as ``{"model": model, "guide": guide}``.
        run: Runs them all once and returns a scalar that depends on every parameter in use.

    Raises:
        ValueError: if ``run`` depends on a trainable tensor that none of these places holds, since it would stay
            frozen.
    """

    def __init__(self, programs: Mapping[str, Any], run: Callable[[], Tensor]) -> None:
        found = [(role, name, m) for role, program in programs.items() for name, m in _modules(program)]
        statements = _Statements()
        with local_params(*programs.values()), statements:
            used = _leaves(run())
        found += [("pyro.module", name, m) for name, m in statements.modules.items()]
        self.constraints: dict[str, constraints.Constraint] = dict(statements.constraints)
        self._start: dict[str, Tensor] = dict(statements.unconstrained)
        self._in_module: dict[str, str] = {}
        self._holder = _Holder()
        owned = {id(t) for t in statements.unconstrained.values()}
        for role, prefix, module in found:
            own = [(path, p) for path, p in module.named_parameters() if id(p) not in owned and p.requires_grad]
            if not any(id(p) in used for _, p in own):
                continue
            self._holder.members.append(module)
            for path, tensor in own:
                owned.add(id(tensor))
                name, constraint = _public_name(module, path)
                name = self._free_name(f"{prefix}.{name}" if prefix else name, role)
                self.constraints[name], self._start[name] = constraint, tensor
                self._in_module[name] = f"members.{len(self._holder.members) - 1}.{path}"
        strangers = [t for i, t in used.items() if i not in owned]
        if strangers:
            raise ValueError(
                f"a trainable tensor of shape {list(strangers[0].shape)} reaches the log-density, but it is no "
                "pyro.param and belongs to no module found, so that a fit would leave it frozen. Register it with "
                "pyro.param or pyro.module, keep it in a module, or detach it"
            )

    def _free_name(self, name: str, role: str) -> str:
        while name in self._start:
            name = f"{role}.{name}"
        return name

    @property
    def modules(self) -> list[nn.Module]:
        """The user's modules that hold parameters."""
        return list(self._holder.members)

    def start(self) -> dict[str, Tensor]:
        """Copies of the unconstrained values that the user's modules and ``pyro.param`` statements hold now."""
        return {name: t.detach().clone() for name, t in self._start.items()}

    def constrained(self, values: Values) -> dict[str, Tensor]:
        """Detached constrained values by name."""
        return {n: transform_to(self.constraints[n])(v.detach()).detach().clone() for n, v in values.items()}

    def unconstrained(self, values: Values) -> dict[str, Tensor]:
        """The inverse of :meth:`constrained`.

        Raises:
            ValueError: for a name that is no parameter, a wrong shape, or a value outside the constraint.
        """
        result = {}
        for name, value in values.items():
            if name not in self._start:
                raise ValueError(
                    f"init names {name!r}, which is no parameter; the parameters are {sorted(self._start)}"
                )
            like = self._start[name]
            constraint = self.constraints[name]
            expected = transform_to(constraint)(like.detach()).shape
            value = torch.as_tensor(value).detach().to(like)
            if value.shape != expected:
                raise ValueError(f"init[{name!r}] has shape {list(value.shape)}, expected {list(expected)}")
            if not constraint.check(value).all():
                raise ValueError(f"init[{name!r}] is outside its constraint {constraint}")
            result[name] = transform_to(constraint).inv(value).clone()
        return result

    def write(self, values: Values) -> None:
        """Copy values into the user's modules."""
        with torch.no_grad():
            for name in self._in_module:
                self._start[name].copy_(values[name])

    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the user's modules, which running changes in place (batch norm)."""
        return dict(self._holder.named_buffers())

    def write_buffers(self, values: Values) -> None:
        """Copy values into the buffers of the user's modules."""
        with torch.no_grad():
            for name, buffer in self.buffers().items():
                buffer.copy_(values[name])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The user's modules in evaluation mode (no dropout), restored afterwards."""
        modes = [(m, m.training) for m in self._holder.modules()]
        self._holder.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def call(self, values: Values, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn`` with every parameter replaced by its value: a pure function of ``values`` and the arguments."""
        in_modules = {path: values[name] for name, path in self._in_module.items()}
        statements = {n: (v, self.constraints[n]) for n, v in values.items() if n not in self._in_module}
        with local_params(), _Bind(statements):
            return functional_call(self._holder, in_modules, (fn, *args), kwargs)


class Bound:
    """A program bound to fixed values of its parameters: call it, trace it, or give it to Pyro's tools."""

    def __init__(self, parameters: Parameters, values: Values, program: Callable) -> None:
        self.parameters, self.values, self.program = parameters, values, program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self.parameters.call(self.values, self.program, *args, **kwargs)


class _Holder(nn.Module):
    """All modules under one roof, so that one functional call swaps the tensors of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList()

    def forward(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)


@contextmanager
def private_statements(*programs: Any) -> Iterator[_Statements]:
    """These programs read and write no global parameters inside; what their ``pyro.param`` made is forgotten."""
    with local_params(*programs), _Statements() as statements:
        yield statements


@contextmanager
def local_params(*programs: Any) -> Iterator[None]:
    """Pyro modules read their own tensors, not the global store's of the same name."""
    for program in programs:
        for _, module in _modules(program):
            for part in module.modules():
                if isinstance(part, PyroModule) and not hasattr(part._pyro_context, "param_state"):
                    # Pyro gives this only to modules that were made while the setting was on
                    part._pyro_context.param_state = {"params": {}, "constraints": {}}
    with pyro.settings.context(module_local_params=True):
        yield


def _is_statement(msg: dict[str, Any]) -> bool:
    """Whether a message is a real ``pyro.param`` (Pyro modules send look-alikes that carry their own tensors)."""
    return msg["fn"] == pyro.get_param_store().get_param


class _Statements(Messenger):
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
            module = _calling_pyro_module()
            if module is not None:
                self.modules.setdefault(*module)
                msg["value"], msg["done"] = _mark(init[0], init[0]), True
                return
        if name not in self.unconstrained:
            if not init:
                raise ValueError(f"pyro.param({name!r}) was read before any statement gave it an initial value")
            value = init[0]() if callable(init[0]) else init[0]
            self.constraints[name] = constraint
            self.unconstrained[name] = transform_to(constraint).inv(value.detach()).clone().requires_grad_()
        unconstrained = self.unconstrained[name]
        msg["value"], msg["done"] = _mark(transform_to(self.constraints[name])(unconstrained), unconstrained), True


class _Bind(Messenger):
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
        elif init and _calling_pyro_module() is not None:
            msg["value"] = _mark(init[0], init[0])
        else:
            raise ValueError(
                f"pyro.param({name!r}) appeared after the first run: every parameter must exist from the start"
            )
        msg["done"] = True


def _mark(value: Tensor, unconstrained: Tensor) -> Tensor:
    value.unconstrained = weakref.ref(unconstrained)  # type: ignore[attr-defined]
    return value


def _calling_pyro_module() -> tuple[str, nn.Module] | None:
    """The name and module of the ``pyro.module`` call that is running, which sends no message of its own."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is pyro.module.__code__:
            return frame.f_locals["name"], frame.f_locals["nn_module"]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _public_name(module: nn.Module, path: str) -> tuple[str, constraints.Constraint]:
    """The name by which a user knows a parameter, and its constraint."""
    parent, _, leaf = path.rpartition(".")
    owner = module.get_submodule(parent)
    name = leaf.removesuffix("_unconstrained")
    if isinstance(owner, PyroModule) and leaf != name and name in owner._pyro_params:
        return f"{parent}.{name}".lstrip("."), owner._pyro_params[name][0]
    return path, constraints.real


def _leaves(total: Tensor) -> dict[int, Tensor]:
    """The trainable leaf tensors that a scalar depends on, by identity."""
    leaves: dict[int, Tensor] = {}
    if total.requires_grad and total.grad_fn is None:
        leaves[id(total)] = total
    seen, todo = set(), [total.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves[id(variable)] = variable
        todo.extend(parent for parent, _ in node.next_functions)
    return leaves


_LIBRARIES = ("torch", "pyro", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "arviz", "builtins")


def _modules(program: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a program is, belongs to, or reaches by closure, globals, attributes and arguments."""
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", program)]
    while todo:
        name, thing = todo.pop(0)
        if id(thing) in seen or isinstance(thing, Bound):
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            yield getattr(thing, "_pyro_name", "") or name, thing
        elif isinstance(thing, functools.partial):
            todo += [("", thing.func), *(("", a) for a in thing.args), *thing.keywords.items()]
        elif inspect.ismethod(thing):
            todo += [("", thing.__self__), (name, thing.__func__)]
        elif inspect.isfunction(thing):
            todo += _reached_by(thing)
        elif isinstance(thing, list | tuple | set | frozenset):
            todo += [(f"{name}.{i}".lstrip("."), t) for i, t in enumerate(thing)]
        elif isinstance(thing, dict):
            todo += [(str(key), t) for key, t in thing.items()]
        elif not isinstance(thing, type | types.ModuleType) and _is_users(type(thing)):
            todo += list(getattr(thing, "__dict__", {}).items())
            todo += [(name, attribute) for key, attribute in vars(type(thing)).items() if key == "__call__"]


def _reached_by(fn: types.FunctionType) -> list[tuple[str, Any]]:
    """What a function can reach: wrapped function, closure, defaults, and the globals that its code names."""
    reached: list[tuple[str, Any]] = []
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            reached.append((name, cell.cell_contents))
        except ValueError:  # a cell that is not filled yet
            continue
    if not _is_users(fn):
        return reached
    reached += [("", d) for d in fn.__defaults__ or ()] + list((fn.__kwdefaults__ or {}).items())
    codes, names = [fn.__code__], set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return reached + [(n, fn.__globals__[n]) for n in sorted(names) if n in fn.__globals__]


def _is_users(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").split(".")[0] not in _LIBRARIES
