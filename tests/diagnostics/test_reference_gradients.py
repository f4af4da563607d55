"""The gradient that an estimator should have on average, against brute force and closed forms in plain torch."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import transform_to

import pyro_lvm as lvm
from pyro_lvm import elbo
from pyro_lvm.diagnostics.reference_gradients import GivenNormals, reference

ENUMERATION, CUBATURE = "exact, by enumeration", "exact, for a linear Gaussian model"


def prepared(model, guide, estimator, *data):
    objective = lvm.Objective(model, guide, estimator)
    return objective, {name: v.detach() for name, v in objective.init(*data).items()}


def reference_of(model, guide, estimator, *data, num_draws=100):
    objective, values = prepared(model, guide, estimator, *data)
    return reference(objective, values, data, num_draws), values


def gradient_of(loss, values):
    """Of a loss of parameters by name, all side by side, in double precision."""
    leaves = {name: v.double().requires_grad_() for name, v in values.items()}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True)
    zero = [torch.zeros_like(v) if g is None else g for v, g in zip(leaves.values(), gradients, strict=True)]
    return torch.cat([g.flatten() for g in zero])


def param(name, *value):
    return pyro.param(name, torch.tensor(value[0] if len(value) == 1 else value))


# Enumeration


def normal(x, loc, scale=1.0):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def bit(value, logit):
    """log probability of a bit, by the logistic function."""
    return -torch.nn.functional.softplus(-(2 * value - 1) * logit)


X = torch.tensor([0.3, -1.2, 1.7])
MEANS = torch.tensor([-1.0, 0.5, 2.0])


class RowBits:
    """A bit for each row."""

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=param("p_logit", -0.4)))
            pyro.sample("x", dist.Normal(param("p_loc", 1.3) * z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=param("q_logits", 0.9, -0.2, 0.1)))

    data = X

    def cells(self, v):
        """For each cell a list of (log q, log p) over all that its latents can be."""
        for x, logit in zip(X.double(), v["q_logits"], strict=True):
            yield [(bit(z, logit), bit(z, v["p_logit"]) + normal(x, v["p_loc"] * z)) for z in (0, 1)]


class SharedComponent:
    """All rows belong to one of three components."""

    def model(self, x):
        z = pyro.sample("z", dist.Categorical(logits=param("p_logits", 0.1, -0.3, 0.4)))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(MEANS.to(x)[z] + param("p_loc", 0.1), 1.5), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.Categorical(logits=param("q_logits", 0.2, 0.0, 0.9)))

    data = X

    def cells(self, v):
        q, p = v["q_logits"].log_softmax(0), v["p_logits"].log_softmax(0)
        yield [(q[z], p[z] + normal(X.double(), MEANS.double()[z] + v["p_loc"], 1.5).sum()) for z in range(3)]


class TwoSites:
    """A component for each row, and a bit given the component."""

    def model(self, x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=param("p_a", 0.1, -0.3, 0.4)))
            b = pyro.sample("b", dist.Bernoulli(logits=param("p_b", -0.5, 0.2, 0.7)[a]))
            pyro.sample("x", dist.Normal(MEANS.to(x)[a] + param("p_loc", 0.8) * b, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=x[:, None] * param("q_a", 0.2, 0.0, 0.9)))
            pyro.sample("b", dist.Bernoulli(logits=param("q_b", 0.3, -0.6, 0.1)[a] + x))

    data = X

    def cells(self, v):
        p_a = v["p_a"].log_softmax(0)
        for x in X.double():
            q_a = (x * v["q_a"]).log_softmax(0)
            yield [
                (
                    q_a[a] + bit(b, v["q_b"][a] + x),
                    p_a[a] + bit(b, v["p_b"][a]) + normal(x, MEANS.double()[a] + v["p_loc"] * b),
                )
                for a, b in itertools.product(range(3), (0, 1))
            ]


class Words:
    """A bit for each row, and one for each word of it."""

    data = torch.tensor([[0.5, -1.0], [1.4, -0.8], [0.2, 0.6]])

    def model(self, x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(logits=param("p_z", 0.3)))
            with pyro.plate("words", x.shape[1], dim=-1):
                w = pyro.sample("w", dist.Bernoulli(logits=param("p_w", -0.2) + z))
                pyro.sample("x", dist.Normal(w + param("p_loc", 0.4) * z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(logits=param("q_z", 0.6) * x.sum(1, keepdim=True)))
            with pyro.plate("words", x.shape[1], dim=-1):
                pyro.sample("w", dist.Bernoulli(logits=param("q_w", 0.7) * x - z))

    def cells(self, v):
        for x in self.data.double():
            yield [
                (
                    bit(z, v["q_z"] * x.sum()) + bit(w, v["q_w"] * x - z).sum(),
                    bit(z, v["p_z"]) + (bit(w, v["p_w"] + z) + normal(x, w + v["p_loc"] * z)).sum(),
                )
                for z in (0, 1)
                for w in torch.cartesian_prod(*[torch.arange(2.0)] * 2)
            ]


class NoPlates:
    """Two bits, a third given their sum, and no plate at all."""

    data = X

    def model(self, x):
        z = [pyro.sample(f"z_{i}", dist.Bernoulli(logits=param(f"p_{i}", 0.3 - 0.5 * i))) for i in range(2)]
        u = pyro.sample("u", dist.Bernoulli(logits=z[0] + z[1] - 1.0))
        law = dist.Normal(param("p_loc", 0.7) * (z[0] + z[1]) - u, 1.0)
        pyro.sample("x", law.expand([3]).to_event(1), obs=x)

    def guide(self, x):
        z = [pyro.sample(f"z_{i}", dist.Bernoulli(logits=param(f"q_{i}", 0.5 - 0.4 * i))) for i in range(2)]
        pyro.sample("u", dist.Bernoulli(logits=param("q_u", 0.4) - z[0]))

    def cells(self, v):
        yield [
            (
                bit(a, v["q_0"]) + bit(b, v["q_1"]) + bit(u, v["q_u"] - a),
                bit(a, v["p_0"])
                + bit(b, v["p_1"])
                + bit(u, torch.tensor(a + b - 1.0))
                + normal(X.double(), v["p_loc"] * (a + b) - u).sum(),
            )
            for a, b, u in itertools.product((0, 1), repeat=3)
        ]


class Vectors:
    """One of three unit vectors for each row."""

    data = X

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=param("p_z", 0.1, -0.3, 0.4)))
            pyro.sample("x", dist.Normal(z @ param("p_loc", 1.0, -1.0, 2.0), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=x[:, None] * param("q_z", 0.5, 0.2, -0.6)))

    def cells(self, v):
        p = v["p_z"].log_softmax(0)
        for x in X.double():
            q = (x * v["q_z"]).log_softmax(0)
            yield [(q[z], p[z] + normal(x, v["p_loc"][z])) for z in range(3)]


class SummedOut:
    """The guide draws a bit for each row; the model sums out a component."""

    data = X

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=param("p_z", 0.3)))
            law = dist.Categorical(logits=param("p_a", 0.1, -0.3, 0.4))
            a = pyro.sample("a", law, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(MEANS.to(x)[a] + z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=param("q_z", 0.6) * x))

    def cells(self, v):
        p_a = v["p_a"].log_softmax(0)
        for x in X.double():
            yield [
                (bit(z, v["q_z"] * x), bit(z, v["p_z"]) + (p_a + normal(x, MEANS.double() + z)).logsumexp(0))
                for z in (0, 1)
            ]


class Scaled(RowBits):
    """A scale that all sites share stands around the bound of a row."""

    count = 0.3

    def model(self, x):
        with poutine.scale(scale=0.3):
            super().model(x)

    def guide(self, x):
        with poutine.scale(scale=0.3):
            super().guide(x)


CASES = (RowBits, SharedComponent, TwoSites, Words, NoPlates, Vectors, SummedOut, Scaled)


def renyi(alpha):
    return lambda logs: ((1 - alpha) * logs).logsumexp(-1).sub(math.log(logs.shape[-1])) / (1 - alpha)


def log_mean(logs):
    return logs.logsumexp(-1) - math.log(logs.shape[-1])


ESTIMATORS = {
    "ELBO": (lambda: elbo.Trace_ELBO(3), 1, lambda logs: logs.mean(-1)),
    "ELBO by scores": (lambda: elbo.TraceScore_ELBO(3), 1, lambda logs: logs.mean(-1)),
    "IWAE-1": (lambda: elbo.TraceIWAE_ELBO(1), 1, log_mean),
    "IWAE-2": (lambda: elbo.TraceIWAE_ELBO(2), 2, log_mean),
    "IWAE-3": (lambda: elbo.TraceIWAE_ELBO(3), 3, log_mean),
    "IWAE-3, stl": (lambda: elbo.TraceIWAE_ELBO(3, "stl"), 3, log_mean),
    "VIMCO-2": (lambda: elbo.TraceVIMCO_ELBO(2), 2, log_mean),
    "VIMCO-3": (lambda: elbo.TraceVIMCO_ELBO(3), 3, log_mean),
    "Renyi 0.5, 1": (lambda: elbo.TraceRenyi_ELBO(0.5, 1), 1, renyi(0.5)),
    "Renyi 0.5, 3": (lambda: elbo.TraceRenyi_ELBO(0.5, 3), 3, renyi(0.5)),
    "Renyi -1, 2": (lambda: elbo.TraceRenyi_ELBO(-1.0, 2), 2, renyi(-1.0)),
    "CUBO-1": (lambda: elbo.TraceCUBO(1, shift=-2.0), 1, lambda logs: -(2 * (logs + 2.0)).exp().mean(-1)),
    "CUBO-3": (lambda: elbo.TraceCUBO(3, shift=-2.0), 3, lambda logs: -(2 * (logs + 2.0)).exp().mean(-1)),
}


def brute_force(case, num, bound):
    """Minus the expected bound of ``num`` particles, by a sum over all that they can be together."""

    def loss(v):
        total = 0.0
        for cell in case.cells(v):
            for particles in itertools.product(cell, repeat=num):
                q, p = (torch.stack([particle[i] for particle in particles]) for i in (0, 1))
                total = total + q.sum().exp() * bound(p - q)
        return -getattr(case, "count", 1.0) * total

    return loss


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("case", CASES)
def test_enumeration_is_brute_force(case, name):
    make, num, bound = ESTIMATORS[name]
    case = case()
    found, values = reference_of(case.model, case.guide, make(), case.data)
    exact = gradient_of(brute_force(case, num, bound), values)
    assert found.source == ENUMERATION
    assert exact.norm() > 1e-3
    torch.testing.assert_close(found.gradient, exact, rtol=2e-5, atol=2e-5 * exact.norm().item())
    assert torch.equal(found.error, torch.zeros_like(exact))


def test_enumeration_in_double_precision():
    torch.set_default_dtype(torch.float64)
    try:
        case = TwoSites()
        found, values = reference_of(case.model, case.guide, elbo.TraceIWAE_ELBO(2), case.data.double())
        exact = gradient_of(brute_force(case, 2, log_mean), values)
        torch.testing.assert_close(found.gradient, exact, rtol=1e-10, atol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


def bits_of(count):
    def model(x):
        with pyro.plate("bits", count):
            z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        logits = pyro.param("q", torch.linspace(-0.5, 0.5, count))
        with pyro.plate("bits", count):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    return model, guide


def shared_and_rows():
    def model(x):
        a = pyro.sample("a", dist.Bernoulli(0.5))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * a))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("a", dist.Bernoulli(logits=param("q_a", 0.1)))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=param("q_z", 0.3) * x))

    return model, guide


def counts():
    """A latent that takes any number of values."""

    def model(x):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Poisson(param("q", 0.5).exp()))

    return model, guide


def bit_and_normal():
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + u, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=param("q_z", 0.1)))
        pyro.sample("u", dist.Normal(param("q_u", 0.3), 1.0))

    return model, guide


@pytest.mark.parametrize(
    ("programs", "estimator", "data"),
    [
        (bits_of(9), elbo.Trace_ELBO(), torch.tensor(1.0)),
        (bits_of(6), elbo.TraceIWAE_ELBO(4), torch.tensor(1.0)),
        (shared_and_rows(), elbo.Trace_ELBO(), X),
        (counts(), elbo.Trace_ELBO(), torch.tensor(1.0)),
        (bit_and_normal(), elbo.Trace_ELBO(), torch.tensor(1.0)),
    ],
    ids=["many values", "many particles", "shared and rows", "no end of values", "bit and normal"],
)
def test_latents_that_cannot_be_enumerated_are_drawn(programs, estimator, data):
    found, _ = reference_of(*programs, estimator, data, num_draws=30)
    assert found.source.startswith("mean of 30 gradients of ")
    assert (found.error > 0).all()


def test_as_many_bits_as_can_be_are_enumerated():
    found, values = reference_of(*bits_of(8), elbo.Trace_ELBO(), torch.tensor(1.0))

    def loss(v):  # z is a sum of independent bits, whose mean and variance are known
        p = v["q"].sigmoid()
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
        return 0.5 * ((p.sum() - 1) ** 2 + (p * (1 - p)).sum()) - entropy

    assert found.source == ENUMERATION
    torch.testing.assert_close(found.gradient, gradient_of(loss, values), rtol=1e-5, atol=1e-5)


# Cubature


def softplus(x):
    return torch.nn.functional.softplus(x)


def kl_normal(loc, scale, prior_loc=0.0, prior_scale=1.0):
    ratio = (scale / prior_scale) ** 2
    return 0.5 * (ratio + ((loc - prior_loc) / prior_scale) ** 2 - 1 - ratio.log()).sum()


def conjugate(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def conjugate_loss(v):
    loc, scale = v["AutoNormal.locs.mean"], softplus(v["AutoNormal.scales.mean"])
    return kl_normal(loc, scale, 0.0, 2.0) + 0.5 * ((X.double() - loc) ** 2 + scale**2).sum()


LINEAR = (elbo.Trace_ELBO, elbo.TraceMeanField_ELBO, elbo.TraceSTL_ELBO)


@pytest.mark.parametrize("estimator", LINEAR)
@pytest.mark.parametrize("num_particles", [1, 7])
def test_cubature_of_a_conjugate_model_is_its_closed_form(estimator, num_particles):
    found, values = reference_of(conjugate, "mean_field", estimator(num_particles), X)
    assert found.source == CUBATURE
    torch.testing.assert_close(found.gradient, gradient_of(conjugate_loss, values), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.error, torch.zeros_like(found.gradient))


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_cubature_in_double_precision(default):
    def model(x):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 2.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("AutoNormal.locs.mean", torch.tensor(0.4, dtype=torch.float64))
        scale = pyro.param("AutoNormal.scales.mean", torch.tensor(-0.7, dtype=torch.float64))
        pyro.sample("mean", dist.Normal(loc, softplus(scale)))

    torch.set_default_dtype(default)
    try:
        found, values = reference_of(model, guide, elbo.Trace_ELBO(), X.double())
        assert found.source == CUBATURE
        exact = gradient_of(conjugate_loss, values)
        torch.testing.assert_close(found.gradient, exact, rtol=1e-10, atol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


def ppca(x):
    weights = param("p_weights", *[[0.8, -0.3, 0.5], [0.2, 0.9, -0.4]])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        scale = param("p_scale", -0.1).exp()
        pyro.sample("x", dist.Normal(z @ weights + param("p_loc", 0.1, 0.0, 0.3), scale).to_event(1), obs=x)


def ppca_guide(x):
    loc = x @ param("q_weights", *[[0.5, 0.1], [-0.1, 0.5], [0.6, 0.1]]) + param("q_loc", 0.4, -0.3)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, param("q_scale", -0.3, -0.5).exp()).to_event(1))


@pytest.mark.parametrize("num_rows", [3, 150])
def test_cubature_of_ppca_with_an_amortized_guide_is_its_closed_form(num_rows):
    x = torch.randn(num_rows, 3)
    found, values = reference_of(ppca, ppca_guide, elbo.Trace_ELBO(2), x)

    def loss(v):
        loc = x.double() @ v["q_weights"] + v["q_loc"]
        scale = v["q_scale"].exp().expand(num_rows, 2)
        squares = (x.double() - loc @ v["p_weights"] - v["p_loc"]) ** 2 + scale**2 @ v["p_weights"] ** 2
        return kl_normal(loc, scale) + (0.5 * squares / (2 * v["p_scale"]).exp() + v["p_scale"]).sum()

    assert found.source == CUBATURE
    torch.testing.assert_close(found.gradient, gradient_of(loss, values), rtol=1e-4, atol=1e-4 * num_rows)


def test_cubature_of_correlated_regression_with_a_full_rank_guide_is_its_closed_form():
    features = torch.randn(40, 3) @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.5], [0.0, 0.0, 1.0]])
    y = features @ torch.tensor([1.0, -2.0, 0.5]) + torch.randn(40)

    def model(features, y):
        weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(features @ weights + shift, 0.7), obs=y)

    objective, values = prepared(model, "full_rank", elbo.Trace_ELBO(), features, y)
    noise = torch.Generator().manual_seed(1)
    values = {name: v + 0.3 * torch.randn(v.shape, generator=noise) for name, v in values.items()}
    found = reference(objective, values, (features, y), 10)
    name = {n.rpartition(".")[2]: n for n in values}
    design = torch.cat([features, torch.ones(40, 1)], 1).double()
    prior = dist.MultivariateNormal(
        torch.zeros(4, dtype=torch.float64), torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0], dtype=torch.float64))
    )

    def loss(v):
        constrained = {n: transform_to(objective.program.parameters.constraints[n])(value) for n, value in v.items()}
        tril = constrained[name["scale"]][:, None] * constrained[name["scale_tril"]]
        q = torch.distributions.MultivariateNormal(constrained[name["loc"]], scale_tril=tril)
        squares = (y.double() - design @ q.loc).square().sum() + (design @ tril).square().sum()
        return torch.distributions.kl_divergence(q, prior) + 0.5 * squares / 0.7**2

    assert found.source == CUBATURE
    exact = gradient_of(loss, values)
    torch.testing.assert_close(found.gradient, exact, rtol=1e-4, atol=1e-4 * exact.norm().item())


def test_sites_that_are_summed_out_leave_nothing_quadratic():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z * (2.0 * a - 1), 1.0), obs=x)

    found, _ = reference_of(model, "mean_field", elbo.Trace_ELBO(), X, num_draws=20)
    assert found.source.startswith("mean of 20 gradients")


def logistic(X, y):
    weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=X @ weights), obs=y)


LOGISTIC_DATA = (torch.randn(30, 2, generator=torch.Generator().manual_seed(1)), (torch.arange(30) % 3 > 0).float())


def unknown_noise(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def gamma_guide(x):
    shape, rate = (param(name, 0.5).exp() for name in ("shape", "rate"))
    pyro.sample("scale", dist.Gamma(shape, rate))


def outliers(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.StudentT(3.0, mean, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "data"),
    [
        (logistic, "mean_field", LOGISTIC_DATA),
        (logistic, "full_rank", LOGISTIC_DATA),
        (unknown_noise, "mean_field", (X,)),
        (unknown_noise, gamma_guide, (X,)),
        (outliers, "mean_field", (X,)),
    ],
    ids=["logistic", "logistic, full rank", "unknown noise", "gamma draws", "outliers"],
)
@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO, elbo.TraceMeanField_ELBO])
def test_other_models_are_not_taken_for_linear_gaussian(model, guide, data, estimator):
    found, _ = reference_of(model, guide, estimator(), *data, num_draws=20)
    assert found.source == "mean of 20 gradients of TraceSTL_ELBO(num_particles=1)"


def test_random_numbers_beside_the_draws_are_not_taken_for_constants():
    """As those of dropout."""

    def guide(x):
        kept = torch.bernoulli(torch.full((len(x),), 0.5))
        pyro.sample("mean", dist.Normal(param("q", 0.3) * (x * kept).sum(), 1.0))

    found, _ = reference_of(conjugate, guide, elbo.Trace_ELBO(), X, num_draws=20)
    assert found.source.startswith("mean of 20 gradients")


def random_effects(y):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Bernoulli(logits=2 * z), obs=y)


def random_effects_guide(y):
    scale = param("q_log_scale", math.log(0.3)).exp()
    with pyro.plate("rows", len(y)):
        pyro.sample("z", dist.Normal(param("q_slope", 0.2) * (2 * y - 1), scale))


def random_effects_loss(y):
    noise = torch.linspace(-8, 8, 2_001, dtype=torch.float64)
    mass = (-0.5 * noise**2).softmax(0)
    sign = 2 * y.double()[:, None] - 1

    def loss(v):
        z = v["q_slope"] * sign + v["q_log_scale"].exp() * noise
        log_p = -0.5 * z**2 + torch.nn.functional.logsigmoid(2 * z * sign)
        return -(mass * (log_p + 0.5 * noise**2 + v["q_log_scale"])).sum()

    return loss


@pytest.mark.parametrize("num_rows", [20, 100, 1_000])
def test_what_is_called_exact_is_exact_however_many_rows_have_latents(num_rows):
    y = (torch.arange(num_rows) % 10 < 7).float()
    found, values = reference_of(random_effects, random_effects_guide, elbo.Trace_ELBO(), y, num_draws=400)
    exact = gradient_of(random_effects_loss(y), values)
    assert ((found.gradient - exact).abs() <= 4 * found.error + 1e-3 * exact.abs()).all()


def test_a_model_is_taken_for_linear_gaussian_only_up_to_what_rounding_explains():
    """Draws so close together that the logistic function looks like a parabola at a distance."""
    y = (torch.arange(100) % 10 < 7).float()
    objective, values = prepared(random_effects, random_effects_guide, elbo.Trace_ELBO(), y)
    values["q_log_scale"] = torch.tensor(0.1).log()
    found = reference(objective, values, (y,), 400)
    exact = gradient_of(random_effects_loss(y), values)
    assert ((found.gradient - exact).abs() <= 4 * found.error + 5e-4 * exact.abs()).all()


# Draws


def counts_model(x):
    """Its ELBO is known: the mean of exp(z) is exp(loc + scale^2 / 2)."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(z.exp()), obs=x)


