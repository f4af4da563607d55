import copy
import math

import numpy as np
import pyro
import pytest
import sklearn.decomposition
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from scipy.stats import multivariate_normal

from pyro_lvm.models import PPCA


def random_ppca(L, D, dtype=torch.float64):
    model = PPCA(L, D).to(dtype)
    model.loading, model.loc, model.noise = torch.randn(D, L), torch.randn(D), 0.3
    return model


def as_numpy(model):
    """The loading, loc and noise variance, as float64 arrays."""
    return (getattr(model, name).detach().double().numpy() for name in ("loading", "loc", "noise"))


def log_marginal(model, x):
    """The log-likelihood of all rows, from dense covariances, differentiable."""
    covariance = model.loading @ model.loading.T + model.noise * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.distributions.MultivariateNormal(model.loc, covariance).log_prob(x).sum()


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("N, L, D", [(6, 2, 5), (1, 2, 3), (4, 1, 1), (5, 3, 3)])
def test_elbo_is_the_exact_likelihood_at_every_draw(N, L, D, dtype, rtol, param_setting):
    model = random_ppca(L, D, dtype)
    x = 2 * torch.randn(N, D, dtype=dtype)
    W, mu, noise = as_numpy(model)
    exact = multivariate_normal(mu, W @ W.T + noise * np.eye(D)).logpdf(x.double().numpy()).sum()
    elbos = [-Trace_ELBO().loss(model, model.guide, x) for _ in range(5)]
    elbos.append(-Trace_ELBO(4, max_plate_nesting=1, vectorize_particles=True).loss(model, model.guide, x))
    np.testing.assert_allclose(elbos, exact, rtol=rtol)


@pytest.mark.parametrize("N, L, D", [(6, 2, 5), (1, 2, 3), (4, 1, 1)])
def test_gradient_of_the_elbo_is_that_of_the_likelihood(N, L, D, param_setting):
    model = random_ppca(L, D)
    x = torch.randn(N, D, dtype=torch.float64)
    params = list(model.parameters())
    elbo = -Trace_ELBO().differentiable_loss(model, model.guide, x)
    actual = torch.autograd.grad(elbo, params)
    expected = torch.autograd.grad(log_marginal(model, x), params)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_guide_is_the_posterior_of_the_joint_gaussian():
    N, L, D = 4, 2, 5
    model = random_ppca(L, D)
    x = torch.randn(N, D, dtype=torch.float64)
    W, mu, noise = as_numpy(model)
    covariance = W @ W.T + noise * np.eye(D)
    gain = np.linalg.solve(covariance, W).T  # cov(z, x) cov(x, x)^-1
    guide = poutine.trace(model.guide).get_trace(x).nodes["z"]
    np.testing.assert_allclose(guide["fn"].mean.detach(), (x.numpy() - mu) @ gain.T, rtol=1e-10)
    np.testing.assert_allclose(guide["fn"].covariance_matrix.detach(), [np.eye(L) - gain @ W] * N, rtol=1e-9)
    (plate,) = guide["cond_indep_stack"]
    assert (plate.name, plate.size) == ("rows", N)


def test_model_is_a_standard_normal_through_a_loading(log_joint):
    model = random_ppca(2, 3)
    x, z = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    W, mu, noise = as_numpy(model)
    expected = multivariate_normal(np.zeros(2)).logpdf(z).sum()
    residuals = x.numpy() - z.numpy() @ W.T - mu
    expected += multivariate_normal(np.zeros(3), noise * np.eye(3)).logpdf(residuals).sum()
    assert log_joint(model)({"z": z}, x).item() == pytest.approx(expected, rel=1e-12)


def test_marginal_is_exact():
    model = random_ppca(2, 4)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert model.marginal().log_prob(x).shape == (5,)
    torch.testing.assert_close(model.marginal().log_prob(x).sum(), log_marginal(model, x))


