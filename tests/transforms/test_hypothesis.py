"""Layers of drawn kinds and sizes, at drawn points small and large: finite, of the right shapes, and invertible."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from pyro_lvm import transforms
from pyro_lvm.transforms import (
    ActNorm,
    Affine,
    Autoregressive,
    Conv1x1,
    Coupling,
    EmergingConv,
    ImageCoupling,
    Inverse,
    Layer,
    Monotone,
    Permutation,
    Planar,
    PLULinear,
    QRLinear,
    Shift,
    Spline,
    Squeeze,
    Stack,
    Sylvester,
)

BOUND = 3.0
HIDDEN = st.lists(st.integers(1, 9), max_size=2)
BATCHES = [(4,), (2, 3), (), (1,), (0,), (2, 0)]
UNIVARIATES = st.one_of(
    st.builds(Shift),
    st.builds(Affine),
    st.builds(Spline, st.integers(1, 9), st.just(BOUND)),
    st.builds(Monotone, st.integers(1, 9)),
)

# Layers -------------------------------------------------------------------------------------------------------------


def autoregressive(draw, D, context):
    residual = draw(st.booleans())
    hidden = [draw(st.integers(1, 9))] * draw(st.integers(0, 3)) if residual else draw(HIDDEN)
    order = draw(st.none() | st.permutations(range(D)))
    return Autoregressive(D, draw(UNIVARIATES), hidden, context, residual, order)


def coupling(draw, D, context):
    kept = draw(st.lists(st.integers(0, D - 1), min_size=1, max_size=D - 1, unique=True))
    return Coupling(D, kept, draw(UNIVARIATES), draw(HIDDEN), context)


def image_coupling(draw, shape, context):
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape))))
    mask[0], mask[-1] = True, False
    hidden = draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))
    return ImageCoupling(mask.reshape(shape), draw(UNIVARIATES), hidden, context)


def squeezed(draw, shape, context):
    C, H, W = shape
    return Stack([Squeeze(), any_layer(draw, (C // 4, 2 * H, 2 * W), context), Inverse(Squeeze())])


VECTORS = {
    Permutation: lambda draw, D, c: Permutation(draw(st.permutations(range(D)))),
    PLULinear: lambda draw, D, c: PLULinear(D, draw(st.none() | st.permutations(range(D))), c, draw(HIDDEN)),
    QRLinear: lambda draw, D, c: QRLinear(D, draw(st.sampled_from([None, 2, 4, 10])), c, draw(HIDDEN)),
    ActNorm: lambda draw, D, c: ActNorm(D, context=c, hidden=draw(HIDDEN)),
    Planar: lambda draw, D, c: Planar(D, c, draw(HIDDEN)),
    Sylvester: lambda draw, D, c: Sylvester(D, draw(st.integers(1, D)), c, draw(HIDDEN)),
    Autoregressive: autoregressive,
    Coupling: coupling,
    Inverse: lambda draw, D, c: Inverse(any_layer(draw, (D,), c)),
    Stack: lambda draw, D, c: Stack([any_layer(draw, (D,), c) for _ in range(2)]),
}
IMAGES = {
    ActNorm: lambda draw, shape, c: ActNorm(shape[0], True, c, draw(HIDDEN)),
    Conv1x1: lambda draw, shape, c: Conv1x1(shape[0], draw(st.permutations(range(shape[0]))), c, draw(HIDDEN)),
    EmergingConv: lambda draw, shape, c: EmergingConv(shape[0], draw(st.sampled_from([1, 3, 5])), c, draw(HIDDEN)),
    ImageCoupling: image_coupling,
    Inverse: lambda draw, shape, c: Inverse(any_layer(draw, shape, c)),
    Squeeze: squeezed,
}


def any_layer(draw, shape, context, kind=None):
    if len(shape) == 1:
        kinds = [kind for kind in VECTORS if kind is not Coupling or shape[0] > 1]
        return VECTORS[kind or draw(st.sampled_from(kinds))](draw, shape[0], context)
    kinds = [kind for kind in IMAGES if kind is not Squeeze or shape[0] % 4 == 0]
    return IMAGES[kind or draw(st.sampled_from(kinds))](draw, shape, context)


def test_every_layer_is_drawn():
    kinds = {thing for thing in vars(transforms).values() if isinstance(thing, type) and issubclass(thing, Layer)}
    assert kinds - {Layer} == set(VECTORS) | set(IMAGES)


# Examples -----------------------------------------------------------------------------------------------------------


@dataclass
class Example:
    layer: Layer
    x: torch.Tensor
    context: torch.Tensor | None

    @property
    def batch(self):
        own = () if self.context is None else self.context.shape[:-1]
        return torch.broadcast_shapes(self.x.shape[: -self.layer.event_dim], own)

    @property
    def shape(self):
        return self.x.shape[-self.layer.event_dim :]


VECTOR_SHAPES = st.tuples(st.integers(1, 8))
IMAGE_SHAPES = st.sampled_from([(1, 4, 3), (2, 3, 4), (3, 2, 2), (4, 2, 3)])


@st.composite
def examples(draw, shapes=VECTOR_SHAPES | IMAGE_SHAPES, kind=None):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    shape = draw(shapes)
    size = draw(st.sampled_from([0, 0, 1, 3]))
    layer = any_layer(draw, shape, size, kind)
    spread = draw(st.sampled_from([0.3, 1.0, 3.0]) | st.floats(0, 3))
    for parameter in layer.parameters():
        width = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.data.add_(spread * torch.randn_like(parameter) / width**0.5)
    batch = draw(st.sampled_from(BATCHES))
    signs = draw(st.booleans())  # of all numbers one size, that of a spline's box for one
    x = torch.randn(*batch, *shape)
    x = draw(st.sampled_from([1.0, BOUND, 30.0, 1e4, 1e-3, 0.0])) * (x.sign() if signs else x)
    context = None
    if layer.context:
        fits = [own for own in BATCHES if not batch or own == (1,) or own == batch[len(batch) - len(own) :]]
        context = torch.randn(*draw(st.sampled_from(fits)), size)
    dtype = draw(st.sampled_from(list(ROUNDING)))
    return Example(layer.to(dtype), x.to(dtype), None if context is None else context.to(dtype))


ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Changes relative to the size of a number, some thousand and some ten times its rounding."""