def counts_guide(x):
    pyro.sample("z", dist.Normal(param("loc", 0.6), param("log_scale", -1.0).exp()))


COUNTS = torch.tensor([1.0, 3.0, 0.0, 2.0])


def counts_loss(v):
    loc, scale = v["loc"], v["log_scale"].exp()
    return kl_normal(loc, scale) - COUNTS.sum() * loc + len(COUNTS) * (loc + scale**2 / 2).exp()


@pytest.fixture(scope="module")
def drawn():
    """References of many seeds, each the mean of 100 gradients, and the exact gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective, values = prepared(counts_model, counts_guide, elbo.Trace_ELBO(), COUNTS)
        found = [reference(objective, values, (COUNTS,), 100) for _ in range(80)]
    return found, gradient_of(counts_loss, values)


def test_the_mean_of_many_gradients_is_right_within_its_error(drawn):
    found, exact = drawn
    assert {r.source for r in found} == {"mean of 100 gradients of TraceSTL_ELBO(num_particles=1)"}
    means = torch.stack([r.gradient for r in found])
    assert ((means.mean(0) - exact).abs() < 4 * means.std(0) / math.sqrt(len(found))).all()
    assert ((found[0].gradient - exact).abs() < 4 * found[0].error).all()


def test_the_error_of_the_mean_of_many_gradients_is_its_spread(drawn):
    found, _ = drawn
    means = torch.stack([r.gradient for r in found])
    claimed = torch.stack([r.error for r in found]).square()
    deviations = (means - means.mean(0)).square() * len(found) / (len(found) - 1)
    error = ((claimed.var(0) + deviations.var(0)) / len(found)).sqrt()
    assert ((claimed.mean(0) - deviations.mean(0)).abs() < 4 * error).all()


def test_the_source_says_of_how_many_gradients():
    found, _ = reference_of(counts_model, counts_guide, elbo.Trace_ELBO(), COUNTS, num_draws=2_000)
    assert found.source == "mean of 2,000 gradients of TraceSTL_ELBO(num_particles=1)"


@pytest.mark.parametrize(
    ("estimator", "least_noisy"),
    [
        (elbo.TraceIWAE_ELBO(3), "TraceIWAE_ELBO"),
        (elbo.TraceVIMCO_ELBO(3), "TraceIWAE_ELBO"),
        (elbo.TraceRenyi_ELBO(0.5, 3), "TraceRenyi_ELBO"),
        (elbo.TraceCUBO(3), "TraceCUBO"),
        (elbo.TraceWakePhi(3), "TraceWakePhi"),
        (elbo.Beta(elbo.Trace_ELBO(), 2.0), "Beta"),
        (pyro.infer.RenyiELBO(0.5, num_particles=3), "RenyiELBO"),
    ],
)
def test_each_target_has_a_reference(estimator, least_noisy):
    found, values = reference_of(conjugate, "mean_field", estimator, X, num_draws=20)
    assert found.source.startswith(f"mean of 20 gradients of {least_noisy}")
    assert found.gradient.shape == found.error.shape == (sum(v.numel() for v in values.values()),)


def test_a_beta_of_one_changes_no_mean():
    found, values = reference_of(conjugate, "mean_field", elbo.Beta(elbo.Trace_ELBO(5), 1.0), X, num_draws=400)
    assert ((found.gradient - gradient_of(conjugate_loss, values)).abs() < 4 * found.error).all()


def test_a_parameter_that_nothing_depends_on_has_no_gradient():
    def guide(x):
        param("idle", 1.0, 2.0)
        RowBits().guide(x)

    def model(x):
        RowBits().model(x)

    found, values = reference_of(model, guide, elbo.TraceIWAE_ELBO(2), X)
    names = [name for name, v in values.items() for _ in range(v.numel())]
    if "idle" in values:
        assert [found.gradient[i] for i, name in enumerate(names) if name == "idle"] == [0, 0]
    assert len(found.gradient) == len(names)


# Given normal draws


def test_given_normals_come_in_their_order():
    given = torch.arange(9.0)
    with GivenNormals(given) as normals:
        first = dist.Normal(1.0, 10.0).rsample((2,))
        second = dist.MultivariateNormal(torch.zeros(2), 2.0 * torch.eye(2)).rsample()
        third = torch.empty(2, 2).normal_()
    assert normals.count == 8
    torch.testing.assert_close(first, torch.tensor([1.0, 11.0]))
    torch.testing.assert_close(second, math.sqrt(2.0) * torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(third, torch.tensor([[4.0, 5.0], [6.0, 7.0]]))


def test_given_normals_are_counted_and_zero_without_any():
    with GivenNormals(None) as normals:
        draws = dist.Normal(torch.tensor([1.0, 2.0]), 3.0).rsample((4,))
        low_rank = dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)).rsample()
    assert normals.count == 8 + 1 + 3
    torch.testing.assert_close(draws, torch.tensor([1.0, 2.0]).expand(4, 2))
    assert torch.equal(low_rank, torch.zeros(3))


def test_given_normals_have_the_dtype_that_is_asked_for():
    with GivenNormals(torch.ones(2)):
        assert torch.empty(2, dtype=torch.float64).normal_().dtype == torch.float64


def test_other_draws_stay_random_and_their_numbers_the_same():
    def others():
        return [
            torch.rand(3),
            torch.randn(3),
            dist.Gamma(2.0, 1.0).rsample((3,)),
            dist.Categorical(torch.ones(5)).sample((3,)),
            torch.empty(3).normal_(1.0, 2.0),
        ]

    torch.manual_seed(3)
    expected = others()
    torch.manual_seed(3)
    with GivenNormals(torch.zeros(5)) as normals:
        dist.Normal(0.0, 1.0).rsample((5,))
        found = others()
    assert normals.count == 5
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_given_normals_touch_no_random_state():
    before = torch.get_rng_state()
    with GivenNormals(torch.zeros(5)):
        dist.Normal(0.0, 1.0).rsample((5,))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(dist.Normal(0.0, 1.0).rsample((5,)), torch.zeros(5))


def test_a_nonlinearity_that_starts_at_zero_is_none_of_a_linear_gaussian_model():
    """The log-weight is quadratic there, but its derivative in the nonlinearity is not."""

    def bent(x):
        t = pyro.param("t", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + t * z**3, 1.0), obs=x)

    def proposal(x):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.5)), 1.0))

    objective = lvm.Objective(bent, proposal)
    params = objective.init(torch.tensor(2.0))
    found = reference(objective, params, (torch.tensor(2.0),), 4_000)
    assert not found.source.startswith("exact")
    third, fourth = 0.5**3 + 3 * 0.5, 0.5**4 + 6 * 0.5**2 + 3  # moments of N(1/2, 1)
    of_t = list(params).index("t")
    assert abs(found.gradient[of_t] - (fourth - 2 * third)) < 4 * found.error[of_t]  # E[-(x - z) z^3]


def test_a_steep_quadratic_does_not_hide_what_is_none():
    def steep():
        with pyro.plate("two", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(z[0], 1e-3), obs=torch.tensor(0.3))
        pyro.sample("b", dist.Bernoulli(logits=30 * (z[1] - 1.2)), obs=torch.tensor(1.0))

    def proposal():
        with pyro.plate("two", 2):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(2)), 1.0))

    objective = lvm.Objective(steep, proposal)
    found = reference(objective, objective.init(), (), 100)
    assert not found.source.startswith("exact")


def test_plates_that_draw_their_part_are_not_enumerated():
    def parts(x):
        with pyro.plate("rows", 4, subsample_size=2) as index:
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def proposal(x):
        probs = pyro.param("probs", torch.full((4,), 0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("rows", 4, subsample_size=2) as index:
            pyro.sample("z", dist.Bernoulli(probs[index]))

    x = torch.tensor([0.0, 5.0, -5.0, 10.0])
    objective = lvm.Objective(parts, proposal, elbo.TraceScore_ELBO(2))
    assert not reference(objective, objective.init(x), (x,), 100).source.startswith("exact")
