"""Simulation-based calibration, on models whose posteriors are known."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import kstest
from torch import nn

import pyro_lvm as lvm
from pyro_lvm.diagnostics.calibration import Calibration

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def normal(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def normal_guide(factor=1.0, shift=0.0):
    def guide(y):
        precision = len(y) + 0.25
        sd = precision**-0.5
        pyro.sample("mean", dist.Normal(y.sum() / precision + shift * sd, factor * sd))

    return guide


def regression(X, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(X @ b, 1.0), obs=y)


def regression_guide(factor=1.0, shift=0.0):
    def guide(X, y):
        covariance = torch.linalg.inv(X.T @ X + torch.eye(3))
        shifted = covariance @ (X.T @ y) + shift * covariance.diagonal().sqrt()
        pyro.sample("b", dist.MultivariateNormal(shifted, factor**2 * covariance))

    return guide


def counts(y):
    with pyro.plate("groups", 3):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)


def counts_guide(factor=1.0, shift=0.0):
    def guide(y):
        a, b = 2 + y.sum(0), 1.0 + len(y)
        a, b = a / factor**2, b / factor**2  # the same mean, and the sd times the factor
        with pyro.plate("groups", 3):
            pyro.sample("rate", dist.Gamma(a, b / (1 + shift * a.rsqrt())))

    return guide


MODELS = {
    "normal": (normal, normal_guide, (torch.zeros(10),)),
    "regression": (regression, regression_guide, (X, torch.zeros(20))),
    "counts": (counts, counts_guide, (torch.zeros(8, 3),)),
}


def calibrated(model, guide, *data, **options):
    return lvm.calibrate(model, guide, *data, progress=False, **options)


@pytest.mark.parametrize("name", MODELS)
def test_an_exact_guide_passes_and_one_too_narrow_does_not(name):
    model, guide, data = MODELS[name]
    good, narrow = (calibrated(model, guide(factor), *data) for factor in (1.0, 0.8))
    assert good.verdict == "good"
    assert good.p_value > 0.05
    assert narrow.verdict == "bad"
    assert narrow.p_value < 0.01
    assert "too narrow" in narrow.summary()


def test_a_guide_too_wide_or_shifted_is_told_so():
    assert "too wide" in calibrated(normal, normal_guide(1.3), torch.zeros(10)).summary()
    low = calibrated(normal, normal_guide(shift=-0.5), torch.zeros(10))
    assert "the guide is too low" in low.summary()
    assert "wide" not in low.summary()
    assert "narrow" not in low.summary()
    assert low.symmetry_p_values[0] < 1e-6
    assert calibrated(normal, normal_guide(0.8), torch.zeros(10)).symmetry_p_values[0] > 0.01


@pytest.mark.parametrize("guide", ["full_rank", "mean_field"])
def test_fits_by_name_run_at_the_same_time(guide):
    """A full-rank guide is exact; a mean field has conditional variances, here shorter by a quarter and more."""
    wide = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]])

    def model(X, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(X @ b, 1.0), obs=y)

    found = calibrated(model, guide, wide, torch.zeros(20), num_steps=1_000)
    assert found.verdict == ("good" if guide == "full_rank" else "bad")


def test_p_values_of_uniform_ranks_are_uniform():
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(100, (500, 400), generator=generator)
    found = Calibration({"x": ranks}, 99, 0, 0, 0.0)
    assert kstest(np.minimum(found.symmetry_p_values, 1), "uniform").pvalue > 0.01
    assert (found.p_values < 0.05).mean() < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_seeds_and_pictures():
    first, second = (calibrated(normal, normal_guide(), torch.zeros(10), num_simulations=60) for _ in range(2))
    assert torch.equal(first.ranks["mean"], second.ranks["mean"])
    other = calibrated(normal, normal_guide(), torch.zeros(10), num_simulations=60, seed=1)
    assert not torch.equal(first.ranks["mean"], other.ranks["mean"])
    figure = first.plot()
    assert isinstance(figure, Figure)
    assert first.ranks["mean"].min() >= 0
    assert first.ranks["mean"].max() <= 99


def test_modules_and_parameters_are_left_alone():
    guide = lvm.guides.FlowGuide(normal)
    calibrated(normal, guide, torch.zeros(5), num_simulations=50, num_steps=20)
    assert pyro.get_param_store().keys() == set()
    assert list(guide.parameters()) == []
    assert not guide.fitted


def test_lazy_modules_stay_lazy():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.LazyLinear(1)

        def forward(self, y):
            pyro.sample("mean", dist.Normal(self.net(y)[0], 1.0))

    encoder = Encoder()
    for num_rows in (5, 3):
        calibrated(normal, encoder, torch.zeros(num_rows), num_simulations=50, num_steps=20)
        assert isinstance(encoder.net, nn.LazyLinear)


def test_discrete_latents_are_ranked_with_ties_broken_at_random():
    def model(y):
        n = pyro.sample("n", dist.Poisson(3.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(n, 1e3), obs=y)

    def guide(y):
        pyro.sample("n", dist.Poisson(3.0))  # the data tell nothing

    assert calibrated(model, guide, torch.zeros(2)).p_value > 0.05


@pytest.mark.parametrize(
    ("model", "guide", "data", "match"),
    [
        (lambda: normal(torch.zeros(3)), "mean_field", (), "no argument of the model of their own"),
        (lambda y: pyro.sample("x", dist.Normal(0.0, 1.0)), "mean_field", (torch.zeros(2),), "observes nothing"),
    ],
)
def test_observations_have_to_be_arguments(model, guide, data, match):
    with pytest.raises(ValueError, match=match):
        calibrated(model, guide, *data)


def test_models_that_cannot_be_simulated_are_refused():
    def parameter(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1), obs=y)

    def improper(y):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x.expand(len(y)), 1.0).to_event(1), obs=y)

    def weighted(y):
        with pyro.poutine.scale(scale=0.3):
            normal(y)

    def own_rows(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", 100, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def masked(y):
        with pyro.plate("rows", len(y)), pyro.poutine.mask(mask=torch.arange(len(y)) > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(ValueError, match="'mean' is weighted"):
        calibrated(weighted, "mean_field", torch.zeros(3))
    with pytest.raises(ValueError, match="takes 3 of its 100 elements"):
        calibrated(own_rows, "mean_field", torch.zeros(3))
    with pytest.raises(ValueError, match="'z' is masked"):
        calibrated(masked, "mean_field", torch.zeros(3))
    with pytest.raises(ValueError, match="has the parameter 'loc'"):
        calibrated(parameter, "mean_field", torch.zeros(2))
    with pytest.raises(ValueError, match="improper"):
        calibrated(improper, "mean_field", torch.zeros(2))
    with pytest.raises(ValueError, match="no latent site"):
        calibrated(lambda y: pyro.sample("y", dist.Normal(0.0, 1.0), obs=y), None, torch.tensor(0.0))


def test_observations_are_read_by_their_sites_alone():
    def regressed_on_the_past(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        past = torch.cat([torch.zeros(1), y[:-1]])
        pyro.sample("y", dist.Normal(mean + 0.5 * past, 1.0).to_event(1), obs=y)

    def weighed(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("prior", -(mean**2))
        pyro.sample("y", dist.Normal(mean.expand(len(y)), 1.0).to_event(1), obs=y)

    def bounded(y):
        mean = pyro.sample("mean", dist.Normal(1.0, 1.0))
        pyro.factor("bound", torch.where(mean > 0, 0.0, -torch.inf))
        pyro.sample("y", dist.Normal(mean.expand(len(y)), 1.0).to_event(1), obs=y)

    def given_twice(x, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean.expand(len(x)), 1.0).to_event(1), obs=y)

    def turned(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(mean.expand(2, 2), 1.0).to_event(2), obs=y.T)

    with pytest.raises(ValueError, match="density of 'y' depends on the observations among the arguments"):
        calibrated(regressed_on_the_past, "mean_field", torch.zeros(5))
    with pytest.raises(ValueError, match="'prior' is a factor of the latents"):
        calibrated(weighed, "mean_field", torch.zeros(5))
    for seed in range(5):
        with pytest.raises(ValueError, match="'bound' is a factor of the latents"):
            calibrated(bounded, "mean_field", torch.zeros(5), seed=seed)
    y = torch.zeros(5)
    with pytest.raises(ValueError, match="no argument of the model of their own"):
        calibrated(given_twice, "mean_field", y, y)
    with pytest.raises(ValueError, match="no argument of the model of their own"):
        calibrated(turned, "mean_field", torch.zeros(2, 2))


def test_what_one_observation_says_of_the_next_is_simulated():
    """z ~ N(0, 1), x ~ N(z, 1), y ~ N(x, 1): the posterior of z is N(x / 2, 1 / 2), whatever y is."""

    def model(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        pyro.factor("constant", torch.tensor(2.0))

        pyro.deterministic("above" if z > 0 else "below", z)

    def guide(x, y):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    assert calibrated(model, guide, torch.tensor(0.0), torch.tensor(0.0)).p_value > 0.05


@pytest.mark.parametrize("sign", [-1, 1])
def test_fits_that_fail_are_left_out_and_told(sign):
    def guide(y):
        sd = (len(y) + 0.25) ** -0.5
        mean = y.sum() / (len(y) + 0.25)
        fails = (sign * mean > limit) & (y != 0).any()
        pyro.sample("mean", dist.Normal(torch.where(fails, torch.nan, mean), sd))

    limit = 4.0  # two prior standard deviations
    found = calibrated(normal, guide, torch.zeros(10))
    assert 0 < found.num_failed < 50
    assert len(found.ranks["mean"]) == 500 - found.num_failed
    assert found.verdict == "doubtful"
    assert f"{found.num_failed} fits were not finite" in found.summary()
    limit = -100.0
    with pytest.raises(ValueError, match="500 of 500 fits were not finite"):
        calibrated(normal, guide, torch.zeros(10))


def test_programs_that_read_values_are_refused():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        if mean.item() > 1e9:
            raise AssertionError
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    with pytest.raises(ValueError, match="cannot run at the same time"):
        calibrated(model, "mean_field", torch.zeros(3))


@pytest.mark.parametrize(
    ("option", "value"),
    [("optim", 0), ("optim", torch.inf), ("num_draws", 0), ("num_simulations", 49), ("num_steps", -1)],
)
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=option):
        calibrated(normal, normal_guide(), torch.zeros(3), **{option: value})


def test_an_elbo_is_one():
    with pytest.raises(TypeError, match="elbo"):
        calibrated(normal, normal_guide(), torch.zeros(3), elbo="a")
