import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from pyro_lvm.models._wishart import Wishart


def random_wishart(D, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    L = np.tril(rng.normal(size=(2, D, D)), -1) + np.eye(D) * rng.uniform(0.5, 2, (2, D, 1))
    return Wishart(torch.tensor([D - 0.5, D + 3.0], dtype=dtype), torch.as_tensor(L, dtype=dtype))


def scale_matrices(wishart):
    L = wishart.inverse_scale_tril
    return torch.linalg.inv(L @ L.mT)


def random_matrices(D, count):
    factors = torch.randn(count, 1, D, D + 2, dtype=torch.float64)
    return factors @ factors.mT


@pytest.mark.parametrize("D", [1, 2, 4])
def test_log_density_is_that_of_scipy(D):
    wishart, values = random_wishart(D), random_matrices(D, 5)
    W = scale_matrices(wishart).numpy()
    log_density = [stats.wishart(df + 1, scale).logpdf for df, scale in zip(wishart.df.numpy(), W, strict=True)]
    expected = np.array([[f(value[0].numpy()) for f in log_density] for value in values])
    wishart = Wishart(wishart.df + 1, wishart.inverse_scale_tril)  # SciPy takes no fewer than D
    np.testing.assert_allclose(wishart.log_prob(values), expected, rtol=1e-9)
    np.testing.assert_allclose(wishart.expand((5, 2)).log_prob(values), expected, rtol=1e-9)


@pytest.mark.parametrize("D", [1, 2, 4])
def test_draws_have_the_moments(D):
    wishart, S = random_wishart(D), 20_000
    draws = wishart.rsample((S,))
    assert draws.shape == (S, 2, D, D)
    W, df = scale_matrices(wishart), wishart.df[:, None, None]
    diagonal = W.diagonal(dim1=-2, dim2=-1)
    variance = df * (W.square() + diagonal[:, :, None] * diagonal[:, None])
    log_det = torch.linalg.slogdet(draws).logabsdet
    for values, mean in (
        (draws, df * W),
        ((draws - df * W).square(), variance),
        (log_det, wishart.mean_log_det),
    ):
        assert ((values.mean(0) - mean).abs() < 4 * values.std(0) / math.sqrt(S)).all()


def test_draws_follow_the_density():
    wishart = Wishart(torch.tensor(3.0), torch.eye(1))
    draws = wishart.sample((5_000,)).flatten()
    assert stats.kstest(draws.numpy(), stats.gamma(1.5, scale=2).cdf).pvalue > 0.01


@pytest.mark.parametrize("D", [1, 3])
def test_kl_is_the_mean_over_draws(D):
    q, p, S = random_wishart(D, 1), random_wishart(D, 2), 20_000
    q, p = q.expand((2,)), Wishart(p.df + 1, p.inverse_scale_tril)
    draws = q.sample((S,))
    differences = q.log_prob(draws) - p.log_prob(draws)
    expected = kl_divergence(q, p)
    assert ((differences.mean(0) - expected).abs() < 4 * differences.std(0) / math.sqrt(S)).all()
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("D", [1, 2, 5, 20])
def test_single_precision_draws_at_few_degrees_of_freedom_can_be_factorised(D):
    wishart = Wishart(torch.tensor(float(D)), 1e-3 * (torch.eye(D) + torch.ones(D, D).tril(-1)))
    draws = wishart.sample((3_000,))
    assert torch.equal(draws, draws.mT)
    for matrices in (draws, draws.flip(-1, -2)):
        assert not torch.linalg.cholesky_ex(matrices).info.any()


def test_gradients_follow_the_draws():
    df, L = torch.tensor(6.0, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    df.requires_grad_()
    draws = Wishart(df, L).rsample((20_000,))
    traces = draws.diagonal(dim1=-2, dim2=-1).sum(-1)
    (grad,) = torch.autograd.grad(traces.mean(), df)
    assert grad.item() == pytest.approx(2, abs=0.05)  # E tr = D df


def test_arguments_and_values_are_checked():
    with pytest.raises(ValueError, match="df"):
        Wishart(torch.tensor(1.0), torch.eye(2))
    with pytest.raises(ValueError, match="inverse_scale_tril"):
        Wishart(torch.tensor(3.0), torch.ones(2, 2))
    with pytest.raises(ValueError, match="PositiveDefinite"):
        Wishart(torch.tensor(3.0), torch.eye(2)).expand((3,)).log_prob(-torch.eye(2))


def test_maps_and_traces():
    from torch.fx.experimental.proxy_tensor import make_fx

    values = random_matrices(3, 4)[:, 0]

    def density(df, value):
        return Wishart(df, torch.eye(3, dtype=torch.float64), validate_args=False).log_prob(value)

    df = torch.tensor([3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    expected = torch.stack([density(df[i], values[i]) for i in range(4)])
    torch.testing.assert_close(torch.func.vmap(density)(df, values), expected)
    torch.testing.assert_close(make_fx(density)(df[0], values[0])(df[1], values[1]), expected[1])
