"""The trainable parameters of a model and a guide as one flat dict, and programs bound to values of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import torch
from pyro.distributions.constraints import softplus_lower_cholesky
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to, constraints, transform_to
from torch.nn.parameter import is_lazy

from pyro_lvm.modules import Sealed, reachable_modules
from pyro_lvm.statements import Bind, Statements, local_params

Values = Mapping[str, Tensor]
Place = tuple[dict[str, Any], str]  # the tensors of a module by name, and a name


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
        found = [(role, name, m) for role, program in programs.items() for name, m in reachable_modules(program)]
        statements = Statements()
        with local_params(*programs.values()), statements:
            used = leaves(run())
        found += [("pyro.module", name, m) for name, m in statements.modules.items()]
        self.constraints: dict[str, constraints.Constraint] = dict(statements.constraints)
        self._start: dict[str, Tensor] = dict(statements.unconstrained)
        self.modules = list({id(module): module for _, _, module in found}.values())
        self._places: dict[str, list[Place]] = {}  # of every tensor in the modules, for one tensor may have several
        self._in_module: set[str] = set()
        places = _places_by_tensor(self.modules)
        owned = {id(t) for t in statements.unconstrained.values()}
        for role, prefix, module in found:
            own = [(path, p) for path, p in module.named_parameters() if id(p) not in owned and p.requires_grad]
            if not any(id(p) in used for _, p in own):
                continue
            for path, tensor in own:
                owned.add(id(tensor))
                name, constraint = _public_name(module, path)
                name = self._free_name(f"{prefix}.{name}" if prefix else name, role)
                self.constraints[name], self._start[name] = constraint, tensor
                self._in_module.add(name)
                self._places[name] = places.pop(id(tensor))[1]
        strangers = [t for i, t in used.items() if i not in owned]
        if strangers:
            raise ValueError(
                f"a trainable tensor of shape {list(strangers[0].shape)} reaches the log-density, but it is no "
                "pyro.param and belongs to no module found, so that a fit would leave it frozen. Register it with "
                "pyro.param or pyro.module, keep it in a module, or detach it"
            )
        self._places |= dict(places.values())

    def _free_name(self, name: str, role: str) -> str:
        while name in self._start:
            name = f"{role}.{name}"
        return name

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The floating dtypes among the parameters."""
        return {t.dtype for t in self._start.values() if t.is_floating_point()}

    def start(self) -> dict[str, Tensor]:
        """Copies of the unconstrained values that the user's modules and ``pyro.param`` statements hold now."""
        return {name: t.detach().clone() for name, t in self._start.items()}

    def constrained(self, values: Values) -> dict[str, Tensor]:
        """Detached constrained values by name."""
        return {
            n: transform_to(c)(values[n].detach()).detach().clone() for n, c in self.constraints.items() if n in values
        }

    def unconstrained(self, values: Values, what: str = "init") -> dict[str, Tensor]:
        """The inverse of :meth:`constrained`; ``what`` is the name of the values in errors.

        Raises:
            TypeError: for a value that is no number or tensor.
            ValueError: for a name that is no parameter, a wrong shape, or a value outside the constraint or on its
                boundary.
        """
        result = {}
        for name, value in self._checked(values, what).items():
            constraint = self.constraints[name]
            result[name] = transform_to(constraint).inv(value).clone()
            if not torch.isfinite(result[name]).all():
                raise ValueError(
                    f"{what}[{name!r}] is on the boundary of its constraint {constraint}: start inside of it"
                )
        return result

    def _checked(self, values: Values, what: str) -> dict[str, Tensor]:
        """Given constrained values as tensors like the parameters."""
        result = {}
        for name, value in values.items():
            if name not in self._start:
                raise ValueError(
                    f"{what} names {name!r}, which is no parameter; the parameters are {sorted(self._start)}"
                )
            like, constraint = self._start[name], self.constraints[name]
            expected = transform_to(constraint)(like.detach()).shape
            if not isinstance(value, Tensor | Number | np.ndarray | list):
                raise TypeError(f"{what}[{name!r}] must be a number or a tensor; got {value!r}")
            result[name] = torch.as_tensor(value).detach().to(like).clone()
            if result[name].shape != expected:
                raise ValueError(f"{what}[{name!r}] has shape {list(result[name].shape)}, expected {list(expected)}")
            if not torch.isfinite(result[name]).all():
                raise ValueError(f"{what}[{name!r}] is not finite")
            if not constraint.check(result[name]).all():
                raise ValueError(f"{what}[{name!r}] is outside its constraint {constraint}")
        return result

    def write(self, values: Values) -> None:
        """Copy values into the user's modules."""
        with torch.no_grad():
            for name in self._in_module:
                self._start[name].copy_(values[name])

    def untrained(self) -> dict[str, Tensor]:
        """What else the user's modules hold, by path: buffers (a run of batch norm changes them), frozen parameters."""
        places = {name: held[0] for name, held in self._places.items() if name not in self._start}
        return {name: tensors[leaf] for name, (tensors, leaf) in places.items()}

    def write_untrained(self, values: Values) -> None:
        """Copy values of :meth:`untrained`, all or some, into the user's modules."""
        tensors = self.untrained()
        with torch.no_grad():
            for path, value in values.items():
                tensors[path].copy_(value)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The user's modules in evaluation mode (no dropout), restored afterwards."""
        modes = [(part, part.training) for module in self.modules for part in module.modules()]
        for module in self.modules:
            module.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def call(self, values: Values, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn`` with every parameter replaced by its value: a pure function of ``values`` and the arguments.

        Values may name tensors of :meth:`untrained` too.
        """
        statements = {
            n: (values[n], c) for n, c in self.constraints.items() if n in values and n not in self._in_module
        }
        in_modules = {n: v for n, v in values.items() if n not in statements}
        with local_params(), Bind(statements), self._holding(in_modules):
            return fn(*args, **kwargs)

    @contextmanager
    def _holding(self, values: Values) -> Iterator[None]:
        """The user's modules hold these tensors inside, as in ``torch.func.functional_call``, but ties are known."""
        places = [(tensors, leaf, v) for name, v in values.items() for tensors, leaf in self._places[name]]
        before = [tensors[leaf] for tensors, leaf, _ in places]
        try:
            for tensors, leaf, value in places:
                tensors[leaf] = value
            yield
        finally:
            for (tensors, leaf, _), value in zip(places, before, strict=True):
                tensors[leaf] = value


class ConstrainedParameters(Parameters):
    """The same parameters in constrained space, where a probability may be zero and stay so.

    Args:
        parameters: Whose programs and tensors these are.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.__dict__.update(vars(parameters))
        places = {(id(tensors), leaf): name for name in self._in_module for tensors, leaf in self._places[name]}
        parts = [part for module in self.modules for part in module.modules() if isinstance(part, PyroModule)]
        self._declared = [
            (part._pyro_params, name)
            for part in dict.fromkeys(parts)
            for name in part._pyro_params
            if (id(part._parameters), f"{name}_unconstrained") in places
        ]

    def start(self) -> dict[str, Tensor]:
        """Copies of the values that the user's modules and ``pyro.param`` statements hold now."""
        values = super().constrained(super().start())
        return {n: _without_rounded_zeros(v) if is_simplex(self.constraints[n]) else v for n, v in values.items()}

    def constrained(self, values: Values) -> dict[str, Tensor]:
        """Detached copies."""
        return {n: values[n].detach().clone() for n in self.constraints if n in values}

    def unconstrained(self, values: Values, what: str = "init") -> dict[str, Tensor]:
        """Given values, checked; they may be on the boundary of their constraint where that is a simplex's."""
        return self._checked(values, what)

    def write(self, values: Values) -> None:
        """Copy values into the user's modules, which hold them in unconstrained space."""
        super().write({n: transform_to(self.constraints[n]).inv(values[n]) for n in self._in_module})

    def call(self, values: Values, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn`` with every parameter replaced by its value: a pure function of ``values`` and the arguments."""
        before = [declared[name] for declared, name in self._declared]
        constrained, self.constraints = self.constraints, dict.fromkeys(self.constraints, constraints.real)
        try:
            for (declared, name), (_, event_dim) in zip(self._declared, before, strict=True):
                declared[name] = (constraints.real, event_dim)
            return super().call(values, fn, *args, **kwargs)
        finally:
            self.constraints = constrained
            for (declared, name), held in zip(self._declared, before, strict=True):
                declared[name] = held


def is_simplex(constraint: constraints.Constraint) -> bool:
    """Whether a constraint is that of probabilities."""
    return without_events(constraint) is constraints.simplex


def is_real(constraint: constraints.Constraint) -> bool:
    """Whether a constraint is none."""
    return without_events(constraint) is constraints.real


def without_events(constraint: constraints.Constraint) -> constraints.Constraint:
    """The constraint of each number."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


_OF_TRIANGLES = (
    constraints.lower_triangular,
    constraints.lower_cholesky,
    softplus_lower_cholesky,
    constraints.symmetric,
    constraints.positive_semidefinite,
    constraints.positive_definite,
)


def num_free(value: Tensor, constraint: constraints.Constraint) -> int:
    """How many numbers of a constrained value are free to vary: K - 1 of a simplex, D (D + 1) / 2 of a covariance."""
    constraint = without_events(constraint)
    if constraint in _OF_TRIANGLES:
        return int(torch.ones_like(value).tril().sum())
    try:
        return biject_to(constraint).inverse_shape(value.shape).numel()
    except NotImplementedError:
        return value.numel()


def _without_rounded_zeros(probs: Tensor) -> Tensor:
    """Probabilities with zero in place of what the way to unconstrained space and back makes of it."""
    probs = torch.where(probs < 4 * torch.finfo(probs.dtype).eps, 0, probs)
    return probs / probs.sum(-1, keepdim=True)


class Bound(Sealed):
    """A program bound to fixed values, in evaluation mode: call it, trace it, or give it to Pyro's tools."""

    def __init__(self, parameters: Parameters, values: Values, program: Callable) -> None:
        self.parameters, self.values, self.program = parameters, values, program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        with self.parameters.evaluating():
            return self.parameters.call(self.values, self.program, *args, **kwargs)


def _places_by_tensor(modules: list[nn.Module]) -> dict[int, tuple[str, list[Place]]]:
    """For every tensor of the modules, by identity, its first path and all places that hold it."""
    found: dict[int, tuple[str, list[Place]]] = {}
    seen: set[nn.Module] = set()
    for i, module in enumerate(modules):
        for path, part in module.named_modules(seen, f"members.{i}"):
            for tensors in (part._parameters, part._buffers):
                for leaf, tensor in tensors.items():
                    if tensor is not None and not is_lazy(tensor):
                        found.setdefault(id(tensor), (f"{path}.{leaf}", []))[1].append((tensors, leaf))
    return found


def _public_name(module: nn.Module, path: str) -> tuple[str, constraints.Constraint]:
    """The name by which a user knows a parameter, and its constraint."""
    parent, _, leaf = path.rpartition(".")
    owner = module.get_submodule(parent)
    name = leaf.removesuffix("_unconstrained")
    if isinstance(owner, PyroModule) and leaf != name and name in owner._pyro_params:
        return f"{parent}.{name}".lstrip("."), owner._pyro_params[name][0]
    return path, constraints.real


def leaves(total: Tensor) -> dict[int, Tensor]:
    """The trainable leaf tensors that a scalar depends on, by identity."""
    found: dict[int, Tensor] = {}
    if total.requires_grad and total.grad_fn is None:
        found[id(total)] = total
    seen, todo = set(), [total.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        todo.extend(parent for parent, _ in node.next_functions)
    return found
