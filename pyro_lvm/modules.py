"""The torch modules that a program can reach: where Pyro users keep their parameters."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Sealed:
    """A program that holds constants: the search for modules does not look inside."""


_LIBRARIES = ("torch", "pyro", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "arviz", "builtins")

_VALUES = (str, bytes, Number, Tensor, np.generic)  # which reach nothing
_FEW = 1_000  # values in a list or dict; those of longer ones are not looked at


@contextmanager
def unchanged_buffers(*programs: Any) -> Iterator[None]:
    """Runs of the programs leave no trace in the buffers of their modules: a look is no training step."""
    before = _copies(part._buffers for part in _parts(programs))
    try:
        yield
    finally:
        _put_back(before)


class Snapshot:
    """What the programs' modules hold: tensors and their values, parts, and other attributes as they are.

    What such an attribute is changed to in place, where it is no dict, is not put back.
    """

    def __init__(self, *programs: Any) -> None:
        parts = _parts(programs)
        self._kinds = [(part, type(part)) for part in parts]  # lazy ones become others
        held = [d for part in parts for d in (vars(part), *(v for v in vars(part).values() if isinstance(v, dict)))]
        self._held = [(d, d.copy()) for d in held]
        tensors: list[dict[str, Any]] = [d for part in parts for d in (part._parameters, part._buffers)]
        self._tensors = _copies(tensors)
        lazy = [(d, name, t) for d in tensors for name, t in d.items() if t is not None and is_lazy(t)]
        self._lazy = [(d, name, _maker(t)) for d, name, t in lazy]

    def restore(self) -> None:
        """Leave the modules as they were: what they have come to hold since is gone."""
        for part, kind in self._kinds:
            part.__class__ = kind
        for held, content in self._held:
            held.clear()
            held.update(content)
        _put_back(self._tensors)
        for tensors, name, made in self._lazy:
            tensors[name] = made()


def _maker(lazy: Any) -> Callable[[], Any]:
    """Makes tensors without a shape, like this one, which is to have one."""
    kind: Any = type(lazy)
    return partial(kind, lazy.requires_grad, lazy.device, lazy.dtype)


@contextmanager
def unchanged(*programs: Any) -> Iterator[None]:
    """Whatever happens inside, the programs' modules are as before afterwards."""
    before = Snapshot(*programs)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def unchanged_if_it_fails(*programs: Any) -> Iterator[None]:
    """A call that raises leaves the tensors of the programs' modules as they were, and their start to be made."""
    parts = _parts(programs)
    before = _copies(tensors for part in parts for tensors in (part._parameters, part._buffers))
    waiting = [(program, owner) for program in programs if (owner := awaits_start(program)) is not None]
    try:
        yield
    except BaseException:
        _put_back(before)
        for program, owner in waiting:
            if awaits_start(program) is None:
                owner.initialized = False
        raise


_Copies = list[tuple[dict[str, Any], str, Tensor, Tensor]]  # the tensors of a module, a name, the tensor, its value


def _copies(modules: Iterable[dict[str, Any]]) -> _Copies:
    held = [(tensors, name, t) for tensors in modules for name, t in tensors.items() if t is not None]
    return [(tensors, name, t, t.detach().clone()) for tensors, name, t in held if not is_lazy(t)]


def _put_back(before: _Copies) -> None:
    """Values, and the tensors themselves where a module has come to hold others."""
    with torch.no_grad():
        for tensors, name, tensor, value in before:
            tensors[name] = tensor
            if not torch.equal(tensor, value):  # an expanded one, which none can write into, never differs
                tensor.copy_(value)


def _parts(programs: Iterable[Any]) -> list[nn.Module]:
    """Every module that the programs reach and every part of one, once each."""
    modules = [module for program in programs for _, module in reachable_modules(program)]
    return list(dict.fromkeys(part for module in modules for part in module.modules()))


def move(programs: Iterable[Any], device: torch.device | str | None) -> None:
    """Move the modules that these programs are, or are methods of, to a device; None leaves them where they are."""
    for program in programs:
        owner = getattr(program, "__self__", program)
        if device is not None and isinstance(owner, nn.Module):
            owner.to(device)


