"""Many steps as one program: the only file that touches the private interfaces of torch's compiler."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_lvm.graphs import (
    drop_unused,
    lift_constants,
    multiply,
    narrow,
    readers_of_memory,
    settle,
    size,
    spread_failures,
)
from pyro_lvm.tracing import NotCompilable, first_line, trace

aten = torch.ops.aten

_TESTED = ("2.13",)
_OPTIONS = {
    "cpp_wrapper": True,
    "cpp.enable_floating_point_contract_flag": "fast",
    "cpp.vec_isa_ok": True,  # what the processor says of itself, without six test programs
}
_EXAMPLE_STEPS = 512  # any number but 0 and 1, which the compiler would take for constants
_WIDTH = 16  # of a vector of the processor, in numbers of float32
_MANY_NUMBERS = 100_000  # in one tensor, from which on more threads than one bring more than they cost


class Scan:
    """Many steps as one program: ``carry, ys = scan(carry, xs, fixed)``.

    The step is traced here, by :meth:`compile` it becomes machine code. Training passes its parameters on from step to
    step (``carry``); statistics that add up over chunks of rows, log-likelihoods by chunk and draws by noise are scans
    too.

    Args:
        step: ``step(carry, x, fixed) -> (carry, y)`` with tensors in dicts, lists and tuples; all that is returned for
            the carry must have the shapes and dtypes of the carry.
        carry: An example of what a step takes over from the one before.
        x: An example of what one step has of its own; ``xs`` has a leading dimension of steps.
        fixed: What is the same in all steps of a call.

    Attributes:
        size: The number of operations in a step.
        held: The tensors from outside that a step uses, as they were when it was traced.
        graph: One step, ``graph(*tensors) -> tensors``, on the tensors of carry, x and fixed that it uses.

    Raises:
        NotCompilable: if the step cannot be traced: it reads a value of a tensor into Python, or holds numbers that
            are not the same each time it runs.
    """

    def __init__(self, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, x: Any, fixed: Any) -> None:
        self._carry, self._x, self._fixed = carry, x, fixed
        tensors, spec = tree_flatten((carry, x, fixed))
        self._num_carry = len(tree_flatten(carry)[0])

        def flat(*given: Tensor) -> list[Tensor]:
            new, y = step(*tree_unflatten(given, spec))
            (outputs, self._out), (kept, kind) = tree_flatten((new, y)), tree_flatten(new)
            form, expected = [(list(t.shape), t.dtype) for t in kept], [(list(t.shape), t.dtype) for t in tensors]
            if kind != tree_flatten(carry)[1] or form != expected[: self._num_carry]:
                raise NotCompilable(f"a step returns {form}, but was given {expected[: self._num_carry]}")
            return [t.detach().clone() for t in outputs]  # a scan must not return what it was given

        self._flat, self._examples = flat, tensors
        self.graph, self.held = self._trace()
        self._code = self.graph.code
        if (told := self.outdated()) is not None:
            raise NotCompilable(
                f"a number of Python's changes from run to run{told}, and a compiled program would hold its first "
                "value: draw random numbers by torch or Pyro, and keep what changes in a tensor"
            )
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"][self._num_carry :]
        num_x = len(tree_flatten(x)[0])
        self._kept_x = drop_unused(self.graph, inputs[:num_x], at_least=1)
        self._kept_fixed = drop_unused(self.graph, inputs[num_x:], at_least=0)
        self._by_columns = {i for i in self._kept_fixed if _is_long_and_narrow(inputs[num_x + i])}
        self.size = sum(node.op == "call_function" for node in self.graph.graph.nodes)
        self._run: Callable | None = None

    def _trace(self) -> tuple[fx.GraphModule, list[Tensor]]:
        module = trace(self._flat, self._examples)
        _refuse_strides(module.graph)
        for rewrite in (spread_failures, narrow, multiply, settle):
            rewrite(module.graph)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module, lift_constants(module)

    def outdated(self) -> str | None:
        """What a trace made now has for a number of the first trace; None if both are the same."""
        try:
            again, held = self._trace()
        except NotCompilable as error:
            return f" ({error})"
        if self._code == again.code and len(held) == len(self.held) and all(map(_equal, self.held, held)):
            return None
        words = zip(self._code.split(), again.code.split(), strict=False)
        return next((f" ({a.strip('(),;')}, then {b.strip('(),;')})" for a, b in words if a != b), "")

    @property
    def num_threads(self) -> int:
        """One for programs on small tensors, which more threads make slower."""
        numbers = max(map(size, self.graph.graph.nodes))
        return torch.get_num_threads() if numbers >= _MANY_NUMBERS else 1

    def compile(self) -> None:
        """Make machine code of the steps.

        Raises:
            NotCompilable: without a C++ compiler, under a version of torch on which this was not tested, and for what
                the compiler refuses.
        """
        check_support()
        self._threads = self.num_threads
        with _threads(self._threads), _quiet():
            try:
                self._run = _compile_scan(self.graph, *self._used(self._carry, self._x, self._fixed))
            except Exception as error:
                raise NotCompilable(f"torch's compiler refuses the step: {first_line(error)}") from error

    def __call__(self, carry: Any, xs: Any, fixed: Any) -> tuple[Any, Any]:
        """Run as many steps as ``xs`` has."""
        if self._run is None:
            raise RuntimeError("the scan was not compiled: call compile() first")
        with torch.no_grad(), _threads(self._threads):
            return tree_unflatten(list(self._run(*chain(*self._used(carry, xs, fixed)))), self._out)

    def _used(self, carry: Any, xs: Any, fixed: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The tensors that the graph has for inputs, in the layout for which it is compiled."""
        x, same = list(_leaves(xs)), [*_leaves(fixed), *self.held]
        return (
            [tensor.contiguous() for tensor in _leaves(carry)],
            [x[i].contiguous() for i in self._kept_x],
            [_turned(same[i]) if i in self._by_columns else same[i].contiguous() for i in self._kept_fixed],
        )


