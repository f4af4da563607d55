"""What ArviZ makes of it: files, summaries, comparisons, pictures; and what is refused."""

import importlib
import math
import subprocess
import sys
import types
from importlib import metadata

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.diagnostics import arviz_versions

IS_OLD = metadata.version("arviz").startswith("0.")


@pytest.fixture
def az():
    import matplotlib

    matplotlib.use("Agg")
    return importlib.import_module("arviz")


@pytest.fixture
def data(logistic):
    return lvm.to_arviz(logistic[0], 400, coords={"rows": [f"r{i}" for i in range(60)]})


def group_names(data):
    return set(data.groups()) if IS_OLD else set(data.children)


def elpd(loo):
    return loo.elpd_loo if IS_OLD else loo.elpd


def test_groups_and_attributes(data):
    assert group_names(data) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "constant_data",
        "prior",
        "prior_predictive",
    }
    for group in group_names(data):
        assert data[group].attrs["inference_library"] == "pyro_lvm"
        assert data[group].attrs["inference_library_version"] == lvm.__version__
        assert data[group].attrs["created_at"].startswith("20")


def test_kind_of_object(data):
    assert type(data).__name__ == ("InferenceData" if IS_OLD else "DataTree")


def test_netcdf_round_trip(az, data, tmp_path):
    path = str(tmp_path / "fit.nc")
    data.to_netcdf(path, engine="h5netcdf")
    read = az.from_netcdf(path, engine="h5netcdf") if IS_OLD else importlib.import_module("xarray").load_datatree(path)
    assert group_names(read) == group_names(data)
    for group in group_names(data):
        assert set(read[group].data_vars) == set(data[group].data_vars)
        for name, variable in data[group].data_vars.items():
            assert read[group][name].dims == variable.dims
            assert read[group][name].dtype == variable.dtype
            for dim in variable.dims:
                assert read[group][dim].values.tolist() == variable[dim].values.tolist()
            np.testing.assert_array_equal(read[group][name].values, variable.values)


def test_loo_equals_that_of_a_log_likelihood_made_by_hand(az, data, logistic):
    _, X, y = logistic
    weights = data["posterior"]["weights"].values
    logits = weights @ X.numpy().T + data["posterior"]["intercept"].values[..., None]
    by_hand = {"posterior": {"w": weights}, "log_likelihood": {"y": np.where(y, -np.log1p(np.exp(-logits)), 0)}}
    by_hand["log_likelihood"]["y"] += np.where(y, 0, -np.log1p(np.exp(logits)))
    other = az.from_dict(**by_hand) if IS_OLD else az.from_dict(by_hand)
    loo, expected = az.loo(data, pointwise=True, reff=1.0), az.loo(other, pointwise=True, reff=1.0)
    assert math.isclose(elpd(loo), elpd(expected), rel_tol=1e-4)
    assert -60 < elpd(loo) < -20
    assert loo.pareto_k.dims == ("rows",)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas, of ArviZ 0.2x
def test_summary_and_comparison(az, data, logistic, fit):
    _, X, y = logistic
    summary = az.summary(data, var_names=["weights"], kind="stats")
    assert list(summary.index) == ["weights[0]", "weights[1]", "weights[2]"]
    np.testing.assert_allclose(
        summary["mean"].astype(float), data["posterior"]["weights"].values.mean((0, 1)), atol=0.01
    )
    useless = lvm.to_arviz(
        fit(lvm.models.BayesianLogisticRegression(3, prior_scale=1e-3), "mean_field", X, y, num_steps=200), 400
    )
    loos = {name: az.loo(d, pointwise=True, reff=1.0) for name, d in (("useless", useless), ("good", data))}
    assert list(az.compare(loos).index) == ["good", "useless"]


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # matplotlib, of ArviZ 0.2x
@pytest.mark.filterwarnings("ignore:Variables y in .* look binary")  # ArviZ 1.x, which has another picture for them
@pytest.mark.parametrize("kind", ["plot_trace", "plot_forest", "plot_ppc" if IS_OLD else "plot_ppc_dist"])
def test_pictures(az, data, kind):
    import matplotlib.pyplot as plt

    options = {} if "ppc" in kind else {"var_names": ["weights"]}
    getattr(az, kind)(data, **options)
    assert plt.get_fignums()
    plt.close("all")


