"""A VAE on binarised digits, against one written in plain torch: own networks, own loop, own estimator."""

import math

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_lvm as lvm

D, L, BATCH, RATE = 64, 8, 128, 2e-3


def digits():
    """Training and held-out rows."""
    x = torch.tensor(load_digits().data > 7.5, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:1_437], x[1_437:]


class PlainVAE(nn.Module):
    def __init__(self, width, analytic):
        super().__init__()
        self.analytic = analytic
        self.encoder = nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, 2 * L))
        self.decoder = nn.Sequential(nn.Linear(L, width), nn.ReLU(), nn.Linear(width, D))

    def encode(self, x):
        mean, raw = self.encoder(x).split(L, dim=1)
        return mean, 7 * torch.tanh(raw / 7)  # the bound is part of the shape that is compared

    def log_likelihood(self, x, z):
        logits = self.decoder(z)
        return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    def loss(self, x):
        mean, log_sd = self.encode(x)
        z = mean + log_sd.exp() * torch.randn_like(mean)
        if self.analytic:
            kl = 0.5 * (mean**2 + (2 * log_sd).exp() - 1 - 2 * log_sd).sum(-1)
        else:
            kl = (0.5 * z**2 - 0.5 * ((z - mean) / log_sd.exp()) ** 2 - log_sd).sum(-1)
        return (kl - self.log_likelihood(x, z)).mean()

    @torch.no_grad()
    def iwae(self, x, num_draws):
        """log p(x) of each row, Burda et al. (2016), equation 8."""
        mean, log_sd = self.encode(x)
        noise = torch.randn(num_draws, *mean.shape)
        z = mean + log_sd.exp() * noise
        log_ratio = (0.5 * noise**2 + log_sd - 0.5 * z**2).sum(-1)  # log p(z) - log q(z | x)
        return (self.log_likelihood(x, z) + log_ratio).logsumexp(0) - math.log(num_draws)


def train_plain(x, width, analytic, num_steps, seed):
    torch.manual_seed(seed)
    vae = PlainVAE(width, analytic)
    optimizer = torch.optim.Adam(vae.parameters(), lr=RATE)
    step = 0
    while step < num_steps:
        for batch in torch.randperm(len(x)).split(BATCH)[: num_steps - step]:
            loss = vae.loss(x[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return vae


def train_ours(x, width, analytic, num_steps, seed):
    torch.manual_seed(seed)
    return lvm.fit(
        lvm.models.VAE(D, L, hidden=(width,)),
        None,
        x,
        num_steps=num_steps,
        elbo=TraceMeanField_ELBO() if analytic else None,
        optim=RATE,
        batch_size=BATCH,
        seed=seed,
        progress=False,
    )


@pytest.mark.parametrize(
    "width, num_steps", [(64, 600), pytest.param(128, 5_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.parametrize(
    "analytic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["sampled KL", "closed-form KL"]
)
def test_held_out_likelihood_is_that_of_plain_torch(width, num_steps, analytic):
    """Like is compared with like: the sampled KL of ``Trace_ELBO`` trains more slowly than the closed form."""
    train, test = digits()
    ours, theirs = [], []
    for seed in range(3):
        result = train_ours(train, width, analytic, num_steps, seed)
        score = result.score(test, num_draws=500)
        ours.append(score.value.mean().item())
        plain = train_plain(train, width, analytic, num_steps, seed + 100)
        theirs.append(plain.iwae(test, 500).mean().item())

        # the same parameters in the other program: what remains is Monte Carlo error
        plain.load_state_dict(result.params)
        again = plain.iwae(test, 500).mean().item()
        error = math.sqrt(2) * score.standard_error.square().sum().sqrt().item() / len(test)
        print(f"one fit by both estimators: {ours[-1]:.4f}, {again:.4f} +- {error:.4f}")
        assert error < 0.05
        assert again == pytest.approx(ours[-1], abs=4 * error)
    error = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 3)
    print(f"held out: {np.mean(ours):.3f} {ours}, plain torch {np.mean(theirs):.3f} {theirs}, error {error:.3f}")
    assert error < 0.2  # else the comparison would say little: an untrained model stands near -45 nats a row
    assert abs(np.mean(ours) - np.mean(theirs)) < 3 * error
