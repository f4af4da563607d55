"""With priors on the parameters the fit is a posterior mode: pseudo-observations where they are conjugate."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import optimize, stats

from .checks import assert_at_the_top, assert_closed, assert_rises, fit, posteriors, rules

NUM_ROWS = 150
LABELS = torch.arange(NUM_ROWS) % 2


def counts():
    return torch.poisson(torch.tensor([2.0, 12.0])[LABELS])


def numbers():
    return torch.tensor([-2.0, 4.0])[LABELS] + torch.tensor([0.8, 1.4])[LABELS] * torch.randn(NUM_ROWS)


def by_hand(result, params, log_density, log_prior, maximum):
    """The path of the log-posterior in numpy from where ``result`` began, and the parameters at its end."""
    path = []
    for i in range(result.num_iter + 1):
        resp, log_p = posteriors(np.log(params["weights"]) + log_density(params))
        path.append(log_p.sum() + log_prior(params))
        if i < result.num_iter:
            params = maximum(resp, params)
    return params, np.array(path)


def assert_by_hand(result, *loop):
    params, path = by_hand(result, *loop)
    np.testing.assert_allclose(result.objective, path, rtol=1e-9)
    for name, value in params.items():
        np.testing.assert_allclose(result.params[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


def test_dirichlet_on_weights_and_gamma_on_rates_are_counts_more():
    x = counts()

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([3.0, 2.0])))
        with pyro.plate("components", 2):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor([2.0, 3.0]), 0.5))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    start = {"weights": np.array([0.3, 0.7]), "rate": np.array([1.0, 6.0])}
    result = fit(model, x, init=start)
    values = x.numpy()

    def log_prior(p):
        return stats.dirichlet.logpdf(p["weights"], [3, 2]) + stats.gamma.logpdf(p["rate"], [2, 3], scale=2).sum()

    def maximum(resp, _):
        weights = resp.sum(0) + np.array([2, 1])
        return {"weights": weights / weights.sum(), "rate": (resp.T @ values + [1, 2]) / (resp.sum(0) + 0.5)}

    assert result.objective_name == "log-posterior"
    assert_rises(result)
    assert_closed(result, weights="counts", rate="mean")
    assert_at_the_top(result, model, x)
    assert_by_hand(result, start, lambda p: stats.poisson.logpmf(values[:, None], p["rate"]), log_prior, maximum)


def test_beta_on_probabilities_is_counts_more():
    probs = torch.tensor([[0.9, 0.8, 0.2, 0.1], [0.2, 0.1, 0.7, 0.9]])
    x = torch.bernoulli(probs[LABELS])

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(2)))
        probs = pyro.sample("probs", dist.Beta(2.0, 3.0).expand([2, 4]).to_event(2))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)

    start = {"weights": np.array([0.5, 0.5]), "probs": np.array([[0.6, 0.6, 0.4, 0.4], [0.4, 0.4, 0.6, 0.6]])}
    result = fit(model, x, init=start)
    values = x.numpy()

    def maximum(resp, _):
        weights = resp.sum(0) + 1
        return {"weights": weights / weights.sum(), "probs": (resp.T @ values + 1) / (resp.sum(0)[:, None] + 3)}

    assert_closed(result, weights="counts", probs="proportion")
    assert_at_the_top(result, model, x)
    assert_by_hand(
        result,
        start,
        lambda p: stats.bernoulli.logpmf(values[:, None], p["probs"]).sum(-1),
        lambda p: stats.dirichlet.logpdf(p["weights"], [2, 2]) + stats.beta.logpdf(p["probs"], 2, 3).sum(),
        maximum,
    )


def test_normal_on_locs_draws_them_to_its_own():
    x = numbers()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(1.0, 0.5))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], 1.2), obs=x)

    start = {"weights": np.array([0.5, 0.5]), "loc": np.array([0.0, 2.0])}
    result = fit(model, x, init={"loc": start["loc"]})
    values = x.numpy()

    def maximum(resp, _):
        precision = resp.sum(0) / 1.44
        return {"weights": resp.mean(0), "loc": (resp.T @ values / 1.44 + 4) / (precision + 4)}

    assert_closed(result, loc="mean")
    assert_rises(result)
    assert_at_the_top(result, model, x)
    assert_by_hand(
        result,
        start,
        lambda p: stats.norm.logpdf(values[:, None], p["loc"], 1.2),
        lambda p: stats.norm.logpdf(p["loc"], 1.0, 0.5).sum(),
        maximum,
    )


def test_normal_on_locs_with_free_scales_reaches_the_mode():
    x = numbers()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        loc = pyro.sample("loc", dist.Normal(1.0, 0.5).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    result = fit(model, x, init={"loc": [0.0, 2.0]})
    assert_closed(result, loc="mean", scale="deviation")
    assert_rises(result)
    assert_at_the_top(result, model, x)


VARIANCE_PRIORS = {
    "variance": (
        lambda: dist.InverseGamma(torch.tensor(3.0), torch.tensor(2.0)),
        lambda v: v.sqrt(),
        stats.invgamma(3, scale=2),
        # of a term -(a + 1) log v - b / v
        lambda n, squares: (squares / 2 + 2) / (n / 2 + 4),
        lambda v: np.sqrt(v),
    ),
    "precision": (
        lambda: dist.Gamma(torch.tensor(3.0), torch.tensor(2.0)),
        lambda v: v.rsqrt(),
        stats.gamma(3, scale=0.5),
        lambda n, squares: (n / 2 + 2) / (squares / 2 + 2),
        lambda v: 1 / np.sqrt(v),
    ),
}


@pytest.mark.parametrize("name", VARIANCE_PRIORS)
def test_conjugate_prior_of_a_variance_or_precision_is_squares_more(name):
    x = numbers()
    prior, call, theirs, mode, scale = VARIANCE_PRIORS[name]

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]), constraint=constraints.real)
        with pyro.plate("components", 2):
            spread = pyro.sample("spread", prior())
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], call(spread)[z]), obs=x)

    start = {"weights": np.array([0.5, 0.5]), "loc": np.array([0.0, 2.0]), "spread": np.array([1.0, 1.5])}
    result = fit(model, x, init={"spread": start["spread"]})
    values = x.numpy()

    def maximum(resp, _):
        loc = resp.T @ values / resp.sum(0)
        squares = (resp * (values[:, None] - loc) ** 2).sum(0)
        return {"weights": resp.mean(0), "loc": loc, "spread": mode(resp.sum(0), squares)}

    assert_closed(result, loc="mean", spread="deviation")
    assert_rises(result)
    assert_at_the_top(result, model, x)
    assert_by_hand(
        result,
        start,
        lambda p: stats.norm.logpdf(values[:, None], p["loc"], scale(p["spread"])),
        lambda p: theirs.logpdf(p["spread"]).sum(),
        maximum,
    )


def test_gamma_on_a_power_of_the_scale_reaches_the_mode():
    """The precision as ``precision ** -0.5`` and one for all components."""
    x = numbers()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]), constraint=constraints.real)
        precision = pyro.sample("precision", dist.Gamma(3.0, 2.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], precision**-0.5), obs=x)

    result = fit(model, x)
    assert_closed(result, precision="deviation")
    assert_rises(result)
    assert_at_the_top(result, model, x)


def test_gamma_on_rates_of_exponentials_is_waiting_times_more():
    x = dist.Exponential(torch.tensor(2.0)).sample((40,))

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(3.0, 4.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    result = fit(model, x)
    torch.testing.assert_close(result.params["rate"], (40 + 2) / (x.sum() + 4))
    assert_closed(result, rate="mean")


def test_prior_that_is_not_conjugate_leaves_its_parameter_to_a_search():
    x = counts()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        with pyro.plate("components", 2):
            rate = pyro.sample("rate", dist.LogNormal(1.0, 0.1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    start = {"weights": np.array([0.5, 0.5]), "rate": np.array([1.0, 6.0])}
    result = fit(model, x, init={"rate": start["rate"]})
    values = x.numpy()

    def maximum(resp, params):
        rate = []
        for r in resp.T:

            def loss(log_rate, r=r):
                rate = np.exp(log_rate)
                return -(r @ stats.poisson.logpmf(values, rate) + stats.lognorm.logpdf(rate, 0.1, scale=np.exp(1.0)))

            rate.append(
                np.exp(optimize.minimize_scalar(loss, bounds=(-3, 4), method="bounded", options={"xatol": 1e-10}).x)
            )
        return {"weights": resp.mean(0), "rate": np.array(rate)}

    assert "L-BFGS" in rules(result)["rate"]
    assert "conjugate" in rules(result)["rate"]
    assert "L-BFGS" not in rules(result)["weights"]
    assert_rises(result)
    assert_at_the_top(result, model, x)
    _, path = by_hand(
        result,
        start,
        lambda p: stats.poisson.logpmf(values[:, None], p["rate"]),
        lambda p: stats.lognorm.logpdf(p["rate"], 0.1, scale=np.exp(1.0)).sum(),
        maximum,
    )
    np.testing.assert_allclose(result.objective, path, rtol=1e-7)


def test_prior_whose_own_parameters_are_fitted_is_searched():
    """Empirical Bayes: the mean of the locs is free."""
    group = torch.arange(NUM_ROWS) % 6
    x = torch.linspace(-1.0, 2.0, 6)[group] + torch.randn(NUM_ROWS)

    def model(x, group):
        centre = pyro.param("centre", torch.tensor(0.0))
        with pyro.plate("groups", 6):
            effects = pyro.sample("effects", dist.Normal(centre, 0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(effects[group], 1.0), obs=x)

    result = fit(model, x, group)
    means = torch.stack([x[group == g].mean() for g in range(6)])
    # the joint mode: each effect between its mean and the centre, and the centre the mean of the effects
    torch.testing.assert_close(result.params["centre"], means.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.params["effects"], (25 * means + 4 * means.mean()) / 29, rtol=1e-5, atol=1e-5)
    assert_rises(result)


def test_prior_counts_once_whatever_the_batches_and_weights():
    x = counts()

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([30.0, 20.0])))
        with pyro.plate("components", 2):
            rate = pyro.sample("rate", dist.Gamma(20.0, 5.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    init = {"weights": [0.4, 0.6], "rate": [2.0, 6.0]}
    whole = fit(model, x, init=init)
    in_batches = fit(model, x, init=init, batch_size=7)
    torch.testing.assert_close(in_batches.objective, whole.objective, rtol=1e-10, atol=1e-10)
    weight = torch.randint(4, (NUM_ROWS,))
    weighted = fit(model, x, init=init, sample_weight=weight)
    repeated = fit(model, x.repeat_interleave(weight), init=init)
    torch.testing.assert_close(weighted.objective, repeated.objective, rtol=1e-10, atol=1e-10)


def test_prior_with_its_peak_on_the_boundary_empties_components():
    """A Dirichlet of concentrations below one: weights end at zero, and the objective does not fall."""
    x = torch.cat([torch.poisson(torch.full((75,), 2.0)), torch.poisson(torch.full((75,), 12.0))])

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 0.9)))
        rate = pyro.param("rate", torch.tensor([1.0, 5.0, 12.0]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    result = fit(model, x, init={"weights": [0.3, 0.3, 0.4]}, max_iter=100)
    assert_rises(result)
    assert torch.isfinite(result.params["rate"]).all()
