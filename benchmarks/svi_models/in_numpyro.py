"""The problems in NumPyro, each block of steps one jitted scan."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.example_libraries import stax
from numpyro.distributions import constraints
from numpyro.handlers import scale
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_value

from svi_models.problems import Row, load

RATE = 1e-3


def logistic_regression(X, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(X)):
        numpyro.sample("y", dist.Bernoulli(logits=X @ w + b), obs=y)


def eight_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * raw, sigma), obs=y)


def mixture(start):
    """Sums the components out by ``MixtureSameFamily``: no funsor is needed, and less is traced."""

    def model(x):
        weights = numpyro.param("weights", start["weights"], constraint=constraints.simplex)
        locs = numpyro.param("locs", start["locs"])
        scales = numpyro.param("scales", start["scales"], constraint=constraints.positive)
        with numpyro.plate("rows", len(x)):
            parts = dist.Normal(locs, scales).to_event(1)
            numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)

    return model


def hierarchical_regression(group, floor, y):
    mu_a, mu_b = numpyro.sample("mu_a", dist.Normal(0.0, 10.0)), numpyro.sample("mu_b", dist.Normal(0.0, 10.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(1.0))
    sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 85):
        a, b = numpyro.sample("a", dist.Normal(mu_a, sigma_a)), numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(a[group] + b[group] * floor, sigma), obs=y)


def vae(start, num_rows):
    def network(name, x):
        params = [numpyro.param(f"{name}.{part}", start[f"{name}.{part}"]) for part in _PARTS]
        return jax.nn.relu(x @ params[0] + params[1]) @ params[2] + params[3]

    def model(x):
        with scale(scale=num_rows / len(x)), numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(start["decoder.0.weight"])]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=network("decoder", z)).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = jnp.split(network("encoder", x), 2, -1)
        with scale(scale=num_rows / len(x)), numpyro.plate("rows", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


_PARTS = ("0.weight", "0.bias", "1.weight", "1.bias")


def no_guide(*data):
    pass


def build(row: Row, start, num_rows):
    start_there = init_to_value(values=start)
    if row.key == "c":  # the network that Pyro has by default
        flow = {"num_flows": 1, "hidden_dims": [94], "nonlinearity": stax.Relu}
        return logistic_regression, AutoIAFNormal(logistic_regression, **flow)
    if row.key == "b":
        return logistic_regression, AutoMultivariateNormal(logistic_regression, init_loc_fn=start_there)
    if row.key in ("e", "f"):
        return mixture(start), no_guide
    if row.key in ("h", "i"):
        return vae(start, num_rows)
    model = {"a": logistic_regression, "d": eight_schools, "g": hierarchical_regression}[row.key]
    return model, AutoNormal(model, init_loc_fn=start_there)


def run_numpyro(row: Row, steps, every=None, between=None):
    every = every or steps
    data, start = load(row)
    data = [jnp.asarray(d) for d in data.values()]
    start = {name: jnp.asarray(v) for name, v in start.items()}
    num_rows, batch_size = len(data[0]), row.batch_size
    svi = SVI(*build(row, start, num_rows), numpyro.optim.Adam(RATE), Trace_ELBO())
    state = svi.init(jax.random.key(0), *(d[:batch_size] for d in data))

    @jax.jit
    def block(state, data, order):
        def step(state, index):
            return svi.update(state, *(data if index is None else [d[index] for d in data]))

        return lax.scan(step, state, order, length=every)

    rng = np.random.default_rng(0)
    losses = []
    for _ in range(steps // every):
        order = None if batch_size is None else orders(rng, num_rows, batch_size, every)
        state, block_losses = block(state, data, order)
        losses.append(np.asarray(block_losses))
        if between is not None and between():
            break
    return np.concatenate(losses)


def orders(rng, num_rows, batch_size, steps):
    """Rows of each step, ``[steps, batch_size]``, without replacement within an epoch."""
    num_epochs = -(-steps * batch_size // num_rows)
    epochs = [rng.permutation(num_rows).astype(np.int32) for _ in range(num_epochs)]
    return np.concatenate(epochs)[: steps * batch_size].reshape(steps, batch_size)
