"""Three larger regressions by guide="auto" at its defaults, beside NumPyro's NUTS on the same simulated data.

    python benchmarks/auto_large.py [--names logistic radon horseshoe] [--columns auto nuts]

- logistic: 1,000 rows, 200 predictors, neighbours correlated by 0.9.
- radon: 919 rows in 85 groups of 1 to 116 rows, whose intercepts and slopes vary; not centred.
- horseshoe: 100 rows, 50 predictors of which 5 count; a regularised horseshoe, not centred. Its local scales have no
  mean, and are compared by their logarithms.

NUTS has 4 chains of 1,000 draws after as many to warm up, in float64. Errors are those of `lvm.against`: of a mean, in
posterior standard deviations, and of a standard deviation; they need both columns. It needs the `bench` extra.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as dist
import torch
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS

import pyro_lvm as lvm

NUM_WARMUP, NUM_DRAWS = 1_000, 1_000
SLAB = 2.0  # the scale of large coefficients of the horseshoe


def logistic_data():
    rng = np.random.default_rng(0)
    rows, size = 1_000, 200
    correlation = 0.9 ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    X = rng.standard_normal((rows, size)) @ np.linalg.cholesky(correlation).T
    beta = rng.normal(0.0, 3 / size**0.5, size)
    return X, (rng.random(rows) < 1 / (1 + np.exp(-X @ beta))).astype(float)


def radon_data():
    rng = np.random.default_rng(1)
    sizes = np.ones(85, dtype=int)
    sizes[0] = 116
    sizes[1:] += rng.multinomial(919 - sizes.sum(), rng.dirichlet(np.full(84, 0.5)))
    group = np.repeat(np.arange(85), sizes)
    floor, uranium = (rng.random(919) < 0.2).astype(float), rng.standard_normal(85)
    intercepts = 1.5 + 0.4 * uranium + rng.normal(0.0, 0.2, 85)
    slopes = -0.7 + rng.normal(0.0, 0.3, 85)
    return group, uranium, floor, rng.normal(intercepts[group] + slopes[group] * floor, 0.75)


def horseshoe_data():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((100, 50))
    return X, rng.normal(X[:, :5] @ np.array([2.0, -1.5, 1.0, -0.7, 0.5]), 1.0)


def logistic(X, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[1]), 1.0).to_event(1))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def logistic_in_jax(X, y):
    beta = numpyro.sample("beta", ndist.Normal(jnp.zeros(X.shape[1]), 1.0).to_event(1))
    numpyro.sample("y", ndist.Bernoulli(logits=X @ beta), obs=y)


def radon(group, uranium, floor, y):
    means = pyro.sample("means", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2)).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", len(uranium)):
        off = pyro.sample("off", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        intercept = pyro.deterministic("intercept", means[0] + means[1] * uranium + scales[0] * off[:, 0])
        slope = pyro.deterministic("slope", means[2] + scales[1] * off[:, 1])
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(intercept[group] + slope[group] * floor, sigma), obs=y)


def radon_in_jax(group, uranium, floor, y):
    means = numpyro.sample("means", ndist.Normal(jnp.zeros(3), 2.0).to_event(1))
    scales = numpyro.sample("scales", ndist.HalfNormal(jnp.ones(2)).to_event(1))
    sigma = numpyro.sample("sigma", ndist.HalfNormal(1.0))
    off = numpyro.sample("off", ndist.Normal(jnp.zeros((len(uranium), 2)), 1.0).to_event(2))
    intercept = numpyro.deterministic("intercept", means[0] + means[1] * uranium + scales[0] * off[:, 0])
    slope = numpyro.deterministic("slope", means[2] + scales[1] * off[:, 1])
    numpyro.sample("y", ndist.Normal(intercept[group] + slope[group] * floor, sigma), obs=y)


def horseshoe(X, y):
    size = X.shape[1]
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    tau = pyro.sample("tau", dist.HalfCauchy(0.1))
    local = pyro.sample("local", dist.HalfCauchy(torch.ones(size)).to_event(1))
    pyro.deterministic("log_local", local.log())
    z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
    scale = tau * local
    beta = pyro.deterministic("beta", z * scale / (1 + (scale / SLAB) ** 2).sqrt())
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def horseshoe_in_jax(X, y):
    size = X.shape[1]
    sigma = numpyro.sample("sigma", ndist.HalfNormal(2.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(0.1))
    local = numpyro.sample("local", ndist.HalfCauchy(jnp.ones(size)).to_event(1))
    numpyro.deterministic("log_local", jnp.log(local))
    z = numpyro.sample("z", ndist.Normal(jnp.zeros(size), 1.0).to_event(1))
    scale = tau * local
    beta = numpyro.deterministic("beta", z * scale / jnp.sqrt(1 + (scale / SLAB) ** 2))
    numpyro.sample("y", ndist.Normal(X @ beta, sigma), obs=y)


MODELS = {
    "logistic": (logistic, logistic_in_jax, logistic_data, ("beta",)),
    "radon": (radon, radon_in_jax, radon_data, ("means", "intercept", "slope")),
    "horseshoe": (horseshoe, horseshoe_in_jax, horseshoe_data, ("beta",)),
}
"""In Pyro, in NumPyro, the data, and which variables are coefficients."""


def by_nuts(model, data):
    """Draws of all chains, except of the variables without a mean."""
    kernel = NUTS(model)
    counts = {"num_warmup": NUM_WARMUP, "num_samples": NUM_DRAWS, "num_chains": 4}
    chains = MCMC(kernel, **counts, chain_method="sequential", progress_bar=False)
    began = time.perf_counter()
    chains.run(jax.random.key(0), *map(jnp.asarray, data), extra_fields=("diverging",))
    draws = {name: np.asarray(value) for name, value in chains.get_samples(group_by_chain=True).items()}
    seconds = time.perf_counter() - began
    draws.pop("local", None)
    r_hat = max(split_gelman_rubin(value).max() for value in draws.values())
    divergences = int(chains.get_extra_fields()["diverging"].sum())
    print(f"  NUTS: {seconds:.0f} s, R-hat at most {r_hat:.3f}, {divergences} divergences", flush=True)
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}


def by_auto(model, data):
    tensors = (torch.tensor(array, dtype=torch.float32 if array.dtype == float else None) for array in data)
    began = time.perf_counter()
    result = lvm.fit(model, "auto", *tensors, progress=False)
    seconds = time.perf_counter() - began
    print(f"  auto: {seconds:.0f} s, {result.climb.guide}: {lvm.diagnose(result).verdict}", flush=True)
    for step in result.climb.steps:
        print(f"    {step}")
    return result


def print_errors(kind, found):
    means, sds = np.median(np.abs(found.mean_errors)), np.median(np.abs(found.sd_errors))
    print(
        f"  {len(found.names):3} {kind}: means within {found.largest_mean_error:.3f} sd (median {means:.3f}), "
        f"sds within {found.largest_sd_error:.1%} (median {sds:.1%}), the worst is {found.worst}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--columns", nargs="+", default=["auto", "nuts"], choices=["auto", "nuts"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    numpyro.enable_x64()
    for name in args.names:
        model, model_in_jax, simulate, coefficients = MODELS[name]
        data = simulate()
        print(name, flush=True)
        draws = by_nuts(model_in_jax, data) if "nuts" in args.columns else None
        result = by_auto(model, data) if "auto" in args.columns else None
        if draws and result:
            print_errors("numbers", lvm.against(result, draws))
            print_errors("coefficients", lvm.against(result, {key: draws[key] for key in coefficients}))


if __name__ == "__main__":
    main()
