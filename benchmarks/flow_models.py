"""The flows of `benchmarks/flows.py`, of the same sizes in each package."""

import itertools
import os
import time
from functools import partial

import torch

BATCH = 512
HIDDEN = (128, 128)
FLOWS = ("MAF", "NSF", "NSF coupling", "RealNVP")
TASKS = ("train", "log_prob", "sample", "rsample")
NUM = {"MAF": 5, "NSF": 3, "NSF coupling": 3, "RealNVP": 8}
BINS, BOUND = 8, 5.0


class Torch:
    """A flow by `log_prob(x)`, `sample(n)` and `rsample_and_log_prob(n)`, and what is timed of it."""

    def __init__(self, parameters, log_prob, sample, pair, x, compiled=False):
        wrap = torch.compile if compiled else lambda function: function
        self.parameters, self.x = list(parameters), x
        self.optimizer = torch.optim.Adam(self.parameters, 1e-4)
        self._log_prob, self._sample = wrap(log_prob), wrap(sample)
        self._nll = wrap(lambda x: -log_prob(x).mean())
        self._divergence = wrap(partial(_divergence, pair))

    def train(self):
        self.optimizer.zero_grad()
        self._nll(self.x).backward()
        self.optimizer.step()

    def log_prob(self):
        with torch.no_grad():
            self._log_prob(self.x)

    def sample(self):
        with torch.no_grad():
            self._sample(len(self.x))

    def rsample(self):
        torch.autograd.grad(self._divergence(len(self.x)), self.parameters)


def _divergence(pair, n):
    draws, log_prob = pair(n)
    return (log_prob + 0.5 * draws.square().sum(-1)).mean()


def ours(name, D, x, compiled=False):
    from pyro_lvm.flows import MAF, NSF, RealNVP

    make = {
        "MAF": lambda: MAF(D, NUM[name], HIDDEN),
        "NSF": lambda: NSF(D, NUM[name], BINS, BOUND, hidden=HIDDEN),
        "NSF coupling": lambda: NSF(D, NUM[name], BINS, BOUND, coupling=True, hidden=HIDDEN),
        "RealNVP": lambda: RealNVP(D, NUM[name], HIDDEN),
    }
    return _of_module(make[name](), x, compiled)


def zuko(name, D, x, compiled=False):
    import zuko

    options = {"transforms": NUM[name], "hidden_features": HIDDEN}
    make = {
        "MAF": lambda: zuko.flows.MAF(D, **options),
        "NSF": lambda: zuko.flows.NSF(D, bins=BINS, **options),
        "NSF coupling": lambda: zuko.flows.NSF(D, bins=BINS, passes=2, **options),
        "RealNVP": lambda: zuko.flows.RealNVP(D, **options),
    }
    return _of_module(make[name](), x, compiled)


def _of_module(flow, x, compiled):
    found = Torch(
        flow.parameters(),
        lambda x: flow().log_prob(x),
        lambda n: flow().rsample((n,)),
        lambda n: flow().rsample_and_log_prob((n,)),
        x,
        compiled,
    )
    found.flow = flow
    return found


def nflows(name, D, x):
    from nflows import transforms as T
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import MLP

    plain = {"hidden_features": HIDDEN[0], "num_blocks": len(HIDDEN), "use_residual_blocks": False}
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}

    class Net(MLP):
        def __init__(self, num_inputs, num_outputs):
            super().__init__([num_inputs], [num_outputs], list(HIDDEN))

        def forward(self, inputs, context=None):
            return super().forward(inputs)

    def layer(i):
        mask = torch.arange(D) % 2 == i % 2
        if name == "MAF":
            return T.MaskedAffineAutoregressiveTransform(D, **plain)
        if name == "NSF":
            return T.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, **plain, **spline)
        if name == "NSF coupling":
            return T.PiecewiseRationalQuadraticCouplingTransform(mask, Net, **spline)
        return T.AffineCouplingTransform(mask, Net)

    layers = [layer(i) for i in range(NUM[name])]
    if name in ("MAF", "NSF"):
        layers = [part for layer in layers for part in (layer, T.ReversePermutation(D))]
    flow = Flow(T.CompositeTransform(layers), StandardNormal([D]))
    return Torch(flow.parameters(), flow.log_prob, flow.sample, flow.sample_and_log_prob, x)


