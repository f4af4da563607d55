"""Write down what a function of tensors does, or say which line of it cannot be written down."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

_READS = "it reads the value of a tensor into Python, as .item(), float(), tolist() or an if over a tensor do"
_SHAPES = "the shape of a tensor follows from values, as in x[mask] or nonzero(): use torch.where or poutine.mask"
_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, pyro.__file__, __file__))


class NotCompilable(Exception):
    """A step that cannot run as a compiled program, and why."""


def trace(fn: Callable[..., list[Tensor]], examples: list[Tensor]) -> fx.GraphModule:
    """The operations of a function, as a graph on tensors of the examples' shapes and dtypes.

    Raises:
        NotCompilable: if the graph would not mean what the function means; it names the line to blame.
    """
    inputs = [t.detach().view_as(t) for t in examples]  # which are told apart by identity

    def watched(*tensors: Tensor) -> list[Tensor]:
        with _NoReads(), _NumberIndices():
            return fn(*tensors)

    try:
        with pyro.validation_enabled(False):
            graph = make_fx(watched)(*inputs)
    except Exception as error:
        raise NotCompilable(f"{_blamed_line(error)}{first_line(error)}") from error
    if not all(isinstance(getattr(graph, n.target), Tensor) for n in graph.graph.nodes if n.op == "get_attr"):
        raise NotCompilable("it draws random numbers from a generator of its own, which a compiled program cannot")
    return graph


class _NoReads(TorchDispatchMode):
    """Refuses what a trace would hold for good: values read from tensors, and shapes that follow values.

    Masks that follow from no input, such as that of a triangle, are written down as the places where they are true.
    """

    def __init__(self) -> None:
        super().__init__()
        self._same_always: dict[int, Tensor] = {}  # integers and truth values that follow from no input, by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten._local_scalar_dense.default, aten.equal.default):
            raise NotCompilable(_READS)
        if func in (aten.random_.default, getattr(aten.random_, "from"), aten.random_.to):
            raise NotCompilable("Tensor.random_ cannot be compiled: torch.randint can")
        if func is aten.index.Tensor:
            args = (args[0], [place for i in args[1] for place in (self._places(i) if _is_mask(i) else (i,))])
        elif torch.Tag.dynamic_output_shape in func.tags:
            raise NotCompilable(_SHAPES)
        result = func(*args, **(kwargs or {}))
        self._remember(func, args, kwargs or {}, result)
        return result

    def _remember(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        same = all(map(self._is_same_always, given)) and torch.Tag.nondeterministic_seeded not in func.tags
        if same and isinstance(result, Tensor) and not result.is_floating_point():
            self._same_always[_storage(result)] = result
        elif func._schema.is_mutable:
            named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
            for argument in func._schema.arguments:
                for written in tree_leaves(named.get(argument.name)) if argument.is_write else ():
                    self._same_always.pop(_storage(written), None)

    def _is_same_always(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._same_always

    def _places(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Where a mask is true: an index for each of its dimensions."""
        if not self._is_same_always(mask):
            raise NotCompilable(_SHAPES)
        with _disable_current_modes():
            return mask.nonzero(as_tuple=True)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _NumberIndices(TorchFunctionMode):
    """Lets a number that is a tensor index another tensor, which torch would read into Python; refuses other reads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise NotCompilable(_READS)
        if func is torch._is_all_true:  # asked by distributions that were made while validation was on
            return True
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if index and isinstance(index[0], Tensor) and all(_is_number(i) for i in index if isinstance(i, Tensor)):
                tensors = [isinstance(i, Tensor) for i in index]
                if tensors == sorted(tensors, reverse=True):  # all in front, so that the new dimension is the first
                    return args[0][tuple(i.reshape(1) if isinstance(i, Tensor) else i for i in index)].squeeze(0)
        return func(*args, **(kwargs or {}))


def _is_number(index: Tensor) -> bool:
    return index.dim() == 0 and index.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def first_line(error: Exception) -> str:
    """What went wrong, without torch's pages about it."""
    text = str(error).strip().splitlines()
    if isinstance(error, NotCompilable):
        return str(error)
    if any("data-dependent" in line or "value out of a tracing tensor" in line for line in text):
        return _READS
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _blamed_line(error: Exception) -> str:
    """The last line of the user's own code on the way to an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*_LIBRARIES, "<"))]
    return f"{frames[-1].filename}, line {frames[-1].lineno}, {frames[-1].line!r}: " if frames else ""
