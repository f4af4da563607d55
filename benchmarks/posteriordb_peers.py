"""The nine posteriors of `posteriordb_models.py` in PyMC and in NumPyro: the same priors and the same parameters.

The functions for PyMC are called within a `pm.Model`. An environment has either library, or both.
"""

from contextlib import suppress

import numpy as np

with suppress(ImportError):
    import pymc as pm
    import pytensor
    import pytensor.tensor as pt
    from pymc.distributions.transforms import ordered
with suppress(ImportError):
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints


def flat_regression_in_pymc(X, y):
    beta = pm.Flat("beta", shape=X.shape[1])
    pm.Normal("y", X @ beta, pm.HalfFlat("sigma"), observed=y)


def kidiq_in_pymc(X, y):
    beta = pm.Flat("beta", shape=X.shape[1])
    pm.Normal("y", X @ beta, pm.HalfCauchy("sigma", 2.5), observed=y)


def blr_in_pymc(X, y):
    beta = pm.Normal("beta", 0.0, 10.0, shape=X.shape[1])
    pm.Normal("y", X @ beta, pm.HalfNormal("sigma", 10.0), observed=y)


def autoregression_in_pymc(lags, y):
    alpha = pm.Normal("alpha", 0.0, 10.0)
    beta = pm.Normal("beta", 0.0, 10.0, shape=lags.shape[1])
    pm.Normal("y", alpha + lags @ beta, pm.HalfCauchy("sigma", 2.5), observed=y)


def eight_schools_in_pymc(y, sigma):
    mu = pm.Normal("mu", 0.0, 5.0)
    tau = pm.HalfCauchy("tau", 5.0)
    trans = pm.Normal("theta_trans", 0.0, 1.0, shape=len(y))
    pm.Normal("y", pm.Deterministic("theta", mu + tau * trans), sigma, observed=y)


def gauss_mix_in_pymc(y):
    theta = pm.Beta("theta", 5.0, 5.0)
    mu = pm.Normal("mu", 0.0, 2.0, shape=2, transform=ordered, initval=[-1.0, 1.0])
    sigma = pm.HalfNormal("sigma", 2.0, shape=2)
    pm.NormalMixture("y", pt.stack([theta, 1 - theta]), mu, sigma, observed=y)


def log_sum_exp_in_pymc(x):
    """Over the first dimension. PyTensor's own has gradients of NaN within a scan."""
    top = x.max(0)
    return top + pt.log(pt.exp(x - top).sum(0))


def hidden_markov_in_pymc(y):
    logs = pt.log(pt.stack([pm.Dirichlet(f"theta{k}", np.ones(2)) for k in (1, 2)]))
    mu = pm.Deterministic("mu", pm.HalfFlat("steps", shape=2).cumsum())
    pm.Potential("mu_prior", pm.logp(pm.Normal.dist(np.array([3.0, 10.0]), 1.0), mu).sum())
    emissions = pm.logp(pm.Normal.dist(mu, 1.0), y[:, None])
    forward = pytensor.scan(
        lambda emission, before, logs: log_sum_exp_in_pymc(before[:, None] + logs) + emission,
        sequences=emissions[1:],
        outputs_info=emissions[0],
        non_sequences=logs,
        return_updates=False,
    )
    pm.Potential("y", log_sum_exp_in_pymc(forward[-1]))


PYMC = {
    "arK": autoregression_in_pymc,
    "earnings": flat_regression_in_pymc,
    "eight_schools": eight_schools_in_pymc,
    "hmm_example": hidden_markov_in_pymc,
    "kidiq": kidiq_in_pymc,
    "low_dim_gauss_mix": gauss_mix_in_pymc,
    "mesquite": flat_regression_in_pymc,
    "nes2000": flat_regression_in_pymc,
    "sblrc": blr_in_pymc,
}


