"""Nine posteriors of posteriordb as Pyro models."""

import pyro
import pyro.distributions as dist
import torch
from posteriordb_files import read
from pyro.distributions import constraints


def flat(name, support=constraints.real, shape=()):
    return pyro.sample(name, dist.ImproperUniform(support, (), shape))


def regression(X, y, beta, sigma):
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def flat_regression(X, y=None):
    beta = flat("beta", constraints.real_vector, X.shape[1:])
    regression(X, y, beta, flat("sigma", constraints.positive))


def kidiq(X, y=None):
    beta = flat("beta", constraints.real_vector, X.shape[1:])
    regression(X, y, beta, pyro.sample("sigma", dist.HalfCauchy(2.5)))


def blr(X, y=None):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[1]), 10.0).to_event(1))
    regression(X, y, beta, pyro.sample("sigma", dist.HalfNormal(10.0)))


def autoregression(lags, y=None):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lags.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("rows", len(lags)):
        pyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gauss_mix(y):
    """The prior of ordered means is that of independent ones, in their order."""
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    mu = flat("mu", constraints.ordered_vector, (2,))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    parts = dist.Normal(mu, sigma)
    with pyro.plate("rows", len(y)):
        weights = torch.stack([theta, 1 - theta])
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=y)


def hidden_markov(y):
    """The states are summed out; the first has weight 1 each."""
    rows = [pyro.sample(f"theta{k}", dist.Dirichlet(torch.ones(2))) for k in (1, 2)]
    mu = pyro.deterministic("mu", flat("steps", constraints.independent(constraints.positive, 1), (2,)).cumsum(-1))
    pyro.factor("mu_prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emissions = dist.Normal(mu, 1.0).log_prob(y.unsqueeze(-1))
    logs = torch.stack(rows).log()
    steps = logs + emissions[1:].unsqueeze(-2)  # the first matrix is applied first
    while len(steps) > 1:
        odd = steps[-1:] if len(steps) % 2 else steps[:0]
        even = steps[: len(steps) - len(odd)]
        joined = (even[::2].unsqueeze(-1) + even[1::2].unsqueeze(-3)).logsumexp(-2)
        steps = torch.cat([joined, odd])
    pyro.factor("y", (emissions[0].unsqueeze(-1) + steps[0]).flatten().logsumexp(0))


def columns(data, *names):
    return torch.stack([torch.as_tensor(data[name], dtype=torch.float32) for name in names], -1).unbind(-1)


def with_ones(*predictors):
    return torch.stack([torch.ones_like(predictors[0]), *predictors], -1)


def arrays(name, data):
    """The model's arguments."""
    if name == "arK":
        y, K = torch.tensor(data["y"]), data["K"]
        return y.unfold(0, K, 1)[:-1].flip(-1), y[K:]
    if name == "earnings":
        earn, height, male = columns(data, "earn", "height", "male")
        z = (height - height.mean()) / height.std()
        return with_ones(z, male, z * male), earn.log()
    if name == "eight_schools":
        return columns(data, "y", "sigma")
    if name == "kidiq":
        score, hs, iq = columns(data, "kid_score", "mom_hs", "mom_iq")
        return with_ones(hs, iq, hs * iq), score
    if name == "mesquite":
        weight, d1, d2, canopy, total, group = columns(
            data, "weight", "diam1", "diam2", "canopy_height", "total_height", "group"
        )
        X = with_ones((d1 * d2 * canopy).log(), (d1 * d2).log(), (d1 / d2).log(), total.log(), group)
        return X, weight.log()
    if name == "nes2000":
        party, ideology, race, age, educ, gender, income = columns(
            data, "partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income"
        )
        ages = [(age == k).float() for k in (2, 3, 4)]
        return with_ones(ideology, race, *ages, educ, gender, income), party
    if name == "sblrc":
        return torch.tensor(data["X"]), torch.tensor(data["y"])
    return (torch.tensor(data["y"]),)


MODELS = {
    "arK": autoregression,
    "earnings": flat_regression,
    "eight_schools": eight_schools,
    "hmm_example": hidden_markov,
    "kidiq": kidiq,
    "low_dim_gauss_mix": gauss_mix,
    "mesquite": flat_regression,
    "nes2000": flat_regression,
    "sblrc": blr,
}
TUNED = ("eight_schools", "kidiq", "low_dim_gauss_mix", "arK", "mesquite")
"""On which defaults were chosen; the other four are untouched."""


def load(folder, name):
    """The model, its arguments, and the reference draws by site, `[S, ...]`."""
    data, reference = read(folder, name)
    return MODELS[name], arrays(name, data), reference
