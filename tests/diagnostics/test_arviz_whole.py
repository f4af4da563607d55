"""An object with all its groups, of a fit by SVI and of one by EM, in the hands of ArviZ."""

import importlib
from importlib import metadata

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_lvm as lvm

IS_OLD = metadata.version("arviz").startswith("0.")
GROUPS = {
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
    "prior",
    "prior_predictive",
    "predictions",
    "predictions_constant_data",
    "unconstrained_posterior",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def az():
    import matplotlib

    matplotlib.use("Agg")
    return importlib.import_module("arviz")


def latents(X, y=None):
    """A regression whose noise has a latent scale."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ slope, noise), obs=y)


def factors(X, y=None):
    """A regression on a latent number beside the inputs, and of which of two kinds a row is."""
    slope = pyro.param("slope", torch.zeros(2))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    shift = pyro.sample("shift", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(X)):
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.5, 0.5])))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(X @ slope + shift * kind + 0.5 * z, noise), obs=y)


def plain(X, y=None):
    """A regression whose parameters are points."""
    slope = pyro.param("slope", torch.zeros(2))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ slope, noise), obs=y)


def given():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 2, generator=generator)
    return X, X @ torch.tensor([1.0, -1.0]) + 0.5 * torch.randn(40, generator=generator)


def whole(result, **options):
    return lvm.to_arviz(
        result,
        num_draws=120,
        predictions=(torch.zeros(3, 2),),
        unconstrained=True,
        coords={"rows": [f"r{i}" for i in range(40)], "feature": ["a", "b"]},
        dims={"slope": ["feature"], "X": ["rows", "feature"]},
        **options,
    )


def by_svi():
    return whole(lvm.fit(latents, "full_rank", *given(), num_steps=200, optim=0.05, progress=False))


def by_em():
    return whole(lvm.fit_em(factors, *given(), max_iter=10, progress=False))


def by_bootstrap():
    return whole(lvm.fit_em(plain, *given(), progress=False), bootstrap=100)


@pytest.fixture(scope="module", params=[by_svi, by_em, by_bootstrap])
def data(request):
    return request.param()


def names(data):
    return set(data.groups()) if IS_OLD else set(data.children)


def group_of(data, name):
    return data[name] if IS_OLD else data[name].to_dataset()


def test_all_groups_are_there(data):
    extra = names(data) - GROUPS
    is_em = "kind" in data["posterior"]
    missing = {"unconstrained_posterior", "prior"} if "bootstrap" in data["posterior"].attrs else set()
    assert names(data) == (GROUPS - missing) | extra
    assert extra == ({"latent_moments"} if is_em else set())
    assert {"slope", "noise"} <= set(data["posterior"].data_vars)


def test_file_gives_everything_back(az, data, tmp_path):
    path = str(tmp_path / "fit.nc")
    data.to_netcdf(path, engine="h5netcdf")
    read = az.from_netcdf(path, engine="h5netcdf") if IS_OLD else importlib.import_module("xarray").load_datatree(path)
    assert names(read) == names(data)
    for name in names(data):
        there, here = group_of(read, name), group_of(data, name)
        importlib.import_module("xarray").testing.assert_equal(there, here)
        assert there.attrs.keys() == here.attrs.keys()
        assert {v: there[v].dtype for v in there.data_vars} == {v: here[v].dtype for v in here.data_vars}


def test_summary(az, data):
    table = az.summary(data, var_names=["slope", "noise"], kind="stats", round_to=6)
    assert list(table.index) == ["slope[a]", "slope[b]", "noise"]
    draws = data["posterior"]["slope"].values.reshape(-1, 2).astype(float)
    np.testing.assert_allclose(table["mean"].astype(float)[:2], draws.mean(0), atol=1e-4)
    np.testing.assert_allclose(table["sd"].astype(float)[:2], draws.std(0, ddof=1), atol=1e-3)
    if "kind" in data["posterior"]:  # parameters of EM are points
        assert (table["sd"].astype(float) < 1e-5).all()  # the rounding of single precision


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # matplotlib, of ArviZ 0.2x
@pytest.mark.parametrize("kind", ["plot_trace", "plot_forest", "plot_ppc" if IS_OLD else "plot_ppc_dist"])
def test_pictures(az, data, kind):
    import matplotlib.pyplot as plt

    is_em = "kind" in data["posterior"]
    options = {} if "ppc" in kind else {"var_names": ["z"] if is_em else ["slope", "noise"]}
    if is_em and options:
        options["coords"] = {"rows": ["r0", "r1"]}
    getattr(az, kind)(data, **options)
    assert plt.get_fignums()
    plt.close("all")


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")  # some are large where rows have latents
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas, of ArviZ 0.2x
def test_leave_one_out_and_comparison(az, data):
    loo = az.loo(data, pointwise=True, reff=1.0)
    elpd = loo.elpd_loo if IS_OLD else loo.elpd
    assert -60 < elpd < -10
    assert loo.pareto_k.dims == ("rows",)
    X, y = given()
    blind = lvm.to_arviz(lvm.fit_em(plain, torch.zeros_like(X), y, progress=False), bootstrap=60)
    loos = {"blind": az.loo(blind, pointwise=True, reff=1.0), "seeing": loo}
    assert list(az.compare(loos).index) == ["seeing", "blind"]
