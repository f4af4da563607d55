import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import sklearn.mixture
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from scipy.special import gammaln, logsumexp, multigammaln

import pyro_lvm as lvm
from pyro_lvm.models import bayesian_gaussian_mixture_em
from pyro_lvm.models.bayesian_gaussian_mixture import BayesianGaussianMixture

NAMES = ("concentration", "locs", "loc_precision", "degrees_of_freedom", "scale_tril")


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def params_of(model):
    return {name: getattr(model, name).detach() for name in NAMES}


def assign(model, params):
    for name, value in params.items():
        setattr(model, name, value)


def elbo(steps, params, x, weight=None):
    return (steps.expect(params, (x,), weight)["log_p"] + steps.outside(params)).item()


def sweeps(model, x, count, weight=None):
    """The ELBO before each of some sweeps, after which the model holds the last parameters."""
    steps, params, values = model.em_steps(None), params_of(model), []
    for _ in range(count):
        sums = steps.expect(params, (x,), weight)
        values.append((sums["log_p"] + steps.outside(params)).item())
        params = steps.maximize(sums, params)
    assign(model, params)
    return values


def clusters(N=60, D=2, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[-3.0] * D, [2.0] * D])
    labels = (np.arange(N) % 3 > 0).astype(int)
    return rng.normal(size=(N, D)) * np.array([1.0, 0.6])[labels, None] + centres[labels]


def random_mixture(K=2, D=2, seed=0, **prior):
    """A mixture with a prior and a posterior without any symmetry."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(D, D))
    given = {
        "weight_concentration": 0.7,
        "loc": rng.normal(size=D),
        "loc_precision": 0.4,
        "degrees_of_freedom": D + 1.5,
        "scale_matrix": root @ root.T + np.eye(D),
    }
    model = BayesianGaussianMixture(K, D, **(given | prior))
    model.concentration = rng.uniform(1, 5, K)
    model.locs = rng.normal(size=(K, D))
    model.loc_precision = rng.uniform(0.5, 5, K)
    model.degrees_of_freedom = rng.uniform(D + 3, D + 9, K)
    model.scale_tril = np.tril(rng.normal(size=(K, D, D)), -1) + np.eye(D) * rng.uniform(1, 2, (K, D, 1))
    return model


# Coordinate ascent -----------------------------------------------------------------------------------------


def scikit_learn(model, X, responsibilities):
    """Their mixture with our prior, after their M-step, and our posterior set to theirs."""
    scale = model.prior_scale_tril.numpy()
    theirs = sklearn.mixture.BayesianGaussianMixture(
        n_components=model.num_components,
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=model.prior_concentration[0].item(),
        mean_prior=model.prior_loc.numpy(),
        mean_precision_prior=model.prior_loc_precision.item(),
        degrees_of_freedom_prior=model.prior_degrees_of_freedom.item(),
        covariance_prior=scale @ scale.T,
        reg_covar=0,
    )
    theirs._check_parameters(X)
    theirs._initialize(X, responsibilities)
    assign(model, posterior_of(theirs))
    return theirs


def posterior_of(theirs):
    return {
        "concentration": theirs.weight_concentration_,
        "locs": theirs.means_,
        "loc_precision": theirs.mean_precision_,
        "degrees_of_freedom": theirs.degrees_of_freedom_,
        "scale_tril": np.linalg.cholesky(theirs.covariances_ * theirs.degrees_of_freedom_[:, None, None]),
    }


def left_out_by_scikit_learn(model, N):
    """The constants of the lower bound that only prior and N decide, and log π of the Wishart's, which cancels."""
    K, D = model.num_components, model.num_features
    alpha, nu = model.prior_concentration.numpy(), model.prior_degrees_of_freedom.item()
    log_det = 2 * np.log(np.diag(model.prior_scale_tril)).sum()
    log_dirichlet = gammaln(alpha.sum()) - gammaln(alpha).sum()
    log_wishart = nu / 2 * (log_det - D * math.log(2)) - gammaln((nu - np.arange(D)) / 2).sum()
    log_means = D / 2 * math.log(model.prior_loc_precision)
    return log_dirichlet + K * (log_wishart + log_means) - N * D / 2 * math.log(2 * math.pi)