def _refuse_strides(graph: fx.Graph) -> None:
    inputs = (node for node in graph.nodes if node.op in ("placeholder", "get_attr"))
    if any(reader.target is aten.as_strided.default for node in inputs for reader in readers_of_memory(node)):
        raise NotCompilable(
            "as_strided picks numbers by their place in memory, which a compiled program is free to choose: use "
            "unfold, reshape or an index"
        )


def _is_long_and_narrow(table: fx.Node) -> bool:
    """Whether vectors of the processor should hold many rows of a column; rows that are picked are left as they are."""
    shape = table.meta["val"].shape
    picked = any(user.target in (aten.index.Tensor, aten.index_select.default) for user in table.users)
    return len(shape) == 2 and 1 < shape[1] < _WIDTH <= shape[0] and not picked and not readers_of_memory(table)


def _turned(tensor: Tensor) -> Tensor:
    """The same table with its columns one after the other in memory."""
    return tensor.t().contiguous().t()


def _leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree, in the order of torch's own function, which takes longer than steps of small models."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)


def check_support() -> None:
    """Refuse machines on which nothing can be compiled.

    Raises:
        NotCompilable: that says why.
    """
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in _TESTED:
        raise NotCompilable(f"compiled programs were tested with torch {', '.join(_TESTED)} alone; this is {version}")
    try:
        with _quiet():
            from torch._inductor.cpp_builder import get_cpp_compiler  # torch's compiler takes seconds to import

            compiler = get_cpp_compiler()
    except Exception as error:
        raise NotCompilable("no C++ compiler was found: install g++ or clang, or name one by CXX") from error
    if shutil.which(compiler) is None:
        raise NotCompilable(f"the C++ compiler {compiler!r} was not found: install g++ or clang, or name one by CXX")


def is_mapped() -> bool:
    """Whether `torch.func` runs what calls this: a tensor may then be many, which no other can be written over with."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def as_if_compiling() -> Iterator[None]:
    """Optimizers of torch keep their counters tensors, and take a learning rate that is a tensor."""
    before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, True
    try:
        with _TensorFactors():
            yield
    finally:
        torch.compiler._is_compiling_flag = before


def bare_step(optimizer: torch.optim.Optimizer) -> None:
    """A step of an optimizer without the profiler around it, which cannot be traced."""
    step = type(optimizer).step
    getattr(step, "__wrapped__", step)(optimizer)


class _TensorFactors(TorchFunctionMode):
    """Lets in-place updates take a tensor for the factor that they would read into Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        for name in ("alpha", "value"):
            factor = kwargs.get(name)
            if isinstance(factor, Tensor):
                del kwargs[name]
                target, first, *rest = args
                return func(target, first * factor, *rest, **kwargs)
        return func(*args, **kwargs)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    if ours is theirs or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return ours is theirs
    return bool(((ours == theirs) | ((ours != ours) & (theirs != theirs))).all())


def _compile_scan(step: fx.GraphModule, carry: list[Tensor], x: list[Tensor], fixed: list[Tensor]) -> Callable:
    """Torch's operator ``scan`` around a step, for any number of steps, made into one program by its compiler."""
    from torch._dynamo.source import ConstantSource
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    fake = FakeTensorMode(shape_env=ShapeEnv())
    graph = fx.Graph()
    inputs: list[fx.Node] = []

    def take(example: Tensor) -> fx.Node:
        inputs.append(graph.placeholder(f"input_{len(inputs)}"))
        inputs[-1].meta["val"] = example
        return inputs[-1]

    def same(tensor: Tensor) -> fx.Node:
        unlike_others = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        return take(fake.from_tensor(unlike_others, static_shapes=True))

    def of_each_step(tensor: Tensor) -> fx.Node:
        steps = tensor.new_empty(_EXAMPLE_STEPS, *tensor.shape)
        context: Any = StatelessSymbolicContext([DimDynamic.DUCK, *[DimDynamic.STATIC] * tensor.dim()])
        source = ConstantSource(f"x_{len(inputs)}")
        return take(fake.from_tensor(steps, symbolic_context=context, source=source))

    arguments = [list(map(same, carry)), list(map(of_each_step, x)), tuple(map(same, fixed))]
    scan = torch.ops.higher_order.scan
    result = graph.call_function(scan, (graph.get_attr("step"), *arguments))
    num_outputs = len(next(node for node in step.graph.nodes if node.op == "output").args[0])
    graph.output(tuple(graph.call_function(getitem, (result, i)) for i in range(num_outputs)))
    root = torch.nn.Module()
    root.step = step
    program = fx.GraphModule(root, graph)
    with config.patch(_OPTIONS), tracing(TracingContext(fake)), _cacheable(scan):
        return compile_fx(program, [node.meta["val"] for node in inputs])  # type: ignore[return-value]


@contextmanager
def _cacheable(operator: Any) -> Iterator[None]:
    """Torch's compiler may keep programs with this operator: here all of a step stands in the text of its graph."""
    before, operator._cacheable = operator._cacheable, True
    try:
        yield
    finally:
        operator._cacheable = before


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Arithmetic on so many threads, in which the smallest numbers count as zero: they take a hundred times as long."""
    before, flushing = torch.get_num_threads(), _flushes()
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushing)


def _flushes() -> bool:
    """Whether numbers too small for their exponent count as zero now."""
    smallest = float.fromhex("0x1p-1074")
    return smallest * 1.0 == 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's compiler says about its own work is nothing that a user could act on."""
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
