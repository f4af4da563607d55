"""Models, guides and data of all kinds on which compiled fits are compared with eager ones.

A program is a function without arguments that makes all of it anew, always the same: ``model, guide, data``.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import autoguide

PROGRAMS = {}


def program(make):
    PROGRAMS[make.__name__] = make
    return make


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_data(num_rows, num_features=3):
    x = normal(num_rows, num_features)
    noise = normal(num_rows, seed=1)
    return x, x @ torch.linspace(-1.0, 1.5, num_features, dtype=x.dtype) + 0.5 + 0.7 * noise


def logistic_model(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[-1]), 2.0).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slope + intercept), obs=y)


@program
def logistic():
    x, y = linear_data(25)
    return logistic_model, "mean_field", (x, (y > 0).to(x.dtype))


def auto(kind, make, **options):
    """The logistic regression with an AutoGuide."""
    guide_class = getattr(autoguide, kind)

    def made():
        _, _, data = make()
        torch.manual_seed(5)
        return logistic_model, guide_class(logistic_model, **options), data

    PROGRAMS[f"logistic, {kind}"] = made


for kind, options in {
    "AutoNormal": {"init_scale": 0.3},
    "AutoDelta": {},
    "AutoDiagonalNormal": {},
    "AutoMultivariateNormal": {},
    "AutoLowRankMultivariateNormal": {"rank": 2},
    "AutoIAFNormal": {"hidden_dim": [8]},
    "AutoLaplaceApproximation": {},
    "AutoStructured": {
        "conditionals": {"slope": "mvn", "intercept": "normal"},
        "dependencies": {"intercept": {"slope": "linear"}},
    },
}.items():
    auto(kind, logistic, **options)


@program
def logistic_by_name_full_rank():
    return logistic_model, "full_rank", logistic()[2]


@program
def logistic_by_name_low_rank():
    return logistic_model, "low_rank", logistic()[2]


@program
def logistic_by_name_map():
    return logistic_model, "map", logistic()[2]


@program
def logistic_guide_list():
    torch.manual_seed(5)
    guide = autoguide.AutoGuideList(logistic_model)
    guide.append(autoguide.AutoMultivariateNormal(poutine.block(logistic_model, expose=["slope"])))
    guide.append(autoguide.AutoDelta(poutine.block(logistic_model, expose=["intercept"])))
    return logistic_model, guide, logistic()[2]


def schools_model(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


@program
def eight_schools():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return schools_model, "mean_field", (y, torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]))


def mixture_model(x):
    weights = pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 0.3, 1.0]))
    scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


@program
def mixture():
    x = normal(30)
    return mixture_model, None, (x + 2 * x.sign(),)


def bayesian_mixture_model(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


@program
def bayesian_mixture():
    return bayesian_mixture_model, "mean_field", mixture()[2]


def hmm_model(x):
    table = pyro.param("table", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("sequences", len(x)):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(table[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


@program
def hmm():
    return hmm_model, None, (normal(6, 5) + torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]),)


def grouped_model(x, group, y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 4):
        offset = pyro.sample("offset", dist.Normal(mean, spread))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(offset[group] + x @ slope, noise), obs=y)


@program
def grouped():
    x, y = linear_data(24)
    return grouped_model, "mean_field", (x, torch.arange(24) % 4, y)


def constrained_model(x):
    size = x.shape[-1]
    tril = pyro.param("tril", torch.eye(size) + 0.1 * torch.ones(size, size).tril(), constraints.lower_cholesky)
    width = pyro.param("width", torch.ones(size), constraint=constraints.positive)
    share = pyro.param("share", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    between = pyro.param("between", torch.tensor(0.4), constraint=constraints.interval(-1.0, 2.0))
    mean = pyro.sample("mean", dist.Normal(share * between, width).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=tril), obs=x)


@program
def constrained():
    return constrained_model, "full_rank", (linear_data(20)[0] @ normal(3, 3, seed=2),)


def discrete_model(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(locs[0] + z * locs[1], 1.0), obs=x)


def discrete_guide(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=slope * x))


@program
def discrete():
    return discrete_model, discrete_guide, (normal(12) + torch.tensor([0.0, 2.0]).repeat(6),)


def categorical_model(x):
    locs = pyro.param("locs", torch.tensor([-2.0, 0.0, 2.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.3, 0.4])))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def categorical_guide(x):
    logits = pyro.param("logits", torch.tensor([[-1.0, 0.0, 1.0], [0.5, 0.0, 0.5]]))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(logits=x[:, None] * logits[0] + logits[1]))


@program
def categorical():
    return categorical_model, categorical_guide, discrete()[2]


def rejection_model(counts, heads, kinds):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(counts)):
        pyro.sample("counts", dist.Poisson(rate), obs=counts)
        pyro.sample("heads", dist.Bernoulli(p), obs=heads)
        pyro.sample("kinds", dist.Categorical(share), obs=kinds)


def rejection_guide(counts, heads, kinds):
    positive = constraints.positive
    shape = pyro.param("shape", torch.tensor(3.0), constraint=positive)
    pyro.sample("rate", dist.Gamma(shape, pyro.param("inverse", torch.tensor(2.0), constraint=positive)))
    ab = pyro.param("ab", torch.tensor([2.0, 1.5]), constraint=positive)
    pyro.sample("p", dist.Beta(ab[0], ab[1]))
    pyro.sample("share", dist.Dirichlet(pyro.param("alpha", torch.tensor([1.0, 2.0, 3.0]), constraint=positive)))


@program
def rejection():
    heads = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    return rejection_model, rejection_guide, (torch.arange(6.0), heads, torch.arange(6) % 3)


def adorned_model(x, shown):
    """A scale, masks and a hidden site, all at once."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(()), 2.0))
    hidden = poutine.block(lambda: pyro.sample("jitter", dist.Normal(0.0, 0.1)), hide=["jitter"])()
    width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        with poutine.scale(scale=0.6):
            z = pyro.sample("z", dist.Normal(loc, width))
        with poutine.mask(mask=shown > 0):
            pyro.sample("x", dist.Normal(z + hidden, 1.0), obs=x)
        pyro.sample("again", dist.Normal(z, 2.0).mask(shown < 1), obs=x * 0.5)


