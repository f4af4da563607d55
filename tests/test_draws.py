"""What the groups hold, against densities computed by hand from the posterior draws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

import pyro_lvm as lvm


def values(data, group, name):
    """Draws of a variable, without the chain, in double precision."""
    array = data[group][name].values
    assert array.shape[0] == 1
    return torch.tensor(array[0]).double()


def check_close(actual, expected):
    assert_close(actual, expected.double(), rtol=1e-4, atol=1e-4)


def test_logistic_regression_with_a_full_rank_guide(logistic):
    result, X, y = logistic
    data = lvm.to_arviz(result, 50)
    weights, intercept = values(data, "posterior", "weights"), values(data, "posterior", "intercept")
    sign = 2 * y.double() - 1
    by_row = -torch.log1p(torch.exp(-sign * (weights @ X.double().T + intercept[:, None])))
    check_close(values(data, "log_likelihood", "y"), by_row)
    prior = dist.Normal(0, torch.ones(4).double()).log_prob(torch.cat([weights, intercept[:, None]], 1)).sum(1)
    check_close(values(data, "sample_stats", "lp"), by_row.sum(1) + prior)
    params = {name.split(".")[-1]: value.double() for name, value in result.params.items()}
    guide = dist.MultivariateNormal(params["loc"], scale_tril=params["scale"][:, None] * params["scale_tril"])
    check_close(values(data, "sample_stats", "log_q"), guide.log_prob(torch.cat([weights, intercept[:, None]], 1)))


def test_mixture_with_drawn_components(fit, clusters):
    mixture = lvm.models.GaussianMixture(2, 2).initialize(clusters)
    data = lvm.to_arviz(fit(mixture, None, clusters), 40)
    z = values(data, "posterior", "z").long()
    assert z.shape == (40, 50)
    assert set(z.unique().tolist()) == {0, 1}
    weights, locs, covariances = (getattr(mixture, n).detach().double() for n in ("weights", "locs", "covariances"))
    density = dist.MultivariateNormal(locs, covariances).log_prob(clusters.double()[:, None])  # [N, K]
    by_row = density[torch.arange(50), z]
    check_close(values(data, "log_likelihood", "x"), by_row)
    check_close(values(data, "sample_stats", "lp"), (by_row + weights.log()[z]).sum(1))
    assert "log_q" not in data["sample_stats"]
    assert "no site" in data["sample_stats"].attrs["log_q"]


def test_components_follow_their_responsibilities(fit):
    x = torch.tensor([[-1.0], [0.2], [1.5]])
    mixture = lvm.models.GaussianMixture(2, 1)
    mixture.locs, mixture.weights = [[-1.0], [1.0]], [0.3, 0.7]
    result = fit(mixture, None, x, num_steps=1, optim=1e-6)
    share = values(lvm.to_arviz(result, 4_000), "posterior", "z").mean(0)
    log_odds = torch.tensor([0.7 / 0.3]).log() + 2 * x[:, 0]  # of unit variances and locs of -1 and 1
    expected = log_odds.sigmoid()
    error = (expected * (1 - expected) / 4_000).sqrt()
    assert ((share - expected).abs() < 4 * error).all()


def test_exact_posterior_of_ppca_gives_the_evidence_at_every_draw(fit, clusters):
    ppca = lvm.models.PPCA(1, 2)
    data = lvm.to_arviz(fit(ppca, None, clusters), 30)
    z = values(data, "posterior", "z")
    loading, loc, noise = (getattr(ppca, name).detach().double() for name in ("loading", "loc", "noise"))
    by_row = dist.Normal(z @ loading.T + loc, noise.sqrt()).log_prob(clusters.double()).sum(-1)
    check_close(values(data, "log_likelihood", "x"), by_row)
    lp, log_q = values(data, "sample_stats", "lp"), values(data, "sample_stats", "log_q")
    check_close(lp, by_row.sum(1) + dist.Normal(0, 1).log_prob(z).sum((1, 2)))
    assert log_q.std() > 0.1
    evidence = ppca.marginal().log_prob(clusters).sum().detach().expand(30)
    assert_close(lp - log_q, evidence.double(), rtol=0, atol=2e-3)


def test_eight_schools_in_a_closure(schools, eight_schools):
    _, effects, errors = eight_schools
    data = lvm.to_arviz(schools, 50)
    mu, tau, eta, theta = (values(data, "posterior", name) for name in ("mu", "tau", "eta", "theta"))
    check_close(theta, mu[:, None] + tau[:, None] * eta)
    likelihood = dist.Normal(theta, errors.double()).log_prob(effects.double())
    check_close(values(data, "log_likelihood", "y"), likelihood)
    prior = dist.Normal(0, 5).log_prob(mu) + dist.HalfNormal(5.0).log_prob(tau) + dist.Normal(0, 1).log_prob(eta).sum(1)
    check_close(values(data, "sample_stats", "lp"), likelihood.sum(1) + prior)
    loc, scale = (
        {n: schools.params[f"AutoNormal.{k}.{n}"].double() for n in ("mu", "tau", "eta")} for k in ("locs", "scales")
    )
    log_q = dist.Normal(loc["mu"], scale["mu"]).log_prob(mu) + dist.LogNormal(loc["tau"], scale["tau"]).log_prob(tau)
    log_q = log_q + dist.Normal(loc["eta"], scale["eta"]).log_prob(eta).sum(1)
    check_close(values(data, "sample_stats", "log_q"), log_q)


@pytest.mark.parametrize("rows_dim", [-1, -2])
def test_nested_plates_are_summed_to_rows(fit, rows_dim):
    y = torch.randn(7, 3)
    laid_out = y if rows_dim == -2 else y.T
    others_dim = -3 - rows_dim

    def model(y):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        rows, items = pyro.plate("rows", len(y), dim=rows_dim), pyro.plate("items", 3, dim=others_dim)
        with items:
            easy = pyro.sample("easy", dist.Normal(0.0, 1.0))
        with rows:
            able = pyro.sample("able", dist.Normal(0.0, 1.0))
        with rows, items:
            pyro.sample("y", dist.Normal(easy + able, scale), obs=y if rows_dim == -2 else y.T)

    data = lvm.to_arviz(fit(model, "mean_field", y), 25)
    scale, easy, able = (values(data, "posterior", name) for name in ("scale", "easy", "able"))
    loc = easy.reshape(25, 1, 3) + able.reshape(25, 7, 1)
    by_row = dist.Normal(loc, scale.reshape(25, 1, 1)).log_prob(y.double()).sum(2)
    check_close(values(data, "log_likelihood", "y"), by_row)
    prior = dist.Gamma(2.0, 2.0).log_prob(scale) + sum(
        dist.Normal(0, 1).log_prob(v).flatten(1).sum(1) for v in (easy, able)
    )
    check_close(values(data, "sample_stats", "lp"), by_row.sum(1) + prior)
    order = ("rows", "items") if rows_dim == -2 else ("items", "rows")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    assert data["observed_data"]["y"].dims == order
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", *order)
    assert_close(torch.tensor(data["observed_data"]["y"].values), laid_out)
    # a plate in the second place leaves a dimension of size 1 to its right, which belongs to no plate
    of_outer, of_inner = ("able", "rows"), ("easy", "items")
    if rows_dim == -1:
        of_outer, of_inner = of_inner, of_outer
    assert data["posterior"][of_inner[0]].dims == ("chain", "draw", of_inner[1])
    assert data["posterior"][of_outer[0]].dims == ("chain", "draw", of_outer[1], f"{of_outer[0]}_dim_0")


def test_map(fit, eight_schools):
    model, effects, errors = eight_schools
    result = fit(model, "map", num_steps=100)
    data = lvm.to_arviz(result, 5)
    mu, tau, eta = (result.params[f"AutoDelta.{name}"] for name in ("mu", "tau", "eta"))
    likelihood = dist.Normal(mu + tau * eta, errors).log_prob(effects)
    check_close(values(data, "log_likelihood", "y"), likelihood.expand(5, 8))
    prior = dist.Normal(0, 5).log_prob(mu) + dist.HalfNormal(5.0).log_prob(tau) + dist.Normal(0, 1).log_prob(eta).sum()
    check_close(values(data, "sample_stats", "lp"), (likelihood.sum() + prior).expand(5))
    assert "log_q" not in data["sample_stats"]
    assert "no density" in data["sample_stats"].attrs["log_q"]


def test_latents_of_guide_and_enumeration_together(fit, clusters):
    """A mixture whose locs are latent: lp takes the drawn z, log_q the locs alone."""
    weights = torch.tensor([0.4, 0.6])

    def model(x):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor([[-2.0, -2.0], [2.0, 2.0]]))
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Normal(loc, 0.5).to_event(1))

    result = fit(model, guide, clusters)
    data = lvm.to_arviz(result, 20)
    z, locs = values(data, "posterior", "z").long(), values(data, "posterior", "locs")
    at = torch.stack([locs[s][z[s]] for s in range(20)])
    by_row = dist.Normal(at, 1.0).log_prob(clusters.double()).sum(2)
    check_close(values(data, "log_likelihood", "x"), by_row)
    prior = weights.double().log()[z].sum(1) + dist.Normal(0, 3.0).log_prob(locs).sum((1, 2))
    check_close(values(data, "sample_stats", "lp"), by_row.sum(1) + prior)
    check_close(
        values(data, "sample_stats", "log_q"), dist.Normal(result.params["loc"], 0.5).log_prob(locs).sum((1, 2))
    )
    assert data["posterior"]["locs"].dims == ("chain", "draw", "components", "locs_dim_0")
    assert data["posterior"]["z"].dims == ("chain", "draw", "rows")


def test_latents_are_those_of_sample_and_serve_the_predictions(fit):
    y = torch.randn(6)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1e-4), obs=y)

    def guide(y):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    result = fit(model, guide, y, num_steps=1, seed=3)
    before = torch.get_rng_state()
    data = lvm.to_arviz(result, 30)
    assert torch.equal(torch.get_rng_state(), before)
    mean = values(data, "posterior", "mean")
    assert mean.std() > 0.5
    assert_close(mean, result.sample(30)["mean"].double(), rtol=0, atol=0)
    assert_close(mean, values(lvm.to_arviz(result, 30, seed=3), "posterior", "mean"), rtol=0, atol=0)
    assert not torch.equal(mean, values(lvm.to_arviz(result, 30, seed=4), "posterior", "mean"))
    assert_close(values(data, "posterior_predictive", "y"), mean[:, None].expand(30, 6), rtol=0, atol=1e-3)


def test_masks_count_and_scales_do_not(fit):
    y, seen = torch.randn(5), torch.tensor([True, True, False, True, False])

    def model(y, seen):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)), poutine.scale(scale=3.0), poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    data = lvm.to_arviz(fit(model, "mean_field", y, seen), 10)
    mean = values(data, "posterior", "mean")
    by_row = dist.Normal(mean[:, None], 1.0).log_prob(y.double()) * seen
    check_close(values(data, "log_likelihood", "y"), by_row)
    check_close(values(data, "sample_stats", "lp"), by_row.sum(1) + dist.Normal(0, 1).log_prob(mean))
    assert data["constant_data"]["seen"].values.tolist() == seen.tolist()


def test_sites_outside_the_row_plate_factors_and_short_observations(fit):
    y = torch.tensor([1.0, 2.0, 4.0])

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(mean, 2.0).expand([2]).to_event(1), obs=torch.tensor([5.0, 6.0]))
        pyro.factor("tilt", -mean.square())
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            pyro.sample("zero", dist.Normal(mean, 1.0), obs=torch.tensor(0.0))

    data = lvm.to_arviz(fit(model, "mean_field", y), 10)
    mean = values(data, "posterior", "mean")
    total = dist.Normal(mean[:, None], 2.0).log_prob(torch.tensor([5.0, 6.0])).sum(1)
    check_close(values(data, "log_likelihood", "total"), total)
    zero = dist.Normal(mean[:, None], 1.0).log_prob(torch.zeros(3))
    check_close(values(data, "log_likelihood", "zero"), zero)
    expected = total + zero.sum(1) - mean.square() + dist.Normal(0, 1).log_prob(mean)
    expected = expected + dist.Normal(mean[:, None], 1.0).log_prob(y).sum(1)
    check_close(values(data, "sample_stats", "lp"), expected)
    assert set(data["observed_data"].data_vars) == {"total", "y", "zero"}
    assert data["observed_data"]["zero"].values.tolist() == [0.0, 0.0, 0.0]
    assert data["observed_data"]["total"].dims == ("total_dim_0",)
    assert data["posterior_predictive"]["total"].shape == (1, 10, 2)


def test_draws_of_a_program_that_vmap_refuses(fit):
    y = torch.randn(4) + 1

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        shift = 1.0 if mean.item() > 0 else 0.0
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean + shift, 1.0), obs=y)

    data = lvm.to_arviz(fit(model, "mean_field", y), 10)
    mean = values(data, "posterior", "mean")
    expected = dist.Normal((mean + (mean > 0))[:, None], 1.0).log_prob(y.double())
    check_close(values(data, "log_likelihood", "y"), expected)


def test_draws_are_vectorised(logistic, monkeypatch):
    result, *_ = logistic
    runs = []
    forward = type(result._program.model).forward
    monkeypatch.setattr(
        type(result._program.model), "forward", lambda *args, **kw: runs.append(1) or forward(*args, **kw)
    )
    lvm.to_arviz(result, 200)
    assert len(runs) < 20


def test_one_row_and_one_draw(fit):
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = lvm.to_arviz(fit(model, "mean_field", torch.tensor([2.0])), 1)
    z = values(data, "posterior", "z")
    assert z.shape == (1, 1)
    check_close(values(data, "log_likelihood", "x"), dist.Normal(z, 1.0).log_prob(torch.tensor(2.0)))