@pytest.mark.parametrize("K, D, defaults", [(2, 2, False), (5, 3, False), (3, 1, True), (1, 2, True)])
def test_sweeps_are_those_of_scikit_learn(K, D, defaults):
    X = clusters(N=50, D=D)
    x = torch.as_tensor(X)
    model = BayesianGaussianMixture(K, D).initialize(x) if defaults else random_mixture(K, D)
    theirs = scikit_learn(model, X, np.random.default_rng(1).dirichlet(np.ones(K), size=len(X)))
    steps, params = model.em_steps(None), params_of(model)
    constants = left_out_by_scikit_learn(model, len(X))
    for _ in range(15):
        sums = steps.expect(params, (x,), None)
        log_norm, log_resp = theirs._e_step(X)
        assert sums["log_p"].item() == pytest.approx(log_norm * len(X), rel=1e-10)

        params = steps.maximize(sums, params)
        theirs._m_step(X, log_resp)
        for name, value in posterior_of(theirs).items():
            np.testing.assert_allclose(params[name], value, rtol=1e-8, atol=1e-8, err_msg=name)

        # Theirs is the bound at the responsibilities before the M-step
        gain = np.exp(log_resp) * (theirs._estimate_weighted_log_prob(X) - log_resp)
        bound = gain.sum() + steps.outside(params).item()
        assert bound == pytest.approx(theirs._compute_lower_bound(log_resp, log_norm) + constants, rel=1e-10)


def test_the_elbo_never_falls_and_its_gradient_vanishes_at_the_end():
    x = torch.as_tensor(clusters())
    model = BayesianGaussianMixture(2, 2).initialize(x)
    model.locs = torch.randn(2, 2)
    values = np.array(sweeps(model, x, 200))
    assert (np.diff(values) > -1e-9).all()
    assert values[-1] - values[0] > 10
    params = {name: value.requires_grad_() for name, value in params_of(model).items()}
    steps = model.em_steps(None)
    value = steps.expect(params, (x,), None)["log_p"] + steps.outside(params)
    for name, grad in zip(params, torch.autograd.grad(value, list(params.values())), strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0, msg=name)


def test_superfluous_components_empty_out():
    X = clusters(N=300)
    x = torch.as_tensor(X)
    model = BayesianGaussianMixture(6, 2, weight_concentration=1e-3).initialize(x)
    sweeps(model, x, 200)
    counts, order = (model.concentration.detach() - model.prior_concentration).sort(descending=True)
    torch.testing.assert_close(counts[:2], torch.tensor([200.0, 100.0]), atol=0.5, rtol=0)
    assert counts[2:].max() < 1e-3
    labels = np.arange(300) % 3 > 0
    means = np.stack([X[labels].mean(0), X[~labels].mean(0)])
    np.testing.assert_allclose(model.locs.detach()[order[:2]], means, atol=0.1)
    torch.testing.assert_close(  # those that are empty have the prior
        model.scale_tril[order[2:]], model.prior_scale_tril.expand(4, 2, 2), atol=0.01, rtol=0
    )


def test_whole_weights_are_repeated_rows_and_batches_add_up(monkeypatch):
    x = torch.as_tensor(clusters())
    model = random_mixture(3)
    steps, params = model.em_steps(None), params_of(model)
    weight = torch.arange(len(x)) % 3
    whole = steps.expect(params, (x.repeat_interleave(weight, 0),), None)
    weighted = steps.expect(params, (x,), weight.double())
    batches = [steps.expect(params, (x[i::2],), weight[i::2].double()) for i in range(2)]
    monkeypatch.setattr(bayesian_gaussian_mixture_em, "_NUMBERS_AT_ONCE", 50)
    chunks = steps.expect(params, (x,), weight.double())
    for name, value in whole.items():
        torch.testing.assert_close(weighted[name], value)
        torch.testing.assert_close(chunks[name], value)
        torch.testing.assert_close(batches[0][name] + batches[1][name], value)


def test_no_rows_give_the_prior():
    model = random_mixture()
    steps = model.em_steps(None)
    sums = steps.expect(params_of(model), (torch.zeros(0, 2),), None)
    assert sums["log_p"] == 0
    params = steps.maximize(sums, params_of(model))
    torch.testing.assert_close(params["locs"], model.prior_loc.expand(2, 2))
    torch.testing.assert_close(params["scale_tril"], model.prior_scale_tril.expand(2, 2, 2))
    assert steps.outside(params).item() == pytest.approx(0, abs=1e-12)


