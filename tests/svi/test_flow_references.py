"""Flow guides against exact posteriors that a mean-field guide gets wrong."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

from .compiled_programs import eight_schools


def fitted(model, guide, *data, num_steps, num_particles):
    """A fit with steps that shrink, and many draws in each."""
    torch.manual_seed(0)
    return lvm.fit(
        model,
        guide,
        *data,
        num_steps=num_steps,
        elbo=lvm.elbo.Trace_ELBO(num_particles),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps),
        progress=False,
    )


def exact_moments():
    """Means and sds of mu, tau and each school's effect, on a grid: given mu and tau an effect is normal."""
    y, sigma = (given.double() for given in eight_schools()[2])
    mu = torch.linspace(-25, 35, 601).double().unsqueeze(-1)
    share = (torch.arange(4000).double() + 0.5) / 4000
    tau = 5 * (torch.pi / 2 * share).tan()  # quantiles of its prior
    total = (tau.unsqueeze(-1).square() + sigma.square()).sqrt()
    log_weight = dist.Normal(0.0, 5.0).log_prob(mu)
    log_weight = log_weight + dist.Normal(mu.unsqueeze(-1), total).log_prob(y).sum(-1)
    weight = log_weight.flatten().softmax(0).reshape(log_weight.shape)
    shrink = tau.unsqueeze(-1).square() / total.square()
    effect = mu.unsqueeze(-1) + shrink * (y - mu.unsqueeze(-1))
    variance = sigma.square() * shrink
    found = {}
    for name, value, extra in (
        ("mu", mu.expand(weight.shape).unsqueeze(-1), 0.0),
        ("tau", tau.expand(weight.shape).unsqueeze(-1), 0.0),
        ("effects", effect, variance),
    ):
        mean = (weight.unsqueeze(-1) * value).sum((0, 1))
        square = (weight.unsqueeze(-1) * ((value - mean).square() + extra)).sum((0, 1))
        found[name] = mean, square.sqrt()
    return found


def errors(result):
    """The largest errors of a mean, in sds, and of an sd, relative."""
    draws = result.sample(10_000)
    mu, tau = draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1)
    values = {"mu": mu, "tau": tau, "effects": mu + tau * draws["eta"].reshape(len(mu), 8)}
    means, sds = [], []
    for name, (mean, sd) in exact_moments().items():
        means.append(((values[name].mean(0) - mean) / sd).abs())
        sds.append((values[name].std(0) / sd - 1).abs())
    return torch.cat(means).max().item(), torch.cat(sds).max().item()


def test_moments_on_the_grid_are_those_of_long_runs():
    """posteriordb records these of its reference draws of the same model."""
    found = exact_moments()
    assert found["mu"][0].item() == pytest.approx(4.41, abs=0.1)
    assert found["mu"][1].item() == pytest.approx(3.31, abs=0.1)
    assert found["tau"][0].item() == pytest.approx(3.60, abs=0.1)
    assert found["tau"][1].item() == pytest.approx(3.20, abs=0.1)


@pytest.mark.slow
def test_eight_schools():
    model, _, data = eight_schools()
    flow = errors(fitted(model, "flow", *data, num_steps=2_000, num_particles=16))
    assert flow[0] < 0.1
    assert flow[1] < 0.1
    straight = errors(fitted(model, "mean_field", *data, num_steps=2_000, num_particles=16))
    assert straight[1] > 0.2  # of tau


def funnel():
    scale = pyro.sample("log_variance", dist.Normal(0.0, 3.0))
    with pyro.plate("features", 9):
        pyro.sample("x", dist.Normal(0.0, (scale / 2).exp()))


@pytest.mark.slow
def test_funnel():
    """The sd of the scale, and the 5, 50 and 95% quantiles of the rest, within 10% of the exact ones."""
    noise = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0)).double()
    at = torch.tensor([0.05, 0.95]).double()
    exact = ((1.5 * noise[:, 0]).exp() * noise[:, 1]).quantile(at)

    def found(guide):
        draws = fitted(funnel, guide, num_steps=3_000, num_particles=64).sample(10_000)
        return draws["log_variance"].std().item(), draws["x"].double()

    sd, x = found("flow")
    assert sd == pytest.approx(3, rel=0.1)
    for feature in x.reshape(10_000, 9).unbind(-1):
        assert abs(feature.median().item()) < 0.1 * 2
    torch.testing.assert_close(x.flatten().quantile(at), exact, rtol=0.1, atol=0)
    assert found("mean_field")[0] < 1.5
