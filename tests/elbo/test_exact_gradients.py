"""The mean gradient of every estimator, against the exact gradient of what it estimates.

The exact objectives know nothing of Pyro. A cell's latents lie on a grid, or are enumerated, so that one particle's
log-weight is a table. Of K particles, S being the sum of their weights,

    E log S = integral of (exp(-t) - (E exp(-t w))^K) / t over t > 0,

which needs the distribution of one weight only, whatever K is.
"""

import itertools
import math
from functools import cache
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.elbo import (
    Trace_ELBO,
    TraceCUBO,
    TraceIWAE_ELBO,
    TraceMeanField_ELBO,
    TraceRenyi_ELBO,
    TraceScore_ELBO,
    TraceSTL_ELBO,
    TraceVIMCO_ELBO,
    TraceWakePhi,
)
from pyro_lvm.vectorize import repeat


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# What is exact


class Table(NamedTuple):
    """All that a cell's latents can be: M places for each of C cells, given each of G places of what cells share.

    ``mass`` and ``outer_mass`` are logarithms of probabilities under the guide, the others log-densities.
    """

    mass: torch.Tensor  # [G, C, M]
    p: torch.Tensor
    q: torch.Tensor
    outer_mass: torch.Tensor  # [G]
    outer_p: torch.Tensor
    outer_q: torch.Tensor

    @property
    def log_w(self):
        return self.p - self.q

    def around(self, bounds):
        """The expectation over what cells share, given the bound of each cell ``[G, C]``."""
        return (self.outer_mass.exp() * (self.outer_p - self.outer_q + bounds.sum(-1))).sum()


def table(mass, p, q, outer=None):
    """A table; without latents that cells share, from ``[C, M]``."""
    if outer is None:
        zero = torch.zeros(1)
        outer = (zero, zero, zero)
        p, q = p[None], q[None]
    return Table(mass.expand(p.shape), p, q.expand(p.shape), *outer)


STEP = 0.4  # of the integral over log t


def log_mean_of(mass, log_w, num, power=1.0):
    """E log mean_k w_k^power of ``num`` particles, over the last dimension of the table."""
    log_w = power * log_w
    centre = (mass + log_w).logsumexp(-1, keepdim=True).detach()
    t = torch.arange(-40.0, 60.0, STEP).exp()
    log_laplace = (mass.unsqueeze(-2) - t.unsqueeze(-1) * (log_w - centre).exp().unsqueeze(-2)).logsumexp(-1)
    log_sum = STEP * ((-t).exp() - (num * log_laplace).exp()).sum(-1)
    return (log_sum + centre.squeeze(-1) - math.log(num)) / power


def exact_elbo(t, num):
    return t.around((t.mass.exp() * t.log_w).sum(-1))


def exact_iwae(t, num):
    return exact_elbo(t, 1) if num == 1 else t.around(log_mean_of(t.mass, t.log_w, num))


def exact_renyi(alpha):
    return lambda t, num: exact_elbo(t, 1) if num == 1 else t.around(log_mean_of(t.mass, t.log_w, num, 1 - alpha))


SHIFT = -0.7


def exact_cubo(t, num):
    return -t.around((t.mass + 2 * (t.log_w - SHIFT)).exp().sum(-1))


def normal(x, loc, log_scale):
    return -0.5 * ((x - loc) / torch.as_tensor(log_scale).exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def bit(value, logit):
    return torch.nn.functional.logsigmoid(logit * (2 * value - 1))


def grid(count, dim=1):
    """Places of standard normal noise ``[M, dim]``, and the logarithm of their probabilities."""
    line = torch.linspace(-7.0, 7.0, count)
    places = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    return places, (-0.5 * places.square().sum(-1)).log_softmax(0)


# Models and guides, and their tables: ``path`` are the parameters of the draws, ``params`` those of the densities

X = torch.tensor([0.3, -1.2, 1.7, 0.8], dtype=torch.float64)


def param(name, *value):
    return pyro.param(name, torch.tensor(value[0] if len(value) == 1 else value))


class Case(NamedTuple):
    """A model, a guide and the data.

    Attributes:
        table: ``table(path, params)``.
        score: Whether a site of the guide has no reparametrised draw.
        nested: Whether cells share latents beside their own.
        batches: In how many minibatches the data may be taken.
        linear_batches: The same for estimators of the ELBO itself.
        start: Parameters other than those that the objective starts from.
        count: How many estimates tell the mean.
    """

    model: Any
    guide: Any
    data: torch.Tensor
    table: Any
    score: bool = False
    nested: bool = False
    batches: int = 1
    linear_batches: int = 1
    start: Any = ()
    count: int = 4_000


def normal_rows():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(param("p_loc", 0.3), 1.0))
            pyro.sample("x", dist.Normal(z, param("p_scale", -0.2).exp()), obs=x)

    def guide(x):
        loc = param("q_loc", 0.6) + param("q_slope", 0.1) * x
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, param("q_scale", -0.1).exp()))

    def exact(path, params):
        noise, mass = grid(150)
        z = (path["q_loc"] + path["q_slope"] * X)[:, None] + path["q_scale"].exp() * noise.T
        q = normal(z, (params["q_loc"] + params["q_slope"] * X)[:, None], params["q_scale"])
        return table(mass, normal(z, params["p_loc"], 0.0) + normal(X[:, None], z, params["p_scale"]), q)

    return Case(model, guide, X, exact, batches=2, linear_batches=2)