def pyro(name, D, x):
    import pyro.distributions as dist
    import pyro.distributions.transforms as T

    def layer():
        if name == "MAF":
            return T.affine_autoregressive(D, list(HIDDEN))
        if name == "NSF":
            return T.spline_autoregressive(D, list(HIDDEN), count_bins=BINS, bound=BOUND)
        if name == "NSF coupling":
            return T.spline_coupling(D, hidden_dims=list(HIDDEN), count_bins=BINS, bound=BOUND)
        return T.affine_coupling(D, list(HIDDEN))

    modules = [layer() for _ in range(NUM[name])]
    reverse = T.permute(D, torch.arange(D - 1, -1, -1))
    parts = [part for module in modules for part in (module.inv, reverse)]
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(D), 1.0).to_event(1), parts)

    def log_prob(x):
        flow.clear_cache()
        return flow.log_prob(x)

    def pair(n):
        flow.clear_cache()
        draws = flow.rsample((n,))
        return draws, flow.log_prob(draws)

    parameters = (p for module in modules for p in module.parameters())
    return Torch(parameters, log_prob, lambda n: flow.rsample((n,)), pair, x)


class flowjax:
    """FlowJAX, each task jitted, with optax."""

    def __init__(self, name, D, x):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import equinox as eqx
        import flowjax.bijections as bijections
        import flowjax.flows as flows
        import jax
        import jax.random as jr
        import optax
        import paramax
        from flowjax.distributions import StandardNormal

        options = {"flow_layers": NUM[name], "nn_width": HIDDEN[0], "nn_depth": len(HIDDEN)}
        if name.startswith("NSF"):
            options["transformer"] = bijections.RationalQuadraticSpline(knots=BINS, interval=BOUND)
        make = flows.masked_autoregressive_flow if name in ("MAF", "NSF") else flows.coupling_flow
        flow = make(jr.key(0), base_dist=StandardNormal((D,)), **options)
        self.params, static = eqx.partition(flow, eqx.is_inexact_array)
        optimizer = optax.adam(1e-4)
        self.state, self.x, self.key = optimizer.init(self.params), jax.numpy.asarray(x.numpy()), jr.key(1)
        self.wait = jax.block_until_ready

        def density(params):
            return paramax.unwrap(eqx.combine(params, static))

        def step(params, state, x):
            gradient = jax.grad(lambda params: -density(params).log_prob(x).mean())(params)
            updates, state = optimizer.update(gradient, state)
            return eqx.apply_updates(params, updates), state

        def divergence(params, key):
            draws, log_prob = density(params).sample_and_log_prob(key, (len(x),))
            return (log_prob + 0.5 * (draws**2).sum(-1)).mean()

        self._step, self._gradient = jax.jit(step), jax.jit(jax.grad(divergence))
        self._log_prob = jax.jit(lambda params, x: density(params).log_prob(x))
        self._sample = jax.jit(lambda params, key: density(params).sample(key, (len(x),)))

    def train(self):
        self.params, self.state = self.wait(self._step(self.params, self.state, self.x))

    def log_prob(self):
        self.wait(self._log_prob(self.params, self.x))

    def sample(self):
        self.wait(self._sample(self.params, self.key))

    def rsample(self):
        self.wait(self._gradient(self.params, self.key))


def step_of_fit(name, D, x, num_blocks=8, every=50):
    """Seconds of a training step of ours in the compiled loop of `lvm.fit`: those of the quickest of its blocks."""
    import pyro_lvm as lvm

    model, ends = lvm.models.FlowDensity(ours(name, D, x).flow), []
    lvm.fit(
        model,
        None,
        x.repeat(10, 1),
        num_steps=num_blocks * every,
        batch_size=len(x),
        optim=1e-4,
        compile=True,
        every=every,
        callbacks=[lambda state: ends.append(time.perf_counter())],
        progress=False,
    )
    return min(later - earlier for earlier, later in itertools.pairwise(ends)) / every
