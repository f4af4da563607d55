"""Rewrites of a traced graph, which leave its meaning and make it fit for a compiled loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into inputs of it, but for single numbers that were written in the code."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    held: dict[int, tuple[Tensor, fx.Node]] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if tensor.numel() == 1 and all(user.target is aten.lift_fresh_copy.default for user in node.users):
            for user in list(node.users):
                _write_number(graph, user, tensor)
            graph.erase_node(node)
            continue
        if id(tensor) not in held:
            with graph.inserting_after(last):
                last = graph.placeholder(f"held_{len(held)}")
            last.meta = dict(node.meta)
            held[id(tensor)] = (tensor, last)
        node.replace_all_uses_with(held[id(tensor)][1])
        graph.erase_node(node)
    module.recompile()
    return [tensor for tensor, _ in held.values()]


def drop_unused(module: fx.GraphModule, inputs: list[fx.Node], at_least: int) -> list[int]:
    """Take inputs away that nothing depends on, and return the positions of the others."""
    kept = [i for i, node in enumerate(inputs) if node.users] or list(range(at_least))
    for i, node in enumerate(inputs):
        if i not in kept:
            module.graph.erase_node(node)
    module.recompile()
    return kept


def _write_number(graph: fx.Graph, copy: fx.Node, tensor: Tensor) -> None:
    """Put a number in the place of a copy of a literal: an input less that each step has to handle."""
    with graph.inserting_before(copy):
        like: dict[str, Any] = {
            "dtype": tensor.dtype,
            "layout": torch.strided,
            "device": tensor.device,
            "pin_memory": False,
        }
        number = graph.call_function(aten.full.default, (list(tensor.shape), tensor.item()), like)
    number.meta = dict(copy.meta)
    copy.replace_all_uses_with(number)
    graph.erase_node(copy)


_BY_PLACES_IN_MEMORY = {aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default}


def readers_of_memory(node: fx.Node) -> set[fx.Node]:
    """The operations on a tensor, or on views of it, that see how it lies in memory."""
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        for user in todo.pop().users:
            if user.target in _BY_PLACES_IN_MEMORY:
                found.add(user)
            elif user.op == "call_function" and _shares_memory(user):
                todo.append(user)
    return found


def spread_failures(graph: fx.Graph) -> None:
    """A factorisation that fails gives NaN; eagerly it raises an error, which a compiled loop cannot."""
    for check in [n for n in graph.nodes if n.target is aten._linalg_check_errors.default]:
        info: Any = check.args[0]
        factor = next(user for user in info.args[0].users if user.args[1] == 0)
        missing = factor.meta["val"].dim() - info.meta["val"].dim()
        last = next(node for node in reversed(graph.nodes) if node in (info, factor))
        for op, args in [(aten.eq.Scalar, (0,)), *[(aten.unsqueeze.default, (-1,))] * missing]:
            with graph.inserting_after(last):
                last = graph.call_function(op, (info if op is aten.eq.Scalar else last, *args))
        with graph.inserting_after(last):
            marked = graph.call_function(aten.where.ScalarOther, (last, factor, math.nan))
        factor.replace_all_uses_with(marked, delete_user_cb=lambda user, marked=marked: user is not marked)
        graph.erase_node(check)


def narrow(graph: fx.Graph) -> None:
    """Compute on small tensors what is computed on copies of them, such as the logarithm of a scale for each row."""
    overwritten = _overwritten(graph)
    for node in list(graph.nodes):
        if node.target not in _POINTWISE or node in overwritten or not isinstance(_value(node), Tensor):
            continue
        shape = _value(node).shape
        tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and isinstance(_value(arg), Tensor)]
        cores: dict[Any, Any] = {arg: arg.args[0] if arg.target is aten.expand.default else arg for arg in tensors}
        small = torch.broadcast_shapes(*(_value(core).shape for core in cores.values())) if cores else shape
        if math.prod(small) >= shape.numel() or _changes_dtype(cores):
            continue
        with graph.inserting_before(node):
            args = tuple(cores.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in node.args)
            core = graph.call_function(node.target, args, node.kwargs)
            core.meta["val"] = torch.empty(small, dtype=_value(node).dtype, device="meta")
            wide = graph.call_function(aten.expand.default, (core, list(shape)))
            wide.meta["val"] = _value(node)
        node.replace_all_uses_with(wide)
        graph.erase_node(node)
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # of copies that are none in memory now


def _changes_dtype(cores: dict[fx.Node, fx.Node]) -> bool:
    """Whether tensors of several dtypes meet, one of them as a number, whose dtype counts less."""
    several = len({_value(arg).dtype for arg in cores}) > 1
    return several and any(_value(core).dim() == 0 and _value(arg).dim() > 0 for arg, core in cores.items())


def _overwritten(graph: fx.Graph) -> set[fx.Node]:
    """The tensors that some operation changes in place, directly or through a view."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            while argument.is_write and isinstance(value, fx.Node):
                found.add(value)
                value = value.args[0] if value.args and _shares_memory(value) else None
    return found


