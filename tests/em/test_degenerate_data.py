"""Data that are few, or do not vary, or weigh nothing: a fit ends, and says nothing that is not there."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm

from .checks import fit

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def normals(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.3, 0.3]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    scale = pyro.param("scale", torch.ones(3, 2), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def multivariate(x):
    loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    factor = pyro.param("factor", torch.eye(2).repeat(2, 1, 1), constraint=constraints.lower_cholesky)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=factor[z]), obs=x)


MODELS = {
    "normals": lambda: normals,
    "multivariate": lambda: multivariate,
    **{
        f"GaussianMixture {c}": lambda c=c: lvm.models.GaussianMixture(2, 2, c)
        for c in ("full", "tied", "diag", "spherical")
    },
}
each_model = pytest.mark.parametrize("model", MODELS)
CONSTANT = torch.tensor([0.1, 7.0]).double().expand(60, 2)


@each_model
@pytest.mark.parametrize("columns", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"num_restarts": 3}, {"batch_size": 7}], ids=["once", "restarts", "batches"])
def test_constant_columns_have_the_smallest_variance_that_is_allowed(model, columns, options):
    """A millionth of that of the column that varies, or of one if none does."""
    x = torch.cat([CONSTANT[:, :columns], X[:, columns:]], 1)
    result = fit(MODELS[model](), x, max_iter=30, tol=1e-6, **options)
    assert torch.isfinite(result.objective).all()
    least = 1e-6 * (float(X[:, columns:].var(0, correction=0).min()) if columns < 2 else 1.0)
    params = result.params
    if "scale" in params:
        lowest = params["scale"].square().min()
    else:
        factor = params["factor" if "factor" in params else "scale_tril"]
        lowest = torch.linalg.eigvalsh(factor @ factor.mT).min()
    assert lowest > 0.999 * least
    if (columns == 2 and model != "multivariate") or (columns == 1 and "spherical" not in model):
        assert lowest < 1.001 * least


@pytest.mark.parametrize("model", [normals, multivariate, lvm.models.GaussianMixture(1, 2).double()])
def test_one_row_is_fitted(model):
    result = fit(model, X[:1], max_iter=10, num_restarts=2)
    assert torch.isfinite(result.objective).all()
    found = result.params["loc" if "loc" in result.params else "locs"]
    assert (found - X[0]).norm(dim=-1).min() < 1e-6


def test_restarts_of_fewer_rows_than_components_are_noise():
    result = fit(normals, X[:2], num_restarts=4, max_iter=20)
    assert result.restarts.shape == (4,)
    assert torch.isfinite(result.objective).all()


@pytest.mark.parametrize("model", [pytest.param("normals", marks=pytest.mark.slow), "GaussianMixture full"])
def test_rows_that_weigh_nothing_are_nowhere(model):
    """Neither in floors, nor in starts, nor in restarts."""
    x = torch.cat([X, torch.full((40, 2), 1e6)])
    weight = torch.cat([torch.ones(60), torch.zeros(40)])
    found = fit(MODELS[model](), x, sample_weight=weight, num_restarts=3, tol=1e-9)
    alone = fit(MODELS[model](), X, sample_weight=torch.ones(60), num_restarts=3, tol=1e-9)
    torch.testing.assert_close(found.objective[-1], alone.objective[-1])  # two starts end there, by other ways
    torch.testing.assert_close(found.restarts, alone.restarts)


def test_a_loader_shows_more_than_its_first_batch():
    """The floor of a first batch that hardly varies would be too low, and its start poor."""
    first = 1e-9 * X[:20]
    rows = torch.cat([first, torch.cat([X - 5, X + 5]).repeat(2, 1)])
    fits = [
        fit(lvm.models.GaussianMixture(3, 2), data, num_restarts=2, max_iter=50)
        for data in (DataLoader(TensorDataset(rows), batch_size=20), rows)
    ]
    torch.testing.assert_close(fits[0].objective, fits[1].objective)
    torch.testing.assert_close(fits[0].restarts, fits[1].restarts)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_columns_of_which_little_is_there(covariance):
    x = X.repeat(1, 2).clone()
    x[1:, 1] = torch.nan
    x[:, 3] = torch.nan
    result = fit(lvm.models.GaussianMixture(2, 4, covariance), x, missing=True, max_iter=20)
    assert torch.isfinite(result.objective).all()
    assert (result.objective.diff() > -1e-8).all()
