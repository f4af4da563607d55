"""Densities by flows: maximum likelihood against closed forms, and the duality of both divergences."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_lvm as lvm
from pyro_lvm.flows import MAF, NSF, Flow, LinearFlow, as_flow
from pyro_lvm.models import FlowDensity
from pyro_lvm.transforms import (
    ActNorm,
    ImageCoupling,
    Permutation,
    PLULinear,
    Transform,
    channel_mask,
    checkerboard_mask,
)

from .. import zuko_flows
from ..flows.test_flows import flow_of


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(600, 3, generator=generator) @ torch.randn(3, 3, generator=generator) + 2.0


@pytest.mark.parametrize(
    "flow",
    [lambda: LinearFlow(3), lambda: Flow([ActNorm(3), PLULinear(3)], 3), lambda: zuko_flows.MAF(3, transforms=1)],
)
def test_linear_flows_end_at_the_normal_of_largest_likelihood(rows, flow):
    """An affine autoregressive layer of zuko is no worse than that."""
    torch.manual_seed(0)
    model = FlowDensity(flow())
    lvm.fit(model, None, rows, num_steps=600, optim=0.03, progress=False)
    best = MultivariateNormal(rows.mean(0), rows.mT.cov(correction=0)).log_prob(rows).mean()
    found = model.log_prob(rows).mean()
    assert found > best - 5e-3
    if isinstance(model.flow, Flow):
        assert found < best + 1e-4


def test_regression_by_a_flow_with_context():
    """A normal whose mean and scale are known functions of the context."""
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(2_000, 1, generator=generator) * 4 - 2
    x = 3 * context + (context / 2).exp() * torch.randn(2_000, 1, generator=generator)
    torch.manual_seed(0)
    model = FlowDensity(MAF(1, 1, (32,), context=1))
    result = lvm.fit(model, None, x, context, num_steps=1_500, progress=False)
    exact = torch.distributions.Normal(3 * context, (context / 2).exp()).log_prob(x).mean()
    assert model.log_prob(x, context).mean() == pytest.approx(exact.item(), abs=0.02)
    assert -result.losses[-1] / len(x) == pytest.approx(exact.item(), abs=0.02)
    draws = model.sample(4_000, context=torch.tensor([[1.0], [-1.0]]))
    assert draws.shape == (4_000, 2, 1)
    error = torch.tensor([math.exp(0.5), math.exp(-0.5)]) / 4_000**0.5
    assert ((draws.mean(0).flatten() - torch.tensor([3.0, -3.0])).abs() < 5 * error + 0.1).all()


@pytest.mark.parametrize("name", ["maf", "real-nvp", "nsf", "plu", "planar", "sylvester"])
def test_forward_divergence_in_data_space_is_reverse_divergence_in_latent_space(name):
    """Papamakarios et al. (2021), equation 21: values and gradients, draw by draw."""
    flow = flow_of(name, 3)
    parameters = list(flow.parameters())
    data = MultivariateNormal(torch.zeros(3).double(), 2 * torch.eye(3).double())
    x = data.sample((50,))
    forward = (data.log_prob(x) - flow().log_prob(x)).mean()

    transform = flow.stack()
    u = transform.inv(x)  # draws of the data's distribution in latent space
    pushed = data.log_prob(transform(u)) + transform.log_abs_det_jacobian(u, None)
    base = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
    reverse = (pushed - base.log_prob(u)).mean()
    torch.testing.assert_close(forward, reverse)
    for one, other in zip(
        *(torch.autograd.grad(v, parameters, allow_unused=True) for v in (forward, reverse)), strict=True
    ):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_fit_of_a_density_is_a_fit_of_the_inverse_flow_as_guide():
    """The loss of the density, and minus the ELBO of a standard normal model whose guide sends the data back."""
    flow = flow_of("real-nvp", 2)
    data = dist.Normal(torch.ones(2).double(), 0.5).to_event(1)

    def model():
        pyro.sample("u", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    def guide():
        pyro.module("flow", flow)
        pyro.sample("u", dist.TransformedDistribution(data, [flow.stack().inv]))

    objective = lvm.Objective(model, guide, lvm.elbo.Trace_ELBO(4_000))
    params = objective.init()
    with torch.no_grad():
        reverse = objective(params, ())
        x = data.sample((4_000,))
        terms = data.log_prob(x) - flow().log_prob(x)
    error = terms.std() / len(x) ** 0.5
    assert (reverse - terms.mean()).abs() < 5 * 2**0.5 * error


@pytest.mark.parametrize("context", [0, 2])
def test_flows_of_zuko_are_ours(context):
    torch.manual_seed(0)
    theirs = zuko_flows.NSF(3, context, transforms=2, hidden_features=(8,)).double()
    ours = as_flow(theirs)
    c = torch.randn(5, context).double() if context else None
    density, expected = ours(c), theirs(c)
    x = torch.randn(5, 3).double()
    torch.testing.assert_close(density.log_prob(x), expected.log_prob(x))
    draws, log_prob = density.rsample_and_log_prob((4,))
    torch.testing.assert_close(log_prob, expected.log_prob(draws), rtol=1e-6, atol=1e-6)
    assert isinstance(density.transform, Transform)
    assert as_flow(ours) is ours


def test_a_density_is_saved_and_predicts(rows, tmp_path):
    torch.manual_seed(0)
    model = FlowDensity(NSF(3, 1, hidden=(8,)))
    result = lvm.fit(model, None, rows, num_steps=5, progress=False)
    result.save(tmp_path / "fit")
    other = FlowDensity(NSF(3, 1, hidden=(8,)))
    lvm.load(tmp_path / "fit", other, None, rows)
    torch.testing.assert_close(other.log_prob(rows), model.log_prob(rows))
    torch.testing.assert_close(result.score(rows).value.float(), model.log_prob(rows))
    assert torch.equal(model.sample(4, seed=3), model.sample(4, seed=3))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: FlowDensity(3), TypeError, "flow: expected a flow of pyro_lvm or of zuko, got int"),
        (lambda: FlowDensity(torch.nn.Linear(2, 2)), TypeError, "flow: expected a flow"),
        (
            lambda: FlowDensity(MAF(3)).log_prob(torch.ones(4, 2)),
            ValueError,
            r"x: expected shape \[N, 3\], got \[4, 2\]",
        ),
        (lambda: FlowDensity(MAF(3)).log_prob(torch.ones(3)), ValueError, r"x: expected shape \[N, 3\], got \[3\]"),
        (lambda: FlowDensity(MAF(3)).log_prob(torch.ones(4, 3).double()), ValueError, "expected torch.float32"),
        (lambda: FlowDensity(MAF(3))("x"), TypeError, "x: expected a tensor"),
        (lambda: FlowDensity(MAF(3)).sample(), ValueError, "num_rows: expected a number"),
        (
            lambda: FlowDensity(MAF(3)).log_prob(torch.ones(4, 3), torch.ones(4, 1)),
            ValueError,
            "context: expected none",
        ),
        (lambda: FlowDensity(MAF(3, context=1)).log_prob(torch.ones(4, 3)), ValueError, "got none"),
        (
            lambda: FlowDensity(MAF(3, context=1)).log_prob(torch.ones(4, 3), torch.ones(5, 1)),
            ValueError,
            "context: expected 4 rows",
        ),
    ],
)
def test_wrong_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("mask", [checkerboard_mask(2, 4, 4), channel_mask(2, 4, 4)])
def test_couplings_of_images_are_densities_of_images(mask):
    torch.manual_seed(0)
    model = FlowDensity(Flow([ImageCoupling(mask), ImageCoupling(~mask)], (2, 4, 4)))
    x = torch.rand(20, 2, 4, 4)
    result = lvm.fit(model, None, x, num_steps=5, progress=False)
    assert result.losses.isfinite().all()
    assert model.sample(3).shape == (3, 2, 4, 4)


def test_a_loaded_density_is_not_started_anew():
    """As other models: what was loaded is where the next fit begins."""
    torch.manual_seed(0)
    first, second = (FlowDensity(Flow([ActNorm(2)], 2)) for _ in range(2))
    first.initialize(torch.randn(50, 2) + 7)
    second.load_state_dict(first.state_dict())
    lvm.fit(second, None, torch.randn(50, 2), num_steps=1, optim=1e-9, progress=False)
    for old, new in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)


def test_a_flow_that_was_trained_is_not_started_anew_by_another_density(rows):
    flow = lvm.flows.Flow([ActNorm(3)], 3)
    first = FlowDensity(flow).initialize(rows)
    assert first.initialized
    assert FlowDensity(flow).initialized
    assert not FlowDensity(lvm.flows.Flow([ActNorm(3)], 3)).initialized


def test_a_flow_without_parameters_has_a_density():
    density = FlowDensity(lvm.flows.Flow([Permutation([1, 0])], 2))
    torch.testing.assert_close(density.log_prob(torch.zeros(3, 2)), torch.full((3,), -math.log(2 * math.pi)))