def test_data_far_from_zero_lose_no_digits():
    X = np.round(clusters() * 2**10) / 2**10  # so that shifted rows are exact
    near, far = torch.as_tensor(X), torch.as_tensor(X) + 2.0**20
    models = [BayesianGaussianMixture(2, 2).initialize(x) for x in (near, far)]
    values = [sweeps(model, x, 20) for model, x in zip(models, (near, far), strict=True)]
    assert values[1] == pytest.approx(values[0], rel=1e-7)
    torch.testing.assert_close(models[1].scale_tril, models[0].scale_tril, rtol=1e-7, atol=1e-7)


def test_single_precision_sums_in_double():
    x = torch.as_tensor(clusters(), dtype=torch.float32)
    model = BayesianGaussianMixture(2, 2).float().initialize(x)
    steps, params = model.em_steps(None), params_of(model)
    sums = steps.expect(params, (x,), None)
    assert {value.dtype for value in sums.values()} == {torch.float64}
    assert {value.dtype for value in steps.maximize(sums, params).values()} == {torch.float32}
    other = BayesianGaussianMixture(2, 2).initialize(x.double())
    assert sweeps(model, x, 10) == pytest.approx(sweeps(other, x.double(), 10), rel=1e-5)


# The lower bound -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_elbo_is_the_mean_over_draws_of_model_and_guide():
    """Bishop's (10.70), E_q log p(x, z, θ) - log q(z) - log q(θ), θ drawn by the guide and z summed."""
    model, x, S = random_mixture(), torch.as_tensor(clusters(N=9)), 400
    N, K = len(x), model.num_components
    sweeps(model, x, 1)  # a random posterior would have a variance of thousands
    steps, params = model.em_steps(None), params_of(model)
    steps_of_rows = [steps.expect(params, (row[None],), None) for row in x]
    r = torch.stack([sums["counts"] for sums in steps_of_rows])  # [N, K]
    values = []
    for _ in range(S):
        guide = poutine.trace(model.guide).get_trace(x)
        latents = {name: guide.nodes[name]["value"] for name in ("weights", "precisions", "means")}
        log_p = []
        for k in range(K):
            conditioned = poutine.condition(model, data=latents | {"z": torch.full((N,), k)})
            trace = poutine.trace(conditioned).get_trace(x)
            trace.compute_log_prob()
            log_p.append(trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"])
        prior = sum(trace.nodes[name]["log_prob_sum"] for name in latents)
        rows = (r * (torch.stack(log_p, -1) - r.log())).sum()
        values.append((rows + prior - guide.log_prob_sum()).item())
    expected = elbo(steps, params, x)
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / math.sqrt(S))
    assert np.std(values) / math.sqrt(S) < 0.2


def test_elbo_is_below_that_with_the_components_summed_out():
    x = torch.as_tensor(clusters(N=20))
    model = BayesianGaussianMixture(2, 2).initialize(x)
    sweeps(model, x, 50)
    losses = [-TraceEnum_ELBO(max_plate_nesting=1).loss(model, model.guide, x) for _ in range(200)]
    error = np.std(losses) / math.sqrt(200)
    ours = elbo(model.em_steps(None), params_of(model), x)
    assert ours - 4 * error < np.mean(losses) < ours + 1