@program
def adorned():
    return adorned_model, "mean_field", (normal(15), (normal(15, seed=1) > -0.5).to(torch.get_default_dtype()))


def subsampled_model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(x), subsample_size=5) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])


def subsampled_guide(x):
    pyro.sample("mean", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.3))
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("rows", len(x), subsample_size=5) as rows:
        pyro.sample("z", dist.Normal(slope * x[rows], 0.5))


@program
def subsampled():
    return subsampled_model, subsampled_guide, (normal(17) + 1.0,)


def doubled_model(x):
    """Double precision, written out."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
    scale = pyro.param("scale", torch.tensor(1.0, dtype=torch.float64), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.StudentT(5.0, loc, scale).to_event(1), obs=x)


def doubled_guide(x):
    loc = pyro.param("guide_loc", torch.zeros(2, dtype=torch.float64))
    width = pyro.param("guide_width", torch.full((2,), 0.5, dtype=torch.float64), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(loc, width).to_event(1))


@program
def doubled():
    return doubled_model, doubled_guide, (normal(18, 2).double() + 1.0,)


def idle_model(x):
    """A parameter that the model reads, and on which its density does not depend."""
    pyro.param("idle", torch.tensor([3.0, -2.0]))
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@program
def idle():
    return idle_model, "mean_field", (normal(9),)


def local_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(slope * z, noise), obs=x)


def local_guide(x):
    width = pyro.param("width", torch.tensor(0.8), constraint=constraints.positive)
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc * x, width))


@program
def local():
    """A latent of each row, whose guide is a function of the row."""
    return local_model, local_guide, (1.5 * normal(14),)
