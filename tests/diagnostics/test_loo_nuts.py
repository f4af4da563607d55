"""Leave-one-out by guides, against ArviZ's PSIS-LOO on draws of NUTS."""

import importlib
from importlib import metadata

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer

import pyro_lvm as lvm
from pyro_lvm.diagnostics.loo import leave_one_out
from pyro_lvm.diagnostics.weights import draw_weighted

pytestmark = pytest.mark.slow


def arviz_loo(log_likelihood):
    """The elpd of ``[S, N]``."""
    S = len(log_likelihood)
    if metadata.version("arviz").startswith("0."):
        arviz = importlib.import_module("arviz")
        data = arviz.from_dict(posterior={"x": np.zeros((1, S))}, log_likelihood={"y": log_likelihood[None]})
        return arviz.loo(data).elpd_loo
    arviz = importlib.import_module("arviz")
    data = arviz.from_dict({"posterior": {"x": np.zeros((1, S))}, "log_likelihood": {"y": log_likelihood[None]}})
    return arviz.loo(data).elpd


def nuts(model, *data, num_samples=1_500):
    with torch.random.fork_rng():
        pyro.set_rng_seed(0)
        mcmc = MCMC(NUTS(model, jit_compile=False), num_samples=num_samples, warmup_steps=500, disable_progbar=True)
        mcmc.run(*data)
    return mcmc.get_samples()


def fitted(model, guide, *data, **options):
    def falling(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4_000)

    return lvm.fit(model, guide, *data, num_steps=4_000, optim=0.05, scheduler=falling, progress=False, **options)


def test_logistic_regression():
    table = load_breast_cancer()
    columns = torch.tensor(table.data[:, :5], dtype=torch.float32)
    X, y = (columns - columns.mean(0)) / columns.std(0), torch.tensor(table.target, dtype=torch.float32)

    def model(X, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(5), 2.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(X)):
            pyro.sample("y", dist.Bernoulli(logits=X @ w + b), obs=y)

    draws = nuts(model, X, y)
    log_likelihood = dist.Bernoulli(logits=draws["w"] @ X.T + draws["b"][:, None]).log_prob(y)
    expected = arviz_loo(log_likelihood.numpy())
    for guide in ("full_rank", "mean_field"):
        loo = leave_one_out(draw_weighted(fitted(model, guide, X, y), 2_000))
        if guide == "full_rank":
            assert abs(loo.elpd - expected) < 0.5


def test_eight_schools():
    """The schools' own effects integrated out, by the guide's draws and, after NUTS, in closed form."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    draws = nuts(model, y, sigma, num_samples=2_000)
    spread = (draws["tau"][:, None] ** 2 + sigma**2).sqrt()
    expected = arviz_loo(dist.Normal(draws["mu"][:, None], spread).log_prob(y).numpy())
    elbo = lvm.elbo.Trace_ELBO(num_particles=8)
    for guide in ("mean_field", "full_rank"):
        loo = leave_one_out(draw_weighted(fitted(model, guide, y, sigma, elbo=elbo), 2_000))
        assert abs(loo.elpd - expected) < 0.5
