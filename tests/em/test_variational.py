"""Variational EM: a guide for what cannot be summed out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm

from .checks import assert_rises, rules

generator = torch.Generator().manual_seed(0)
X = 2 + 1.5 * torch.randn(400, generator=generator) + torch.randn(400, generator=generator)


def effects(x):
    """Marginally x_i ~ N(mu, tau^2 + 1)."""
    mu = pyro.param("mu", torch.tensor(0.0))
    tau = pyro.param("tau", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def amortized(x):
    """The posterior is in this family: linear in x, with one scale."""
    slope = pyro.param("slope", torch.tensor(0.5))
    shift = pyro.param("shift", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(shift + slope * x, scale))


def fit(model, *data, **options):
    return lvm.fit_em(model, *data, **({"progress": False} | options))


@pytest.fixture(scope="module")
def by_function():
    with torch_default(torch.float64):
        return fit(effects, X.double(), guide=amortized, tol=1e-8)


class torch_default:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(self.before)


def test_maximum_is_that_of_the_marginal_likelihood(by_function):
    """An amortized guide with three parameters cannot fit the noise of 12,000 draws: it is right within that noise.

    The standard error of tau^2 under 30 draws for each of 400 rows is sqrt(2 / 12,000) of the posterior variance, and
    that of the mean sqrt(1 / 12,000) of the posterior scale: five of them are allowed.
    """
    x = X.double()
    exact_tau = (x.var(correction=0) - 1).sqrt()
    posterior_variance = exact_tau**2 / (exact_tau**2 + 1)
    assert abs(by_function.params["mu"] - x.mean()) < 5 * (posterior_variance / 12_000).sqrt() * (1 + exact_tau**2)
    error = 5 * (2 / 12_000) ** 0.5 * posterior_variance * (1 + exact_tau**2)
    assert abs(by_function.params["tau"] ** 2 - exact_tau**2) < error
    assert by_function.objective_name == "ELBO of 30 fixed draws"
    assert by_function.converged
    assert_rises(by_function)
    marginal = dist.Normal(x.mean(), (exact_tau**2 + 1).sqrt()).log_prob(x).sum()
    evidence = by_function.evidence(2_000)
    assert abs(evidence.value - marginal) < 5 * evidence.standard_error + 0.1


def test_rules_are_those_of_observed_latents(by_function):
    assert rules(by_function) == {
        "mu": "weighted mean",
        "tau": "weighted standard deviation",
        "slope": "L-BFGS on the ELBO",
        "shift": "L-BFGS on the ELBO",
        "scale": "L-BFGS on the ELBO",
    }
    assert ["latent", "z", "the", "guide"] in [line.split() for line in by_function.summary().splitlines()]


def test_numeric_m_steps_end_at_the_same_place(by_function):
    found = fit(effects, X.double(), guide=amortized, tol=1e-8, m_step="numeric")
    assert "m_step='numeric'" in found.summary()
    torch.testing.assert_close(found.objective[-1], by_function.objective[-1], rtol=0, atol=1e-2)
    torch.testing.assert_close(found.params["tau"], by_function.params["tau"], rtol=0, atol=2e-2)


@pytest.mark.parametrize("how", ["batches", "loader"])
def test_batches_have_other_noise_and_the_same_maximum(by_function, how):
    x = X.double()
    data, options = (x, {"batch_size": 150}) if how == "batches" else (DataLoader(TensorDataset(x), 150), {})
    found = fit(effects, data, guide=amortized, tol=1e-8, **options)
    assert_rises(found)
    torch.testing.assert_close(found.params["mu"], by_function.params["mu"], rtol=0, atol=0.05)
    torch.testing.assert_close(found.params["tau"], by_function.params["tau"], rtol=0, atol=0.1)


def test_weights_are_repeated_rows():
    """Repeated rows have noise of their own, so that the two agree within it."""
    x = X.double()[:100]
    weight = torch.arange(100) % 3
    found = fit(effects, x, guide=amortized, sample_weight=weight)
    repeated = fit(effects, x.repeat_interleave(weight), guide=amortized)
    assert_rises(found)
    torch.testing.assert_close(found.params["mu"], repeated.params["mu"], rtol=0, atol=0.1)
    torch.testing.assert_close(found.params["tau"], repeated.params["tau"], rtol=0, atol=0.2)


def normals(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([0.0, 2.0]))
    scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def test_a_guide_that_sums_out_its_sites_gives_exact_em():
    """Responsibilities are in this guide's family, so that the bound is tight."""
    x = torch.cat([torch.linspace(-2, 0, 20), torch.linspace(3, 7, 30)])

    def guide(x):
        probs = pyro.param("probs", torch.full((len(x), 2), 0.5), constraint=constraints.simplex)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Categorical(probs), infer={"enumerate": "parallel"})

    exact = fit(normals, x, tol=1e-10, max_iter=1_000)
    found = fit(normals, x, guide=guide, tol=1e-8)
    assert found.objective_name == "ELBO"
    assert rules(found)["loc"] == "L-BFGS on Q, for the guide sums latents out"
    assert_rises(found)
    torch.testing.assert_close(found.objective[-1], exact.objective[-1], rtol=0, atol=1e-2)
    torch.testing.assert_close(found.params["loc"], exact.params["loc"], rtol=0, atol=2e-2)


def test_what_is_held_on_a_boundary_is_said():
    """A normal of two observations that are alike, beside rows that vary."""

    def model(x):
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale[0]), obs=x)
            pyro.sample("y", dist.Normal(3.0, scale[1]), obs=torch.full((len(x),), 3.0))

    def guide(x):
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5))

    found = fit(model, X.double(), guide=guide, max_iter=20)
    assert rules(found)["scale"] == "weighted standard deviation; held at its limit"


