"""Fits to rows drawn with replacement: their spread, against that of estimators whose spread is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.em.bootstrap import bootstrap
from pyro_lvm.em.run import Run

from .checks import fit

R = 100
WITHIN = 4 / (2 * R) ** 0.5  # standard errors of a standard deviation, relative to it


def two_normals(x):
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


@pytest.fixture
def x():
    """90 rows about -10, 210 about 10."""
    noise = torch.randn(300, generator=torch.Generator().manual_seed(3))
    return torch.cat([noise[:90] - 10, 2 * noise[90:] + 10])


def draws(num_rows, num_replicates):
    """How often each row is drawn with seed 5."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randint(num_rows, (num_rows,), generator=generator) for _ in range(num_replicates)]
    return [rows.bincount(minlength=num_rows).double() for rows in drawn]


def assert_spread(replicates, expected):
    ratio = replicates.std(0) / expected - 1
    assert (ratio.abs() < WITHIN).all(), ratio


def test_spread_of_proportions_and_means_of_components_far_apart(x):
    result = lvm.fit_em(two_normals, x, progress=False)
    replicates = bootstrap(result, R)
    assert replicates.converged.all()
    weights, loc, scale = (result.params[name] for name in ("weights", "loc", "scale"))
    assert_spread(replicates.params["weights"], (weights.prod() / 300).sqrt())
    assert_spread(replicates.params["loc"], scale / (300 * weights).sqrt())
    error = replicates.params["loc"].std(0) / R**0.5
    assert ((replicates.params["loc"].mean(0) - loc).abs() < 4 * error).all()


def test_spread_of_a_mean_without_latents(x):
    def normal(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    replicates = bootstrap(lvm.fit_em(normal, x, progress=False), R)
    assert_spread(replicates.params["loc"], x.std(correction=0) / 300**0.5)


def test_models_with_steps_of_their_own_keep_their_values(x):
    mixture = lvm.models.GaussianMixture(2, 1)
    result = lvm.fit_em(mixture, x[:, None], progress=False)
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    replicates = bootstrap(result, R)
    assert_close(dict(mixture.state_dict()), before, rtol=0, atol=0)
    share = result.params["weights"]
    assert_spread(replicates.params["weights"], (share.prod() / 300).sqrt())
    assert_spread(replicates.params["locs"][..., 0], result.params["scale_tril"][:, 0, 0] / (300 * share).sqrt())


def test_replicates_are_fits_to_weighted_rows(x):
    result = fit(two_normals, x, max_iter=50)
    replicates = bootstrap(result, 2, seed=5)
    for r, counts in enumerate(draws(300, 2)):
        again = fit(two_normals, x, sample_weight=counts, max_iter=50)
        for name, value in again.params.items():
            assert_close(replicates.params[name][r], value, rtol=1e-4, atol=1e-4)


def test_components_are_in_the_order_of_the_fit(x, monkeypatch):
    result = lvm.fit_em(two_normals, x, progress=False)
    expected = bootstrap(result, 3).params
    finish = Run.finish

    def finish_and_swap(self, *args):
        finish(self, *args)
        self.theta = {name: value.flip(0) for name, value in self.theta.items()}

    monkeypatch.setattr(Run, "finish", finish_and_swap)
    assert_close(bootstrap(result, 3).params, expected, rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [None, 25])
def test_gaussian_latents(batch_size):
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(60, 1, generator=generator) @ torch.tensor([[1.0, 2.0]]) + torch.randn(60, 2, generator=generator)

    def factors(y):
        loading = pyro.param("loading", torch.tensor([1.0, 1.0]))
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(loc + z.unsqueeze(-1) * loading, 1.0).to_event(1), obs=y)

    options = {"batch_size": batch_size, "max_iter": 4, "tol": 0.0}
    result = fit(factors, y, **options)
    replicates = bootstrap(result, 2, seed=5)
    again = fit(factors, y, sample_weight=draws(60, 2)[1], init=result, **options)
    for name, value in again.params.items():
        assert_close(replicates.params[name][1], value)


def test_parameters_with_a_prior_and_a_loaded_result(x, tmp_path):
    def bayesian(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    rows = x.abs() / 10
    result = lvm.fit_em(bayesian, rows, progress=False)
    replicates = bootstrap(result, R)
    slope = rows.std(correction=0) * 300**0.5 * 301 / (rows.sum() + 1) ** 2  # of the mode by the sum of the rows
    assert_spread(replicates.params["points.rate"], slope)
    result.save(tmp_path / "fit.pt")
    again = lvm.load(tmp_path / "fit.pt", bayesian, None, rows)
    assert_close(bootstrap(again, 5).params, {n: v[:5] for n, v in replicates.params.items()}, rtol=0, atol=0)


def test_same_seed_same_replicates(x):
    result = lvm.fit_em(two_normals, x, progress=False)
    state = torch.get_rng_state()
    first = bootstrap(result, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(bootstrap(result, 2, seed=result.seed).params, first.params, rtol=0, atol=0)
    assert not torch.equal(bootstrap(result, 2, seed=1).params["loc"], first.params["loc"])


@pytest.mark.parametrize(("count", "error"), [(1, ValueError), (0, ValueError), (2.5, TypeError)])
def test_too_few_replicates(x, count, error):
    with pytest.raises(error, match="bootstrap"):
        bootstrap(lvm.fit_em(two_normals, x, max_iter=1, progress=False), count)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sample_weight": torch.ones(300).double()}, "weighted rows"),
        ({"online": 0.7, "batch_size": 50}, "minibatches"),
    ],
)
def test_fits_that_are_not_to_all_rows_alike(x, options, words):
    with pytest.raises(ValueError, match=words):
        bootstrap(lvm.fit_em(two_normals, x, max_iter=2, progress=False, **options), 2)


def test_an_elbo(x):
    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="an ELBO"):
        bootstrap(lvm.fit_em(model, x[:5], guide="mean_field", max_iter=1, progress=False), 2)


def test_rows_that_a_loader_had(x):
    loader = DataLoader(TensorDataset(x), batch_size=100)
    with pytest.raises(ValueError, match="kept none of them"):
        bootstrap(lvm.fit_em(two_normals, loader, max_iter=1, progress=False), 2)


def test_rows_without_a_plate():
    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape).to_event(1), obs=x)

    with pytest.raises(ValueError, match="no plate of the model follows the rows"):
        bootstrap(lvm.fit_em(model, torch.ones(4), max_iter=1, progress=False), 2)


def test_rows_that_share_a_latent(x):
    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc[z.long()], 10.0), obs=x)

    with pytest.raises(ValueError, match="depend on the latent 'z' together"):
        bootstrap(lvm.fit_em(model, x, max_iter=1, progress=False), 2)


def test_observations_outside_the_rows(x):
    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("total", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match="'total' lie outside the rows"):
        bootstrap(lvm.fit_em(model, x, max_iter=1, progress=False), 2)


def test_a_fit_by_svi(x):
    with pytest.raises(ValueError, match="none of fit_em"):
        bootstrap(lvm.fit(lvm.models.GaussianMixture(2, 1), None, x[:, None], num_steps=2, progress=False), 2)