def test_takes_results_only(logistic):
    with pytest.raises(TypeError, match="the result of a fit; got BayesianLogisticRegression"):
        lvm.to_arviz(logistic[0]._program.model)


def test_a_fit_that_kept_no_rows(fit):
    loader = DataLoader(TensorDataset(torch.randn(12, 2)), batch_size=4)
    with pytest.raises(ValueError, match="load it with the rows"):
        lvm.to_arviz(fit(lvm.models.PPCA(1, 2), None, loader, num_steps=3), 5)


def test_a_model_that_subsamples_by_itself(fit):
    y = torch.randn(10)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample_size=4) as index:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

    with pytest.raises(ValueError, match="'rows' around 'y' takes 4 of its 10"):
        lvm.to_arviz(fit(model, "mean_field", y), 5)


def test_a_loaded_result_gives_the_same(logistic, tmp_path):
    result, X, y = logistic
    result.save(tmp_path / "fit.pt")
    again = lvm.load(tmp_path / "fit.pt", lvm.models.BayesianLogisticRegression(3), "full_rank", X, y)
    for group, name in (("posterior", "weights"), ("sample_stats", "log_q"), ("log_likelihood", "y")):
        np.testing.assert_array_equal(
            lvm.to_arviz(again, 9)[group][name].values, lvm.to_arviz(result, 9)[group][name].values
        )


def test_arviz_is_imported_when_it_is_used():
    script = "import sys, pyro_lvm; print([m for m in ('arviz', 'arviz_base', 'xarray') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


class FakeArviz(types.ModuleType):
    """Stands for an installed ArviZ: makes the attributes, and an object that shows what it was given."""

    InferenceData = dict

    @staticmethod
    def dict_to_dataset(data, attrs):
        return types.SimpleNamespace(attrs={"created_at": "now", **attrs})


def pretend(monkeypatch, version, base_is_there):
    def installed(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    fake = types.SimpleNamespace(version=installed, PackageNotFoundError=metadata.PackageNotFoundError)
    monkeypatch.setattr(arviz_versions, "metadata", fake)
    monkeypatch.setitem(sys.modules, "arviz", FakeArviz("arviz"))
    monkeypatch.setitem(sys.modules, "arviz_base", FakeArviz("arviz_base") if base_is_there else None)


@pytest.mark.parametrize(
    ("version", "base_is_there", "kind"),
    [("0.23.4", False, "dict"), ("0.23.4", True, "dict"), ("1.3.0", True, "DataTree"), (None, True, "DataTree")],
)
def test_each_line_of_arviz_gets_its_object(monkeypatch, version, base_is_there, kind):
    pretend(monkeypatch, version, base_is_there)
    groups = {"posterior": {"a": (["chain", "draw", "k"], np.ones((1, 2, 3)))}}
    made = arviz_versions.assemble(groups, {"posterior": {"k": np.array(["x", "y", "z"])}}, {"posterior": {"by": "me"}})
    assert type(made).__name__ == kind
    assert made["posterior"]["a"].k.values.tolist() == ["x", "y", "z"]
    assert made["posterior"].attrs.items() >= {"created_at": "now", "by": "me"}.items()
    assert ("sample_dims" in made["posterior"].attrs) == (kind == "DataTree")


def test_without_arviz(monkeypatch):
    pretend(monkeypatch, None, base_is_there=False)
    with pytest.raises(ImportError, match="pip install arviz"):
        arviz_versions.assemble({}, {}, {})
