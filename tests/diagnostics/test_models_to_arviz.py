"""Every model of the package, by ``fit`` and by ``fit_em``, in the hands of ArviZ."""

import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm import models

GENERATOR = torch.Generator().manual_seed(0)
X = torch.cat([torch.randn(12, 3, generator=GENERATOR) + shift for shift in (-3, 3)])
Y = (X[:, 0] > 0).float()
COUNTS = torch.poisson(torch.full((12, 8), 1.5), generator=GENERATOR)
MODELS = {
    "BayesianGaussianMixture": lambda: (models.BayesianGaussianMixture(2, 3).initialize(X), X),
    "BayesianLogisticRegression": lambda: (models.BayesianLogisticRegression(3), X, Y),
    "FactorAnalysis": lambda: (models.FactorAnalysis(1, 3), X),
    "FlowDensity": lambda: (models.FlowDensity(lvm.flows.LinearFlow(3)), X),
    "GaussianMixture": lambda: (models.GaussianMixture(2, 3).initialize(X), X),
    "HMM": lambda: (models.HMM(2, "gaussian", num_features=3), X.reshape(4, 6, 3), torch.full((4,), 6)),
    "LDA": lambda: (models.LDA(2, 8), COUNTS),
    "Mixture": lambda: (models.Mixture(2, "gaussian", num_features=3).initialize(X), X),
    "PPCA": lambda: (models.PPCA(1, 3), X),
    "VAE": lambda: (models.VAE(3, 1, hidden=(4,)), (X > 0).float()),
}


def fitted(name, by):
    model, *data = MODELS[name]()
    if by == "fit_em":
        return lvm.fit_em(model, *data, max_iter=3, progress=False)
    guide = "mean_field" if name == "BayesianLogisticRegression" else None
    return lvm.fit(model, guide, *data, num_steps=3, progress=False)


def test_no_model_is_forgotten():
    assert {name for name in models.__all__ if isinstance(getattr(models, name), type)} == MODELS.keys()


FITS = [(name, by) for name in MODELS for by in ("fit", "fit_em")]
LONG = ("BayesianGaussianMixture", "fit")


@pytest.mark.parametrize(("name", "by"), [pytest.param(*f, marks=[pytest.mark.slow] * (f == LONG)) for f in FITS])
def test_each_model_has_its_groups(name, by):
    result = fitted(name, by)
    data = lvm.to_arviz(result, 5, unconstrained=True)
    assert set(data["log_likelihood"].data_vars) == set(result._program.data_sites)
    if latents := set(result.sample(1)):
        assert latents <= set(data["posterior"].data_vars)
    if name != "LDA":
        assert set(data["posterior_predictive"].data_vars) == set(result._program.data_sites)


def test_covariances_have_no_way_to_unconstrained_space():
    data = lvm.to_arviz(fitted("BayesianGaussianMixture", "fit_em"), 5, unconstrained=True)
    assert set(data["unconstrained_posterior"].data_vars) == {"weights", "means"}


def test_topics_are_a_parameter_and_no_data():
    """LDA writes the prior of its topics as an observed site."""
    result = fitted("LDA", "fit_em")
    assert result._program.sites.observed == ("topics", "words")
    data = lvm.to_arviz(result, 5)
    assert set(data["log_likelihood"].data_vars) == {"words"}
    assert "posterior_predictive" not in data
    assert "observed_data" not in data
    assert result.predict(num_draws=1).keys() == {"words"}
    found = lvm.diagnose(result, 50)
    assert found.checks.each == ()
    assert "sparse table" in found.not_available["predictions of 'words'"]
