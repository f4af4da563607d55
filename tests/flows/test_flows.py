"""What holds for every flow."""

import math

import numpy as np
import pyro
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.flows import IAF, MAF, NSF, Flow, LinearFlow, Planar, RealNVP, Sylvester
from pyro_lvm.transforms import ActNorm, Conv1x1, ImageCoupling, PLULinear, Squeeze, Stack, checkerboard_mask

FLOWS = {
    "maf": lambda D, c: MAF(D, 2, (8, 8), c),
    "maf-residual": lambda D, c: MAF(D, 2, (8, 8), c, residual=True),
    "iaf": lambda D, c: IAF(D, 2, (8, 8), c),
    "real-nvp": lambda D, c: RealNVP(D, 2, (8, 8), c),
    "nsf": lambda D, c: NSF(D, 2, 4, 4.0, hidden=(8, 8), context=c),
    "nsf-coupling": lambda D, c: NSF(D, 2, 4, 4.0, coupling=True, hidden=(8, 8), context=c),
    "plu": lambda D, c: LinearFlow(D, "plu", c, (8,)),
    "qr": lambda D, c: LinearFlow(D, "qr", c, (8,)),
    "planar": lambda D, c: Planar(D, 2, c, (8,)),
    "sylvester": lambda D, c: Sylvester(D, 2, context=c, hidden=(8,)),
}


def flow_of(name, num_features, context=0, spread=0.3):
    """A flow with random parameters, in double precision."""
    torch.manual_seed(0)
    flow = FLOWS[name](num_features, context)
    for parameter in flow.parameters():
        width = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.data.add_(spread * torch.randn_like(parameter) / width**0.5)
    return flow.double()


@pytest.mark.parametrize("name", [name for name in FLOWS if name not in ("real-nvp", "nsf-coupling")])
def test_densities_of_one_number_integrate_to_one(name):
    x = torch.linspace(-40, 40, 8_001).double()
    with torch.no_grad():
        total = torch.trapezoid(flow_of(name, 1)().log_prob(x.unsqueeze(-1)).exp(), x)
    assert total.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_densities_of_two_numbers_integrate_to_one(name):
    reach = 6.0 if name.startswith("nsf") else 16.0  # splines end at 4, and bend sharply before
    x = torch.linspace(-reach, reach, 321).double()
    grid = torch.cartesian_prod(x, x)
    with torch.no_grad():
        density = flow_of(name, 2)().log_prob(grid).exp().reshape(321, 321)
    assert torch.trapezoid(torch.trapezoid(density, x), x).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", FLOWS)
def test_draws_have_the_densities_that_come_with_them(name, context):
    flow = flow_of(name, 4, context)
    c = torch.randn(5, context).double() if context else None
    density = flow(c)
    assert density.event_shape == (4,)
    assert density.batch_shape == (() if c is None else (5,))
    draws, log_prob = density.rsample_and_log_prob((6,))
    assert draws.shape == (6, *density.batch_shape, 4)
    torch.testing.assert_close(density.log_prob(draws.detach()), log_prob)
    last = density.rsample()
    torch.testing.assert_close(density.log_prob(last), flow(c).log_prob(last))
    assert density.sample((2, 3)).shape == (2, 3, *density.batch_shape, 4)
    assert not density.sample().requires_grad


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_through_a_draw_are_those_of_its_density(name):
    """The density that is remembered with a draw, and one computed anew, have the same total derivative."""
    gradients = []
    for remembers in (True, False):
        flow = flow_of(name, 3)
        torch.manual_seed(1)
        density = flow()
        draw = density.rsample((4,))
        (density if remembers else flow()).log_prob(draw).sum().backward()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in flow.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_densities_of_draws_do_not_pass_through_their_rounding():
    """Draws from very near one point are that point, from which no way leads back to all."""
    torch.manual_seed(0)
    flow = Flow([ActNorm(2)], 2)
    with torch.no_grad():
        flow.stack.layers[0].loc.fill_(3.0)
        flow.stack.layers[0].log_scale.fill_(-20.0)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            density = flow()
            log_prob = density.log_prob(density.rsample((50,)))
        squares = 2 * (40 - math.log(2 * math.pi) - log_prob)  # chi squared with two degrees of freedom
        assert (squares > -1e-4).all()
        assert abs(squares.mean().item() - 2) < 4 * 2 / 50**0.5


def test_linear_flows_are_normal():
    flow = flow_of("plu", 3)
    with torch.no_grad():
        transform = flow.stack()
        columns = transform(torch.eye(3).double()) - transform(torch.zeros(3).double())
        normal = torch.distributions.MultivariateNormal(flow.stack.layers[0].loc, columns.mT @ columns)
        x = torch.randn(20, 3).double()
        torch.testing.assert_close(flow().log_prob(x), normal.log_prob(x))


def test_flows_are_priors_and_likelihoods_in_pyro():
    """With plates, which expand them."""
    flow = flow_of("maf", 2)

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", flow(), obs=x)

    x = torch.randn(7, 2).double()
    trace = pyro.poutine.trace(model).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), flow().log_prob(x).sum())


def test_maximum_likelihood_of_a_linear_flow_is_the_normal_of_the_moments():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]]) + 3.0
    flow = LinearFlow(2)

    def model(x):
        pyro.module("flow", flow)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", flow(), obs=x)

    lvm.fit(model, None, x, num_steps=1_500, optim=0.02, compile=False, progress=False)
    best = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0)).log_prob(x).mean()
    assert flow().log_prob(x).mean().item() == pytest.approx(best.item(), abs=1e-3)


