"""A fit by EM can be started anywhere, watched, stopped, and asked for what a posterior says."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy import stats

import pyro_lvm as lvm

from .checks import as_numpy, assert_closed, assert_rises, assert_same_path, fit, posteriors, textbook

NUM_ROWS = 200
LABELS = torch.arange(NUM_ROWS) % 2
START = {"weights": np.array([0.4, 0.6]), "rate": np.array([1.0, 6.0])}


def model(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    rate = pyro.param("rate", torch.tensor([1.0, 6.0]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rate[z]), obs=x)


class Mixture(PyroModule):
    def __init__(self):
        super().__init__()
        self.weights = PyroParam(torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        self.rate = PyroParam(torch.tensor([1.0, 6.0]), constraint=constraints.positive)

    def forward(self, x):
        weights, rate = self.weights, self.rate
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)


def counts():
    return torch.poisson(torch.tensor([2.0, 7.0])[LABELS])


def log_density(x):
    return lambda p: stats.poisson.logpmf(x.numpy()[:, None], p["rate"])


def loop(x, num_iter):
    return textbook(log_density(x), lambda r: {"rate": r.T @ x.numpy() / r.sum(0)}, START, num_iter)


def test_module_takes_the_path_of_the_function_and_holds_the_final_values():
    x, module = counts(), Mixture()
    result = fit(module, x)
    assert_closed(result, weights="counts", rate="mean")
    assert_same_path(result, *loop(x, result.num_iter))
    for name in ("weights", "rate"):
        torch.testing.assert_close(getattr(module, name).detach(), result.params[name])
    torch.testing.assert_close(fit(module, x, max_iter=1).objective[0], result.objective[-1])  # where it stood


def test_result_stays_when_the_module_moves_on():
    x, module = counts(), Mixture()
    result = fit(module, x, max_iter=3)
    before, score = as_numpy(result.params), result.score().value
    fit(module, x)
    assert all((before[n] == v.numpy()).all() for n, v in result.params.items())
    torch.testing.assert_close(result.score().value, score, rtol=0, atol=0)


def test_torch_parameters_in_a_module_are_fitted():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.log_rate = torch.nn.Parameter(torch.tensor([0.0, 1.8]))

        def forward(self, x):
            pyro.module("plain", self)
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
                pyro.sample("x", dist.Poisson(self.log_rate.exp()[z]), obs=x)

    x, module = counts(), Plain()
    result = fit(module, x)
    assert_rises(result)
    assert_closed(result, log_rate="mean")
    torch.testing.assert_close(module.log_rate.detach(), result.params["log_rate"])


def test_priors_of_a_module_are_priors():
    class Bayesian(PyroModule):
        def __init__(self):
            super().__init__()
            self.rate = PyroSample(dist.Gamma(torch.tensor([2.0, 3.0]), 0.5).to_event(1))

        def forward(self, x):
            rate = self.rate
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
                pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    x = counts()
    result = fit(Bayesian(), x)
    assert result.objective_name == "log-posterior"
    assert_rises(result)
    assert_closed(result, rate="mean")
    resp = result.posterior()["z"].probs
    expected = (resp.T @ x + torch.tensor([1.0, 2.0])) / (resp.sum(0) + 0.5)
    torch.testing.assert_close(result.params["rate"], expected, rtol=1e-4, atol=0)


def test_parameter_store_is_neither_read_nor_written():
    x = counts()
    with pyro.get_param_store().scope():
        pyro.param("rate", torch.tensor([100.0, 200.0]), constraint=constraints.positive)
        result = fit(model, x)
        assert list(pyro.get_param_store()) == ["rate"]
        assert pyro.param("rate").tolist() == pytest.approx([100.0, 200.0])
    assert_same_path(result, *loop(x, result.num_iter))


def test_start_by_a_dict_of_constrained_values():
    x = counts()
    first = fit(model, x, max_iter=5)
    _, path = loop(x, 9)
    again = fit(model, x, init=as_numpy(first.params), max_iter=4)
    np.testing.assert_allclose(again.objective, path[5:], rtol=1e-10)
    half = fit(model, x, init={"rate": [2.0, 3.0]}, max_iter=1)
    before = posteriors(np.log(START["weights"]) + log_density(x)({"rate": np.array([2.0, 3.0])}))[1].sum()
    assert float(half.objective[0]) == pytest.approx(before)


def test_start_by_a_result_goes_on_where_that_ended():
    x = counts()
    again = fit(model, x, init=fit(model, x, max_iter=5), max_iter=4)
    np.testing.assert_allclose(again.objective, loop(x, 9)[1][5:], rtol=1e-10)


def test_start_by_a_result_with_priors_goes_on_where_that_ended():
    x = counts()

    def bayesian(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([2.0, 3.0]), 0.5).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    first = fit(bayesian, x, max_iter=5)
    assert list(first.params) == ["rate"]
    torch.testing.assert_close(fit(bayesian, x, init=first, max_iter=1).objective[0], first.objective[-1])


def test_zero_in_a_start_stays_zero():
    x = counts()
    result = fit(model, x, init={"weights": [0.0, 1.0]})
    assert result.params["weights"].tolist() == [0.0, 1.0]
    torch.testing.assert_close(result.params["rate"][1], x.mean())


def test_callbacks_see_each_iteration_and_can_stop():
    x, seen = counts(), []

    def watch(state):
        seen.append(state)
        return len(seen) == 4

    result = fit(model, x, callbacks=[watch, lambda state: None])
    params, path = loop(x, 4)
    assert [state.iteration for state in seen] == [1, 2, 3, 4]
    assert (result.num_iter, result.converged) == (4, False)
    for state in seen:
        assert isinstance(state, lvm.EMState)
        np.testing.assert_allclose(state.objective, path[: state.iteration + 1], rtol=1e-10)
    np.testing.assert_allclose(seen[-1].params["rate"], params["rate"], rtol=1e-8)
    assert_same_path(result, params, path)


def test_tolerance_is_a_gain_in_nats_a_row():
    x = counts()
    result = fit(model, x, tol=1e-3)
    gains = np.diff(loop(x, 100)[1]) / NUM_ROWS
    assert result.converged
    assert result.num_iter == 1 + int((gains < 1e-3).argmax())
    assert not fit(model, x, tol=1e-3, max_iter=result.num_iter - 1).converged


def test_tolerance_of_zero_takes_all_iterations_that_gain():
    result = fit(model, counts(), tol=0, max_iter=20)
    assert result.num_iter == 20


def test_result_says_how_it_went():
    x = counts()
    result = fit(model, x)
    text = str(result)
    assert isinstance(result, lvm.EMResult)
    assert result.objective_name == "log-likelihood"
    assert result.objective.shape == (result.num_iter + 1,)
    assert "converged" in text
    assert "z" in result.summary()
    assert "enumerated" in result.summary()
    assert f"{float(result.objective[-1]):.4f}" in text
    assert "not converged" in str(fit(model, x, max_iter=1))


@pytest.fixture
def fitted():
    x = counts()
    result = fit(model, x)
    resp, log_p = posteriors(np.log(result.params["weights"].numpy()) + log_density(x)(as_numpy(result.params)))
    return result, x, torch.tensor(resp), torch.tensor(log_p)


def test_posterior_is_the_responsibilities(fitted):
    result, x, resp, _ = fitted
    torch.testing.assert_close(result.posterior()["z"].probs, resp)
    torch.testing.assert_close(result.posterior(x[:7])["z"].probs, resp[:7])


def test_score_is_the_log_density_of_each_row(fitted):
    result, x, _, log_p = fitted
    torch.testing.assert_close(result.score().value, log_p)
    torch.testing.assert_close(result.score(x[50:60]).value, log_p[50:60])
    torch.testing.assert_close(log_p.sum(), result.objective[-1])


def test_evidence_is_the_log_likelihood(fitted):
    result, *_, log_p = fitted
    assert float(result.evidence().value) == pytest.approx(float(log_p.sum()))


def test_draws_of_states_are_as_frequent_as_the_posterior_says(fitted):
    result, _, resp, _ = fitted
    draws = result.sample(4000)["z"]
    assert draws.shape == (4000, NUM_ROWS)
    error = (resp[:, 1] * resp[:, 0] / 4000).sqrt()
    assert ((draws.double().mean(0) - resp[:, 1]).abs() <= 5 * error + 1e-9).all()


def test_predictions_have_the_moments_of_the_posterior(fitted):
    result, _, resp, _ = fitted
    draws = result.predict(num_draws=4000)["x"]
    mean = resp @ result.params["rate"]
    variance = resp @ (result.params["rate"] + result.params["rate"] ** 2) - mean**2
    assert draws.shape == (4000, NUM_ROWS)
    assert ((draws.mean(0) - mean).abs() <= 5 * (variance / 4000).sqrt()).all()


def test_results_of_a_posterior_mode_speak_of_rows_too():
    x = counts()

    def bayesian(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([2.0, 3.0]), 0.5).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    result = fit(bayesian, x)
    resp, log_p = posteriors(np.log([0.5, 0.5]) + log_density(x)(as_numpy(result.params)))
    assert set(result.params) == {"rate"}
    torch.testing.assert_close(result.posterior()["z"].probs, torch.tensor(resp))
    torch.testing.assert_close(result.score().value, torch.tensor(log_p))
    assert result.predict(num_draws=50)["x"].shape == (50, NUM_ROWS)
    assert set(result.predict(num_draws=5)) == {"x"}


def test_fit_on_a_loader_answers_about_rows_that_it_is_given():
    x = counts()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=32)
    result = fit(model, loader)
    torch.testing.assert_close(result.score(x).value.sum(), result.objective[-1])
    with pytest.raises(ValueError, match="pass rows"):
        result.posterior()


def test_model_may_be_a_bound_method_with_keyword_arguments():
    x = counts()

    class Holder:
        def __init__(self):
            self.module = Mixture()

        def run(self, x, power=1.0):
            module = self.module
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Categorical(module.weights))
                pyro.sample("x", dist.Poisson(module.rate[z] * power), obs=x)

    holder = Holder()
    result = fit(holder.run, x, model_kwargs={"power": 1.0})
    assert_rises(result)
    rate = next(value for name, value in result.params.items() if name.endswith("rate"))
    np.testing.assert_allclose(rate, loop(x, result.num_iter)[0]["rate"], rtol=1e-6)
    torch.testing.assert_close(holder.module.rate.detach(), rate)


def test_same_seed_same_fit():
    x = counts()
    torch.manual_seed(1)
    one = fit(model, x, seed=3)
    torch.manual_seed(2)
    two = fit(model, x, seed=3)
    torch.testing.assert_close(one.objective, two.objective, rtol=0, atol=0)


def test_result_can_be_saved_and_read_again(tmp_path):
    x = counts()
    result = fit(model, x)
    result.save(tmp_path / "fit.pt")
    again = lvm.load(tmp_path / "fit.pt", model, None, x)
    assert str(again) == str(result)
    torch.testing.assert_close(again.params, result.params, rtol=0, atol=0)
    torch.testing.assert_close(again.score().value, result.score().value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="holds a fit to other data"):
        lvm.load(tmp_path / "fit.pt", model, None, x + 1)
    with pytest.raises(ValueError, match="without a guide"):
        lvm.load(tmp_path / "fit.pt", model, "mean_field", x)


@pytest.mark.parametrize("missing", [False, True])
def test_fits_by_own_steps_can_be_saved(tmp_path, missing):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    if missing:
        x[::5, 1] = torch.nan
    result = lvm.fit_em(lvm.models.GaussianMixture(2, 2), x, missing=missing, progress=False)
    result.save(tmp_path / "fit.pt")
    mixture = lvm.models.GaussianMixture(2, 2)
    again = lvm.load(tmp_path / "fit.pt", mixture, None, x)
    torch.testing.assert_close(again.params, result.params, rtol=0, atol=0)
    torch.testing.assert_close(mixture.observed_log_prob(x).sum(), result.objective[-1])


def test_restarts_end_at_the_best_of_all():
    """From a start between its components, where EM stands still."""
    x = torch.cat([torch.randn(60) - 6, torch.randn(60), torch.randn(60) + 6])

    def normals(x):
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([0.0, 0.0, 0.0]))
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    alone, several = fit(normals, x), fit(normals, x, num_restarts=5)
    assert float(several.objective[-1]) > float(alone.objective[-1]) + 50
    assert several.restarts.shape == (5,)
    assert float(several.restarts.max()) == float(several.objective[-1])
    assert float(several.restarts[0]) == pytest.approx(float(alone.objective[-1]))
    assert sorted(several.params["loc"].tolist()) == pytest.approx([-6.0, 0.0, 6.0], abs=1.0)
    torch.testing.assert_close(fit(normals, x, num_restarts=5).restarts, several.restarts, rtol=0, atol=0)
    assert_rises(several)
