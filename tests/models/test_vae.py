import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_lvm.models import VAE

LIKELIHOODS = ["bernoulli", "normal"]


def random_rows(N, D, likelihood, dtype=torch.float64):
    return torch.randn(N, D, dtype=dtype) if likelihood == "normal" else torch.randint(2, (N, D)).to(dtype)


def log_normal(value, loc, scale):
    return (-0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum()


def log_likelihood(vae, x, z):
    decoded = vae.decoder(z)
    if vae.likelihood == "normal":
        return log_normal(x, decoded, vae.scale.expand_as(decoded))
    return -binary_cross_entropy_with_logits(decoded, x, reduction="sum")


def encoded(vae, x):
    loc, raw = vae.encoder(x).split(vae.num_latents, -1)
    return loc, torch.exp(7 * torch.tanh(raw / 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("N, L, D", [(5, 2, 3), (1, 2, 3), (4, 1, 1)])
@pytest.mark.parametrize("beta", [1.0, 2.5])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_elbo_and_gradient_at_a_draw(likelihood, beta, N, L, D, dtype, param_setting):
    vae = VAE(D, L, hidden=(8, 4), likelihood=likelihood, beta=beta).to(dtype)
    if likelihood == "normal":
        vae.scale = torch.rand(D) + 0.5
    x = random_rows(N, D, likelihood, dtype)
    torch.manual_seed(1)
    loss = Trace_ELBO().differentiable_loss(vae, vae.guide, x)
    assert loss.dtype == dtype

    torch.manual_seed(1)
    loc, scale = encoded(vae, x)
    z = loc + scale * torch.randn(N, L, dtype=dtype)
    kl = log_normal(z, loc, scale) - log_normal(z, torch.zeros_like(z), torch.ones_like(z))
    expected = beta * kl - log_likelihood(vae, x, z)
    torch.testing.assert_close(loss, expected)
    params = list(vae.parameters())
    for one, other in zip(torch.autograd.grad(loss, params), torch.autograd.grad(expected, params), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4 if dtype == torch.float32 else 1e-8, atol=1e-6)


def test_beta_scales_the_closed_form_divergence():
    vae, plain = VAE(3, 2, hidden=(4,), beta=3.0).double(), VAE(3, 2, hidden=(4,)).double()
    plain.load_state_dict(vae.state_dict())
    x = random_rows(4, 3, "bernoulli")
    losses = []
    for model in (vae, plain):
        torch.manual_seed(1)
        with pyro.get_param_store().scope():
            losses.append(TraceMeanField_ELBO().loss(model, model.guide, x))
    loc, scale = encoded(vae, x)
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum().item()
    assert losses[0] - losses[1] == pytest.approx(2 * kl, rel=1e-10)


def test_a_linear_vae_with_one_latent_is_exact():
    """Its posterior is a normal of one dimension: with the right encoder the ELBO is log p(x) at every draw."""
    N, D, noise = 6, 4, 0.3
    loading, loc = torch.randn(D, 1).double(), torch.randn(D).double()
    precision = (loading**2).sum() / noise + 1

    class Encoder(nn.Module):
        def forward(self, x):
            log_scale = -0.5 * precision.log()
            raw = 7 * torch.atanh(log_scale / 7)
            z_loc = (x - loc) @ loading / noise / precision
            return torch.cat([z_loc, raw.expand_as(z_loc)], -1)

    decoder = nn.Linear(1, D).double()
    decoder.weight.data, decoder.bias.data = loading, loc
    vae = VAE(D, 1, likelihood="normal", encoder=Encoder(), decoder=decoder).double()
    vae.scale = torch.full((D,), math.sqrt(noise))
    x = torch.randn(N, D).double()
    covariance = loading @ loading.T + noise * torch.eye(D).double()
    expected = torch.distributions.MultivariateNormal(loc, covariance).log_prob(x).sum().item()
    for _ in range(3):
        assert -Trace_ELBO().loss(vae, vae.guide, x) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_vectorized_particles(likelihood, param_setting):
    vae = VAE(3, 2, hidden=(8,), likelihood=likelihood).double()
    x = random_rows(5, 3, likelihood)
    one = Trace_ELBO(4000, max_plate_nesting=1, vectorize_particles=True).loss(vae, vae.guide, x)
    draws = torch.tensor([Trace_ELBO().loss(vae, vae.guide, x) for _ in range(300)])
    assert one == pytest.approx(draws.mean().item(), abs=5 * draws.std().item() / math.sqrt(300))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_maps_and_traces(likelihood, param_setting, check_transforms):
    vae = VAE(3, 2, hidden=(4,), likelihood=likelihood).double()
    vae.eval()  # or pyro.module warns of the plain tensors that stand in for parameters
    check_transforms(vae, {"z": torch.randn(4, 5, 2).double()}, random_rows(5, 3, likelihood))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_fit_by_plain_pyro_moves_every_parameter(likelihood, param_setting):
    z = torch.randn(100, 1)
    x = torch.cat([z, -z, 2 * z], -1) + 0.1 * torch.randn(100, 3)
    x = x if likelihood == "normal" else (x > 0).float()
    vae = VAE(3, 1, hidden=(8,), likelihood=likelihood)
    before = {name: value.detach().clone() for name, value in vae.named_parameters()}
    if param_setting:  # where Pyro's SVI fails on plain modules, and this is its way
        loss = Trace_ELBO()(vae, vae.guide)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)

        def step():
            optimizer.zero_grad()
            value = loss(x)
            value.backward()
            optimizer.step()
            return value.item()
    else:
        svi = SVI(vae, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())

        def step():
            return svi.step(x)

    losses = [step() for _ in range(250)]
    assert sum(losses[-20:]) < (0.7 if likelihood == "bernoulli" else 0.8) * sum(losses[:20])
    for name, value in vae.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_sites_and_plates():
    vae = VAE(3, 2, hidden=(4,))
    x = random_rows(5, 3, "bernoulli", torch.float32)
    for function, expected in ((vae, ["z", "x"]), (vae.guide, ["z"])):
        trace = poutine.trace(function).get_trace(x)
        samples = [name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "rows"]
        assert samples == expected
        (plate,) = trace.nodes["z"]["cond_indep_stack"]
        assert (plate.name, plate.size) == ("rows", 5)


def test_encode_and_decode_leave_the_param_store_alone():
    vae = VAE(3, 2, hidden=(4,))
    vae.decode(vae.encode(torch.ones(2, 3))[0])
    assert len(pyro.get_param_store()) == 0


def test_hidden_widths_are_reversed_in_the_decoder():
    vae = VAE(6, 2, hidden=(5, 4))
    shapes = {name: tuple(value.shape) for name, value in vae.named_parameters() if name.endswith("weight")}
    assert list(shapes.values()) == [(5, 6), (4, 5), (4, 4), (4, 2), (5, 4), (6, 5)]
    assert "scale_unconstrained" in dict(VAE(6, 2, likelihood="normal").named_parameters())


def test_log_scales_are_bounded_smoothly():
    class Encoder(nn.Module):
        def forward(self, x):
            return torch.cat([x, 100 * x], -1)

    vae = VAE(1, 1, encoder=Encoder()).double()
    x = torch.tensor([[-1e3], [1e3], [0.0], [1e-3], [0.3]], dtype=torch.float64, requires_grad=True)
    _, scale = vae.encode(x)
    assert scale.isfinite().all()
    torch.testing.assert_close(scale[:2, 0].log(), torch.tensor([-7.0, 7.0]).double())
    torch.testing.assert_close(scale[2:4, 0].log(), torch.tensor([0.0, 0.1]).double(), rtol=1e-3, atol=1e-12)
    (gradient,) = torch.autograd.grad(scale[4].log().sum(), x)
    assert gradient[4] > 0.01  # raw value 30: beyond the bound, and a hard clamp would give zero


def test_integers_and_booleans_are_rows_too():
    vae = VAE(3, 2, hidden=(4,))
    x = torch.randint(2, (5, 3))
    losses = []
    for rows in (x, x.bool(), x.float()):
        torch.manual_seed(1)
        losses.append(Trace_ELBO().loss(vae, vae.guide, rows))
    assert losses[0] == losses[1] == losses[2]


def test_grey_values_are_refused_by_validation():
    vae = VAE(3, 2, hidden=(4,))
    with pytest.raises(ValueError, match="Expected value argument"):
        Trace_ELBO().loss(vae, vae.guide, torch.full((5, 3), 0.5))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"num_features": 0}, ValueError, "num_features must be a positive integer; got 0"),
        ({"num_latents": 1.0}, TypeError, "num_latents must be a positive integer; got 1.0"),
        ({"hidden": 64}, TypeError, "hidden: expected a sequence of layer widths"),
        ({"hidden": (0,)}, ValueError, "hidden: expected positive integers, got 0"),
        ({"likelihood": "poisson"}, ValueError, "likelihood: expected one of 'bernoulli', 'normal', got 'poiss"),
        ({"beta": 0.0}, ValueError, "beta: expected a positive number, got 0.0"),
        ({"beta": "1"}, TypeError, "beta: expected a positive number, got '1'"),
        ({"encoder": "mlp"}, TypeError, "encoder: expected a torch module or None, got 'mlp'"),
        ({"decoder": nn.ReLU}, TypeError, "decoder: expected a torch module or None, got <class"),
    ],
)
def test_constructor_refuses_wrong_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        VAE(**{"num_features": 3, "num_latents": 2, **kwargs})


def test_outputs_of_other_networks_are_checked():
    x = torch.ones(5, 3)
    vae = VAE(3, 2, encoder=nn.Linear(3, 2), decoder=nn.Linear(2, 4))
    with pytest.raises(ValueError, match=r"encoder: expected an output of shape \[5, 4\].*got \[5, 2\]"):
        vae.guide(x)
    with pytest.raises(ValueError, match=r"decoder: expected an output of shape \[5, 3\].*got \[5, 4\]"):
        vae(x)


@pytest.mark.parametrize("part", ["model", "guide"])
def test_wrong_rows_are_refused(part):
    vae = VAE(3, 2)
    function = vae if part == "model" else vae.guide
    with pytest.raises(ValueError, match=r"x: expected shape \[N, 3\], got \[4, 2\]"):
        function(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="the dtype of the model, got torch"):
        function(torch.zeros(4, 3).double())
