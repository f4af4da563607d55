"""What holds for every layer."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from pyro_lvm.transforms import Planar
from tests.transforms.registry import CONTEXT, LAYERS

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

every_layer = pytest.mark.parametrize("name", LAYERS)
every_layer_and_context = pytest.mark.parametrize(
    "name, context", [(n, c) for n, case in LAYERS.items() for c in ((0, CONTEXT) if case.takes_context else (0,))]
)


def points(shape, *batch, seed=1, dtype=torch.float64):
    return torch.randn(*batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def contexts(context, *batch, dtype=torch.float64):
    return points((context,), *batch, seed=2, dtype=dtype) if context else None


def jacobian(function, x):
    """Of one vector or image, as a matrix."""
    found = torch.autograd.functional.jacobian(function, x)
    return found.reshape(-1, x.numel())


# Right --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@every_layer_and_context
def test_inverse_undoes_forward(name, context, dtype, scale):
    """Out to 30 standard deviations and beyond, to a share of the largest number there.

    Where a function is nearly flat, its inverse multiplies the rounding of what it is given: by its own slopes.
    """
    case = LAYERS[name]
    layer, c = case.layer(context), contexts(context, 5)
    x = scale * points(case.shape, 5)
    y = layer(c)(x).detach()
    slopes = torch.stack(
        [jacobian(lambda y, j=j: layer(None if c is None else c[j]).inv(y), y[j]).abs().max() for j in range(5)]
    )
    x, c = x.to(dtype), None if c is None else c.to(dtype)
    transform = layer.to(dtype)(c)
    y, log_det = transform.forward_and_log_det(x)
    again, back = transform.inverse_and_log_det(y)
    size = max(x.abs().max().item(), y.abs().max().item(), 1.0)
    error = (again - x).abs().flatten(1).amax(1)
    assert (error < TOLERANCE[dtype] * size * slopes.clamp(min=1)).all()
    torch.testing.assert_close(back, -log_det, rtol=10 * TOLERANCE[dtype], atol=10 * TOLERANCE[dtype] * size)


@every_layer_and_context
def test_log_determinants_are_those_of_the_jacobians(name, context):
    case = LAYERS[name]
    transform = case.layer(context)(contexts(context))
    x = points(case.shape)
    y, log_det = transform.forward_and_log_det(x)
    expected = jacobian(lambda x: transform.forward_and_log_det(x)[0], x).slogdet().logabsdet
    torch.testing.assert_close(log_det, expected)
    back = jacobian(lambda y: transform.inverse_and_log_det(y)[0], y).slogdet().logabsdet
    torch.testing.assert_close(transform.inverse_and_log_det(y)[1], back)
    torch.testing.assert_close(back, -expected)


@every_layer_and_context
def test_torch_and_pyro_get_the_same(name, context):
    case = LAYERS[name]
    transform = case.layer(context)(contexts(context))
    x = points(case.shape, 7)
    y, log_det = transform.forward_and_log_det(x)
    torch.testing.assert_close(transform(x), y)
    torch.testing.assert_close(transform.inv(y), x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), log_det)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, x), -log_det)
    base = dist.Normal(torch.zeros(case.shape, dtype=x.dtype), 1).to_event(len(case.shape))
    pushed = dist.TransformedDistribution(base, [transform])
    assert pushed.event_shape == y.shape[1:]
    torch.testing.assert_close(pushed.log_prob(y), base.log_prob(x) - log_det)
    cached = transform.with_cache()
    assert cached.inv(cached(x)) is x


@pytest.mark.parametrize("context", [0, CONTEXT])
@every_layer
def test_starts_near_the_identity(name, context):
    case = LAYERS[name]
    torch.manual_seed(0)
    if name in ("permutation", "plu-ordered", "squeeze") or (context and not case.takes_context):
        return
    layer = case.make(context=context) if context else case.make()
    x = points(case.shape, 100, dtype=torch.float32)
    given = torch.randn(100, context) if context else None
    first = layer.layers[0] if name == "stack" else layer
    transform = first(given if first.context else None)
    y, log_det = transform.forward_and_log_det(x)
    assert (y - x).abs().max() < 0.2
    assert log_det.abs().max() < 0.04 * math.prod(case.shape)


# Shapes -------------------------------------------------------------------------------------------------------------


@every_layer_and_context
def test_batch_shapes_are_free(name, context):
    """Points one by one, in one dimension or in several, with as many contexts or fewer."""
    case = LAYERS[name]
    layer = case.layer(context)
    x, c = points(case.shape, 2, 3), contexts(context, 3)
    y, log_det = layer(c).forward_and_log_det(x)
    again, back = layer(c).inverse_and_log_det(y)
    assert log_det.shape == back.shape == (2, 3)
    torch.testing.assert_close(again, x)
    for i in range(2):
        for j in range(3):
            one = layer(None if c is None else c[j])
            alone, alone_log_det = one.forward_and_log_det(x[i, j])
            torch.testing.assert_close(alone, y[i, j])
            torch.testing.assert_close(alone_log_det, log_det[i, j])
            torch.testing.assert_close(one.inverse_and_log_det(y[i, j])[0], x[i, j])


@every_layer_and_context
def test_no_points_are_no_points(name, context):
    """Of which torch refuses some convolutions, reshapes and shuffles of pixels."""
    case = LAYERS[name]
    layer, x = case.layer(context), points(case.shape, 2, 0).requires_grad_()
    for c in (contexts(context), contexts(context, 2, 0)):
        y, log_det = layer(c).forward_and_log_det(x)
        again, back = layer(c).inverse_and_log_det(y)
        assert y.shape == layer(c).forward_shape(x.shape)
        assert again.shape == x.shape
        assert log_det.shape == back.shape == (2, 0)
        (y.sum() + log_det.sum() + again.sum() + back.sum()).backward()


@every_layer_and_context
def test_without_gradients_all_is_the_same(name, context):
    """Inverses that go by degree write their units in place then, under `vmap` too."""
    case = LAYERS[name]
    layer, c, x = case.layer(context), contexts(context, 4), points(case.shape, 4)
    y = layer(c)(x).detach()
    expected = layer(c).inverse_and_log_det(y)
    with torch.no_grad():
        found = layer(c).inverse_and_log_det(y)
        if context:
            mapped = vmap(lambda y, c: layer(c).inverse_and_log_det(y))(y, c)
        else:
            mapped = vmap(layer().inverse_and_log_det)(y)
        values = {f"layer.{n}": torch.stack([p, p + 0.1]) for n, p in layer.named_parameters()}
        many = vmap(lambda v: functional_call(_Back(layer), v, (y, c)))(values)[0] if values else found[0]
    for a, b, e in zip(found, mapped, expected, strict=True):
        torch.testing.assert_close(a, e)
        torch.testing.assert_close(b, e)
    torch.testing.assert_close(many, expected[0])


class _Back(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, y, context):
        return self.layer(context).inverse_and_log_det(y)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, case in LAYERS.items() if case.takes_context])
def test_one_point_at_many_contexts(name):
    case = LAYERS[name]
    layer, x, c = case.layer(CONTEXT), points(case.shape), contexts(CONTEXT, 4)
    y, log_det = layer(c).forward_and_log_det(x)
    assert log_det.shape == (4,)
    for j in range(4):
        torch.testing.assert_close(y[j], layer(c[j])(x))
    z, _ = layer(c).inverse_and_log_det(x)
    for j in range(4):
        torch.testing.assert_close(z[j], layer(c[j]).inv(x))


@pytest.mark.parametrize("name", [n for n, case in LAYERS.items() if case.takes_context])
def test_the_context_matters(name):
    case = LAYERS[name]
    layer, x = case.layer(CONTEXT), points(case.shape)
    one, other = (layer(points((CONTEXT,), seed=s))(x) for s in (3, 4))
    assert (one - other).abs().max() > 1e-3


@every_layer
def test_wrong_contexts_are_refused(name):
    case = LAYERS[name]
    with pytest.raises(ValueError, match="takes none"):
        case.layer()(torch.zeros(3))
    if case.takes_context:
        with pytest.raises(ValueError, match="got none"):
            case.layer(CONTEXT)()
        with pytest.raises(ValueError, match="expected shape"):
            case.layer(CONTEXT)(torch.zeros(4, 3))


SEES_NOTHING = {  # before the first feature there is none, and shifts change no volume
    "autoregressive-1": {"network.layers.0.weight"},
}


# Gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
@every_layer_and_context
def test_every_parameter_has_a_gradient_each_time(name, context, direction):
    case = LAYERS[name]
    layer = case.layer(context)
    x = points(case.shape, 20).requires_grad_()
    if direction == "inverse_and_log_det":
        x = layer(contexts(context, 20))(x).detach().requires_grad_()
    gradients = []
    for _ in range(2):
        layer.zero_grad()
        found, log_det = getattr(layer(contexts(context, 20)), direction)(x)
        (found.square().sum() + log_det.sum()).backward()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in layer.parameters()])
    for (key, _), first, second in zip(layer.named_parameters(), *gradients, strict=True):
        assert first.isfinite().all(), key
        assert (first != 0).any() or key in SEES_NOTHING.get(name, ()), key
        assert torch.equal(first, second)


NUMERICAL = ["planar", "planar-1", "sylvester", "sylvester-square", "autoregressive-monotone", "coupling-monotone"]


@pytest.mark.parametrize("name", [*NUMERICAL, "autoregressive-spline", "emerging", "qr"])
def test_gradients_through_inverses_are_finite_differences(name):
    case = LAYERS[name]
    layer = case.layer()
    values = list(layer.parameters())
    y = points(case.shape, 3)

    def function(y, *values):
        def inverse():
            return layer().inverse_and_log_det(y)

        before = {n: p for n, p in layer.named_parameters()}
        return functional_call(_Calls(layer, inverse), {f"layer.{n}": v for n, v in zip(before, values, strict=True)})

    given = [v.detach().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(function, (y.requires_grad_(), *given), fast_mode=True)


class _Calls(torch.nn.Module):
    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self):
        return self.function()


@pytest.mark.parametrize("size", [1e4, 3.0, 3.0 - 1e-7])
@every_layer
def test_far_out_and_at_edges_all_is_finite(name, size):
    """A spline's box here ends at 3."""
    case = LAYERS[name]
    layer = case.layer().float()
    for direction in ("forward_and_log_det", "inverse_and_log_det"):
        layer.zero_grad()
        x = size * torch.sign(points(case.shape, 20, dtype=torch.float32))
        if direction == "inverse_and_log_det":
            x = x.reshape(layer().forward_shape(x.shape))
        x.requires_grad_()
        found, log_det = getattr(layer(), direction)(x)
        (found.sum() + log_det.sum()).backward()
        assert found.isfinite().all()
        assert log_det.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in [x, *layer.parameters()])


