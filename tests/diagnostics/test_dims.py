"""Names of dimensions and their coordinates."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics.dims import DimNames


def test_plates_name_dimensions_and_the_rest_is_counted(logistic):
    result, X, y = logistic
    data = lvm.to_arviz(result, 7)
    assert data["posterior"]["weights"].dims == ("chain", "draw", "weights_dim_0")
    assert data["posterior"]["intercept"].dims == ("chain", "draw")
    for group in ("log_likelihood", "posterior_predictive"):
        assert dict(data[group]["y"].sizes) == {"chain": 1, "draw": 7, "rows": 60}
    assert data["observed_data"]["y"].dims == ("rows",)
    np.testing.assert_array_equal(data["observed_data"]["y"].values, y)
    assert list(data["constant_data"].data_vars) == ["X"]
    assert data["constant_data"]["X"].dims == ("rows", "X_dim_0")
    np.testing.assert_array_equal(data["constant_data"]["X"].values, X)


def test_without_a_row_plate_the_likelihood_keeps_its_plates(schools):
    data = lvm.to_arviz(schools, 7)
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "schools")
    assert data["posterior"]["theta"].dims == ("chain", "draw", "schools")
    assert list(data["posterior"].data_vars) == ["mu", "tau", "eta", "theta"]
    assert list(data["observed_data"].data_vars) == ["y"]


def test_the_user_names_dimensions_and_their_elements(logistic):
    result, *_ = logistic
    names = [f"patient {i}" for i in range(60)]
    data = lvm.to_arviz(
        result,
        7,
        coords={"feature": ["age", "dose", "weight"], "rows": names},
        dims={"weights": ["feature"], "X": ["rows", "feature"]},
    )
    assert data["posterior"]["weights"].dims == ("chain", "draw", "feature")
    assert data["posterior"]["weights"].feature.values.tolist() == ["age", "dose", "weight"]
    assert data["constant_data"]["X"].dims == ("rows", "feature")
    for group in ("log_likelihood", "posterior_predictive", "observed_data", "constant_data"):
        assert data[group].rows.values.tolist() == names


def test_the_user_renames_the_rows(logistic):
    result, *_ = logistic
    data = lvm.to_arviz(result, 7, coords={"patient": range(100, 160)}, dims={"y": ["patient"]})
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "patient")
    assert data["posterior_predictive"]["y"].patient.values[0] == 100
    assert data["constant_data"]["X"].dims == ("rows", "X_dim_0")


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "coords names 'row', but the dimensions are .*'rows'", {"coords": {"row": range(60)}}),
        (ValueError, "'rows'.* has shape \\[59\\], but 'rows' has size 60", {"coords": {"rows": range(59)}}),
        (ValueError, "coords names 'draw'", {"coords": {"draw": range(7)}}),
        (ValueError, "has shape \\[60, 1\\]", {"coords": {"rows": np.zeros((60, 1))}}),
        (ValueError, "dims names 'w', but the variables are .*'weights'", {"dims": {"w": ["feature"]}}),
        (ValueError, "has 2 names, but 'weights' has 1 ", {"dims": {"weights": ["a", "b"]}}),
        (TypeError, "must be a list of names", {"dims": {"weights": "feature"}}),
        (TypeError, "must be a list of names", {"dims": {"weights": [0]}}),
        (ValueError, "must differ", {"dims": {"weights": ["draw"]}}),
        (ValueError, "must differ", {"dims": {"weights": ["y"]}}),
        (ValueError, "must differ", {"dims": {"X": ["a", "a"]}}),
        (ValueError, "different sizes, \\[3, 60\\]", {"dims": {"weights": ["rows"]}}),
        (ValueError, "num_draws must be a positive integer; got 0", {"num_draws": 0}),
        (ValueError, "seed must be", {"seed": -1}),
    ],
)
def test_wrong_names(logistic, error, message, options):
    with pytest.raises(error, match=message):
        lvm.to_arviz(logistic[0], **{"num_draws": 7, **options})


def test_a_plate_in_two_sizes_takes_two_names():
    """Pyro allows a plate's name once, but handlers that make plates of their own may repeat it."""
    names = DimNames({}, {"a", "b", "part_7"})
    assert names("a", [("part", 3), None]) == ["part", "a_dim_0"]
    assert names("b", [None, ("part", 2), None]) == ["b_dim_0", "part_2", "b_dim_1"]
    assert names("b", [("part", 3), ("part", 7)]) == ["part", "part_7_"]