def test_the_closed_form_maximum_is_stationary():
    """Tipping and Bishop (1999), equations 7 and 8."""
    x = torch.randn(50, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1
    pca = sklearn.decomposition.PCA().fit(x)
    variances = pca.explained_variance_ * 49 / 50  # scikit-learn divides by N - 1
    noise = variances[2:].mean()
    model = PPCA(2, 5).double()
    model.loading = pca.components_[:2].T * np.sqrt(variances[:2] - noise)
    model.loc, model.noise = pca.mean_, noise
    maximum = Trace_ELBO().differentiable_loss(model, model.guide, x)
    for gradient in torch.autograd.grad(maximum, list(model.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    logdet = np.log(variances[:2]).sum() + 3 * math.log(noise)
    assert maximum.item() == pytest.approx(25 * (5 * math.log(2 * math.pi) + logdet + 5), rel=1e-10)


def test_maps_and_traces(param_setting, check_transforms):
    x = torch.randn(5, 3, dtype=torch.float64)
    check_transforms(random_ppca(2, 3), {"z": torch.randn(4, 5, 2, dtype=torch.float64)}, x)


def test_guide_maps_over_parameters(param_setting):
    class Moments(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            guide = poutine.condition(self.model.guide, {"z": x.new_zeros(len(x), 2)})
            with pyro.get_param_store().scope():
                fn = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
            return fn.loc, fn.scale_tril

    moments = Moments(random_ppca(2, 3))
    x = torch.randn(5, 3, dtype=torch.float64)
    params = {key: torch.randn(4, *value.shape).double() for key, value in moments.named_parameters()}
    with pyro.validation_enabled(False):
        mapped = torch.func.vmap(lambda values: torch.func.functional_call(moments, values, (x,)))(params)
    for s in range(4):
        single = torch.func.functional_call(moments, {key: value[s] for key, value in params.items()}, (x,))
        for one, other in zip(mapped, single, strict=True):
            torch.testing.assert_close(one[s], other)


def test_a_fit_by_plain_pyro_reaches_the_maximum(param_setting):
    x = torch.randn(80, 1) @ torch.tensor([[1.0, -2.0, 0.5, 1.0]]) + 0.5 * torch.randn(80, 4) + 3
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    noise = variances[:3].mean()
    best = 40 * (4 * math.log(2 * math.pi) + math.log(variances[3]) + 3 * math.log(noise) + 4)
    model = PPCA(1, 4).initialize(x)
    svi = SVI(model, model.guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(400)]
    assert losses[-1] < losses[0]
    assert best - 1e-2 <= losses[-1] <= best + 0.5


def test_initialize_takes_moments():
    x = torch.tensor([[1.0, 10.0, 0.0], [3.0, 20.0, 0.0]])
    model = PPCA(2, 3)
    assert not model.initialized
    state = torch.get_rng_state()
    assert model.initialize(x) is model
    assert torch.equal(torch.get_rng_state(), state)
    assert model.initialized
    torch.testing.assert_close(model.loc, torch.tensor([2.0, 15.0, 0.0]))
    torch.testing.assert_close(model.noise, torch.tensor(26 / 3))
    assert 0 < model.loading.abs().max() < math.sqrt(26 / 3)
    again, other = PPCA(2, 3), PPCA(2, 3).initialize(x, seed=1)
    with torch.device("meta"):  # stands for the device of a fit, from which a generator of the CPU cannot draw
        again.initialize(x)
    torch.testing.assert_close(model.loading, again.loading, rtol=0, atol=0)
    assert not torch.allclose(model.loading, other.loading)


@pytest.mark.parametrize("x", [torch.ones(1, 2), torch.ones(5, 2), torch.tensor([[1, 2], [3, 4]])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_initialize_survives_poor_data(x, dtype):
    x = x.to(dtype) if x.is_floating_point() else x
    model = PPCA(1, 2).to(dtype).initialize(x)
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert math.isfinite(Trace_ELBO().loss(model, model.guide, x))


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(0, 2), "x: expected at least one row, got none"),
        (torch.tensor([[0.0, 0.0], [0.0, math.inf]]), "x: expected finite values, row 1 has others"),
        (torch.zeros(4), r"x: expected shape \[N, 2\], got \[4\]"),
    ],
)
def test_initialize_refuses_wrong_data(x, message):
    with pytest.raises(ValueError, match=message):
        PPCA(1, 2).initialize(x)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("noise", 0.0, "noise: expected positive numbers, got 0.0"),
        ("noise", -1.0, "noise: expected positive numbers, got -1.0"),
        ("noise", [1.0, 1.0, 1.0], r"noise: expected shape \[\], got \[3\]"),
        ("loading", torch.zeros(2, 3), r"loading: expected shape \[3, 2\], got \[2, 3\]"),
        ("loc", [0.0, math.nan, 0.0], "loc: expected finite values, got nan"),
    ],
)
def test_assignments_are_checked(name, value, message):
    model = PPCA(2, 3)
    with pytest.raises(ValueError, match=message):
        setattr(model, name, value)
    assert not model.initialized


def test_loaded_and_copied_models_have_their_start():
    model = random_ppca(2, 3, torch.float32)
    other = PPCA(2, 3)
    other.load_state_dict(model.state_dict())
    assert other.initialized
    assert copy.deepcopy(model).initialized
    torch.testing.assert_close(other.noise, model.noise)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((0, 2), ValueError, "num_latents must be a positive integer; got 0"),
        ((1, 1.5), TypeError, "num_features must be a positive integer; got 1.5"),
        ((3, 2), ValueError, "num_latents: expected at most num_features, 2, got 3"),
    ],
)
def test_constructor_refuses_wrong_arguments(args, error, message):
    with pytest.raises(error, match=message):
        PPCA(*args)


@pytest.mark.parametrize("part", ["model", "guide"])
def test_wrong_rows_are_refused(part):
    model = PPCA(1, 2)
    function = model if part == "model" else model.guide
    with pytest.raises(ValueError, match=r"x: expected shape \[N, 2\], got \[4, 3\]"):
        function(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="the dtype of the model, got torch"):
        function(torch.zeros(4, 2).double())
    with pytest.raises(TypeError, match=r"x: expected a tensor of shape \[N, 2\], got list"):
        function([[0.0, 1.0]])


def test_the_guide_forgives_rounding():
    """Orthogonal columns leave rounding errors alone off the diagonal of W'W, and those are not symmetric."""
    model = PPCA(10, 64)
    model.noise = 0.01
    for _ in range(20):
        model.loading = 3 * torch.linalg.qr(torch.randn(64, 10))[0]
        assert math.isfinite(Trace_ELBO().loss(model, model.guide, torch.randn(5, 64)))