def test_elbo_is_that_of_quadrature():
    """One feature, two components, and every expectation an integral over a grid of densities of SciPy."""
    model = random_mixture(2, 1)
    x = np.array([-1.2, 0.3, 0.8])
    q = {name: value.numpy() for name, value in params_of(model).items()}
    prior = {
        "alpha": model.prior_concentration.numpy(),
        "loc": model.prior_loc.item(),
        "loc_precision": model.prior_loc_precision.item(),
        "df": model.prior_degrees_of_freedom.item(),
        "scale": model.prior_scale_tril.item(),
    }
    logit = np.linspace(-30, 30, 20_001)
    pi = 1 / (1 + np.exp(-logit))
    log_q_pi = stats.beta.logpdf(pi, *q["concentration"])
    mass = np.exp(log_q_pi) * pi * (1 - pi) * (logit[1] - logit[0])
    mean_log_pi = np.array([(mass * np.log(pi)).sum(), (mass * -np.logaddexp(0, logit)).sum()])
    value = (mass * (stats.beta.logpdf(pi, *prior["alpha"]) - log_q_pi))[mass > 0].sum()

    log_lambda = np.linspace(-12, 6, 1201)[:, None]
    z = np.linspace(-9, 9, 401)[None]  # standardised means
    precision = np.exp(log_lambda)

    def log_density(mu, loc, loc_precision, df, scale):
        log_gamma = stats.gamma.logpdf(precision, df / 2, scale=2 / scale**2)
        return log_gamma + stats.norm.logpdf(mu, loc, 1 / np.sqrt(loc_precision * precision))

    log_rho = np.zeros((3, 2))
    for k in range(2):
        width = 1 / np.sqrt(q["loc_precision"][k] * precision)
        mu = q["locs"][k] + z * width
        log_q = log_density(
            mu, q["locs"][k], q["loc_precision"][k], q["degrees_of_freedom"][k], q["scale_tril"][k].item()
        )
        cell = (log_lambda[1] - log_lambda[0]) * (z[0, 1] - z[0, 0])
        mass = np.exp(log_q) * precision * width * cell
        assert mass.sum() == pytest.approx(1, abs=1e-6)
        log_p = log_density(mu, prior["loc"], prior["loc_precision"], prior["df"], prior["scale"])
        value += (mass * (log_p - log_q)).sum()
        for i in range(3):
            log_rho[i, k] = (mass * stats.norm.logpdf(x[i], mu, 1 / np.sqrt(precision))).sum() + mean_log_pi[k]
    # The best q(z), and every one of the 2^3 assignments under it
    log_r = log_rho - logsumexp(log_rho, axis=1, keepdims=True)
    for assignment in itertools.product(range(2), repeat=3):
        chosen = range(3), assignment
        value += np.exp(log_r[chosen].sum()) * (log_rho[chosen] - log_r[chosen]).sum()
    assert elbo(model.em_steps(None), params_of(model), torch.as_tensor(x)[:, None]) == pytest.approx(value, abs=1e-5)


def log_evidence(model, X, labels):
    """log p(x, z), weights, means and precisions integrated out (Murphy 2007, equation 266)."""
    K, D = model.num_components, model.num_features
    alpha, m0 = model.prior_concentration.numpy(), model.prior_loc.numpy()
    beta0, nu0 = model.prior_loc_precision.item(), model.prior_degrees_of_freedom.item()
    Psi0 = (model.prior_scale_tril @ model.prior_scale_tril.mT).numpy()
    counts = np.bincount(labels, minlength=K)
    value = gammaln(alpha.sum()) - gammaln(alpha.sum() + len(X)) + (gammaln(alpha + counts) - gammaln(alpha)).sum()
    for k in range(K):
        rows, n = X[labels == k], counts[k]
        if n == 0:
            continue
        mean = rows.mean(0)
        Psi = Psi0 + (rows - mean).T @ (rows - mean) + beta0 * n / (beta0 + n) * np.outer(mean - m0, mean - m0)
        value += multigammaln((nu0 + n) / 2, D) - multigammaln(nu0 / 2, D) - n * D / 2 * math.log(math.pi)
        value += nu0 / 2 * np.linalg.slogdet(Psi0)[1] - (nu0 + n) / 2 * np.linalg.slogdet(Psi)[1]
        value += D / 2 * math.log(beta0 / (beta0 + n))
    return value


def test_with_one_component_the_elbo_is_the_evidence():
    X = clusters(N=10, D=3)
    model = random_mixture(1, 3)
    sweeps(model, torch.as_tensor(X), 1)
    expected = log_evidence(model, X, np.zeros(10, int))
    assert elbo(model.em_steps(None), params_of(model), torch.as_tensor(X)) == pytest.approx(expected, rel=1e-12)


def test_the_elbo_is_just_below_the_evidence_over_all_assignments():
    X = clusters(N=8)
    model = random_mixture(2, 2)
    model.locs = [[-3.0, -3.0], [2.0, 2.0]]
    sweeps(model, torch.as_tensor(X), 100)
    logs = [log_evidence(model, X, np.array(labels)) for labels in itertools.product(range(2), repeat=8)]
    # By symmetry the evidence has as much from the clusters with their names exchanged
    gap = logsumexp(logs) - math.log(2) - elbo(model.em_steps(None), params_of(model), torch.as_tensor(X))
    assert 0 < gap < 0.5


