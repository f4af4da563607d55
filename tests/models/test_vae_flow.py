"""VAEs whose guides a flow bends."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_lvm as lvm
from pyro_lvm.flows import IAF, NSF, LinearFlow
from pyro_lvm.models import VAE

from .. import zuko_flows

FLOWS = {
    "iaf": lambda L, C: IAF(L, 2, (8,), context=C),
    "nsf": lambda L, C: NSF(L, 2, 4, coupling=True, hidden=(8,), context=C),
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("context", [0, 3])
def test_starts_near_the_normal_guide_and_every_parameter_moves_it(name, context):
    torch.manual_seed(0)
    vae = VAE(5, 2, hidden=(8,), flow=FLOWS[name](2, context)).double()
    x = torch.randint(2, (6, 5)).double()
    density = poutine.trace(vae.guide).get_trace(x).nodes["z"]["fn"]
    loc, scale = vae.encode(x)
    z = loc + scale * torch.randn(6, 2).double()
    assert density.batch_shape == (6,)
    torch.testing.assert_close(density.log_prob(z), dist.Normal(loc, scale).to_event(1).log_prob(z), rtol=0, atol=0.2)
    loss = Trace_ELBO().differentiable_loss(vae, vae.guide, x)
    for key, gradient in zip(
        dict(vae.named_parameters()), torch.autograd.grad(loss, list(vae.parameters())), strict=True
    ):
        assert gradient.isfinite().all(), key
        assert (gradient != 0).any(), key


def test_a_linear_flow_makes_a_linear_vae_exact():
    """The posterior of two latents has a correlation, which the flow holds: the ELBO is log p(x) at every draw."""
    torch.manual_seed(0)
    N, D, noise = 6, 4, 0.3
    loading, loc = torch.randn(D, 2).double(), torch.randn(D).double()
    covariance = torch.linalg.inv(loading.mT @ loading / noise + torch.eye(2).double())

    class Encoder(nn.Module):
        def forward(self, x):
            z_loc = (x - loc) @ loading @ covariance / noise
            return torch.cat([z_loc, torch.zeros_like(z_loc)], -1)

    decoder = nn.Linear(2, D).double()
    decoder.weight.data, decoder.bias.data = loading, loc
    flow = LinearFlow(2)
    vae = VAE(D, 2, likelihood="normal", encoder=Encoder(), decoder=decoder, flow=flow).double()
    vae.scale = torch.full((D,), math.sqrt(noise))
    tril = torch.linalg.cholesky(covariance)
    plu, diagonal = flow.stack.layers[0], tril.diagonal()
    with torch.no_grad():
        plu.lower.copy_(tril / diagonal)
        plu.log_diagonal.copy_(diagonal.log())
    x = torch.randn(N, D).double()
    total = loading @ loading.mT + noise * torch.eye(D).double()
    expected = torch.distributions.MultivariateNormal(loc, total).log_prob(x).sum().item()
    for _ in range(3):
        assert -Trace_ELBO().loss(vae, vae.guide, x) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", FLOWS)
def test_context_of_a_row_bends_its_posterior_alone(name):
    torch.manual_seed(0)
    vae = VAE(5, 2, hidden=(8,), flow=FLOWS[name](2, 3)).double()
    for parameter in vae.flow.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    x, z = torch.randint(2, (6, 5)).double(), torch.randn(6, 2).double()

    def log_prob(x, z):
        return poutine.trace(vae.guide).get_trace(x).nodes["z"]["fn"].log_prob(z)

    together = log_prob(x, z)
    for i in range(6):
        torch.testing.assert_close(log_prob(x[i : i + 1], z[i : i + 1]), together[i : i + 1])
    loc, scale = vae.encode(x)
    with torch.no_grad():
        vae.encoder[-1].weight[4:] += 1.0  # of the context
    assert torch.equal(vae.encode(x)[0], loc)
    assert torch.equal(vae.encode(x)[1], scale)
    assert (log_prob(x, z) - together).abs().min() > 1e-6


def test_a_fit_scores_and_samples_like_any_other():
    torch.manual_seed(0)
    x = (torch.randn(60, 1) * torch.ones(5) + 0.5 * torch.randn(60, 5) > 0).float()
    vae = VAE(5, 2, hidden=(8,), flow=FLOWS["iaf"](2, 3))
    result = lvm.fit(vae, None, x, num_steps=60, batch_size=20, optim=0.01, progress=False)
    assert result.losses[-10:].mean() < result.losses[:10].mean()
    assert result.sample(4)["z"].shape == (4, 60, 2)
    assert result.posterior(x[:3])["z"].sample().shape == (3, 2)
    bound = -Trace_ELBO(200, vectorize_particles=True, max_plate_nesting=1).loss(vae, vae.guide, x)
    assert result.score(x).value.sum() > bound - 1


def test_many_particles_agree_with_one():
    torch.manual_seed(0)
    vae = VAE(3, 2, hidden=(8,), flow=FLOWS["nsf"](2, 2)).double()
    x = torch.randint(2, (5, 3)).double()
    one = Trace_ELBO(4000, max_plate_nesting=1, vectorize_particles=True).loss(vae, vae.guide, x)
    draws = torch.tensor([Trace_ELBO().loss(vae, vae.guide, x) for _ in range(300)])
    assert one == pytest.approx(draws.mean().item(), abs=5 * draws.std().item() / math.sqrt(300))


def test_flows_of_zuko_take_what_the_encoder_leaves():
    flow = zuko_flows.MAF(2, context=3, transforms=1, hidden_features=(8,))
    vae = VAE(5, 2, encoder=nn.Linear(5, 7), flow=flow)
    x = torch.ones(4, 5)
    assert poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"].shape == (4, 2)
    plain = VAE(5, 2, hidden=(8,), flow=zuko_flows.MAF(2, transforms=1, hidden_features=(8,)))
    assert poutine.trace(plain.guide).get_trace(x).nodes["z"]["value"].shape == (4, 2)


def test_what_does_not_fit_is_refused():
    x = torch.ones(4, 5)
    with pytest.raises(TypeError, match="flow: expected a flow of pyro_lvm or of zuko, got str"):
        VAE(5, 2, flow="iaf")
    with pytest.raises(ValueError, match="flow: expected 2 features, one a latent, got \\[3\\]"):
        VAE(5, 2, flow=IAF(3))
    with pytest.raises(ValueError, match=r"output of shape \[4, 7\] \(loc and log-scale, and 3 numbers for the flow\)"):
        VAE(5, 2, encoder=nn.Linear(5, 4), flow=IAF(2, context=3)).guide(x)


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones():
    x = torch.randint(2, (40, 5), generator=torch.Generator().manual_seed(0)).float()
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = VAE(5, 2, hidden=(8,), flow=FLOWS["iaf"](2, 3))
        options = {"num_steps": 30, "batch_size": 20, "compile": compile, "progress": False}
        losses.append(lvm.fit(vae, None, x, **options).losses)
    assert losses[0].isfinite().all()
    assert (losses[1] - losses[0]).mean().abs() < 5 * losses[0].std() / 30**0.5