@pytest.mark.parametrize("dtype, steepness", [(torch.float32, 11.0), (torch.float64, 28.0)])
@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_planar_flows_stay_increasing_where_the_slope_is_below_all_numbers(dtype, steepness, bias):
    """On the hyperplane the slope is softplus(-w^2), which underflows; far from it, it is 1."""
    layer = Planar(1).to(dtype)
    for parameter, value in zip(layer.parameters(), (-steepness, steepness, bias), strict=True):
        parameter.data.fill_(value)
    x = torch.tensor([[-bias / steepness], [2.0]], dtype=dtype).requires_grad_()
    y, log_det = layer().forward_and_log_det(x)
    again, back = layer().inverse_and_log_det(y.detach())
    (y.sum() + log_det.sum() + back.sum()).backward()
    least = math.log(torch.finfo(dtype).tiny)
    torch.testing.assert_close(log_det.detach(), torch.tensor([least, 0.0], dtype=dtype))
    torch.testing.assert_close(again.detach(), x.detach(), rtol=1e-6, atol=torch.finfo(dtype).eps / steepness)
    assert back.isfinite().all()
    assert all(value.grad.isfinite().all() for value in (x, *layer.parameters()))


# torch.func, state --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_layer_and_context
def test_vmap_and_jacrev(name, context):
    case = LAYERS[name]
    transform, x = case.layer(context)(contexts(context)), points(case.shape, 4)
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        if direction == transform.inverse_and_log_det:
            x = transform(x).detach()
        one_by_one = vmap(direction)(x)
        for found, expected in zip(one_by_one, direction(x), strict=True):
            torch.testing.assert_close(found, expected)
        found = vmap(jacrev(lambda x, d=direction: d(x)[0]))(x)
        expected = torch.stack([jacobian(lambda x, d=direction: d(x)[0], point) for point in x])
        torch.testing.assert_close(found.reshape(expected.shape), expected)