# Model and guide -------------------------------------------------------------------------------------------


def some_latents(N=5, K=3, D=2):
    rng = np.random.default_rng(3)
    factors = rng.normal(size=(K, D, D))
    return {
        "weights": torch.as_tensor(rng.dirichlet(np.ones(K))),
        "precisions": torch.as_tensor(factors @ factors.transpose(0, 2, 1) + np.eye(D)),
        "means": torch.as_tensor(rng.normal(size=(K, D))),
        "z": torch.as_tensor(rng.integers(K, size=N)),
    }


def log_normal_wishart(latents, concentration, loc, loc_precision, df, scale_tril):
    weights, precisions, means = (latents[name].numpy() for name in ("weights", "precisions", "means"))
    value = stats.dirichlet.logpdf(weights / weights.sum(), concentration)
    for k, precision in enumerate(precisions):
        value += stats.wishart.logpdf(precision, df[k], np.linalg.inv(scale_tril[k] @ scale_tril[k].T))
        value += stats.multivariate_normal.logpdf(means[k], loc[k], np.linalg.inv(loc_precision[k] * precision))
    return value


def test_log_joint_is_that_of_scipy(log_joint, param_setting):
    model, latents, x = random_mixture(3), some_latents(), torch.randn(5, 2)
    prior = [model.prior_loc, model.prior_loc_precision, model.prior_degrees_of_freedom, model.prior_scale_tril]
    expected = log_normal_wishart(latents, model.prior_concentration, *(np.stack([value] * 3) for value in prior))
    for i, k in enumerate(latents["z"]):
        expected += math.log(latents["weights"][k])
        covariance = np.linalg.inv(latents["precisions"][k])
        expected += stats.multivariate_normal.logpdf(x[i], latents["means"][k], covariance)
    assert log_joint(model)(latents, x).item() == pytest.approx(expected, rel=1e-10)


def test_guide_is_that_of_scipy(log_joint):
    model, latents, x = random_mixture(3), some_latents(), torch.zeros(5, 2)
    expected = log_normal_wishart(latents, *(value.numpy() for value in params_of(model).values()))
    conditioned = poutine.condition(model.guide, data=latents)
    assert poutine.trace(conditioned).get_trace(x).log_prob_sum().item() == pytest.approx(expected, rel=1e-10)


def test_maps_and_traces(check_transforms, param_setting):
    latents = {name: torch.stack([value] * 4) for name, value in some_latents().items()}
    latents["means"] += torch.randn(4, 3, 2)
    check_transforms(random_mixture(3), latents, torch.randn(5, 2))


def test_draws_of_an_outer_plate():
    model, x, latents = random_mixture(3), torch.randn(5, 2), some_latents()
    outer = {name: torch.stack([latents[name]] * 4)[:, None] for name in ("weights", "precisions", "means")}
    conditioned = poutine.condition(model, data=outer | {"z": latents["z"].expand(4, 5)})
    trace = poutine.trace(pyro.plate("draws", 4, dim=-2)(conditioned)).get_trace(x)
    trace.compute_log_prob()
    one = poutine.trace(poutine.condition(model, data=latents)).get_trace(x)
    one.compute_log_prob()
    for name in ("means", "x"):
        expected = one.nodes[name]["log_prob"].expand(trace.nodes[name]["log_prob"].shape)
        torch.testing.assert_close(trace.nodes[name]["log_prob"], expected)


def test_single_precision_draws_at_the_least_degrees_of_freedom_can_be_factorised():
    model = BayesianGaussianMixture(6, 4).float()
    for _ in range(200):
        poutine.trace(poutine.uncondition(model)).get_trace(torch.zeros(3, 4, dtype=torch.float32))


def test_results_of_fits_can_be_drawn_from_and_scored():
    x = torch.as_tensor(clusters())
    model = BayesianGaussianMixture(2, 2)
    result = lvm.fit(model, model.guide, x, num_steps=2, optim=1e-9, progress=False)
    draws = result.sample(300)
    assert draws["z"].shape == (300, 60)
    q = params_of(model)
    W = torch.linalg.inv(q["scale_tril"] @ q["scale_tril"].mT)
    expected = {
        "weights": q["concentration"] / q["concentration"].sum(),
        "precisions": q["degrees_of_freedom"][:, None, None] * W,
        "means": q["locs"],
    }
    for name, mean in expected.items():
        assert ((draws[name].mean(0) - mean).abs() < 4 * draws[name].std(0) / math.sqrt(300)).all(), name
    score = result.score(x[:5], num_draws=300)
    assert ((score.value - model.log_predictive(x[:5])).abs() < 4 * score.standard_error).all()


