"""Parameters that sites share, and functions that stand between them and arguments."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import optimize, stats

from .checks import assert_at_the_top, assert_closed, assert_rises, assert_same_path, fit, rules, textbook

NUM_ROWS = 240
LABELS = torch.arange(NUM_ROWS) % 2


def simplex(name="weights", value=(0.4, 0.6)):
    return pyro.param(name, torch.tensor(value), constraint=constraints.simplex)


def positive(name, value):
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


def real(name, value):
    return pyro.param(name, torch.tensor(value), constraint=constraints.real)


def two_columns():
    """Two columns of different locs and one scale."""
    locs = torch.tensor([[0.0, 5.0], [4.0, -2.0]])
    return locs[LABELS] + torch.tensor([1.0, 1.5])[LABELS].unsqueeze(-1) * torch.randn(NUM_ROWS, 2)


def resp_mean(resp, x):
    return resp.T @ x / resp.sum(0).reshape(-1, *[1] * (x.ndim - 1))


def test_scale_that_two_sites_share_pools_their_deviations():
    x = two_columns()

    def model(x):
        weights, scale = simplex(), positive("scale", [1.0, 2.0])
        first, second = real("first", [1.0, 3.0]), real("second", [3.0, 1.0])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("a", dist.Normal(first[z], scale[z]), obs=x[:, 0])
            pyro.sample("b", dist.Normal(second[z], scale[z]), obs=x[:, 1])

    a, b = x.numpy().T

    def log_density(p):
        one, two = (stats.norm.logpdf(v[:, None], p[n], p["scale"]) for v, n in ((a, "first"), (b, "second")))
        return one + two

    def maximum(resp):
        first, second = resp_mean(resp, a), resp_mean(resp, b)
        squares = (resp * ((a[:, None] - first) ** 2 + (b[:, None] - second) ** 2)).sum(0)
        return {"first": first, "second": second, "scale": np.sqrt(squares / (2 * resp.sum(0)))}

    result = fit(model, x)
    start = {k: np.array(v) for k, v in (("weights", [0.4, 0.6]), ("scale", [1.0, 2.0]))}
    start |= {"first": np.array([1.0, 3.0]), "second": np.array([3.0, 1.0])}
    assert_same_path(result, *textbook(log_density, maximum, start, result.num_iter))
    assert_closed(result, scale="deviation", first="mean", second="mean")
    assert_rises(result)
    assert_at_the_top(result, model, x)


def test_loc_that_two_sites_with_scales_of_their_own_share_is_weighed_by_both():
    x = torch.tensor([3.0, 3.0]) + torch.tensor([0.5, 2.0]) * torch.randn(200, 2)

    def model(x):
        loc, one, two = real("loc", 0.0), positive("one", 1.0), positive("two", 1.0)
        with pyro.plate("rows", len(x)):
            pyro.sample("a", dist.Normal(loc, one), obs=x[:, 0])
            pyro.sample("b", dist.Normal(loc, two), obs=x[:, 1])

    def profile(loc):
        return 0.5 * np.log(((x.numpy() - loc) ** 2).mean(0)).sum() * len(x)

    result = fit(model, x)
    best = optimize.minimize_scalar(profile, bracket=(2.0, 4.0), tol=1e-12)
    assert float(result.params["loc"]) == pytest.approx(best.x, rel=1e-6)
    assert_closed(result)
    assert_at_the_top(result, model, x)


def test_locs_crossed_with_scales_are_at_the_top_of_the_likelihood():
    """A mixture over means, and one over scales."""
    x = torch.tensor([-3.0, 3.0])[LABELS] + torch.tensor([0.4, 1.6])[torch.randint(2, (NUM_ROWS,))] * torch.randn(
        NUM_ROWS
    )

    def model(x):
        where, how = simplex("where"), simplex("how", (0.5, 0.5))
        loc, scale = real("loc", [-1.0, 1.0]), positive("scale", [0.5, 2.0])
        with pyro.plate("rows", len(x)):
            i = pyro.sample("i", dist.Categorical(where))
            j = pyro.sample("j", dist.Categorical(how))
            pyro.sample("x", dist.Normal(loc[i], scale[j]), obs=x)

    result = fit(model, x, tol=1e-13)
    assert_rises(result)
    assert_closed(result, loc="mean", scale="deviation")
    assert_at_the_top(result, model, x)


def test_parameter_in_two_roles_is_searched_for_and_the_summary_says_so():
    """Twice the loc of one site is the scale of another."""
    x = torch.stack([2 + torch.randn(NUM_ROWS), 2 * torch.randn(NUM_ROWS)], -1)

    def model(x):
        both, one = positive("both", 1.0), positive("one", 1.0)
        with pyro.plate("rows", len(x)):
            pyro.sample("a", dist.Normal(both, one), obs=x[:, 0])
            pyro.sample("b", dist.Normal(0.0, both), obs=x[:, 1])

    def loss(u):
        both, one = np.exp(u)
        a, b = x.numpy().T
        return -(stats.norm.logpdf(a, both, one) + stats.norm.logpdf(b, 0.0, both)).sum()

    result = fit(model, x)
    best = optimize.minimize(loss, [0.0, 0.0], tol=1e-10)
    assert float(result.objective[-1]) == pytest.approx(-best.fun, rel=1e-9)
    assert "L-BFGS" in rules(result)["both"]
    assert_rises(result)
    assert_at_the_top(result, model, x)


def test_rates_that_are_a_function_of_two_parameters_are_searched_for():
    x = torch.poisson(torch.tensor([2.0, 14.0])[LABELS])

    def model(x):
        weights, low, gap = simplex(), positive("low", 1.0), positive("gap", 3.0)
        rate = torch.stack([low, low + gap])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    result = fit(model, x)
    start = {"weights": np.array([0.4, 0.6]), "rate": np.array([1.0, 4.0])}
    params, path = textbook(
        lambda p: stats.poisson.logpmf(x.numpy()[:, None], p["rate"]),
        lambda r: {"rate": resp_mean(r, x.numpy())},
        start,
        result.num_iter,
    )
    assert "L-BFGS" in rules(result)["low"]
    assert "L-BFGS" in rules(result)["gap"]
    assert "L-BFGS" not in rules(result)["weights"]
    assert_rises(result)
    np.testing.assert_allclose(result.objective, path, rtol=1e-6)
    low, gap = (float(result.params[n]) for n in ("low", "gap"))
    assert [low, low + gap] == pytest.approx(params["rate"], rel=1e-5)


LINKS = {
    "exp": (lambda v: v.exp(), lambda v: v.log(), constraints.real),
    "sqrt": (lambda v: v.sqrt(), lambda v: v.square(), constraints.positive),
    "softplus": (torch.nn.functional.softplus, lambda v: v.expm1().log(), constraints.real),
    "rsqrt": (lambda v: v.rsqrt(), lambda v: v**-2, constraints.positive),
    "power": (lambda v: v**-0.5, lambda v: v**-2, constraints.positive),
    "reciprocal": (lambda v: 1 / v, lambda v: 1 / v, constraints.positive),
}


def plain_normal(x):
    weights, loc, scale = simplex(), real("loc", [1.0, 3.0]), positive("scale", [1.0, 2.0])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


@pytest.mark.parametrize("name", LINKS)
def test_scale_behind_a_function_takes_the_path_of_the_scale(name):
    x = two_columns()[:, 0]
    call, inverse, constraint = LINKS[name]

    def model(x):
        weights, loc = simplex(), real("loc", [1.0, 3.0])
        free = pyro.param("free", inverse(torch.tensor([1.0, 2.0])), constraint=constraint)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], call(free)[z]), obs=x)

    ours, plain = fit(model, x), fit(plain_normal, x)
    assert_closed(ours, free="deviation", loc="mean")
    num = min(ours.num_iter, plain.num_iter) + 1
    torch.testing.assert_close(ours.objective[:num], plain.objective[:num], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(call(ours.params["free"]), plain.params["scale"], rtol=1e-6, atol=1e-6)


def test_function_after_the_picking_of_a_component_is_found_too():
    x = torch.poisson(torch.tensor([2.0, 14.0])[LABELS])

    def model(x):
        weights, log_rate = simplex(), real("log_rate", [0.0, 2.0])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(log_rate[z].exp()), obs=x)

    result = fit(model, x)
    params, path = textbook(
        lambda p: stats.poisson.logpmf(x.numpy()[:, None], p["rate"]),
        lambda r: {"rate": resp_mean(r, x.numpy())},
        {"weights": np.array([0.4, 0.6]), "rate": np.exp([0.0, 2.0])},
        result.num_iter,
    )
    assert_closed(result, log_rate="mean")
    assert_same_path(result, {"log_rate": np.log(params["rate"])}, path)


def test_covariance_whose_factor_is_the_inverse_of_a_parameter_is_fitted():
    """What no rule knows is searched for, and reaches the same top."""
    x = two_columns()

    def model(x):
        loc = real("loc", [1.0, 1.0])
        free = pyro.param("free", torch.eye(2), constraint=constraints.lower_cholesky)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=torch.linalg.inv(free).tril()), obs=x)

    result = fit(model, x)
    factor = torch.linalg.inv(result.params["free"]).tril()
    torch.testing.assert_close(factor @ factor.mT, x.T.cov(correction=0), rtol=1e-5, atol=1e-5)
    assert_rises(result)
    assert_at_the_top(result, model, x)


def test_constants_among_the_arguments_stay_and_the_others_are_found():
    """Noise around zero, and one component that moves."""
    x = torch.where(LABELS == 0, torch.randn(NUM_ROWS), 6 + 1.5 * torch.randn(NUM_ROWS))

    def model(x):
        weights, far, scale = simplex(), real("far", 3.0), positive("scale", 1.0)
        loc, scales = torch.stack([torch.tensor(0.0), far]), torch.stack([torch.tensor(1.0), scale])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scales[z]), obs=x)

    def log_density(p):
        return stats.norm.logpdf(x.numpy()[:, None], [0.0, float(p["far"])], [1.0, float(p["scale"])])

    def maximum(resp):
        far = resp_mean(resp, x.numpy())[1]
        return {"far": far, "scale": np.sqrt(resp[:, 1] @ (x.numpy() - far) ** 2 / resp[:, 1].sum())}

    result = fit(model, x)
    start = {"weights": np.array([0.4, 0.6]), "far": np.array(3.0), "scale": np.array(1.0)}
    assert_closed(result, far="mean", scale="deviation")
    assert_same_path(result, *textbook(log_density, maximum, start, result.num_iter))


def test_scales_that_are_known_row_by_row_weigh_the_rows():
    errors = 0.5 + 3 * torch.rand(NUM_ROWS)
    x = torch.tensor([-4.0, 4.0])[LABELS] + errors * torch.randn(NUM_ROWS)

    def model(x, errors):
        weights, loc = simplex(), real("loc", [-1.0, 1.0])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], errors), obs=x)

    e = errors.numpy()[:, None]

    def maximum(resp):
        return {"loc": (resp / e**2 * x.numpy()[:, None]).sum(0) / (resp / e**2).sum(0)}

    result = fit(model, x, errors)
    start = {"weights": np.array([0.4, 0.6]), "loc": np.array([-1.0, 1.0])}
    path = textbook(lambda p: stats.norm.logpdf(x.numpy()[:, None], p["loc"], e), maximum, start, result.num_iter)
    assert_closed(result, loc="mean")
    assert_same_path(result, *path)


def test_effects_that_rows_pick_are_means_of_groups_with_one_scale():
    group = torch.randint(4, (NUM_ROWS,))
    x = torch.tensor([1.0, -2.0, 3.0, 0.5])[group] + 0.7 * torch.randn(NUM_ROWS)

    def model(x, group):
        effects, scale = real("effects", [0.0, 0.0, 0.0, 0.0]), positive("scale", 1.0)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(effects[group], scale), obs=x)

    means = torch.stack([x[group == g].mean() for g in range(4)])
    for options in ({}, {"batch_size": 7}):
        result = fit(model, x, group, **options)
        torch.testing.assert_close(result.params["effects"], means)
        torch.testing.assert_close(result.params["scale"], (x - means[group]).square().mean().sqrt())
        assert_closed(result, effects="mean", scale="deviation")


def test_locs_picked_by_group_and_component_are_found():
    group = torch.randint(3, (NUM_ROWS,))
    centres = torch.tensor([[-4.0, 4.0], [-2.0, 6.0], [0.0, 9.0]])
    x = centres[group, LABELS] + 0.9 * torch.randn(NUM_ROWS)

    def model(x, group):
        weights, scale = simplex(), positive("scale", 1.0)
        loc = real("loc", [[-1.0, 1.0], [-1.0, 3.0], [1.0, 5.0]])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[group, z], scale), obs=x)

    one_hot = np.eye(3)[group.numpy()]
    values = x.numpy()

    def log_density(p):
        return stats.norm.logpdf(values[:, None], p["loc"][group.numpy()], p["scale"])

    def maximum(resp):
        counts = np.einsum("nk,ng->gk", resp, one_hot)
        loc = np.einsum("nk,ng,n->gk", resp, one_hot, values) / counts
        return {"loc": loc, "scale": np.sqrt((resp * (values[:, None] - loc[group.numpy()]) ** 2).sum() / resp.sum())}

    result = fit(model, x, group)
    start = {"weights": np.array([0.4, 0.6]), "scale": np.array(1.0)}
    start["loc"] = np.array([[-1.0, 1.0], [-1.0, 3.0], [1.0, 5.0]])
    assert_closed(result, loc="mean", scale="deviation")
    assert_same_path(result, *textbook(log_density, maximum, start, result.num_iter))
    in_batches = fit(model, x, group, batch_size=11)
    num = min(in_batches.num_iter, result.num_iter) + 1
    torch.testing.assert_close(in_batches.objective[:num], result.objective[:num], rtol=1e-10, atol=1e-10)


def test_weights_picked_by_group_are_counted_in_each():
    group = torch.arange(NUM_ROWS) % 3
    z = torch.bernoulli(torch.tensor([0.2, 0.5, 0.9])[group]).long()
    x = torch.poisson(torch.tensor([2.0, 15.0])[z])

    def model(x, group):
        weights = simplex(value=((0.5, 0.5), (0.4, 0.6), (0.3, 0.7)))
        rate = positive("rate", [1.0, 8.0])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights[group]))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    result = fit(model, x, group)
    assert_rises(result)
    assert_closed(result, weights="counts", rate="mean")
    assert_at_the_top(result, model, x, group)
    resp = result.posterior()["z"].probs
    for g in range(3):
        torch.testing.assert_close(resp[group == g].mean(0), result.params["weights"][g], rtol=1e-5, atol=1e-5)


def test_linear_regression_is_least_squares():
    X = torch.randn(NUM_ROWS, 3)
    y = X @ torch.tensor([1.0, -2.0, 0.5]) + 4 + 0.3 * torch.randn(NUM_ROWS)

    def model(X, y):
        slopes, intercept, scale = real("slopes", [0.0, 0.0, 0.0]), real("intercept", 0.0), positive("scale", 1.0)
        with pyro.plate("rows", len(X)):
            pyro.sample("y", dist.Normal(X @ slopes + intercept, scale), obs=y)

    result = fit(model, X, y)
    design = torch.cat([X, torch.ones(NUM_ROWS, 1)], -1)
    best = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(result.params["slopes"], best[:3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.params["intercept"], best[3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.params["scale"], (y - design @ best).square().mean().sqrt(), rtol=1e-6, atol=0)
    assert_rises(result)


def test_mixture_of_regressions_reaches_the_top():
    X = torch.randn(NUM_ROWS)
    y = torch.where(LABELS == 0, 1 + 2 * X, -1 - X) + 0.4 * torch.randn(NUM_ROWS)

    def model(X, y):
        weights, scale = simplex(), positive("scale", [1.0, 1.0])
        intercept, slope = real("intercept", [0.5, -0.5]), real("slope", [1.0, 0.0])
        with pyro.plate("rows", len(X)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("y", dist.Normal(intercept[z] + slope[z] * X, scale[z]), obs=y)

    x, target = X.numpy(), y.numpy()
    design = np.stack([np.ones_like(x), x], -1)

    def log_density(p):
        return stats.norm.logpdf(target[:, None], p["intercept"] + p["slope"] * x[:, None], p["scale"])

    def maximum(resp):
        lines = np.array([np.linalg.solve(design.T @ (r[:, None] * design), design.T @ (r * target)) for r in resp.T])
        squares = (target[:, None] - design @ lines.T) ** 2
        scale = np.sqrt((resp * squares).sum(0) / resp.sum(0))
        return {"intercept": lines[:, 0], "slope": lines[:, 1], "scale": scale}

    result = fit(model, X, y)
    start = {"weights": np.array([0.4, 0.6]), "scale": np.ones(2)}
    start |= {"intercept": np.array([0.5, -0.5]), "slope": np.array([1.0, 0.0])}
    assert_rises(result)
    assert_at_the_top(result, model, X, y)
    assert_same_path(result, *textbook(log_density, maximum, start, result.num_iter), rtol=1e-6)


def test_model_of_which_no_rule_knows_is_searched_whole():
    """A robust mean: no parameter has a closed form."""
    x = dist.StudentT(3.0, 2.0, 1.5).sample((NUM_ROWS,))

    def model(x):
        loc, scale = real("loc", 0.5), positive("scale", 1.0)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.StudentT(3.0, loc, scale), obs=x)

    def loss(p):
        return -stats.t.logpdf(x.numpy(), 3.0, p[0], np.exp(p[1])).sum()

    result = fit(model, x)
    best = optimize.minimize(loss, [0.5, 0.0], tol=1e-10)
    assert float(result.objective[-1]) == pytest.approx(-best.fun, rel=1e-9)
    assert "L-BFGS" in rules(result)["loc"]
    assert "L-BFGS" in rules(result)["scale"]
    assert_rises(result)


def gammas_of_one_concentration(x):
    weights, concentration, rate = simplex(), positive("concentration", 2.0), positive("rate", [2.0, 0.5])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Gamma(concentration, rate[z]), obs=x)


def gammas_of_one_rate(x):
    weights, concentration, rate = simplex(), positive("concentration", [1.0, 5.0]), positive("rate", 1.0)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Gamma(concentration[z], rate), obs=x)


def gammas_of_exponential_rate(x):
    weights, concentration, log_rate = simplex(), positive("concentration", [1.0, 5.0]), real("log_rate", [0.0, 0.5])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Gamma(concentration[z], log_rate.exp()[z]), obs=x)


def gammas_of_mean_and_shape(x):
    weights, shape, mean = simplex(), positive("shape", [1.0, 5.0]), positive("mean", [1.0, 5.0])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Gamma(shape[z], (shape / mean)[z]), obs=x)


def betas_of_one_concentration(x):
    weights, both = simplex(), positive("both", [1.0, 3.0])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Beta(both[z], 2.0), obs=x)


def symmetric_betas(x):
    both = positive("both", 2.0)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Beta(both, both), obs=x)


def counts_of_one_dispersion(x):
    weights, count = simplex(), positive("count", 2.0)
    probs = pyro.param("probs", torch.tensor([0.5, 0.8]), constraint=constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.NegativeBinomial(count, probs[z]), obs=x)


def counts_by_logits(x):
    weights, count, logits = simplex(), positive("count", [1.0, 3.0]), real("logits", [0.2, 1.5])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.NegativeBinomial(count[z], logits=logits[z]), obs=x)


def covariances_about_one_loc(x):
    weights, loc = simplex(), real("loc", [1.0, 1.0])
    factor = pyro.param("factor", torch.stack([torch.eye(2), 3 * torch.eye(2)]), constraint=constraints.lower_cholesky)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=factor[z]), obs=x)


def scales_about_one_loc(x):
    weights, loc, scale = simplex(), real("loc", 1.0), positive("scale", [1.0, 3.0])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc, scale[z]), obs=x)


def rates_with_exposure(x):
    """Twice the rate of one component is the rate of the other."""
    weights, rate = simplex(), positive("rate", 2.0)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rate * torch.tensor([1.0, 4.0])[z]), obs=x)


def draws_of_gammas():
    return dist.Gamma(torch.tensor([3.0, 8.0])[LABELS], torch.tensor([3.0, 0.8])[LABELS]).sample()


def draws_of_betas():
    return dist.Beta(torch.tensor([2.0, 9.0])[LABELS], 2.5).sample()


def draws_of_counts():
    return dist.NegativeBinomial(3.0, torch.tensor([0.4, 0.9])[LABELS]).sample()


HALVES = {
    gammas_of_one_concentration: draws_of_gammas,
    gammas_of_one_rate: draws_of_gammas,
    gammas_of_exponential_rate: draws_of_gammas,
    gammas_of_mean_and_shape: draws_of_gammas,
    betas_of_one_concentration: draws_of_betas,
    symmetric_betas: draws_of_betas,
    counts_of_one_dispersion: draws_of_counts,
    counts_by_logits: draws_of_counts,
    covariances_about_one_loc: two_columns,
    scales_about_one_loc: lambda: two_columns()[:, 0],
    rates_with_exposure: lambda: torch.poisson(torch.tensor([3.0, 12.0])[LABELS]),
}


@pytest.mark.parametrize("model", HALVES, ids=lambda model: model.__name__)
def test_halves_of_a_family_that_are_shared_or_computed_reach_the_top(model):
    x = HALVES[model]()
    result = fit(model, x)
    assert result.converged
    assert_rises(result)
    assert_at_the_top(result, model, x)


def test_closed_form_that_is_no_maximum_is_found_out_where_a_parameter_is_zero():
    """A potential whose slope no rule sees, on a loc that starts at zero."""
    x = 2 + torch.randn(NUM_ROWS)

    def model(x):
        loc = real("loc", 0.0)
        pyro.factor("penalty", -30.0 * loc.square())
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    result = fit(model, x)
    torch.testing.assert_close(result.params["loc"], x.sum() / (NUM_ROWS + 60), rtol=1e-6, atol=0)


def zero_inflated_poisson(x):
    gate = pyro.param("gate", torch.tensor(0.2), constraint=constraints.unit_interval)
    rate = positive("rate", 2.0)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.ZeroInflatedPoisson(rate, gate=gate), obs=x)


def zero_inflated_negative_binomial(x):
    gate = pyro.param("gate", torch.tensor(0.2), constraint=constraints.unit_interval)
    probs = pyro.param("probs", torch.tensor(0.5), constraint=constraints.unit_interval)
    count = positive("count", 2.0)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.ZeroInflatedNegativeBinomial(count, probs=probs, gate=gate), obs=x)


def students(x):
    weights, loc, scale = simplex(), real("loc", [1.0, 3.0]), positive("scale", [1.0, 2.0])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.StudentT(4.0, loc[z], scale[z]), obs=x)


def mixture_in_one_site(x):
    weights, loc = simplex(), real("loc", [1.0, 3.0])
    with pyro.plate("rows", len(x)):
        mixing, components = dist.Categorical(weights), dist.Normal(loc, 1.2)
        pyro.sample("x", dist.MixtureSameFamily(mixing, components), obs=x)


def factors_of_covariance(x):
    loc, loading, noise = real("loc", [0.5, 0.5]), real("loading", [[1.0], [0.5]]), positive("noise", [1.0, 1.0])
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.LowRankMultivariateNormal(loc, loading, noise), obs=x)


def diagonal_factors(x):
    weights, loc = simplex(), real("loc", [[1.0, 2.0], [3.0, 1.0]])
    scale = positive("scale", [[1.0, 1.0], [1.0, 1.0]])
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=scale[z].diag_embed()), obs=x)


def part_of_the_rows(x):
    """A model that stands for twice the rows that it is given."""
    weights, rate = simplex(), positive("rate", [1.0, 6.0])
    with pyro.plate("rows", 2 * NUM_ROWS, subsample=x):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rate[z]), obs=x)


def complements(x):
    probs = pyro.param("probs", torch.tensor(0.4), constraint=constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        pyro.sample("a", dist.Bernoulli(probs), obs=(x > 4).double())
        pyro.sample("b", dist.Bernoulli(1 - probs), obs=(x > 9).double())


def draws_with_zeros():
    return torch.where(torch.rand(NUM_ROWS) < 0.4, 0.0, draws_of_counts())


OTHERS = {
    zero_inflated_poisson: draws_with_zeros,
    zero_inflated_negative_binomial: draws_with_zeros,
    students: lambda: two_columns()[:, 0],
    mixture_in_one_site: lambda: two_columns()[:, 0],
    factors_of_covariance: two_columns,
    diagonal_factors: two_columns,
    part_of_the_rows: lambda: torch.poisson(torch.tensor([2.0, 12.0])[LABELS]),
    complements: lambda: torch.poisson(torch.tensor([2.0, 12.0])[LABELS]),
}


@pytest.mark.parametrize("model", OTHERS, ids=lambda model: model.__name__)
def test_distributions_around_and_beside_the_families_reach_the_top(model):
    x = OTHERS[model]()
    result = fit(model, x)
    assert_rises(result)
    assert_at_the_top(result, model, x)


def test_mixture_of_experts_reaches_the_top():
    X = torch.randn(NUM_ROWS)
    z = torch.bernoulli((2 * X).sigmoid())
    y = torch.where(z == 1, 2 + X, -1 - X) + 0.3 * torch.randn(NUM_ROWS)

    def model(X, y):
        gate, scale = real("gate", [0.1, 1.0]), positive("scale", 1.0)
        intercept, slope = real("intercept", [-0.5, 1.0]), real("slope", [-0.5, 0.5])
        with pyro.plate("rows", len(X)):
            z = pyro.sample("z", dist.Bernoulli(logits=gate[0] + gate[1] * X)).long()
            pyro.sample("y", dist.Normal(intercept[z] + slope[z] * X, scale), obs=y)

    result = fit(model, X, y)
    assert_rises(result)
    assert_at_the_top(result, model, X, y)
