"""What Pyro's own tests ask of its transforms, asked of every layer through the interfaces that Pyro has for them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.infer import SVI, Trace_ELBO

from tests.transforms.registry import CONTEXT, LAYERS
from tests.transforms.test_layers import SEES_NOTHING, contexts, points

every_layer_and_context = pytest.mark.parametrize(
    "name, context",
    [
        *((n, CONTEXT if case.takes_context else 0) for n, case in LAYERS.items()),
        *(pytest.param(n, 0, marks=pytest.mark.slow) for n, case in LAYERS.items() if case.takes_context),
    ],
)


class Conditional(ConditionalTransformModule):
    """A layer as Pyro's transforms with a context are."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.domain = self.codomain = layer(torch.zeros(layer.context).double()).domain

    def condition(self, context):
        return self.layer(context)


def transform_of(name, context):
    """A transform as Pyro's checks are given it: with a context, at one that goes with all points."""
    layer = LAYERS[name].layer(context)
    return Conditional(layer).condition(contexts(context, 1)) if context else layer()


def normal(*shape, event_dim=0):
    return dist.Normal(torch.zeros(shape, dtype=torch.float64), 1.0).to_event(event_dim)


@every_layer_and_context
def test_inverse(name, context):
    """By the two methods that no cache stands before."""
    case, transform = LAYERS[name], transform_of(name, context)
    assert transform.bijective
    x = normal(*case.shape).sample((10,))
    y = transform._call(x)
    again = transform._inverse(y)
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-8)
    one, other = (transform.log_abs_det_jacobian(origin, y) for origin in (x, again))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, x), -one)


@every_layer_and_context
def test_shapes(name, context):
    """Of draws with batch shapes, and as the transform foretells them."""
    case, transform = LAYERS[name], transform_of(name, context)
    event_dim = len(case.shape)
    assert transform.domain.event_dim == transform.codomain.event_dim == event_dim
    for batch in [(3,), (3, 2)]:
        base = normal(*batch, *case.shape)
        pushed = dist.TransformedDistribution(base, [transform])
        y = pushed.sample()
        assert y.shape == pushed.shape() == transform.forward_shape(base.shape())
        assert pushed.batch_shape == batch
        assert pushed.log_prob(y).shape == batch
        assert transform.inverse_shape(y.shape) == transform._inverse(y).shape == base.shape()


@every_layer_and_context
def test_jacobian(name, context):
    """By central differences; bends of a network between their points would tell."""
    case, transform, step = LAYERS[name], transform_of(name, context), 1e-6
    x = normal(*case.shape).sample()
    D = x.numel()
    steps = step / 2 * torch.eye(D, dtype=x.dtype).reshape(D, *case.shape)
    with torch.no_grad():
        slopes = (transform(x + steps) - transform(x - steps)).flatten(1) / step
        found = transform.log_abs_det_jacobian(x, transform(x)).squeeze()
    torch.testing.assert_close(found, slopes.slogdet().logabsdet, rtol=0, atol=1e-6)


@every_layer_and_context
def test_maximum_likelihood(name, context):
    """`pyro.module` registers all parameters, SVI trains each, and the loss is one that goes down."""
    case = LAYERS[name]
    layer = case.layer(context)
    if not list(layer.parameters()):
        assert name in ("permutation", "squeeze")
        return
    c, event_dim = contexts(context, 20), len(case.shape)
    x = 0.5 * points(case.shape, 20) + 0.3

    def model():
        pyro.module("layer", layer)
        base = normal(*case.shape, event_dim=event_dim)
        if context:
            pushed = dist.ConditionalTransformedDistribution(base, [Conditional(layer)]).condition(c)
        else:
            pushed = dist.TransformedDistribution(base, [layer()])
        with pyro.plate("rows", len(x)):
            pyro.sample("x", pushed, obs=x)

    before = {key: value.detach().clone() for key, value in layer.named_parameters()}
    with pyro.get_param_store().scope():
        svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        losses = [svi.step() for _ in range(3)]
        assert len(pyro.get_param_store()) == len(before)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    for key, value in layer.named_parameters():
        assert not torch.equal(value, before[key]) or key in SEES_NOTHING.get(name, ()), key


def test_draws_of_a_conditional_distribution_are_those_of_their_contexts():
    layer = LAYERS["autoregressive-affine"].layer(CONTEXT)
    pushed = dist.ConditionalTransformedDistribution(normal(2, 5, event_dim=1), [Conditional(layer)])
    c = contexts(CONTEXT, 2)
    torch.manual_seed(3)
    draws = pushed.condition(c).sample((4,))
    torch.manual_seed(3)
    x = normal(2, 5).sample((4,))
    assert draws.shape == (4, 2, 5)
    for j in range(2):
        torch.testing.assert_close(draws[:, j], layer(c[j])(x[:, j]))