def test_a_plate_named_like_a_variable_or_the_draws(fit):
    X, y = torch.randn(5, 2), torch.randn(5)

    def model(X, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("draw", 3):
            pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("X", len(X)):
            pyro.sample("y", dist.Normal(X @ w, 1.0), obs=y)

    data = lvm.to_arviz(fit(model, "mean_field", X, y), 4)
    assert data["constant_data"]["X"].dims == ("X_5", "X_dim_0")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "X_5")
    assert data["posterior"]["u"].dims == ("chain", "draw", "draw_3")


def test_equal_sizes_do_not_make_a_plate(fit):
    """An event as long as the plates, and plates as long as each other."""

    def model(y):
        with pyro.plate("outer", 3, dim=-2):
            pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("inner", 3, dim=-1):
                pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=y)

    posterior = lvm.to_arviz(fit(model, "mean_field", torch.zeros(3)), 4)["posterior"]
    assert posterior["a"].dims == ("chain", "draw", "outer", "a_dim_0", "a_dim_1")
    assert posterior["a"].shape == (1, 4, 3, 1, 3)
    assert posterior["b"].dims == ("chain", "draw", "outer", "inner", "b_dim_0")


def test_deterministic_sites_lie_in_their_plates(fit):
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.deterministic("pair", torch.stack([a, -a]))
        with pyro.plate("rows", len(y)):
            pyro.deterministic("fitted", a + torch.zeros(4))
            pyro.deterministic("shared", torch.stack([a, -a]))
            pyro.deterministic("both", torch.stack([a, -a]).expand(4, 2), event_dim=1)
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    posterior = lvm.to_arviz(fit(model, "mean_field", torch.zeros(4)), 3)["posterior"]
    assert posterior["pair"].dims == ("chain", "draw", "pair_dim_0")
    assert posterior["fitted"].dims == ("chain", "draw", "rows")
    assert posterior["shared"].dims == ("chain", "draw", "shared_dim_0")
    assert posterior["both"].dims == ("chain", "draw", "rows", "both_dim_0")
    np.testing.assert_array_equal(posterior["both"].values[..., 1], -posterior["fitted"].values)


def linear(X, *others):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(X)):
        pyro.sample("z", dist.Normal(X * slope, 1.0), obs=others[0])


def test_constant_data_takes_the_names_of_the_signature(fit):
    X, y = np.arange(4.0, dtype=np.float32), torch.randn(4)
    constant = lvm.to_arviz(fit(linear, "mean_field", X, y, 2.5, None, "text", torch.zeros(2)), 3)["constant_data"]
    assert set(constant.data_vars) == {"X", "data_2", "data_5"}
    assert constant["data_2"].values == 2.5
    assert constant["data_2"].dims == ()
    assert constant["X"].dims == ("rows",)
    assert constant["data_5"].dims == ("data_5_dim_0",)


class Holder:
    def model(self, inputs, y, *, power):
        return linear(inputs**power, y)


@pytest.mark.parametrize(
    "model", [Holder().model, functools.partial(Holder.model, Holder())], ids=["bound method", "partial"]
)
def test_signatures_of_methods_and_partials(fit, model):
    result = fit(model, "mean_field", torch.randn(4), torch.randn(4), model_kwargs={"power": 2})
    assert list(lvm.to_arviz(result, 3)["constant_data"].data_vars) == ["inputs"]


def test_data_that_is_all_observed_leaves_no_constant_data(fit, clusters):
    data = lvm.to_arviz(fit(lvm.models.GaussianMixture(2, 2), None, clusters), 3)
    with pytest.raises((KeyError, AttributeError)):
        data["constant_data"]
