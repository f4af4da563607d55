"""Losses are pure functions that torch can trace: nothing reads a value, and nothing of an example is baked in."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_lvm as lvm
from pyro_lvm import elbo

X = torch.tensor([0.3, -1.2, 0.8, 2.0])
SEQUENCES = torch.tensor([[0.3, 1.0], [-1.0, 0.4], [2.5, 2.0], [0.0, -0.7]])


def local_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(slope * z, noise), obs=x)


def local_guide(x):
    width = pyro.param("width", torch.tensor(0.8), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, width))


def shared_model(x):
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    g = pyro.sample("g", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(g.sum() * scale, noise), obs=x)


def both_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


def both_guide(x):
    pyro.sample("g", dist.Normal(pyro.param("g_loc", torch.tensor(0.3)), 0.5))
    local_guide(x)


def discrete_model(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(locs[0] + z * locs[1], 1.0), obs=x)


def discrete_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.5)) * x))


def chains(x):
    """A hidden chain in each row, beside a latent that shifts it."""
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    table = pyro.param("table", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    with pyro.plate("rows", len(x)):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(table[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(locs[z] + shift, 1.0), obs=x[:, t])


def chains_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x.mean(1), 0.8))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_width = self.encoder(x).chunk(2, -1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, log_width.exp()).to_event(1))


def autoencoder():
    torch.manual_seed(1)
    parts = Autoencoder()
    return parts.model, parts.guide


WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0])
BITS = (SEQUENCES > 0.35).float()
# model and guide, data, options of the objective, and what the guide is like
MODELS = {
    "local": (lambda: (local_model, local_guide), X, {}, "local"),
    "local, weighted minibatch": (
        lambda: (local_model, local_guide),
        X,
        {"num_rows": 40, "sample_weight": WEIGHT},
        "local",
    ),
    "local, float64": (lambda: (local_model, local_guide), X.double(), {}, "local"),
    "shared": (lambda: (shared_model, "mean_field"), X, {}, "shared"),
    "shared, full rank": (lambda: (shared_model, "full_rank"), X, {}, "shared"),
    "both": (lambda: (both_model, both_guide), X, {"num_rows": 40}, "both"),
    "discrete": (lambda: (discrete_model, discrete_guide), X, {}, "discrete"),
    "chains": (lambda: (chains, chains_guide), SEQUENCES, {"num_rows": 40, "sample_weight": WEIGHT}, "enumerated"),
    "autoencoder": (autoencoder, BITS, {"num_rows": 40}, "local"),
}

ESTIMATORS = {
    "Trace_ELBO": lambda: elbo.Trace_ELBO(2),
    "Trace_ELBO of 1": lambda: elbo.Trace_ELBO(),
    "TraceMeanField_ELBO": lambda: elbo.TraceMeanField_ELBO(2),
    "TraceSTL_ELBO": lambda: elbo.TraceSTL_ELBO(2),
    "TraceScore_ELBO": lambda: elbo.TraceScore_ELBO(2),
    "TraceIWAE_ELBO": lambda: elbo.TraceIWAE_ELBO(3),
    "TraceIWAE_ELBO, dreg": lambda: elbo.TraceIWAE_ELBO(3, "dreg"),
    "TraceVIMCO_ELBO": lambda: elbo.TraceVIMCO_ELBO(3),
    "TraceRenyi_ELBO": lambda: elbo.TraceRenyi_ELBO(0.5, 3),
    "TraceCUBO": lambda: elbo.TraceCUBO(3, shift=-1.0),
    "TraceWakePhi": lambda: elbo.TraceWakePhi(3),
    "Beta": lambda: elbo.Beta(elbo.TraceIWAE_ELBO(3), 0.5, warm_up=7),
    "FreeBits": lambda: elbo.FreeBits(elbo.Trace_ELBO(2), 0.4),
    "Beta of FreeBits": lambda: elbo.Beta(elbo.FreeBits(elbo.TraceMeanField_ELBO(2), 0.4), 0.5),
}


def fits(estimator, kind):
    """Whether an estimator has a right form for a model."""
    if kind == "discrete" and ("MeanField" in estimator or "dreg" in estimator or estimator == "Beta of FreeBits"):
        return False
    if kind == "enumerated" and ("MeanField" in estimator or estimator == "Beta of FreeBits"):
        return False
    return not (kind == "both" and estimator in ("TraceCUBO", "TraceWakePhi"))


# of all that fit together, those that a quick run takes
QUICK = {
    "local, weighted minibatch": set(ESTIMATORS),
    "local, float64": {"TraceVIMCO_ELBO", "FreeBits"},
    "shared": {"TraceSTL_ELBO", "TraceWakePhi", "FreeBits"},
    "shared, full rank": {"Trace_ELBO", "TraceIWAE_ELBO, dreg"},
    "both": {"Trace_ELBO", "TraceIWAE_ELBO, dreg", "TraceVIMCO_ELBO"},
    "discrete": {"TraceScore_ELBO", "TraceVIMCO_ELBO", "FreeBits"},
    "chains": {"Trace_ELBO of 1"},
    "autoencoder": {"TraceMeanField_ELBO", "TraceIWAE_ELBO, dreg"},
}
CASES = [
    pytest.param(e, m, marks=() if e in QUICK.get(m, ()) else pytest.mark.slow)
    for e in ESTIMATORS
    for m, (*_, kind) in MODELS.items()
    if fits(e, kind)
]


def test_every_public_estimator_is_traced():
    assert {name.split(",")[0].split(" ")[0] for name in ESTIMATORS} == set(elbo.__all__)


@pytest.fixture(autouse=True)
def _without_validation():
    """Which reads values."""
    with pyro.validation_enabled(False):
        yield


def prepared(estimator, model):
    """Loss and gradients as a function of tensors, and an example of them."""
    programs, x, options, _ = MODELS[model]
    before = torch.get_default_dtype()
    torch.set_default_dtype(x.dtype)
    try:
        objective = lvm.Objective(*programs(), ESTIMATORS[estimator]())
        params = objective.init(x)
        objective(params, x, **options)  # finds out whether vmap takes it
        params = {name: v.detach() for name, v in params.items()}
    finally:
        torch.set_default_dtype(before)
    weight = options.get("sample_weight")
    num_rows = options.get("num_rows")

    def step(values, batch, weight, number):
        values = {name: v.detach().requires_grad_() for name, v in values.items()}
        loss = objective(values, batch, num_rows, weight, number)
        gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        found = [torch.zeros_like(v) if g is None else g for v, g in zip(values.values(), gradients, strict=True)]
        return [loss.detach(), *found]

    return step, [params, x, weight, torch.tensor(2)]


def others(arguments):
    """Other values of the same shapes."""
    params, x, weight, number = arguments
    noise = torch.Generator().manual_seed(3)

    def moved(v):
        return v + 0.3 * torch.randn(v.shape, generator=noise, dtype=v.dtype)

    batch = 1 - x if x is BITS else moved(x)
    return [
        {name: moved(v) for name, v in params.items()},
        batch,
        None if weight is None else weight.flip(0),
        number + 3,
    ]


@pytest.mark.parametrize(("estimator", "model"), CASES)
def test_a_traced_step_is_the_step_at_other_values_and_seeds(estimator, model):
    step, arguments = prepared(estimator, model)
    torch.manual_seed(0)
    traced = make_fx(step)(*arguments)
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert not [target for target in called if "_local_scalar_dense" in target or "aten.item" in target]
    eager = []
    for seed, values in ((0, arguments), (11, arguments), (11, others(arguments))):
        torch.manual_seed(seed)
        expected = step(*values)
        torch.manual_seed(seed)
        for ours, theirs in zip(traced(*values), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert all(torch.isfinite(t).all() for t in expected)
        eager.append(float(expected[0]))
    assert len(set(eager)) == 3, "another seed and other values make a difference"


@pytest.mark.parametrize("inner", ["Trace_ELBO", "TraceMeanField_ELBO", "TraceIWAE_ELBO", "TraceWakePhi"])
def test_a_traced_warm_up_goes_on(inner):
    objective = lvm.Objective(local_model, local_guide, elbo.Beta(ESTIMATORS[inner](), 2.0, warm_up=4))
    params = {name: v.detach() for name, v in objective.init(X).items()}

    def loss(number):
        return objective(params, X, step=number)

    loss(torch.tensor(0))
    traced = make_fx(loss)(torch.tensor(0))
    losses = []
    for number in (0, 1, 3, 4, 9):
        torch.manual_seed(0)
        losses.append(traced(torch.tensor(number)))
        torch.manual_seed(0)
        torch.testing.assert_close(losses[-1], loss(number))
    assert len({float(value) for value in losses}) == 4
    assert losses[-1] == losses[-2]