def normal_without_plates():
    def model(x):
        z = pyro.sample("z", dist.Normal(param("p_loc", 0.3), 1.0))
        pyro.sample("x", dist.Normal(z, param("p_scale", 0.5).exp()).expand([4]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(param("q_loc", 0.9), param("q_scale", 0.1).exp()))

    return Case(model, guide, X, normal_shared_table, count=6_000)


def normal_shared_table(path, params):
    noise, mass = grid(150)
    z = path["q_loc"] + path["q_scale"].exp() * noise.T
    p = normal(z, params["p_loc"], 0.0) + normal(X[:, None], z, params["p_scale"]).sum(0, keepdim=True)
    return table(mass, p, normal(z, params["q_loc"], params["q_scale"]))


def normal_shared():
    """One latent for all rows, in a model whose rows have a plate."""

    def model(x):
        z = pyro.sample("z", dist.Normal(param("p_loc", 0.3), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, param("p_scale", 0.5).exp()), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(param("q_loc", 0.9), param("q_scale", 0.1).exp()))

    return Case(model, guide, X, normal_shared_table, linear_batches=2)


Y = torch.tensor([[0.5, -1.0, 1.4], [-0.8, 0.2, 0.6]], dtype=torch.float64)


def ppca():
    def model(x):
        weights = param("p_weights", *[[0.8, -0.3, 0.5], [0.2, 0.9, -0.4]])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            loc = z @ weights + param("p_loc", 0.1, 0.0, 0.3)
            pyro.sample("x", dist.Normal(loc, param("p_scale", -0.1).exp()).to_event(1), obs=x)

    def guide(x):
        loc = x @ param("q_weights", *[[0.5, 0.1], [-0.1, 0.5], [0.6, 0.1]]) + param("q_loc", 0.4, -0.3)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, param("q_scale", -0.1, 0.05).exp()).to_event(1))

    def exact(path, params):
        noise, mass = grid(40, 2)
        z = (Y @ path["q_weights"] + path["q_loc"])[:, None] + path["q_scale"].exp() * noise
        p = normal(z, 0.0, 0.0).sum(-1)
        p = p + normal(Y[:, None], z @ params["p_weights"] + params["p_loc"], params["p_scale"]).sum(-1)
        q = normal(z, (Y @ params["q_weights"] + params["q_loc"])[:, None], params["q_scale"]).sum(-1)
        return table(mass, p, q)

    return Case(model, guide, Y, exact, batches=2, linear_batches=2)


def normal_words():
    """A latent for each row, and one for each word in it."""

    def model(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(param("p_loc", 0.2), 1.0))
            with pyro.plate("words", x.shape[1], dim=-1):
                w = pyro.sample("w", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(w, param("p_scale", 0.1).exp()), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(param("q_z", 0.3) * x.sum(1, keepdim=True), param("q_a", -0.2).exp()))
            with pyro.plate("words", x.shape[1], dim=-1):
                pyro.sample("w", dist.Normal(0.4 * x + param("q_w", 0.7) * z, param("q_b", -0.1).exp()))

    x = Y[:, :2] + torch.tensor([[0.6, 0.6], [-0.6, -0.6]])

    def exact(path, params):
        noise, mass = grid(18, 3)
        z = path["q_z"] * x.sum(1)[:, None] + path["q_a"].exp() * noise[:, 0]
        w = 0.4 * x[:, None] + path["q_w"] * z[..., None] + path["q_b"].exp() * noise[:, 1:]
        p = normal(z, params["p_loc"], 0.0)
        p = p + (normal(w, z[..., None], 0.0) + normal(x[:, None], w, params["p_scale"])).sum(-1)
        q = normal(z, params["q_z"] * x.sum(1)[:, None], params["q_a"])
        q = q + normal(w, 0.4 * x[:, None] + params["q_w"] * z[..., None], params["q_b"]).sum(-1)
        return table(mass, p, q)

    return Case(model, guide, x, exact, batches=2, linear_batches=2)