MOST = 1e20  # above, no number of 32 bits need be right


class Back(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, y, context):
        return self.layer(context).inverse_and_log_det(y)


@torch.no_grad()
def what_rounding_does(example, tries=4):
    """Of the origin and the log-determinant: what small changes of image, context and parameters do to them.

    In double precision. Each number moves by a share of itself, an image by that of the largest number there, for sums
    and products of matrices lose so much. That the inverse is right for numbers as near as that is all one can ask:
    where a function is flat, or a sum cancels out, they tell little of the origin.
    """
    share, layer, batch = ROUNDING[example.x.dtype], copy.deepcopy(example.layer).double(), example.batch
    x, c = (None if given is None else given.double() for given in (example.x, example.context))

    def moved(value, size=None):
        return value + share * (value if size is None else size) * torch.randn_like(value)

    def largest(value):
        return value.abs().flatten(-layer.event_dim).amax(-1) if value.dim() else value

    y, log_det = layer(c).forward_and_log_det(x)
    origin, log_det_back = layer(c).inverse_and_log_det(y)
    size = torch.maximum(largest(x), largest(y)).clamp(min=1)
    far, change = share * largest(x).clamp(min=1).expand(batch), share * log_det.abs().clamp(min=1)
    for _ in range(tries):
        values = {f"layer.{name}": moved(value) for name, value in layer.named_parameters()}
        image = moved(y, size.reshape(*batch, *[1] * layer.event_dim))
        again, back = functional_call(Back(layer), values, (image, None if c is None else moved(c)))
        far, change = torch.maximum(far, largest(again - origin)), torch.maximum(change, (back - log_det_back).abs())
    return 10 * far.nan_to_num(math.inf), 10 * change.nan_to_num(math.inf)  # few are tried, and not the worst


def run(example, direction, at):
    """The outcome; shapes and gradients are looked at."""
    x, c = (None if given is None else given.detach().clone().requires_grad_() for given in (at, example.context))
    found, log_det = getattr(example.layer(c), direction)(x)
    assert found.shape == (*example.batch, *example.shape)
    assert log_det.shape == example.batch
    assert found.dtype == log_det.dtype == example.x.dtype
    assert found.isfinite().all()
    assert log_det.isfinite().all()
    ((found * torch.randn_like(found)).sum() + log_det.sum()).backward()
    for value in (x, *([] if c is None else [c]), *example.layer.parameters()):
        assert value.grad is None or not value.grad.isnan().any()
    return found.detach(), log_det.detach()


def check(example):
    y, log_det = run(example, "forward_and_log_det", example.x)
    far, change = what_rounding_does(example) if y.numel() else (torch.zeros(()), torch.zeros(()))
    assume((far < MOST).all())
    with torch.no_grad():
        without_gradients = example.layer(example.context).inverse_and_log_det(y)
    for again, back in (run(example, "inverse_and_log_det", y), without_gradients):
        error = (again - example.x).abs().flatten(-example.layer.event_dim)
        assert (error <= far.unsqueeze(-1)).all()
        assert ((back + log_det).abs() <= change).all()


def of(count):
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("kind", VECTORS)
@of(4)
@given(st.data())
def test_drawn_layers_of_vectors(kind, data):
    shapes = st.tuples(st.integers(2, 8)) if kind is Coupling else VECTOR_SHAPES
    check(data.draw(examples(shapes, kind)))


@pytest.mark.parametrize("kind", IMAGES)
@of(4)
@given(st.data())
def test_drawn_layers_of_images(kind, data):
    check(data.draw(examples(st.just((4, 2, 3)) if kind is Squeeze else IMAGE_SHAPES, kind)))


@pytest.mark.slow
@of(1_000)
@given(examples())
def test_many_drawn_layers(example):
    check(example)