def _shares_memory(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


_POINTWISE = {
    getattr(getattr(aten, name), overload)
    for name, overloads in {
        "add": ("Tensor", "Scalar"),
        "sub": ("Tensor", "Scalar"),
        "mul": ("Tensor", "Scalar"),
        "div": ("Tensor", "Scalar"),
        "pow": ("Tensor_Tensor", "Tensor_Scalar", "Scalar"),
        "exp": ("default",),
        "expm1": ("default",),
        "log": ("default",),
        "log1p": ("default",),
        "neg": ("default",),
        "abs": ("default",),
        "sign": ("default",),
        "sqrt": ("default",),
        "rsqrt": ("default",),
        "reciprocal": ("default",),
        "sigmoid": ("default",),
        "softplus": ("default",),
        "tanh": ("default",),
        "lgamma": ("default",),
        "digamma": ("default",),
        "clamp": ("default",),
        "clamp_min": ("default",),
        "clamp_max": ("default",),
        "detach": ("default",),
        "where": ("self",),
        "eq": ("Tensor", "Scalar"),
        "ne": ("Tensor", "Scalar"),
        "lt": ("Tensor", "Scalar"),
        "le": ("Tensor", "Scalar"),
        "gt": ("Tensor", "Scalar"),
        "ge": ("Tensor", "Scalar"),
        "logical_and": ("default",),
        "logical_not": ("default",),
    }.items()
    for overload in overloads
}


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


_FEW_PRODUCTS = 100_000
_MANY_PRODUCTS = 2_000_000


@torch.library.custom_op("pyro_lvm::product", mutates_args=())
def product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """``a @ b + bias`` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None if bias is None else bias.contiguous(), "none", [], "")


@product.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def multiply(graph: fx.Graph) -> None:
    """Matrix products in the fastest form: those with a vector as a loop among others, large ones by oneDNN."""
    for node in [n for n in graph.nodes if n.target in (aten.mm.default, aten.addmm.default)]:
        *bias, a, b = node.args
        left, right = _value(a), _value(b)
        (m, k), n = left.shape, right.shape[1]
        if node.kwargs or not left.is_floating_point() or (bias and _value(bias[0]).shape != (n,)):
            continue
        with graph.inserting_before(node):
            if min(m, n) == 1 and m * k * n <= _FEW_PRODUCTS:
                new = _as_loop(graph, a, b, n)
                new = graph.call_function(aten.add.Tensor, (bias[0], new)) if bias else new
            elif m * k * n >= _MANY_PRODUCTS and left.dtype == torch.float32 and _onednn_is_faster(left):
                new = graph.call_function(torch.ops.pyro_lvm.product.default, (a, b, bias[0] if bias else None))
            else:
                continue
            new.meta["val"] = _value(node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _onednn_is_faster(tensor: Tensor) -> bool:
    """Whether the processor has wide vectors, which the library that torch takes for matrices leaves unused on some."""
    wide = tensor.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available()


def _as_loop(graph: fx.Graph, a: fx.Node, b: fx.Node, n: int) -> fx.Node:
    if n == 1:
        turned = graph.call_function(aten.permute.default, (b, [1, 0]))
        return graph.call_function(aten.sum.dim_IntList, (graph.call_function(aten.mul.Tensor, (a, turned)), [1], True))
    turned = graph.call_function(aten.permute.default, (a, [1, 0]))
    return graph.call_function(aten.sum.dim_IntList, (graph.call_function(aten.mul.Tensor, (turned, b)), [0], True))


_LARGE_TENSOR = 1_000
_COSTLY = {
    op
    for op in _POINTWISE
    if op._opname
    in (
        "pow",
        "exp",
        "expm1",
        "log",
        "log1p",
        "sqrt",
        "rsqrt",
        "div",
        "reciprocal",
        "sigmoid",
        "softplus",
        "tanh",
        "lgamma",
        "digamma",
    )
}


def settle(graph: fx.Graph) -> None:
    """Compute costly numbers once; the compiler would compute them again for every part of a tensor that they meet."""
    settled: set[fx.Node] = set()
    costly: dict[fx.Node, bool] = {}
    for node in list(graph.nodes):
        inputs = [arg for arg in node.args if isinstance(arg, fx.Node)]
        through = node.target in _POINTWISE or node.target in _VIEWS
        costly[node] = node.target in _COSTLY or (through and any(costly[arg] for arg in inputs))
        if node.target not in _POINTWISE or size(node) < _LARGE_TENSOR:
            continue
        for arg in inputs:
            core: Any = arg.args[0] if arg.target is aten.expand.default else arg
            if core not in settled and costly[core] and size(core) == 1:
                with graph.inserting_after(core):
                    held = _in_memory(graph, core, list(_value(core).shape))
                held.meta["val"] = _value(core)
                core.replace_all_uses_with(held, delete_user_cb=lambda user, held=held: user is not held)
                settled |= {core, held}
                costly[held] = False


def _in_memory(graph: fx.Graph, node: fx.Node, shape: list[int]) -> fx.Node:
    """A view by strides, for which the compiler has to write the tensor down."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return graph.call_function(aten.as_strided.default, (node, shape, strides, 0))


def size(node: fx.Node) -> int:
    """How many numbers an operation makes."""
    value = _value(node)
    return value.numel() if isinstance(value, Tensor) else 0


_VIEWS = {
    aten.reshape.default,
    aten.expand.default,
    aten.view.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.transpose.int,
    aten.index.Tensor,
    aten.detach.default,
}
