"""Mixtures of each family take the path of EM written by hand in numpy and scipy."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import optimize, special, stats

from .checks import as_numpy, assert_at_the_top, assert_closed, assert_rises, assert_same_path, fit, textbook

WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)
NUM_ROWS = 240
LABELS = torch.arange(NUM_ROWS) % 2


def mixture(family, event_dims=0, known=None, **start):
    """A mixture of two components whose arguments are parameters of the same names, ``(value, constraint)``."""

    def model(x):
        weights = pyro.param("weights", WEIGHTS, constraint=constraints.simplex)
        arguments = {n: pyro.param(n, value, constraint=c) for n, (value, c) in start.items()}
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            components = family(**{n: value[z] for n, value in arguments.items()}, **(known or {}))
            pyro.sample("x", components.to_event(event_dims), obs=x)

    return model, as_numpy({"weights": WEIGHTS} | {n: value for n, (value, _) in start.items()})


def mean(resp, x):
    """The weighted mean of each component, ``[K, *item]``."""
    total = resp.sum(0).reshape(-1, *[1] * (x.ndim - 1))
    return np.tensordot(resp, x, (0, 0)) / total


def over(x):
    """Rows with a dimension for components."""
    return x.numpy()[:, None]


def poisson():
    rates = torch.tensor([[1.0, 8.0, 3.0], [9.0, 2.0, 4.0]])
    x = torch.poisson(rates[LABELS])
    model, start = mixture(
        dist.Poisson, 1, rate=(torch.tensor([[2.0, 5.0, 3.0], [6.0, 4.0, 3.5]]), constraints.positive)
    )

    def log_density(p):
        return stats.poisson.logpmf(over(x), p["rate"]).sum(-1)

    return x, model, start, log_density, lambda r: {"rate": mean(r, x.numpy())}, {"rate": "mean"}


def exponential():
    x = dist.Exponential(torch.tensor([0.2, 10.0])[LABELS]).sample()
    model, start = mixture(dist.Exponential, rate=(torch.tensor([0.5, 3.0]), constraints.positive))

    def log_density(p):
        return stats.expon.logpdf(over(x), scale=1 / p["rate"])

    return x, model, start, log_density, lambda r: {"rate": 1 / mean(r, x.numpy())}, {"rate": "mean"}


def gamma():
    x = dist.Gamma(torch.tensor([2.0, 30.0])[LABELS], torch.tensor([2.0, 3.0])[LABELS]).sample()
    model, start = mixture(
        dist.Gamma,
        concentration=(torch.tensor([1.0, 10.0]), constraints.positive),
        rate=(torch.tensor([1.0, 1.0]), constraints.positive),
    )

    def log_density(p):
        return stats.gamma.logpdf(over(x), p["concentration"], scale=1 / p["rate"])

    def maximum(resp):
        gaps = np.log(mean(resp, x.numpy())) - mean(resp, x.log().numpy())
        a = [optimize.brentq(lambda a, g=g: np.log(a) - special.digamma(a) - g, 1e-3, 1e4, xtol=1e-14) for g in gaps]
        return {"concentration": np.array(a), "rate": np.array(a) / mean(resp, x.numpy())}

    return x, model, start, log_density, maximum, {"concentration": "Newton", "rate": "concentration over"}


def gamma_of_known_concentration():
    x = dist.Gamma(torch.tensor(3.0), torch.tensor([0.5, 6.0])[LABELS]).sample()
    known = {"concentration": torch.tensor(3.0)}
    model, start = mixture(dist.Gamma, known=known, rate=(torch.tensor([1.0, 3.0]), constraints.positive))

    def log_density(p):
        return stats.gamma.logpdf(over(x), 3.0, scale=1 / p["rate"])

    return x, model, start, log_density, lambda r: {"rate": 3 / mean(r, x.numpy())}, {"rate": "mean"}


def bernoulli():
    probs = torch.tensor([[0.9, 0.8, 0.2, 0.1, 0.7, 0.3], [0.2, 0.1, 0.7, 0.6, 0.3, 0.9]])
    x = torch.bernoulli(probs[LABELS])
    guess = torch.tensor([[0.6, 0.6, 0.4, 0.4, 0.5, 0.4], [0.4, 0.3, 0.5, 0.6, 0.4, 0.7]])
    model, start = mixture(dist.Bernoulli, 1, probs=(guess, constraints.unit_interval))

    def log_density(p):
        return stats.bernoulli.logpmf(over(x), p["probs"]).sum(-1)

    return x, model, start, log_density, lambda r: {"probs": mean(r, x.numpy())}, {"probs": "proportion"}


def geometric():
    x = dist.Geometric(torch.tensor([0.7, 0.06])[LABELS]).sample()
    model, start = mixture(dist.Geometric, probs=(torch.tensor([0.5, 0.2]), constraints.unit_interval))

    def log_density(p):
        return stats.geom.logpmf(over(x) + 1, p["probs"])

    return x, model, start, log_density, lambda r: {"probs": 1 / mean(r, x.numpy() + 1)}, {"probs": "proportion"}


def binomial():
    x = dist.Binomial(12, torch.tensor([0.2, 0.7])[LABELS]).sample()
    known = {"total_count": 12}
    model, start = mixture(dist.Binomial, known=known, probs=(torch.tensor([0.4, 0.5]), constraints.unit_interval))

    def log_density(p):
        return stats.binom.logpmf(over(x), 12, p["probs"])

    return x, model, start, log_density, lambda r: {"probs": mean(r, x.numpy() / 12)}, {"probs": "proportion"}


def log_normal():
    x = dist.LogNormal(torch.tensor([0.0, 3.0])[LABELS], torch.tensor([0.5, 0.9])[LABELS]).sample()
    model, start = mixture(
        dist.LogNormal,
        loc=(torch.tensor([0.5, 2.0]), constraints.real),
        scale=(torch.tensor([1.0, 1.0]), constraints.positive),
    )

    def log_density(p):
        return stats.lognorm.logpdf(over(x), p["scale"], scale=np.exp(p["loc"]))

    def maximum(resp):
        loc = mean(resp, x.log().numpy())
        return {"loc": loc, "scale": np.sqrt((resp * (over(x.log()) - loc) ** 2).sum(0) / resp.sum(0))}

    return x, model, start, log_density, maximum, {"loc": "mean", "scale": "deviation"}


def negative_binomial():
    x = dist.NegativeBinomial(torch.tensor([2.0, 6.0])[LABELS], torch.tensor([0.4, 0.9])[LABELS]).sample()
    model, start = mixture(
        dist.NegativeBinomial,
        total_count=(torch.tensor([1.0, 3.0]), constraints.positive),
        probs=(torch.tensor([0.5, 0.8]), constraints.unit_interval),
    )

    def log_density(p):
        return stats.nbinom.logpmf(over(x), p["total_count"], 1 - p["probs"])

    def maximum(resp):
        counts, found = x.numpy(), []
        for r, m in zip(resp.T, mean(resp, counts), strict=True):

            def slope(log_n, r=r, m=m):
                n = np.exp(log_n)
                return r @ (special.digamma(counts + n) - special.digamma(n)) / r.sum() - np.log1p(m / n)

            found.append(np.exp(optimize.brentq(slope, -5, 8, xtol=1e-14)))
        return {"total_count": np.array(found), "probs": mean(resp, counts) / (mean(resp, counts) + found)}

    return x, model, start, log_density, maximum, {"total_count": "bisection", "probs": "proportion"}


def negative_binomial_of_known_count():
    x = dist.NegativeBinomial(4.0, torch.tensor([0.2, 0.8])[LABELS]).sample()
    known = {"total_count": torch.tensor(4.0)}
    model, start = mixture(
        dist.NegativeBinomial, known=known, probs=(torch.tensor([0.4, 0.6]), constraints.unit_interval)
    )

    def log_density(p):
        return stats.nbinom.logpmf(over(x), 4.0, 1 - p["probs"])

    def maximum(resp):
        average = mean(resp, x.numpy())
        return {"probs": average / (average + 4)}

    return x, model, start, log_density, maximum, {"probs": "proportion"}


def solved(mean_logs, start):
    """The concentration of a Dirichlet distribution whose mean logarithms are these."""

    def gap(log_a):
        a = np.exp(log_a)
        return special.digamma(a) - special.digamma(a.sum()) - mean_logs

    return np.exp(optimize.fsolve(gap, np.log(start), xtol=1e-11))


def beta():
    x = dist.Beta(torch.tensor([2.0, 8.0])[LABELS], torch.tensor([9.0, 3.0])[LABELS]).sample()
    model, start = mixture(
        dist.Beta,
        concentration1=(torch.tensor([1.0, 3.0]), constraints.positive),
        concentration0=(torch.tensor([2.0, 1.0]), constraints.positive),
    )

    def log_density(p):
        return stats.beta.logpdf(over(x), p["concentration1"], p["concentration0"])

    def maximum(resp):
        logs = np.stack([mean(resp, np.log(x.numpy())), mean(resp, np.log1p(-x.numpy()))], -1)
        found = np.stack([solved(logs[0], [2.0, 9.0]), solved(logs[1], [8.0, 3.0])])
        return {"concentration1": found[:, 0], "concentration0": found[:, 1]}

    return x, model, start, log_density, maximum, {"concentration1": "Newton", "concentration0": "Newton"}


def dirichlet():
    truth = torch.tensor([[8.0, 2.0, 1.0], [1.0, 3.0, 9.0]])
    x = dist.Dirichlet(truth[LABELS]).sample()
    guess = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]])
    model, start = mixture(dist.Dirichlet, concentration=(guess, constraints.independent(constraints.positive, 1)))

    def log_density(p):
        return np.stack([stats.dirichlet.logpdf(x.numpy().T, a) for a in p["concentration"]], -1)

    def maximum(resp):
        logs = mean(resp, x.log().numpy())
        return {"concentration": np.stack([solved(m, a) for m, a in zip(logs, truth.numpy(), strict=True)])}

    return x, model, start, log_density, maximum, {"concentration": "Newton"}


def multinomial():
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    x = torch.stack([dist.Multinomial(9, p).sample() for p in probs[LABELS]])
    guess = torch.tensor([[0.4, 0.3, 0.3], [0.3, 0.3, 0.4]])
    model, start = mixture(dist.Multinomial, known={"total_count": 9}, probs=(guess, constraints.simplex))

    def log_density(p):
        return stats.multinomial.logpmf(over(x), 9, p["probs"])

    return x, model, start, log_density, lambda r: {"probs": mean(r, x.numpy() / 9)}, {"probs": "counts"}


def survey():
    """Latent classes: six questions with three answers each."""
    probs = torch.rand(2, 6, 3).mul(3).softmax(-1)
    x = dist.Categorical(probs[LABELS]).sample()
    guess = torch.rand(2, 6, 3).softmax(-1)
    return x, probs, guess


def latent_classes():
    x, _, guess = survey()
    model, start = mixture(dist.Categorical, 1, probs=(guess, constraints.simplex))
    answers = np.eye(3)[x.numpy()]

    def log_density(p):
        return np.einsum("njc,kjc->nk", answers, np.log(p["probs"]))

    return x, model, start, log_density, lambda r: {"probs": mean(r, answers)}, {"probs": "counts"}


def one_hot():
    x, _, guess = survey()
    answers = torch.eye(3)[x]
    model, start = mixture(dist.OneHotCategorical, 1, probs=(guess, constraints.simplex))

    def log_density(p):
        return np.einsum("njc,kjc->nk", answers.numpy(), np.log(p["probs"]))

    return answers, model, start, log_density, lambda r: {"probs": mean(r, answers.numpy())}, {"probs": "counts"}


def latent_classes_in_many_sites():
    x, _, guess = survey()

    def model(x):
        weights = pyro.param("weights", WEIGHTS, constraint=constraints.simplex)
        probs = pyro.param("probs", guess, constraint=constraints.simplex)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            for j in range(x.shape[1]):
                pyro.sample(f"x{j}", dist.Categorical(probs[:, j][z]), obs=x[:, j])

    answers = np.eye(3)[x.numpy()]

    def log_density(p):
        return np.einsum("njc,kjc->nk", answers, np.log(p["probs"]))

    start = as_numpy({"weights": WEIGHTS, "probs": guess})
    return x, model, start, log_density, lambda r: {"probs": mean(r, answers)}, {"probs": "counts"}


CASES = [
    poisson,
    exponential,
    gamma,
    gamma_of_known_concentration,
    bernoulli,
    geometric,
    binomial,
    log_normal,
    negative_binomial,
    negative_binomial_of_known_count,
    beta,
    dirichlet,
    multinomial,
    latent_classes,
    latent_classes_in_many_sites,
    one_hot,
]


@pytest.mark.parametrize("case", CASES)
def test_fit_takes_the_path_of_a_loop_written_by_hand(case):
    x, model, start, log_density, maximum, expected = case()
    result = fit(model, x)
    assert result.converged
    assert_rises(result)
    assert_closed(result, weights="counts", **expected)
    assert_at_the_top(result, model, x)
    assert_same_path(result, *textbook(log_density, maximum, start, result.num_iter))


LOGITS = {
    "bernoulli": (dist.Bernoulli, bernoulli, 1),
    "geometric": (dist.Geometric, geometric, 0),
    "binomial": (dist.Binomial, binomial, 0),
    "negative binomial": (dist.NegativeBinomial, negative_binomial_of_known_count, 0),
    "categorical": (dist.Categorical, latent_classes, 1),
    "multinomial": (dist.Multinomial, multinomial, 0),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_take_the_path_of_probabilities(name):
    family, case, event_dims = LOGITS[name]
    x, model, start, *_ = case()
    probs = torch.tensor(start["probs"])
    known = {
        "multinomial": {"total_count": 9},
        "binomial": {"total_count": 12},
        "negative binomial": {"total_count": torch.tensor(4.0)},
    }.get(name)
    simplex = name in ("categorical", "multinomial")
    other, _ = mixture(
        family, event_dims, known=known, logits=(probs.log() if simplex else probs.logit(), constraints.real)
    )
    ours, theirs = fit(other, x), fit(model, x)
    assert_closed(ours, logits="counts" if simplex else "proportion")
    assert_at_the_top(ours, other, x)
    num = min(ours.num_iter, theirs.num_iter) + 1
    torch.testing.assert_close(ours.objective[:num], theirs.objective[:num], rtol=1e-10, atol=1e-10)


def test_bernoulli_latents_are_summed_out_like_categories():
    x = torch.cat([torch.poisson(torch.full((90,), 2.0)), torch.poisson(torch.full((60,), 11.0))])

    def model(x):
        prob = pyro.param("prob", torch.tensor(0.5), constraint=constraints.unit_interval)
        rate = pyro.param("rate", torch.tensor([1.0, 5.0]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(prob))
            pyro.sample("x", dist.Poisson(rate[z.long()]), obs=x)

    result = fit(model, x)
    params, path = textbook(
        lambda p: stats.poisson.logpmf(over(x), p["rate"]),
        lambda r: {"rate": mean(r, x.numpy())},
        {"weights": np.array([0.5, 0.5]), "rate": np.array([1.0, 5.0])},
        result.num_iter,
    )
    assert_closed(result, prob="proportion", rate="mean")
    assert_same_path(result, {"prob": params["weights"][1], "rate": params["rate"]}, path)


def test_labels_that_are_known_are_counted():
    x = torch.cat([torch.poisson(torch.full((90,), 2.0)), torch.poisson(torch.full((60,), 11.0))])
    labels = (torch.arange(150) >= 90).long()

    def model(x, labels):
        weights = pyro.param("weights", WEIGHTS, constraint=constraints.simplex)
        rate = pyro.param("rate", torch.tensor([1.0, 5.0]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), obs=labels)
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    result = fit(model, x, labels)
    torch.testing.assert_close(result.params["weights"], torch.tensor([0.6, 0.4]))
    torch.testing.assert_close(result.params["rate"], torch.stack([x[:90].mean(), x[90:].mean()]))


def test_zero_probability_is_found_and_kept():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])

    def model(x):
        probs = pyro.param("probs", torch.tensor([0.5, 0.5]), constraint=constraints.unit_interval)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(probs).to_event(1), obs=x)

    result = fit(model, x)
    torch.testing.assert_close(result.params["probs"], torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(result.objective[-1], torch.tensor(np.log(0.25) + 3 * np.log(0.75)))