@pytest.mark.slow
@every_layer_and_context
def test_many_layers_at_once(name, context):
    """`vmap` over parameters, as over draws of weights."""
    case = LAYERS[name]
    layers = [case.layer(context, seed=s) for s in range(3)]
    if not list(layers[0].parameters()):
        return
    values = {n: torch.stack([dict(m.named_parameters())[n] for m in layers]) for n, _ in layers[0].named_parameters()}
    c, x = contexts(context, 4), points(case.shape, 4)

    def run(values, x):
        return functional_call(_Both(layers[0]), {f"layer.{n}": v for n, v in values.items()}, (x, c))

    forward, back = vmap(run, (0, None))(values, x)
    for layer, y, z in zip(layers, forward, back, strict=True):
        torch.testing.assert_close(y, layer(c)(x))
        torch.testing.assert_close(z, x)


class _Both(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, context):
        transform = self.layer(context)
        y, _ = transform.forward_and_log_det(x)
        return y, transform.inverse_and_log_det(y)[0]


@every_layer_and_context
def test_state_dicts_carry_all(name, context):
    case = LAYERS[name]
    layer, other = case.layer(context), case.layer(context, seed=1)
    other.load_state_dict(layer.state_dict())
    c, x = contexts(context, 4), points(case.shape, 4)
    assert torch.equal(layer(c)(x), other(c)(x))


@every_layer
def test_states_can_be_written_in_place(name):
    """As fits and `load_state_dict` do: not into a tensor whose numbers share a place in memory."""
    for value in LAYERS[name].layer().state_dict().values():
        value.copy_(value.clone())


@every_layer_and_context
def test_calls_leave_nothing_on_modules(name, context):
    case = LAYERS[name]
    layer, c, x = case.layer(context), contexts(context, 4), points(case.shape, 4)
    before = {n: set(vars(m)) | set(m._buffers) for n, m in layer.named_modules()}
    transform = layer(c)
    transform.inverse_and_log_det(transform(x).reshape(transform.forward_shape(x.shape)))
    assert {n: set(vars(m)) | set(m._buffers) for n, m in layer.named_modules()} == before
    assert layer(c) is not transform


def test_a_step_of_the_optimizer_moves_densities():
    """The trap of cached log-determinants."""
    layer = LAYERS["plu"].layer()
    x = points((5,), 4)
    before = layer().forward_and_log_det(x)[1]
    with torch.no_grad():
        layer.log_diagonal.add_(1.0)
    torch.testing.assert_close(layer().forward_and_log_det(x)[1], before + 5)
