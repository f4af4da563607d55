"""What a fit by EM brings to ArviZ: its parameters, moments of its latents, and draws of the bootstrap."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroSample
from sklearn.mixture import GaussianMixture
from torch.testing import assert_close

import pyro_lvm as lvm


def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def em(model, *data, **options):
    return lvm.fit_em(model, *data, progress=False, **options)


def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.cat([torch.randn(12, generator=generator) - 2, torch.randn(18, generator=generator) + 2])


def values(data, group, name):
    return torch.tensor(data[group][name].values)


def draws(data, name):
    return values(data, "posterior", name)[0]


@pytest.fixture
def result():
    return em(mixture, rows())


def test_parameters_stand_beside_the_latents(result):
    data = lvm.to_arviz(result, 7, coords={"k": ["low", "high"]}, dims={"loc": ["k"], "weights": ["k"]})
    assert set(data["posterior"].data_vars) == {"weights", "loc", "scale", "z"}
    for name, value in result.params.items():
        assert_close(draws(data, name), value.expand(7, *value.shape), rtol=0, atol=0)
    assert data["posterior"]["loc"].dims == ("chain", "draw", "k")
    assert data["posterior"]["loc"]["k"].values.tolist() == ["low", "high"]
    assert "weights" not in data["prior"]
    assert lvm.to_arviz(result, 3)["posterior"]["loc"].dims == ("chain", "draw", "loc_dim_0")


def test_parameters_with_a_prior_are_there_once():
    def bayesian(x):
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    x = rows()
    fit = em(bayesian, x)
    data = lvm.to_arviz(fit, 5)
    assert data["posterior"]["loc"].dims == ("chain", "draw", "components")
    assert_close(draws(data, "loc"), fit.params["loc"].expand(5, 2))
    assert "loc" not in data["prior"]
    z = draws(data, "z")
    by_row = dist.Normal(fit.params["loc"][z], 1.0).log_prob(x)
    lp = (
        by_row.sum(1)
        + torch.tensor([0.4, 0.6]).log()[z].sum(1)
        + dist.Normal(0.0, 5.0).log_prob(fit.params["loc"]).sum()
    )
    assert_close(values(data, "sample_stats", "lp")[0], lp.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("has_prior", [False, True])
def test_data_have_the_names_of_the_arguments_of_the_model(has_prior):
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.noise = torch.nn.Parameter(torch.tensor(1.0))
            self.slope = PyroSample(dist.Normal(0.0, 1.0)) if has_prior else torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, hours, y=None):
            slope = self.slope
            with pyro.plate("rows", len(hours)):
                pyro.sample("y", dist.Normal(slope * hours, self.noise.exp()), obs=y)

    x = rows()
    data = lvm.to_arviz(em(Regression(), x, 2 * x + torch.linspace(0, 1, 30)), 3)
    assert set(data["constant_data"].data_vars) == {"hours"}
    assert {"noise", "slope"} <= set(data["posterior"].data_vars)


def test_a_parameter_that_is_called_like_a_site():
    class Clash(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.z = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

        def forward(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
                pyro.sample("x", dist.Normal(self.z[z], 1.0), obs=x)

    with pytest.raises(ValueError, match="'z' is the name of a parameter and of a site"):
        lvm.to_arviz(em(Clash(), rows()), 3)


def test_probabilities_of_states_are_those_of_scikit_learn():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    fit = em(lvm.models.GaussianMixture(3, 2), x)
    other = GaussianMixture(3)
    tril = fit.params["scale_tril"].double()
    other.weights_, other.means_ = fit.params["weights"].double().numpy(), fit.params["locs"].double().numpy()
    other.covariances_ = (tril @ tril.mT).numpy()
    other.precisions_cholesky_ = torch.linalg.inv(tril).mT.numpy()
    data = lvm.to_arviz(fit, 4, dims={"z_probs": ["rows", "component"]}, coords={"component": list("abc")})
    expected = torch.tensor(other.predict_proba(x.double().numpy()))
    assert_close(values(data, "latent_moments", "z_probs").double(), expected, rtol=0, atol=1e-4)
    assert data["latent_moments"]["z_probs"].dims == ("rows", "component")
    assert data["latent_moments"]["component"].values.tolist() == ["a", "b", "c"]


def test_probabilities_of_a_bernoulli_are_those_of_both_states():
    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)

    x = rows()
    fit = em(model, x)
    probs = values(lvm.to_arviz(fit, 3), "latent_moments", "z_probs")
    low, high = (dist.Normal(loc, 1.0).log_prob(x) for loc in fit.params["loc"])
    assert_close(probs, torch.stack([low, high], -1).softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("own_steps", [True, False])
def test_moments_of_factors_are_the_closed_form(own_steps):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 2, generator=generator) @ torch.randn(2, 4, generator=generator)
    x = x + 0.5 * torch.randn(30, 4, generator=generator)

    def factors(x):
        loading = pyro.param("loading", torch.randn(4, 2))
        loc, noise = (
            pyro.param("loc", torch.zeros(4)),
            pyro.param("noise", torch.ones(4), constraint=constraints.positive),
        )
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loading.T + loc, noise.sqrt()).to_event(1), obs=x)

    fit = em(lvm.models.FactorAnalysis(2, 4) if own_steps else factors, x, max_iter=5)
    loading, loc, noise = (fit.params[name].double() for name in ("loading", "loc", "noise"))
    data = lvm.to_arviz(fit, 3)
    covariance = torch.linalg.inv(torch.eye(2) + loading.T / noise @ loading)
    mean = (x.double() - loc) / noise @ loading @ covariance
    found = {name: values(data, "latent_moments", f"z_{name}").double() for name in ("mean", "sd", "covariance")}
    assert_close(found["mean"], mean, rtol=1e-3, atol=1e-4)
    assert_close(found["sd"], covariance.diagonal().sqrt().expand(30, 2), rtol=1e-3, atol=1e-4)
    assert_close(found["covariance"], covariance.expand(30, 2, 2), rtol=1e-3, atol=1e-4)
    assert data["latent_moments"]["z_mean"].dims == ("rows", "z_mean_dim_0")


def test_moments_of_several_gaussian_latents_and_states_are_marginal():
    """A number and a vector, and a state that moves the rows: by hand, state by state."""
    A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.8]])  # of all three numbers
    shift = torch.tensor([[0.0, 0.0], [1.5, -1.0]])

    def model(y):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = torch.cat(torch.broadcast_tensors(a.unsqueeze(-1), b)[:1], -1)[..., :1]
            mean = z * A[:, 0] + b @ A[:, 1:].T + loc + shift[k]
            pyro.sample("y", dist.Normal(mean, 0.7).to_event(1), obs=y)

    y = torch.randn(9, 2, generator=torch.Generator().manual_seed(4))
    fit = em(model, y, max_iter=3)
    data = lvm.to_arviz(fit, 3)
    noise = 0.49 * torch.eye(2)
    covariance = torch.linalg.inv(torch.eye(3) + A.T @ A / 0.49)
    off = y[:, None] - fit.params["loc"] - shift  # [N, 2 states, 2]
    means = off @ A / 0.49 @ covariance
    shares = dist.MultivariateNormal(torch.zeros(2), A @ A.T + noise).log_prob(off) + torch.tensor([0.3, 0.7]).log()
    shares = shares.softmax(-1)
    mean = (shares.unsqueeze(-1) * means).sum(1)
    second = (shares.unsqueeze(-1) * (means.square() + covariance.diagonal())).sum(1)
    sd = (second - mean.square()).sqrt()
    for name, part in (("a", slice(0, 1)), ("b", slice(1, 3))):
        for moment, expected in (("mean", mean), ("sd", sd)):
            found = values(data, "latent_moments", f"{name}_{moment}")
            assert_close(found.reshape(9, -1), expected[:, part], rtol=1e-3, atol=1e-4)
    assert_close(values(data, "latent_moments", "k_probs"), shares, rtol=1e-3, atol=1e-5)


def test_moments_are_of_fits_by_em_alone():
    fit = lvm.fit(lvm.models.PPCA(1, 2), None, torch.randn(10, 2), num_steps=2, progress=False)
    data = lvm.to_arviz(fit, 3)
    assert "latent_moments" not in data
    assert set(data["posterior"].data_vars) == {"z"}


def test_bootstrap_gives_draws_of_parameters_and_all_else_at_each(result):
    x = rows()
    with pytest.raises(ValueError, match="none of fit_em"):
        lvm.to_arviz(
            lvm.fit(lvm.models.GaussianMixture(2, 1), None, x[:, None], num_steps=1, progress=False), bootstrap=2
        )
    with pytest.raises(ValueError, match="2 replicates"):
        lvm.to_arviz(result, bootstrap=1)
    data = lvm.to_arviz(result, bootstrap=20, predictions=(x[:4],))
    assert dict(data["posterior"].sizes)["draw"] == 20
    weights, loc, scale, z = (draws(data, name) for name in ("weights", "loc", "scale", "z"))
    assert (loc.std(0) > 0.05).all()
    assert ((loc.mean(0) - result.params["loc"]).abs() < 4 * loc.std(0) / 20**0.5).all()
    by_row = dist.Normal(loc.gather(1, z), scale[:, None]).log_prob(x)
    assert_close(values(data, "log_likelihood", "x")[0], by_row, rtol=1e-4, atol=1e-4)
    lp = by_row.sum(1) + weights.log().gather(1, z).sum(1)
    assert_close(values(data, "sample_stats", "lp")[0], lp.double(), rtol=1e-4, atol=1e-3)
    assert data["predictions"]["x"].shape == (1, 20, 4)
    assert data["posterior"].attrs["bootstrap"] == "20 replicates, 20 converged"


def test_predictions_are_at_the_parameters_of_each_replicate():
    def exact(x, y=None):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1e-3), obs=y)

    x = torch.linspace(-1, 1, 20)
    fit = em(exact, x, 2 * x + 0.3 * torch.randn(20, generator=torch.Generator().manual_seed(0)))
    data = lvm.to_arviz(fit, bootstrap=15, predictions=(torch.tensor([1.0, 3.0]),))
    slope = draws(data, "slope")
    assert slope.std() > 0.02
    assert_close(values(data, "predictions", "y")[0], slope[:, None] * torch.tensor([1.0, 3.0]), rtol=0, atol=0.02)
    assert_close(values(data, "posterior_predictive", "y")[0], slope[:, None] * x, rtol=0, atol=0.01)


def test_bootstrap_of_factors_leaves_the_module_alone():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 1, generator=generator) * torch.tensor([1.0, 2.0, -1.0]) + torch.randn(
        40, 3, generator=generator
    )
    ppca = lvm.models.PPCA(1, 3)
    fit = em(ppca, x)
    before = {name: value.clone() for name, value in ppca.state_dict().items()}
    data = lvm.to_arviz(fit, bootstrap=60)
    assert_close(dict(ppca.state_dict()), before, rtol=0, atol=0)
    assert draws(data, "z").shape == (60, 40, 1)
    ratio = draws(data, "loc").std(0) / (x.std(0, correction=0) / math.sqrt(40)) - 1
    assert (ratio.abs() < 4 / 120**0.5).all()
    loading, loc, noise = (draws(data, name).double() for name in ("loading", "loc", "noise"))
    marginal = dist.MultivariateNormal(loc, loading @ loading.mT + noise[:, None, None] * torch.eye(3))
    evidence = marginal.log_prob(x.double()[:, None]).sum(0)
    assert_close(values(data, "sample_stats", "log_weight")[0], evidence, rtol=0, atol=5e-3)