# Prediction ------------------------------------------------------------------------------------------------


def test_predictive_is_a_mixture_of_students():
    model = random_mixture(3, 2)
    x = np.random.default_rng(0).normal(size=(7, 2)) * 3
    q = {name: value.numpy() for name, value in params_of(model).items()}
    expected = 0
    for k in range(3):
        df, beta = q["degrees_of_freedom"][k] - 1, q["loc_precision"][k]
        shape = (1 + beta) / (beta * df) * q["scale_tril"][k] @ q["scale_tril"][k].T
        student = stats.multivariate_t(q["locs"][k], shape, df)
        expected += q["concentration"][k] / q["concentration"].sum() * student.pdf(x)
    np.testing.assert_allclose(model.log_predictive(x), np.log(expected), rtol=1e-10)
    np.testing.assert_allclose(model.float().log_predictive(torch.as_tensor(x).float()), np.log(expected), rtol=1e-5)


def test_predictive_is_the_mean_over_draws():
    model, S = random_mixture(2, 2), 4_000
    x = torch.as_tensor(clusters(N=6))
    q = {name: value.numpy() for name, value in params_of(model).items()}
    rng = np.random.default_rng(0)
    weights = torch.as_tensor(rng.dirichlet(q["concentration"], size=S))
    densities = 0
    for k in range(2):
        W = np.linalg.inv(q["scale_tril"][k] @ q["scale_tril"][k].T)
        precisions = torch.as_tensor(stats.wishart.rvs(q["degrees_of_freedom"][k], W, size=S, random_state=rng))
        noise = torch.linalg.solve(torch.linalg.cholesky(precisions).mT, torch.randn(S, 2, 1)).squeeze(-1)
        means = torch.as_tensor(q["locs"][k]) + noise / math.sqrt(q["loc_precision"][k])
        normal = torch.distributions.MultivariateNormal(means, precision_matrix=precisions)
        densities = densities + weights[:, k] * normal.log_prob(x[:, None]).exp()  # [N, S]
    error = densities.std(1) / math.sqrt(S)
    assert ((densities.mean(1) - model.log_predictive(x).exp()).abs() < 4 * error).all()


def test_predictive_in_chunks_and_of_integers(monkeypatch):
    model, x = random_mixture(), torch.arange(20).reshape(10, 2)
    expected = model.log_predictive(x.double())
    monkeypatch.setattr(bayesian_gaussian_mixture_em, "_NUMBERS_AT_ONCE", 12)
    torch.testing.assert_close(model.log_predictive(x), expected)


# The start, and arguments ----------------------------------------------------------------------------------


def test_the_start_is_that_of_scikit_learn():
    X = clusters()
    model = BayesianGaussianMixture(2, 2).initialize(X)
    theirs = sklearn.mixture.BayesianGaussianMixture(
        n_components=2, weight_concentration_prior_type="dirichlet_distribution", reg_covar=0
    )
    theirs._check_parameters(X)
    labels = np.arange(60) % 3 > 0
    theirs._initialize(X, np.stack([~labels, labels], 1).astype(float))
    assert model.initialized
    assert model.prior_concentration.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(model.prior_loc, X.mean(0))
    np.testing.assert_allclose(model.prior_scale_tril @ model.prior_scale_tril.mT, np.cov(X.T))
    order = model.locs[:, 0].argsort()
    for name, value in posterior_of(theirs).items():
        np.testing.assert_allclose(params_of(model)[name][order], value, rtol=1e-10, err_msg=name)


def test_a_given_prior_stays():
    model = random_mixture()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.initialize(torch.as_tensor(clusters()))
    assert len(before) == 5
    for name, value in model.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_start_depends_on_the_seed_alone():
    x = torch.rand(50, 2)
    model = BayesianGaussianMixture(6, 2)
    state = torch.get_rng_state()
    first = params_of(model.initialize(x, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, first[name]) for name, value in params_of(model.initialize(x, seed=1)).items())
    assert not torch.equal(model.initialize(x, seed=2).locs, first["locs"])