def test_images():
    torch.manual_seed(0)
    layers = [
        ImageCoupling(checkerboard_mask(4, 2, 2)),
        ActNorm(4, images=True),
        Conv1x1(4),
        Squeeze(),
        ImageCoupling(~checkerboard_mask(1, 4, 4)),
    ]
    flow = Flow(layers, (4, 2, 2))
    data = 5 + 2 * torch.randn(50, 1, 4, 4)
    flow.initialize(data)
    density = flow()
    assert density.event_shape == (1, 4, 4)
    draws, log_prob = density.rsample_and_log_prob((3,))
    torch.testing.assert_close(density.log_prob(draws.detach()), log_prob, atol=1e-4, rtol=1e-4)
    assert density.log_prob(data).mean() > Flow(layers[:1] + layers[3:], (4, 2, 2))().log_prob(data).mean()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: RealNVP(1), ValueError, "at least two"),
        (lambda: NSF(1, coupling=True), ValueError, "at least two"),
        (lambda: MAF(3, 0), ValueError, "num_transforms"),
        (lambda: MAF(2.5), TypeError, "num_features"),
        (lambda: MAF(3, hidden=(4, 8), residual=True), ValueError, "one width"),
        (lambda: LinearFlow(3, "svd"), ValueError, "expected one of"),
        (lambda: Sylvester(2, num_planes=3), ValueError, "at most"),
        (lambda: NSF(2, num_bins=1_000), ValueError, "less than"),
        (lambda: NSF(2, bound=0.0), ValueError, "positive"),
        (lambda: Flow([], 2), ValueError, "expected some"),
        (lambda: Flow([PLULinear(2)], (1, 2, 2)), ValueError, "expected a number of features"),
        (lambda: Flow([PLULinear(2), Squeeze()], 2), ValueError, "all of vectors"),
        (lambda: MAF(2, context=3)(), ValueError, "got none"),
        (lambda: MAF(2)(torch.zeros(3)), ValueError, "takes none"),
    ],
)
def test_what_makes_no_flow_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# What a distribution remembers ------------------------------------------------------------------------------------


def test_a_draw_that_is_changed_is_not_remembered():
    density = flow_of("maf", 3)()
    draw = density.sample((5,))
    same = density.log_prob(draw)
    draw.add_(0.5)
    torch.testing.assert_close(density.log_prob(draw), density.log_prob(draw.clone()))
    assert (density.log_prob(draw) - same).abs().min() > 1e-3


def test_a_draw_without_gradients_has_a_density_with_some():
    flow = flow_of("maf", 3)
    density = flow()
    draw = density.sample((5,))
    assert density.log_prob(draw).requires_grad


def test_flows_work_in_inference_mode():
    flow = flow_of("nsf", 3)
    with torch.inference_mode():
        density = flow()
        draws = density.sample((5,))
        assert density.log_prob(draws).isfinite().all()
    assert lvm.models.FlowDensity(flow).sample(4).shape == (4, 3)


# Shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("shape", [(5, 4), (5, 1), (5, 2), (), (4,)])
def test_values_of_another_width_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"value: expected shape \[\*, 3\]"):
        flow_of(name, 3)().log_prob(torch.zeros(shape).double())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flow([ActNorm(3)], 1),
        lambda: Flow([ActNorm(3)], 2),
        lambda: Flow([Planar(3).stack.layers[0]], 1),
        lambda: Flow([PLULinear(3)], 2),
        lambda: Flow([ActNorm(3, images=True)], (1, 2, 2)),
        lambda: Flow([Squeeze()], (1, 3, 3)),
    ],
)
def test_layers_of_another_width_are_refused(make):
    with pytest.raises(ValueError, match=r"shape: .* does not fit the layers"):
        make()


@pytest.mark.parametrize(
    "context, error, message",
    [
        ([0.0, 1.0], TypeError, "context: expected a tensor, got list"),
        (torch.tensor(1.0), ValueError, "context: expected shape"),
        (torch.zeros(4, 2, dtype=torch.float64), ValueError, "context: expected torch.float32"),
    ],
)
@pytest.mark.parametrize("name", ["maf", "real-nvp", "plu"])
def test_wrong_contexts_are_refused(name, context, error, message):
    with pytest.raises(error, match=message):
        FLOWS[name](3, 2)(context)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("context, error", [(-1, ValueError), (1.5, TypeError)])
def test_sizes_of_contexts_are_integers(name, context, error):
    with pytest.raises(error, match="context must be an integer, 0 or more"):
        FLOWS[name](3, context)


def test_sizes_of_numpy_are_sizes():
    assert RealNVP(np.int64(3))().event_shape == (3,)


# Starts from data -------------------------------------------------------------------------------------------------


def test_layers_within_a_stack_start_from_data_too():
    flow = Flow([Stack([PLULinear(2), ActNorm(2)]), PLULinear(2)], 2)
    data = 3 + 2 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    flow.initialize(data)
    base = flow().transform.inv(data)
    torch.testing.assert_close(base.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(base.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-5)


def test_a_constant_feature_starts_at_a_finite_scale():
    layer = ActNorm(2)
    layer.initialize(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert layer.log_scale.isfinite().all()
    assert layer().inv(torch.tensor([[2.0, 5.0]])).tolist() == [[0.0, 0.0]]
