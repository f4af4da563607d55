"""The held-out likelihood of a VAE rises with the number of particles in its bound (Burda et al. 2016, table 1)."""

import pytest
import torch
from sklearn.datasets import load_digits

import pyro_lvm as lvm
from pyro_lvm.elbo import Trace_ELBO, TraceIWAE_ELBO


def digits():
    """Training and held-out rows."""
    x = torch.tensor(load_digits().data > 7.5, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:1_437], x[1_437:]


def held_out(elbo, num_steps, num_draws=1_000):
    """log p(x) of each held-out row, after a fit that differs in its loss alone."""
    train, test = digits()
    torch.manual_seed(0)  # the networks' starting weights
    vae = lvm.models.VAE(64, 20, hidden=(64,))
    result = lvm.fit(vae, None, train, elbo=elbo, num_steps=num_steps, batch_size=100, optim=1e-3, progress=False)
    score = result.score(test, num_draws=num_draws)
    assert (score.standard_error.square().sum().sqrt() / len(test)).item() < 0.02  # of the mean over rows
    return score.value


def assert_rises(worse, better):
    """By more than two standard errors of the differences, which are paired by row."""
    difference = better - worse
    error = (difference.std() / len(difference) ** 0.5).item()
    print(f"{worse.mean():.3f} -> {better.mean():.3f}: rises by {difference.mean():.3f} +- {error:.3f} nats a row")
    assert difference.mean().item() > 2 * error


@pytest.mark.slow
def test_the_held_out_likelihood_rises_with_the_particles():
    one, five, fifty = (held_out(TraceIWAE_ELBO(K), num_steps=400) for K in (1, 5, 50))
    assert_rises(one, five)
    assert_rises(five, fifty)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["total", "dreg"])
def test_it_rises_by_more_than_less_noise_explains(gradient):
    """An ELBO of 50 particles has the gain of less noisy gradients, but not that of a tighter bound."""
    one = held_out(Trace_ELBO(1), num_steps=2_000, num_draws=5_000)
    five, fifty = (held_out(TraceIWAE_ELBO(K, gradient), num_steps=2_000, num_draws=5_000) for K in (5, 50))
    assert_rises(one, five)
    assert_rises(five, fifty)
    assert_rises(held_out(Trace_ELBO(50), num_steps=2_000, num_draws=5_000), fifty)