def test_a_copy_and_a_load_keep_prior_and_posterior():
    x = torch.as_tensor(clusters())
    model = BayesianGaussianMixture(2, 2).initialize(x)
    other = BayesianGaussianMixture(2, 2)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        assert twin.initialized
        assert elbo(twin.em_steps(None), params_of(twin), x) == elbo(model.em_steps(None), params_of(model), x)


def test_constant_features_are_fine_with_a_scale_matrix():
    x = torch.as_tensor(clusters())
    x[:, 1] = 3
    with pytest.raises(ValueError, match="covariance of full rank; give scale_matrix"):
        BayesianGaussianMixture(2, 2).initialize(x)
    model = BayesianGaussianMixture(2, 2, scale_matrix=np.eye(2)).initialize(x)
    assert np.isfinite(sweeps(model, x, 20)).all()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"num_components": 0}, ValueError, "num_components must be a positive integer"),
        ({"num_features": 1.5}, TypeError, "num_features must be a positive integer"),
        ({"weight_concentration": 0}, ValueError, "weight_concentration: expected a positive number, got 0"),
        ({"weight_concentration": "a"}, TypeError, "weight_concentration: expected a positive number"),
        ({"loc": [0.0]}, ValueError, r"loc: expected shape \[2\], got \[1\]"),
        ({"loc": [0.0, math.inf]}, ValueError, "loc: expected finite values, got inf"),
        ({"loc_precision": -1.0}, ValueError, "loc_precision: expected a positive number, got -1.0"),
        ({"degrees_of_freedom": None, "loc_precision": None}, TypeError, "loc_precision: expected a positive number"),
        ({"degrees_of_freedom": 1}, ValueError, "degrees_of_freedom: expected more than num_features - 1, 1, got 1"),
        ({"scale_matrix": 1.0}, ValueError, r"scale_matrix: expected shape \[2, 2\], got \[\]"),
        ({"scale_matrix": [[1.0, 2.0], [2.0, 1.0]]}, ValueError, "scale_matrix: expected a symmetric positive def"),
        ({"scale_matrix": [[1.0, 0.5], [0.0, 1.0]]}, ValueError, "scale_matrix: expected a symmetric positive def"),
        ({"scale_matrix": np.full((2, 2), np.nan)}, ValueError, "scale_matrix: expected finite values, got nan"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        BayesianGaussianMixture(**{"num_components": 2, "num_features": 2} | arguments)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("concentration", [1.0, 0.0], "concentration: expected positive numbers"),
        ("locs", [0.0, 0.0], r"locs: expected shape \[2, 2\], got \[2\]"),
        (
            "degrees_of_freedom",
            [3.0, 1.0],
            "degrees_of_freedom: expected numbers greater than num_features - 1, 1, got",
        ),
        ("degrees_of_freedom", [3.0, math.nan], "degrees_of_freedom: expected finite values, got nan"),
        ("scale_tril", np.zeros((2, 2, 2)), "scale_tril: expected lower triangular matrices with a positive diagonal"),
    ],
)
def test_assignments_are_checked(name, value, message):
    with pytest.raises(ValueError, match=message):
        setattr(BayesianGaussianMixture(2, 2), name, value)


@pytest.mark.parametrize("call", ["forward", "log_predictive", "initialize"])
@pytest.mark.parametrize(
    "x, error, message",
    [
        ("rows", TypeError, r"x: expected a tensor of shape \[N, 2\], got str"),
        (torch.zeros(5, 3), ValueError, r"x: expected shape \[N, 2\], got \[5, 3\]"),
        (torch.zeros(5, 2, dtype=torch.float32), ValueError, "x: expected torch.float64, the dtype of the model"),
    ],
)
def test_rows_are_checked(call, x, error, message):
    with pytest.raises(error, match=message):
        getattr(BayesianGaussianMixture(2, 2), call)(x)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((1, 2)), "x: expected at least as many rows as components, 2, got 1"),
        (np.array([[0.0, 1.0], [math.nan, 0.0]]), "x: expected finite values, row 1 has others"),
    ],
)
def test_starts_that_are_none(x, message):
    model = BayesianGaussianMixture(2, 2)
    with pytest.raises(ValueError, match=message):
        model.initialize(x)
    assert not model.initialized
