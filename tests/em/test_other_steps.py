"""Monte Carlo, online and restarted EM, and EM by the steps that models bring along."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.data import Data
from pyro_lvm.em.batch import Batch
from pyro_lvm.em.e_step import drawn, expect
from pyro_lvm.em.program import EMProgram

generator = torch.Generator().manual_seed(0)
LOCS = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]], dtype=torch.float64)
X = LOCS[torch.arange(300) % 3] + 0.7 * torch.randn(300, 2, generator=generator, dtype=torch.float64)
CHAINS = torch.randn(8, 5, generator=generator, dtype=torch.float64).cumsum(1)


def mixture(x, start=LOCS + 0.8):
    weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=constraints.simplex)
    loc = pyro.param("loc", start)
    scale = pyro.param("scale", torch.ones(3, 2), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def chain(x):
    turn = pyro.param("turn", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(turn[z]))
            pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])


@pytest.mark.parametrize(("model", "data"), [(mixture, X[:40]), (chain, CHAINS)])
def test_counts_of_draws_are_unbiased(model, data):
    """Within five standard errors of the exact counts, and two draws of 400 for the rarest states."""
    program = EMProgram(model, Data((data,)))
    trace = program.trace(program.program.parameters.start(), Batch((data,), None))
    pyro.set_rng_seed(0)
    plate = program.program.sites.row_plate
    exact, found = expect(trace, plate), drawn(trace, plate, None, 400)
    for name, weights in exact.weights.items():
        error = (weights * (1 - weights) / 400).sqrt()
        assert ((found.weights[name] - weights).abs() <= 5 * error + 2 / 400).all(), name
        torch.testing.assert_close(found.weights[name].sum(), weights.sum())


def test_monte_carlo_em_ends_near_the_maximum():
    """Its noise is that of ten draws of 300 rows, some hundredths of a nat a parameter."""
    exact = lvm.fit_em(mixture, X, tol=1e-10, progress=False)
    found = lvm.fit_em(mixture, X, e_step="monte_carlo", max_iter=40, progress=False)
    assert not found.converged
    assert -1.0 < found.objective[-1] - exact.objective[-1] <= 1e-9
    again = lvm.fit_em(mixture, X, e_step="monte_carlo", max_iter=40, progress=False)
    assert torch.equal(found.objective, again.objective)


def test_online_em_with_one_batch_that_forgets_all_is_em():
    """With the exponent 1, the share of the first step is 1, and that of the second 1/3."""
    exact = lvm.fit_em(mixture, X, max_iter=1, progress=False)
    online = lvm.fit_em(mixture, X, online=1.0, batch_size=300, max_iter=1, progress=False)
    torch.testing.assert_close(online.params, exact.params)
    torch.testing.assert_close(online.objective[0], exact.objective[0])


def test_online_em_ends_near_the_maximum():
    exact = lvm.fit_em(mixture, X, tol=1e-10, progress=False)
    online = lvm.fit_em(mixture, X, online=0.7, batch_size=30, max_iter=20, progress=False)
    assert online.num_iter == 20
    assert online.score().value.sum() > exact.objective[-1] - 0.5


def test_online_em_is_refused_without_closed_forms():
    def regression(x):
        slope = pyro.param("slope", torch.zeros(2))
        z_prob = pyro.param("prob", torch.tensor(0.4), constraint=constraints.unit_interval)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(z_prob))
            pyro.sample("y", dist.Normal(slope[z.long()] * x[:, 0], 1.0), obs=x[:, 1])

    with pytest.raises(ValueError, match="closed form for every parameter, and 'slope' has none"):
        lvm.fit_em(regression, X, online=0.7, batch_size=30, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"online": 0.5, "batch_size": 30}, "above 0.5"),
        ({"online": 1.5, "batch_size": 30}, "above 0.5"),
        ({"online": True, "batch_size": 30}, "above 0.5"),
        ({"online": 0.7}, "batch_size="),
        ({"online": 0.7, "batch_size": 30, "e_step": "hard"}, "exact E-step"),
        ({"online": 0.7, "batch_size": 30, "num_restarts": 2}, "one start"),
    ],
)
def test_wrong_options_of_online_em(options, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit_em(mixture, X, progress=False, **options)


def test_restarts_escape_a_poor_start():
    def poor(x):
        return mixture(x, torch.tensor([[-3.0, 0.0], [-3.1, 0.0], [1.5, 1.5]]))

    once = lvm.fit_em(poor, X, progress=False)
    several = lvm.fit_em(poor, X, num_restarts=4, progress=False)
    best = lvm.fit_em(mixture, X, progress=False)
    assert once.objective[-1] < best.objective[-1] - 10
    assert several.objective[-1] > best.objective[-1] - 0.01
    assert several.restarts.shape == (4,)
    assert several.restarts.max() == several.objective[-1]


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_a_models_own_steps_are_those_found_in_it(covariance):
    paths = []
    for e_step in ("auto", "exact"):
        model = lvm.models.GaussianMixture(3, 2, covariance=covariance).initialize(X)
        paths.append(lvm.fit_em(model, X, e_step=e_step, max_iter=5, tol=0.0, progress=False))
    own, found = paths
    torch.testing.assert_close(own.objective, found.objective, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(own.params, found.params, rtol=1e-7, atol=1e-9)


def test_restarts_of_own_steps_run_together():
    model = lvm.models.GaussianMixture(3, 2)
    result = lvm.fit_em(model, X, num_restarts=5, progress=False)
    assert result.restarts.shape == (5,)
    torch.testing.assert_close(model.log_prob(X).sum(), result.objective[-1])


def test_missing_entries_are_integrated_out():
    holes = X.clone()
    holes[::7, 0] = torch.nan
    holes[3::7, 1] = torch.nan
    model = lvm.models.GaussianMixture(3, 2)
    result = lvm.fit_em(model, holes, missing=True, tol=1e-9, progress=False)
    assert (result.objective.diff() > -1e-8).all()
    torch.testing.assert_close(model.observed_log_prob(holes).sum(), result.objective[-1])
    completed = model.impute(holes)
    assert torch.equal(completed[holes.isfinite()], X[holes.isfinite()])
    missing = holes.isnan()
    means = holes.nanmean(0).expand_as(X)
    assert (completed - X)[missing].square().mean() < (means - X)[missing].square().mean()
    with pytest.raises(ValueError, match="missing entries: pass complete rows"):
        result.score()


def test_models_that_cannot_integrate_missing_entries_say_so():
    with pytest.raises(ValueError, match="missing=True needs a model"):
        lvm.fit_em(mixture, X, missing=True, progress=False)


def test_coordinate_ascent_of_the_bayesian_mixture():
    model = lvm.models.BayesianGaussianMixture(5, 2)
    result = lvm.fit_em(model, X, max_iter=300, progress=False)
    assert result.objective_name == "ELBO"
    assert (result.objective.diff() > -1e-8).all()
    assert (model.concentration > 10).sum() == 3


def test_a_poisson_mixture_gets_closed_forms():
    counts = torch.poisson(torch.tensor([[1.0, 9.0], [12.0, 2.0]])[torch.arange(200) % 2])
    result = lvm.fit_em(lvm.models.Mixture(2, "poisson", num_features=2), counts, progress=False)
    assert "rate     weighted mean" in result.summary()
    assert result.converged


def test_a_variance_stops_at_its_floor():
    """One row far away would get a component of its own with no variance at all."""
    x = torch.cat([torch.linspace(-1, 1, 50), torch.tensor([100.0])])

    def normals(x):
        loc = pyro.param("loc", torch.tensor([0.0, 90.0]))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    result = lvm.fit_em(normals, x, progress=False)
    torch.testing.assert_close(result.params["scale"][1], (1e-6 * x.var(correction=0)).sqrt())
    assert "scale  weighted standard deviation" in result.summary()


def test_a_maximum_beyond_its_link_is_searched():
    """No exponential is the mean of negative numbers."""

    def normals(x):
        log_loc = pyro.param("log_loc", torch.tensor([0.0, 1.0]))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(log_loc[z].exp(), 1.0), obs=x)

    x = torch.cat([torch.linspace(-3, -2, 30), torch.linspace(4, 6, 30)])
    result = lvm.fit_em(normals, x, max_iter=20, progress=False)
    assert "L-BFGS on Q, for its maximum is no exp of any number" in result.summary()
    torch.testing.assert_close(result.params["log_loc"][1], torch.tensor(5.0).log(), rtol=1e-2, atol=0.0)


def test_restarts_of_coordinate_ascent_run_one_by_one():
    result = lvm.fit_em(lvm.models.BayesianGaussianMixture(3, 2), X, num_restarts=2, progress=False)
    assert result.restarts.shape == (2,)


def test_a_prior_counts_once_in_online_em():
    """All rows are alike, so that the sums of any minibatch stand for those of all."""

    def accidents(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(31.0, dtype=torch.float64), 10.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    online = lvm.fit_em(
        accidents, torch.full((40,), 5.0, dtype=torch.float64), online=0.7, batch_size=10, max_iter=2, progress=False
    )
    torch.testing.assert_close(online.params["rate"], torch.tensor((30 + 200) / (10 + 40), dtype=torch.float64))