def flat(name, support, *shape):
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def normals(name, size, scale):
    return numpyro.sample(name, dist.Normal(0.0, scale).expand([size]).to_event(1))


def flat_regression_in_numpyro(X, y):
    beta = flat("beta", constraints.real_vector, X.shape[1])
    numpyro.sample("y", dist.Normal(X @ beta, flat("sigma", constraints.positive)), obs=y)


def kidiq_in_numpyro(X, y):
    beta = flat("beta", constraints.real_vector, X.shape[1])
    numpyro.sample("y", dist.Normal(X @ beta, numpyro.sample("sigma", dist.HalfCauchy(2.5))), obs=y)


def blr_in_numpyro(X, y):
    beta = normals("beta", X.shape[1], 10.0)
    numpyro.sample("y", dist.Normal(X @ beta, numpyro.sample("sigma", dist.HalfNormal(10.0))), obs=y)


def autoregression_in_numpyro(lags, y):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = normals("beta", lags.shape[1], 10.0)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def eight_schools_in_numpyro(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.deterministic("theta", mu + tau * normals("theta_trans", len(y), 1.0))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gauss_mix_in_numpyro(y):
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    mu = flat("mu", constraints.ordered_vector, 2)
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def hidden_markov_in_numpyro(y):
    logs = jnp.log(jnp.stack([numpyro.sample(f"theta{k}", dist.Dirichlet(jnp.ones(2))) for k in (1, 2)]))
    mu = numpyro.deterministic("mu", flat("steps", constraints.positive, 2).cumsum())
    numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emissions = dist.Normal(mu, 1.0).log_prob(y[:, None])

    def step(before, emission):
        return jax.nn.logsumexp(before[:, None] + logs, axis=0) + emission, None

    numpyro.factor("y", jax.nn.logsumexp(jax.lax.scan(step, emissions[0], emissions[1:])[0]))


NUMPYRO = {
    "arK": autoregression_in_numpyro,
    "earnings": flat_regression_in_numpyro,
    "eight_schools": eight_schools_in_numpyro,
    "hmm_example": hidden_markov_in_numpyro,
    "kidiq": kidiq_in_numpyro,
    "low_dim_gauss_mix": gauss_mix_in_numpyro,
    "mesquite": flat_regression_in_numpyro,
    "nes2000": flat_regression_in_numpyro,
    "sblrc": blr_in_numpyro,
}


def with_ones(*predictors):
    return np.stack([np.ones_like(predictors[0]), *predictors], -1)


def arrays(name, data):
    """The arguments, as in `posteriordb_models.arrays`."""
    data = {key: np.asarray(value, dtype=float) if isinstance(value, list) else value for key, value in data.items()}
    if name == "arK":
        y, K = data["y"], data["K"]
        return np.lib.stride_tricks.sliding_window_view(y, K)[:-1, ::-1], y[K:]
    if name == "earnings":
        z = (data["height"] - data["height"].mean()) / data["height"].std(ddof=1)
        return with_ones(z, data["male"], z * data["male"]), np.log(data["earn"])
    if name == "eight_schools":
        return data["y"], data["sigma"]
    if name == "kidiq":
        hs, iq = data["mom_hs"], data["mom_iq"]
        return with_ones(hs, iq, hs * iq), data["kid_score"]
    if name == "mesquite":
        d1, d2, canopy = data["diam1"], data["diam2"], data["canopy_height"]
        logs = map(np.log, (d1 * d2 * canopy, d1 * d2, d1 / d2, data["total_height"]))
        return with_ones(*logs, data["group"]), np.log(data["weight"])
    if name == "nes2000":
        ages = [(data["age_discrete"] == k).astype(float) for k in (2, 3, 4)]
        rest = (data[key] for key in ("educ1", "gender", "income"))
        return with_ones(data["real_ideo"], data["race_adj"], *ages, *rest), data["partyid7"]
    if name == "sblrc":
        return data["X"], data["y"]
    return (data["y"],)
