"""The problems in Pyro, run by Pyro's own ``SVI`` and by ``lvm.fit``."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, JitTraceEnum_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal, init_to_value
from pyro.nn import PyroModule, pyro_method
from torch import nn
from torch.distributions import constraints

from svi_models.problems import Row, load

RATE = 1e-3


def logistic_regression(X, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Bernoulli(logits=X @ w + b), obs=y)


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * raw, sigma), obs=y)


def mixture(start):
    def model(x):
        weights = pyro.param("weights", start["weights"], constraint=constraints.simplex)
        locs = pyro.param("locs", start["locs"])
        scales = pyro.param("scales", start["scales"], constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], scales[z]).to_event(1), obs=x)

    return model


def hierarchical_regression(group, floor, y):
    mu_a, mu_b = pyro.sample("mu_a", dist.Normal(0.0, 10.0)), pyro.sample("mu_b", dist.Normal(0.0, 10.0))
    sigma_a, sigma_b = pyro.sample("sigma_a", dist.HalfNormal(1.0)), pyro.sample("sigma_b", dist.HalfNormal(1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", 85):
        a, b = pyro.sample("a", dist.Normal(mu_a, sigma_a)), pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a[group] + b[group] * floor, sigma), obs=y)


class VAE(PyroModule):
    def __init__(self, start):
        super().__init__()
        self.encoder, self.decoder = self._network(start, "encoder"), self._network(start, "decoder")
        self.num_latents = len(start["decoder.0.weight"])

    @staticmethod
    def _network(start, name):
        first, second = start[f"{name}.0.weight"], start[f"{name}.1.weight"]
        network = nn.Sequential(nn.Linear(*first.shape), nn.ReLU(), nn.Linear(*second.shape))
        with torch.no_grad():
            for layer, module in enumerate([network[0], network[2]]):
                module.weight.copy_(start[f"{name}.{layer}.weight"].T)
                module.bias.copy_(start[f"{name}.{layer}.bias"])
        return network

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([self.num_latents]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def no_guide(*data):
    pass


def build(row: Row, start: dict[str, torch.Tensor]):
    """A new model and guide."""
    start_there = init_to_value(values=start)
    if row.key == "c":
        return logistic_regression, AutoIAFNormal(logistic_regression)  # one layer of 94 hidden units
    if row.key == "b":
        return logistic_regression, AutoMultivariateNormal(logistic_regression, init_loc_fn=start_there)
    if row.key in ("e", "f"):
        return mixture(start), no_guide
    if row.key in ("h", "i"):
        vae = VAE(start)
        return vae, vae.guide
    model = {"a": logistic_regression, "d": eight_schools, "g": hierarchical_regression}[row.key]
    return model, AutoNormal(model, init_loc_fn=start_there)


def prepare(row: Row):
    """Data, model and guide, and nothing left of earlier runs."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data, start = load(row)
    return [torch.as_tensor(d) for d in data.values()], *build(row, {k: torch.as_tensor(v) for k, v in start.items()})


def batches(data, batch_size):
    """Minibatches without replacement, newly shuffled each epoch."""
    while True:
        order = torch.randperm(len(data[0]))
        for first in range(0, len(order), batch_size):
            yield [d[order[first : first + batch_size]] for d in data]


def _run_stock(row, steps, every, between, jit):
    data, model, guide = prepare(row)
    enumerates = row.key in ("e", "f")
    if jit:
        options = {"ignore_jit_warnings": True}
        elbo = JitTraceEnum_ELBO(max_plate_nesting=1, **options) if enumerates else JitTrace_ELBO(**options)
    else:
        elbo = TraceEnum_ELBO(max_plate_nesting=1) if enumerates else Trace_ELBO()
    if row.batch_size is not None:
        scale = len(data[0]) / row.batch_size
        model, guide = poutine.scale(model, scale=scale), poutine.scale(guide, scale=scale)
        source = batches(data, row.batch_size)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE}), elbo)
    losses = []
    for step in range(1, steps + 1):
        losses.append(svi.step(*(data if row.batch_size is None else next(source))))
        if between is not None and step % every == 0 and between():
            break
    return np.array(losses)


def run_pyro(row, steps, every=None, between=None):
    return _run_stock(row, steps, every, between, jit=False)


def run_jit(row, steps, every=None, between=None):
    return _run_stock(row, steps, every, between, jit=True)


def run_fit(row, steps, every=None, between=None, *, compile):
    import pyro_lvm as lvm

    data, model, guide = prepare(row)
    blocks = {} if between is None else {"every": every, "callbacks": [lambda state: between()]}
    result = lvm.fit(
        model,
        "full_rank" if row.key == "b" else None if guide is no_guide else guide,
        *data,
        num_steps=steps,
        optim=RATE,
        batch_size=row.batch_size,
        compile=compile,
        progress=False,
        **blocks,
    )
    return result.losses.numpy()
