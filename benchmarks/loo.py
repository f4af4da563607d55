"""Leave-one-out by guides, with the correction for their draws and without, beside PSIS-LOO on draws of NUTS.

    python benchmarks/loo.py

A logistic regression on the breast cancer data (569 rows, 30 features) and the eight schools, their own effects
integrated out. NUTS is NumPyro's, PSIS-LOO is ArviZ's. It needs the `bench` extra.
"""

import arviz
import jax
import numpy as np
import numpyro
import pyro
import pyro.distributions as dist
import torch
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer

import pyro_lvm as lvm
from pyro_lvm.diagnostics.loo import leave_one_out
from pyro_lvm.verdict.weights import draw_weighted

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
STEPS = 5_000


def cancer():
    table = load_breast_cancer()
    X = torch.tensor(table.data, dtype=torch.float32)
    return (X - X.mean(0)) / X.std(0), torch.tensor(table.target, dtype=torch.float32)


def logistic(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(X.shape[1]), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Bernoulli(logits=X @ w + b), obs=y)


def logistic_in_jax(X, y):
    w = numpyro.sample("w", numpyro.distributions.Normal(jax.numpy.zeros(X.shape[1]), 1.0).to_event(1))
    b = numpyro.sample("b", numpyro.distributions.Normal(0.0, 2.0))
    numpyro.sample("y", numpyro.distributions.Bernoulli(logits=X @ w + b), obs=y)


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


def schools_in_jax(y, sigma):
    mu = numpyro.sample("mu", numpyro.distributions.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", numpyro.distributions.HalfCauchy(5.0))
    numpyro.sample("y", numpyro.distributions.Normal(mu, (tau**2 + sigma**2) ** 0.5), obs=y)


def by_nuts(model, *data):
    """Draws of four chains."""
    kernel = MCMC(
        NUTS(model), num_warmup=1_000, num_samples=1_000, num_chains=4, chain_method="sequential", progress_bar=False
    )
    kernel.run(jax.random.PRNGKey(0), *(jax.numpy.asarray(a.numpy()) for a in data))
    return {name: torch.tensor(np.asarray(draws)) for name, draws in kernel.get_samples().items()}


def psis_loo(log_likelihood):
    """ArviZ's elpd, and the largest Pareto k, of ``[S, N]``."""
    found = arviz.from_dict(
        posterior={"chain_of": np.zeros((4, len(log_likelihood) // 4))},
        log_likelihood={"y": log_likelihood.reshape(4, -1, log_likelihood.shape[1]).numpy()},
    )
    loo = arviz.loo(found, pointwise=True)
    return float(loo.elpd_loo), float(loo.pareto_k.max())


def main():
    torch.set_num_threads(1)
    X, y = cancer()
    draws = by_nuts(logistic_in_jax, X, y)
    logits = draws["w"] @ X.T + draws["b"][:, None]
    both = {"logistic regression": (logistic, (X, y), psis_loo(dist.Bernoulli(logits=logits).log_prob(y)))}
    draws = by_nuts(schools_in_jax, EFFECTS, ERRORS)
    spread = (draws["tau"][:, None] ** 2 + ERRORS**2).sqrt()
    log_likelihood = dist.Normal(draws["mu"][:, None], spread).log_prob(EFFECTS)
    both["eight schools"] = (schools, (EFFECTS, ERRORS), psis_loo(log_likelihood))

    def falling(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    columns = f"{'NUTS':>8}  {'corrected':>9}  {'difference':>10}  {'uncorrected':>11}  {'difference':>10}"
    print(f"{'':20} {'':12} {columns}  largest k")
    for name, (model, data, (expected, _)) in both.items():
        for guide in ("mean_field", "full_rank"):
            elbo = lvm.elbo.Trace_ELBO(num_particles=8)
            result = lvm.fit(
                model, guide, *data, num_steps=STEPS, optim=0.03, elbo=elbo, scheduler=falling, progress=False
            )
            weights = draw_weighted(result, 4_000)
            corrected, plain = leave_one_out(weights), leave_one_out(weights, corrected=False)
            print(
                f"{name:20} {guide:12} {expected:8.2f}  {corrected.elpd:9.2f}  {corrected.elpd - expected:+10.2f}  "
                f"{plain.elpd:11.2f}  {plain.elpd - expected:+10.2f}  {corrected.pareto_k.max():.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