def normal_shared_and_rows():
    def model(x):
        g = pyro.sample("g", dist.Normal(param("p_g", -0.4), 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(g, 1.0))
            pyro.sample("x", dist.Normal(z + param("p_loc", 0.3), 0.8), obs=x)

    def guide(x):
        g = pyro.sample("g", dist.Normal(param("q_g", 0.8), param("q_a", -0.1).exp()))
        with pyro.plate("rows", len(x)):
            loc = param("q_slope", 0.2) * x + param("q_of", 0.6) * g
            pyro.sample("z", dist.Normal(loc, param("q_b", -0.1).exp()))

    x = X[:2]

    def exact(path, params):
        noise_g, mass_g = grid(40)
        noise, mass = grid(60)
        g = path["q_g"] + path["q_a"].exp() * noise_g[:, :, None]
        z = path["q_slope"] * x[:, None] + path["q_of"] * g + path["q_b"].exp() * noise[:, 0]
        p = normal(z, g, 0.0) + normal(x[:, None], z + params["p_loc"], torch.tensor(0.8).log())
        q = normal(z, params["q_slope"] * x[:, None] + params["q_of"] * g, params["q_b"])
        g = g.flatten()
        return table(mass, p, q, (mass_g, normal(g, params["p_g"], 0.0), normal(g, params["q_g"], params["q_a"])))

    return Case(model, guide, x, exact, nested=True, batches=2, linear_batches=2)


def auxiliary():
    """The guide alone draws u, on which z depends."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(param("p_loc", 0.3), 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            law = dist.Normal(param("q_u", 0.5), param("q_a", 0.1).exp())
            u = pyro.sample("u", law, infer={"is_auxiliary": True})
            loc = param("q_slope", 0.2) * x + param("q_of", 0.4) * u
            pyro.sample("z", dist.Normal(loc, param("q_b", -0.1).exp()))

    x = X[:2]

    def exact(path, params):
        noise, mass = grid(50, 2)
        u = path["q_u"] + path["q_a"].exp() * noise[:, 0]
        z = path["q_slope"] * x[:, None] + path["q_of"] * u + path["q_b"].exp() * noise[:, 1]
        p = normal(z, params["p_loc"], 0.0) + normal(x[:, None], z, torch.tensor(0.8).log())
        q = normal(u, params["q_u"], params["q_a"])
        q = q + normal(z, params["q_slope"] * x[:, None] + params["q_of"] * u, params["q_b"])
        return table(mass, p, q)

    return Case(model, guide, x, exact, batches=2, linear_batches=2)


def auxiliary_bit():
    """The guide alone draws a bit, on which z depends."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(param("p_loc", 0.3), 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            law = dist.Bernoulli(logits=param("q_u", 0.5) * x)
            u = pyro.sample("u", law, infer={"is_auxiliary": True})
            loc = param("q_slope", 0.2) * x + param("q_of", 1.5) * u
            pyro.sample("z", dist.Normal(loc, param("q_b", -0.1).exp()))

    def exact(path, params):
        noise, mass = grid(100)
        u = torch.tensor([0.0, 1.0])[:, None]
        x = X[:, None, None]
        z = path["q_slope"] * x + path["q_of"] * u + path["q_b"].exp() * noise[:, 0]
        mass = mass + bit(u, path["q_u"] * x)
        p = normal(z, params["p_loc"], 0.0) + normal(x, z, torch.tensor(0.8).log())
        q = bit(u, params["q_u"] * x) + normal(z, params["q_slope"] * x + params["q_of"] * u, params["q_b"])
        return table(mass.flatten(1), p.flatten(1), q.flatten(1))

    return Case(model, guide, X, exact, score=True, batches=2, linear_batches=2)


def automatic():
    """A guide that draws on the real line and maps the draw into the support."""

    def model(x):
        s = pyro.sample("s", dist.Beta(2.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(param("p_slope", 1.5) * s, 1.0), obs=x)

    def guide_of(params):
        return params["AutoNormal.locs.s"], torch.nn.functional.softplus(params["AutoNormal.scales.s"]).log()

    def exact(path, params):
        noise, mass = grid(150)
        loc, log_scale = guide_of(path)
        u = loc + log_scale.exp() * noise.T
        s = u.sigmoid()
        p = (2 * s).log() + (s * (1 - s)).log() + normal(X[:, None], params["p_slope"] * s, 0.0).sum(0, keepdim=True)
        return table(mass, p, normal(u, *guide_of(params)))

    start = {"AutoNormal.locs.s": torch.tensor(0.9), "AutoNormal.scales.s": torch.tensor(0.7)}
    return Case(model, "mean_field", X, exact, linear_batches=2, start=start)


def automatic_joint():
    """As one draw of two latents with a covariance."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.Beta(2.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(m + param("p_slope", 1.5) * s, 1.0), obs=x)

    def guide_of(params):
        start = [params[f"AutoMultivariateNormal.{name}"] for name in ("loc", "scale", "scale_tril")]
        scale = torch.nn.functional.softplus(start[1])
        return start[0], scale[:, None] * (start[2].tril(-1) + torch.eye(2)), scale.log().sum()

    def exact(path, params):
        noise, mass = grid(40, 2)
        loc, root, _ = guide_of(path)
        m, u = (loc + noise @ root.T).T
        s = u.sigmoid()
        p = normal(m, 0.0, 0.0) + (2 * s).log() + (s * (1 - s)).log()
        p = p + normal(X[:, None], m + params["p_slope"] * s, 0.0).sum(0)
        loc, root, log_volume = guide_of(params)
        white = torch.linalg.solve_triangular(root, torch.stack([m, u]) - loc[:, None], upper=False)
        return table(mass, p[None], (normal(white, 0.0, 0.0).sum(0) - log_volume)[None])

    start = {
        "AutoMultivariateNormal.loc": torch.tensor([-0.4, 0.6]),
        "AutoMultivariateNormal.scale": torch.tensor([0.1, 0.5]),
        "AutoMultivariateNormal.scale_tril": torch.tensor([[0.0, 0.0], [0.4, 0.0]]),
    }
    return Case(model, "full_rank", X, exact, linear_batches=2, start=start)


def automatic_rows():
    """As one draw for each row, by parameters of its own."""

    def model(x):
        with pyro.plate("rows", len(x)):
            s = pyro.sample("s", dist.Beta(2.0, 1.0))
            pyro.sample("x", dist.Normal(param("p_slope", 1.5) * s, 0.7), obs=x)

    def guide_of(params):
        scale = torch.nn.functional.softplus(params["AutoNormal.scales.s"])
        return params["AutoNormal.locs.s"][:, None], scale.log()[:, None]

    def exact(path, params):
        noise, mass = grid(150)
        loc, log_scale = guide_of(path)
        u = loc + log_scale.exp() * noise.T
        s = u.sigmoid()
        p = (2 * s).log() + (s * (1 - s)).log() + normal(X[:, None], params["p_slope"] * s, torch.tensor(0.7).log())
        return table(mass, p, normal(u, *guide_of(params)))

    start = {
        "AutoNormal.locs.s": torch.tensor([0.9, 0.5, -1.0, 0.2]),
        "AutoNormal.scales.s": torch.tensor([0.7, 0.3, 0.0, 0.5]),
    }
    return Case(model, "mean_field", X, exact, start=start)


def normal_and_enumerated_bit():
    """The model sums out a bit for each row, which the guide leaves to it."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            law = dist.Bernoulli(logits=param("p_logit", -0.4) + z)
            b = pyro.sample("b", law, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + param("p_loc", 1.2) * b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(param("q_slope", 0.0) * x + 0.5, param("q_scale", 0.2).exp()))

    def exact(path, params):
        noise, mass = grid(100)
        b, x = torch.tensor([0.0, 1.0]), X[:, None]
        z = path["q_slope"] * x + 0.5 + path["q_scale"].exp() * noise[:, 0]
        of_bit = bit(b, params["p_logit"] + z[..., None])
        of_bit = of_bit + normal(x[..., None], z[..., None] + params["p_loc"] * b, 0.0)
        q = normal(z, params["q_slope"] * x + 0.5, params["q_scale"])
        return table(mass, normal(z, 0.0, 0.0) + of_bit.logsumexp(-1), q)

    return Case(model, guide, X, exact, batches=2, linear_batches=2)


def subsampled_rows():
    """The plate of the rows draws some of them."""

    def model(x):
        with pyro.plate("rows", 4, subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(param("p_loc", 0.3), 1.0))
            pyro.sample("x", dist.Normal(z, param("p_scale", -0.2).exp()), obs=x[rows])

    def guide(x):
        with pyro.plate("rows", 4, subsample_size=2) as rows:
            loc = param("q_loc", 0.6) + param("q_slope", 0.1) * x[rows]
            pyro.sample("z", dist.Normal(loc, param("q_scale", -0.1).exp()))

    return Case(model, guide, X, normal_rows().table)


def bits():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=param("p_logit", -0.4)))
            pyro.sample("x", dist.Normal(param("p_loc", 1.3) * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=param("q_loc", 0.9) - param("q_slope", 0.3) * x))

    def exact(path, params):
        z, x = torch.tensor([0.0, 1.0]), X[:, None]
        p = bit(z, params["p_logit"]) + normal(x, params["p_loc"] * z, 0.0)
        return table(bit(z, path["q_loc"] - path["q_slope"] * x), p, bit(z, params["q_loc"] - params["q_slope"] * x))

    return Case(model, guide, X, exact, score=True, batches=2, linear_batches=2)


