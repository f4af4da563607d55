"""Small fits that several files of tests share. What they cost is paid once."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def quick_fit(model, guide, *data, num_steps=20, optim=0.05, **options):
    return lvm.fit(model, guide, *data, num_steps=num_steps, optim=optim, progress=False, **options)


@pytest.fixture(scope="session")
def logistic():
    """A logistic regression on 60 rows with 3 features, and its data."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(60, 3, generator=generator)
    y = (X[:, 0] + torch.randn(60, generator=generator) > 0).float()
    return quick_fit(lvm.models.BayesianLogisticRegression(3), "full_rank", X, y, num_steps=500), X, y


@pytest.fixture(scope="session")
def eight_schools():
    """A model with its data in the closure and no row plate, and its data."""

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfNormal(5.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)

    return model, EFFECTS, ERRORS


@pytest.fixture(scope="session")
def schools(eight_schools):
    """A mean-field fit of the eight schools."""
    return quick_fit(eight_schools[0], "mean_field", num_steps=300)


@pytest.fixture(scope="session")
def clusters():
    """Two well separated groups of 20 and 30 points."""
    generator = torch.Generator().manual_seed(2)
    return torch.cat([torch.randn(20, 2, generator=generator) - 2, torch.randn(30, 2, generator=generator) + 2])


@pytest.fixture
def fit():
    return quick_fit