@pytest.mark.slow
def test_discrete_draws_of_a_guide_have_no_gradient_and_may_fall():
    x = torch.cat([torch.linspace(-2, 0, 20), torch.linspace(6, 9, 30)])

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.0))
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            logits = torch.stack([torch.zeros_like(x), shift + slope * x], -1)
            pyro.sample("z", dist.Categorical(logits=logits))

    found = fit(normals, x, guide=guide, max_iter=30)
    assert (found.objective_name, found.converged, found.num_iter) == ("ELBO", False, 30)
    assert rules(found)["slope"] == "Adam on the ELBO"
    assert found.objective[-5:].mean() > found.objective[:5].mean() + 20
    torch.testing.assert_close(found.params["loc"], torch.tensor([-1.0, 7.5]), rtol=0, atol=0.5)


@pytest.mark.slow
def test_latents_beside_the_guide_are_summed_out():
    """Two kinds of rows, each with a normal effect: marginally a mixture of normals, whose EM is exact."""
    x = torch.cat([-4 + 1.2 * torch.randn(150, generator=generator), 4 + 1.8 * torch.randn(250, generator=generator)])
    x = x.double()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        tau = pyro.param("tau", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            u = pyro.sample("u", dist.Normal(0.0, tau))
            pyro.sample("x", dist.Normal(loc[k] + u, 1.0), obs=x)

    found = fit(model, x, guide="mean_field", max_iter=15)
    assert_rises(found)
    assert ["latent", "k", "enumerated"] in [line.split() for line in found.summary().splitlines()]
    assert rules(found)["weights"] == "expected counts, normalised"
    torch.testing.assert_close(found.params["weights"], torch.tensor([0.375, 0.625]), rtol=0, atol=0.02)
    torch.testing.assert_close(found.params["loc"], torch.tensor([-4.0, 4.0]), rtol=0, atol=0.25)


def test_what_a_named_guide_leaves_outside_the_rows_is_a_mode():
    x = X.double()[:100]

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 0.1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = fit(model, x, guide="mean_field", tol=1e-8)
    assert rules(found)["mu"] == "weighted mean"
    # the draws' fitted noise moves each z by some hundredths; the mode is that of the marginal N(mu, 2)
    exact = x.sum() / 2 / (100 / 2 + 100)
    torch.testing.assert_close(found.params["mu"], exact, rtol=0, atol=0.05)


def test_a_model_brings_its_guide():
    torch.set_default_dtype(torch.float32)
    x = (torch.rand(60, 6, generator=generator) < torch.rand(6, generator=generator)).float()
    vae = lvm.models.VAE(num_features=6, num_latents=1, hidden=(8,))
    found = fit(vae, x, max_iter=4)
    assert found.objective_name == "ELBO of 30 fixed draws"
    assert (found.objective.diff() > 0).all()
    assert found.posterior(x[:3])["z"].mean.shape == (3, 1)


def test_results_answer_and_are_read_again(tmp_path, by_function):
    x = X.double()
    posterior = by_function.posterior()["z"]
    tau, mu = by_function.params["tau"], by_function.params["mu"]
    exact = (x * tau**2 + mu) / (tau**2 + 1)
    torch.testing.assert_close(posterior.mean, exact, rtol=0, atol=0.05)
    assert by_function.sample(7)["z"].shape == (7, 400)
    by_function.save(tmp_path / "fit.pt")
    again = lvm.load(tmp_path / "fit.pt", effects, amortized, x)
    assert str(again) == str(by_function)
    torch.testing.assert_close(again.params, by_function.params, rtol=0, atol=0)


def test_shared_parameters_are_refused():
    def guide(x):
        mu = pyro.param("mu", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(mu, 1.0))

    with pytest.raises(ValueError, match="'mu' belongs to the model and to the guide"):
        fit(effects, X.double(), guide=guide)


@pytest.mark.parametrize("e_step", ["exact", "hard", "monte_carlo"])
def test_a_guide_and_another_e_step_are_refused(e_step):
    with pytest.raises(ValueError, match="takes none"):
        fit(effects, X.double(), guide=amortized, e_step=e_step)


def test_nothing_to_guide_is_refused():
    with pytest.raises(ValueError, match="needs guide="):
        fit(normals, X.double(), e_step="variational")


def test_without_a_guide_gaussian_latents_are_integrated_out(by_function):
    exact = fit(effects, X.double(), tol=1e-10)
    expected = dist.Normal(exact.params["mu"], (exact.params["tau"].square() + 1).sqrt()).log_prob(X.double()).sum()
    torch.testing.assert_close(exact.objective[-1], expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(exact.params["mu"], X.double().mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(exact.params["tau"].square() + 1, X.double().var(correction=0), rtol=1e-3, atol=0)


def test_local_parameters_in_batches_are_refused():
    with pytest.raises(ValueError, match="one parameter per row"):
        fit(effects, X.double(), guide="mean_field", batch_size=100)


def test_shuffled_batches_are_refused():
    loader = DataLoader(TensorDataset(X.double()), batch_size=100, shuffle=True)
    with pytest.raises(ValueError, match="shuffle=False"):
        fit(effects, loader, guide=amortized)


def test_data_as_a_guide_are_refused():
    with pytest.raises(TypeError, match="guide"):
        fit(effects, X.double(), guide=X)