MEANS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def components():
    """One of three components for each row, by logits of its own."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=param("p_logits", 0.1, -0.3, 0.4)))
            pyro.sample("x", dist.Normal(MEANS[z], param("p_scale", 0.2).exp()), obs=x)

    def guide(x):
        logits = param("q_logits", *[[0.2, 0.0, 0.9], [-0.5, 0.3, 0.3], [1.0, 0.5, 0.0]])
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    def exact(path, params):
        p = params["p_logits"].log_softmax(0) + normal(X[:3, None], MEANS, params["p_scale"])
        return table(path["q_logits"].log_softmax(1), p, params["q_logits"].log_softmax(1))

    return Case(model, guide, X[:3], exact, score=True)


def shared_component():
    def model(x):
        z = pyro.sample("z", dist.Categorical(logits=param("p_logits", 0.1, -0.3, 0.4)))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(MEANS.take(z), 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Categorical(logits=param("q_logits", 1.5, -1.0, 0.0)))

    def exact(path, params):
        p = params["p_logits"].log_softmax(0) + normal(X[:2, None], MEANS, 0.0).sum(0)
        return table(path["q_logits"].log_softmax(0), p[None], params["q_logits"].log_softmax(0)[None])

    return Case(model, guide, X[:2], exact, score=True, linear_batches=2)


def shared_bit_and_bits():
    def model(x):
        g = pyro.sample("g", dist.Bernoulli(logits=param("p_g", -0.8)))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=param("p_logit", -0.4) + g))
            pyro.sample("x", dist.Normal(1.3 * z + param("p_loc", 0.7) * g, 1.0), obs=x)

    def guide(x):
        g = pyro.sample("g", dist.Bernoulli(logits=param("q_g", 0.5)))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=param("q_slope", 0.4) * x - param("q_of", 0.6) * g))

    def exact(path, params):
        z, x, g = torch.tensor([0.0, 1.0]), X[:, None], torch.tensor([0.0, 1.0])[:, None, None]
        p = bit(z, params["p_logit"] + g) + normal(x, 1.3 * z + params["p_loc"] * g, 0.0)
        mass, q = (bit(z, of["q_slope"] * x - of["q_of"] * g) for of in (path, params))
        outer = (bit(z, path["q_g"]), bit(z, params["p_g"]), bit(z, params["q_g"]))
        return table(mass, p, q, outer)

    return Case(model, guide, X, exact, score=True, nested=True, batches=2, linear_batches=2)


def bits_of_words():
    """A bit for each row, and one for each word in it."""

    def model(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(logits=param("p_logit", -0.4)))
            with pyro.plate("words", x.shape[1], dim=-1):
                w = pyro.sample("w", dist.Bernoulli(logits=1.5 * z - 0.5))
                pyro.sample("x", dist.Normal(w + param("p_loc", 0.8) * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(logits=param("q_z", 0.4) * x.sum(1, keepdim=True)))
            with pyro.plate("words", x.shape[1], dim=-1):
                pyro.sample("w", dist.Bernoulli(logits=0.5 * x - param("q_w", 0.7) * z + param("q_loc", 0.9)))

    def exact(path, params):
        z, *w = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).T
        w, x = torch.stack(w), Y[:, :, None]
        p = bit(z, params["p_logit"]) + (bit(w, 1.5 * z - 0.5) + normal(x, w + params["p_loc"] * z, 0.0)).sum(1)
        mass, q = (
            bit(z, of["q_z"] * x.sum(1)) + bit(w, 0.5 * x - of["q_w"] * z + of["q_loc"]).sum(1) for of in (path, params)
        )
        return table(mass, p, q)

    return Case(model, guide, Y, exact, score=True, batches=2, linear_batches=2, count=8_000)


def normal_and_bit():
    """Two latents for each row: a reparametrised one, and a bit given it."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Bernoulli(logits=param("p_logit", -0.4) + z))
            pyro.sample("x", dist.Normal(z + param("p_loc", 1.2) * b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(param("q_slope", 0.1) * x + 0.5, param("q_scale", 0.0).exp()))
            pyro.sample("b", dist.Bernoulli(logits=param("q_of", 0.3) * z + param("q_loc", 0.9)))

    def exact(path, params):
        noise, mass = grid(100)
        b, x = torch.tensor([0.0, 1.0])[:, None], X[:, None, None]
        z = path["q_slope"] * x + 0.5 + path["q_scale"].exp() * noise[:, 0]
        p = normal(z, 0.0, 0.0) + bit(b, params["p_logit"] + z) + normal(x, z + params["p_loc"] * b, 0.0)
        mass = mass + bit(b, path["q_of"] * z + path["q_loc"])
        q = normal(z, params["q_slope"] * x + 0.5, params["q_scale"]) + bit(b, params["q_of"] * z + params["q_loc"])
        return table(mass.flatten(1), p.flatten(1), q.flatten(1))

    return Case(model, guide, X, exact, score=True, batches=2, linear_batches=2, count=6_000)


def normal_and_bits_of_words():
    """A reparametrised latent for each row, and a bit given it for each word."""

    def model(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(param("p_loc", 0.2), 1.0))
            with pyro.plate("words", x.shape[1], dim=-1):
                w = pyro.sample("w", dist.Bernoulli(logits=z))
                pyro.sample("x", dist.Normal(1.5 * w, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(param("q_z", 0.4) * x.sum(1, keepdim=True), param("q_a", 0.1).exp()))
            with pyro.plate("words", x.shape[1], dim=-1):
                pyro.sample("w", dist.Bernoulli(logits=0.5 * x + param("q_w", 0.3) * z + param("q_b", 1.0)))

    def exact(path, params):
        noise, mass = grid(80)
        w = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).T[:, :, None]
        x = Y[:, :, None, None]
        z = path["q_z"] * x.sum(1) + path["q_a"].exp() * noise[:, 0]
        p = normal(z, params["p_loc"], 0.0) + (bit(w, z[:, None]) + normal(x, 1.5 * w, 0.0)).sum(1)
        mass = mass + bit(w, 0.5 * x + path["q_w"] * z[:, None] + path["q_b"]).sum(1)
        q = normal(z, params["q_z"] * x.sum(1), params["q_a"])
        q = q + bit(w, 0.5 * x + params["q_w"] * z[:, None] + params["q_b"]).sum(1)
        return table(mass.flatten(1), p.flatten(1), q.flatten(1))

    return Case(model, guide, Y, exact, score=True, batches=2, linear_batches=2, count=12_000)


CASES = {
    f.__name__: f
    for f in [
        normal_rows,
        normal_without_plates,
        normal_shared,
        normal_words,
        normal_shared_and_rows,
        ppca,
        auxiliary,
        automatic,
        automatic_joint,
        automatic_rows,
        normal_and_enumerated_bit,
        subsampled_rows,
        bits,
        components,
        shared_component,
        shared_bit_and_bits,
        bits_of_words,
        normal_and_bit,
        normal_and_bits_of_words,
        auxiliary_bit,
    ]
}


# Means over many estimates


def ready(name, elbo):
    """An objective on a case, and parameters."""
    case = CASES[name]()
    objective = lvm.Objective(case.model, case.guide, elbo)
    start = {n: v.detach() for n, v in objective.init(case.data).items()}
    assert start.keys() >= dict(case.start).keys()
    return case, objective, {**start, **dict(case.start)}


def estimates(objective, params, data, count, batches=1):
    """Gradients and values of the loss, averaged over disjoint minibatches: ``{name: [count, ...]}``."""

    def loss(params):
        losses = [objective(params, part, num_rows=len(data)) for part in data.chunk(batches)]
        return torch.stack(losses).mean()

    def once():
        gradient, value = torch.func.grad_and_value(loss)(params)
        return {**gradient, "value": value}

    return repeat(once, count)


def gradient_of(loss, params):
    leaves = {n: v.clone().requires_grad_() for n, v in params.items()}
    value = loss(leaves)
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {**dict(zip(leaves, gradients, strict=True)), "value": value.detach()}


@cache
def exact(name, objective, num):
    """The exact loss and its gradient."""
    case, _, params = ready(name, Trace_ELBO())
    return gradient_of(lambda p: -objective(case.table(p, p), num), params)


def assert_mean(samples, expected, power=0.1):
    """Every component of the mean lies within 4 standard errors, which are small."""
    assert samples.keys() == expected.keys()
    norm = torch.cat([g.flatten() for n, g in expected.items() if n != "value"]).norm()
    for name, draws in samples.items():
        error = draws.std(0) / len(draws) ** 0.5
        scale = norm.max(expected[name].abs()) if name == "value" else norm
        assert (error < power * scale).all(), (name, error, scale)
        off = (draws.mean(0) - expected[name]).abs()
        assert (off <= 4 * error + 1e-8 * norm).all(), (name, draws.mean(0), expected[name], off / error)


half, minus_half, two = exact_renyi(0.5), exact_renyi(-0.5), exact_renyi(2.0)
LINEAR = {
    "Trace": (Trace_ELBO, [1, 5]),
    "MeanField": (TraceMeanField_ELBO, [1, 5]),
    "STL": (TraceSTL_ELBO, [1, 5]),
    "Score": (TraceScore_ELBO, [5]),
    "Score without baseline": (lambda num: TraceScore_ELBO(num, None), [1, 5]),
}
BOUNDS = {
    "IWAE": (TraceIWAE_ELBO, exact_iwae, [1, 5]),
    "dreg": (lambda num: TraceIWAE_ELBO(num, "dreg"), exact_iwae, [1, 5]),
    "VIMCO": (TraceVIMCO_ELBO, exact_iwae, [2, 5]),
    "Renyi 0.5": (lambda num: TraceRenyi_ELBO(0.5, num), half, [5]),
    "Renyi -0.5": (lambda num: TraceRenyi_ELBO(-0.5, num), minus_half, [5]),
    "Renyi 2": (lambda num: TraceRenyi_ELBO(2.0, num), two, [5]),
    "CUBO": (lambda num: TraceCUBO(num, shift=SHIFT), exact_cubo, [1, 5]),
}


def combinations(estimators):
    found = []
    for (kind, row), name in itertools.product(estimators.items(), CASES):
        case = CASES[name]()
        if kind in ("MeanField", "dreg") and case.score:
            continue
        if kind == "MeanField" and "enumerated" in name:
            continue
        if kind in ("Renyi -0.5", "CUBO") and case.nested:
            continue
        if kind == "CUBO" and name.startswith("au"):
            continue  # p does not bound what the guide alone draws, or has wider tails: weights of no second moment
        found += [pytest.param(kind, name, num, id=f"{kind}-{name}-{num}") for num in row[-1]]
    return found


@pytest.mark.parametrize("kind, name, num", combinations(LINEAR))
def test_estimators_of_the_elbo_have_its_gradient(kind, name, num):
    case, objective, params = ready(name, LINEAR[kind][0](num))
    torch.manual_seed(1)
    samples = estimates(objective, params, case.data, case.count, case.linear_batches)
    assert_mean(samples, exact(name, exact_elbo, 1))


@pytest.mark.parametrize("kind, name, num", combinations(BOUNDS))
def test_bounds_have_the_gradient_of_their_mean(kind, name, num):
    make, bound, _ = BOUNDS[kind]
    case, objective, params = ready(name, make(num))
    torch.manual_seed(1)
    samples = estimates(objective, params, case.data, case.count, case.batches)
    assert_mean(samples, exact(name, bound, 1 if bound is exact_cubo else num))


# Estimators that are biased at finite K


def of_guide(name):
    return not name.startswith("p_")


def held(params):
    """The parameters, those of the guide as constants."""
    return {n: v.detach() if of_guide(n) else v for n, v in params.items()}


def exact_stl(case, num):
    """Gradients pass through draws, and through the probabilities of what has no reparametrised draw, alone."""
    return lambda params: -exact_iwae(case.table(params, held(params)), num)


def self_normalised(mass, log_w, num):
    """The mean weight that each place of the table has among ``num`` particles: K E [w_1 / S], given the place."""
    centre = (mass + log_w).logsumexp(-1, keepdim=True)
    t = torch.arange(-40.0, 60.0, STEP).exp().unsqueeze(-1)
    log_w = log_w - centre
    log_terms = mass.unsqueeze(-2) - t * log_w.exp().unsqueeze(-2)
    of_others = (num - 1) * log_terms.logsumexp(-1, keepdim=True)
    return num * STEP * (t * (log_terms + of_others).exp()).sum(-2) * log_w.exp()


def exact_wake(case, num):
    """The model follows the importance-weighted bound, the guide its density at weighted particles."""

    def loss(params):
        constant = {n: v.detach() for n, v in params.items()}
        places = case.table(constant, constant)
        weights = self_normalised(places.mass, places.log_w, num)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        of_model = -exact_iwae(case.table(constant, held(params)), num)
        of_guide = -(weights * case.table(constant, params).q).sum()
        return of_model + of_guide - of_guide.detach()

    return loss


def inclusive(case):
    """KL(p(z | x) || q(z)) but for a constant of the guide: what the biased gradients tend to."""

    def loss(params):
        constant = {n: v.detach() for n, v in params.items()}
        places = case.table(constant, constant)
        posterior = (places.mass + places.log_w).softmax(-1)
        return -(posterior * case.table(constant, params).q).sum()

    return loss


def guide_part(gradient):
    return torch.cat([g.flatten() for n, g in gradient.items() if of_guide(n) and n != "value"])


BIASED = {"stl": (lambda num: TraceIWAE_ELBO(num, "stl"), exact_stl), "wake": (TraceWakePhi, exact_wake)}


@pytest.mark.parametrize("kind, name", [(k, n) for k in BIASED for n in CASES if k == "stl" or not CASES[n]().nested])
def test_biased_gradients_have_their_exact_mean(kind, name):
    num = 4
    make, loss = BIASED[kind]
    case, objective, params = ready(name, make(num))
    torch.manual_seed(1)
    samples = estimates(objective, params, case.data, case.count, case.batches)
    assert_mean(samples, gradient_of(loss(case, num), params))


@pytest.mark.parametrize("name", ["normal_rows", "bits", "normal_and_bit"])
@pytest.mark.parametrize("kind", BIASED)
def test_biased_gradients_tend_to_that_of_the_inclusive_divergence(kind, name):
    make, loss = BIASED[kind]
    case, _, params = ready(name, Trace_ELBO())
    limit = gradient_of(inclusive(case), params)
    biases = [(guide_part(gradient_of(loss(case, num), params)) - guide_part(limit)).norm() for num in (10, 100, 1_000)]
    assert biases[0] > 5 * biases[1] > 25 * biases[2]  # of the order of 1 / K
    off = {}
    for num, count in [(2, 8_000), (100, 2_000)]:
        _, objective, _ = ready(name, make(num))
        torch.manual_seed(1)
        samples = estimates(objective, params, case.data, count)
        error = guide_part({n: v.std(0) for n, v in samples.items()}) / count**0.5
        off[num] = (guide_part({n: v.mean(0) for n, v in samples.items()}) - guide_part(limit)).abs(), error
    assert (off[2][0] > 4 * off[2][1]).any()
    assert (off[100][0] < 4 * off[100][1] + biases[1]).all()


def test_sticking_the_landing_is_not_the_gradient_of_the_importance_weighted_bound():
    case, objective, params = ready("normal_rows", TraceIWAE_ELBO(5, "stl"))
    samples = estimates(objective, params, case.data, 8_000)
    of_bound = exact("normal_rows", exact_iwae, 5)
    for name in ("q_loc", "q_slope", "q_scale"):
        error = samples[name].std() / 8_000**0.5
        assert (samples[name].mean() - of_bound[name]).abs() > 4 * error


# The references themselves


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.5, 2.0])
@pytest.mark.parametrize("name, num", [("bits", 5), ("components", 4), ("auxiliary_bit", 1), ("normal_rows", 2)])
def test_the_transform_is_the_sum_over_all_tuples_of_particles(name, num, alpha):
    case, _, params = ready(name, Trace_ELBO())
    t = case.table(params, params)
    log_w, mass = t.log_w[0, 0] * (1 - alpha), t.mass[0, 0]
    for _ in range(num - 1):
        log_w, mass = torch.logaddexp(log_w[..., None], t.log_w[0, 0] * (1 - alpha)), mass[..., None] + t.mass[0, 0]
    expected = (mass.exp() * (log_w - math.log(num))).sum() / (1 - alpha)
    actual = log_mean_of(t.mass[0, 0], t.log_w[0, 0], num, 1 - alpha)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_the_table_of_a_conjugate_model_has_the_elbo_in_closed_form():
    _, _, params = ready("normal_rows", Trace_ELBO())

    def closed_form(p):
        loc, scale, noise = p["q_loc"] + p["q_slope"] * X, p["q_scale"].exp(), p["p_scale"].exp()
        kl = torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(p["p_loc"], 1.0))
        likelihood = dist.Normal(loc, noise).log_prob(X) - 0.5 * (scale / noise) ** 2
        return (kl - likelihood).sum()

    torch.testing.assert_close(exact("normal_rows", exact_elbo, 1), gradient_of(closed_form, params))


def test_the_table_of_ppca_has_the_elbo_in_closed_form():
    _, _, params = ready("ppca", Trace_ELBO())

    def closed_form(p):
        loc, scale, noise = Y @ p["q_weights"] + p["q_loc"], p["q_scale"].exp(), p["p_scale"].exp()
        kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * p["q_scale"]).sum()
        likelihood = dist.Normal(loc @ p["p_weights"] + p["p_loc"], noise).log_prob(Y).sum()
        spread = (scale**2 * (p["p_weights"] ** 2).sum(1)).sum()
        return kl - likelihood + 0.5 * len(Y) * spread / noise**2

    torch.testing.assert_close(exact("ppca", exact_elbo, 1), gradient_of(closed_form, params))