def awaits_start(program: Any) -> Any:
    """The owner of a program, if it can ``initialize`` itself from data and has not been ``initialized``; else None."""
    owner = getattr(program, "__self__", program)
    able = callable(getattr(owner, "initialize", None))
    return owner if able and not getattr(owner, "initialized", True) else None


def reachable_modules(program: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules that a program is, belongs to, or reaches by closure, globals, attributes and arguments."""
    for name, thing in _reachable(program):
        if isinstance(thing, nn.Module):
            yield getattr(thing, "_pyro_name", "") or name, thing


def python_values(*programs: Any) -> dict[str, list[Any]]:
    """The numbers, strings and tensors that the programs reach, modules of theirs included, by their last name."""
    found: dict[str, list[Any]] = {}
    for name, thing in (pair for program in programs for pair in _reachable(program, into_modules=True)):
        if isinstance(thing, np.ndarray) or hasattr(thing, "to_numpy"):
            found.setdefault(name, []).append(repr(np.asarray(thing).tolist()) if thing.size <= _FEW else id(thing))
        elif isinstance(thing, _VALUES):
            found.setdefault(name, []).append(thing)
    return found


def _reachable(program: Any, into_modules: bool = False) -> Iterator[tuple[str, Any]]:
    """All that a program is, belongs to, or reaches by closure, globals, attributes and arguments."""
    seen: set[int] = set()
    todo: deque[tuple[str, Any]] = deque([("", program)])
    while todo:
        name, thing = todo.popleft()
        if isinstance(thing, _VALUES):
            yield name, thing
            continue
        if id(thing) in seen or isinstance(thing, Sealed):
            continue
        seen.add(id(thing))
        yield name, thing
        if isinstance(thing, nn.Module):
            todo += _attributes(thing) if into_modules else []
        elif isinstance(thing, functools.partial):
            todo += [("", thing.func), *(("", a) for a in thing.args), *thing.keywords.items()]
        elif inspect.ismethod(thing):
            todo += [("", thing.__self__), (name, thing.__func__)]
        elif inspect.isfunction(thing):
            todo += _reached_by(thing)
        elif isinstance(thing, list | tuple | set | frozenset | deque):
            todo += [(f"{name}.{i}".lstrip("."), t) for i, t in enumerate(thing) if _is_looked_at(t, thing)]
        elif isinstance(thing, dict):
            todo += [(str(key), t) for key, t in thing.items() if _is_looked_at(t, thing)]
        elif isinstance(thing, type | types.ModuleType):
            own = vars(thing) if into_modules and _is_users_place(thing) else {}
            todo += [(key, v) for key, v in own.items() if _holds_values(v) and not key.startswith("__")]
        elif _is_users(type(thing)):
            todo += _attributes(thing)
            todo += [(name, attribute) for key, attribute in vars(type(thing)).items() if key == "__call__"]


def _attributes(thing: Any) -> list[tuple[str, Any]]:
    """Those of a thing itself, and the values that its users' classes hold for it."""
    shared = [vars(kind).items() for kind in type(thing).__mro__ if _is_users(kind)]
    held = [(key, v) for items in shared for key, v in items if isinstance(v, (*_VALUES, list, dict, tuple))]
    slots = [key for kind in type(thing).__mro__ for key in getattr(kind, "__slots__", ()) if isinstance(key, str)]
    own = [(key, getattr(thing, key)) for key in slots if hasattr(thing, key) and not key.startswith("__")]
    own += list(getattr(thing, "__dict__", {}).items())
    return [(key, v) for key, v in held if not key.startswith("__")] + own


def _holds_values(thing: Any) -> bool:
    """Whether a thing in a module is there for its values, and is no class, function or module."""
    kinds = (type, types.FunctionType, types.ModuleType)
    return isinstance(thing, (*_VALUES, list, dict, tuple)) or (_is_users(type(thing)) and not isinstance(thing, kinds))


def _is_looked_at(thing: Any, container: Any) -> bool:
    return len(container) <= _FEW or not isinstance(thing, _VALUES)


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


def _is_users_place(thing: Any) -> bool:
    """Whether a class or a module is none of the libraries'."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__
    return name.split(".")[0] not in (*_LIBRARIES, *sys.stdlib_module_names)


def _is_users(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").split(".")[0] not in _LIBRARIES
