"""Errors against reference draws: on draws whose errors are known, and from every holder of draws."""

import itertools

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer import MCMC, NUTS
from pyro.ops.indexing import Vindex
from scipy.stats import norm

import pyro_lvm as lvm
from pyro_lvm.diagnostics.agreement import compare
from pyro_lvm.diagnostics.reference_draws import draws_by_name
from pyro_lvm.draws import posterior_draws

Y = torch.tensor([1.0, 2.0, 3.0, 4.0])
S = 20_000


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    pyro.deterministic("double", 2 * mean)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture(scope="module")
def result():
    return lvm.fit(model, "mean_field", Y, num_steps=1_000, optim=0.02, progress=False)


def grid(loc, scale, count=S):
    """Draws that lie evenly: their moments are those of the distribution."""
    return loc + scale * norm.ppf((np.arange(count) + 0.5) / count)


def test_errors_of_normal_marginals_are_known():
    """W1 of normals of one shape is the distance of the means; of normals of one mean, the sds' distance times E|z|."""
    fit = {"a": grid(1.0, 1.0), "b": np.stack([grid(0.0, 3.0), grid(5.0, 2.0)], -1), "only": grid(0, 1)}
    reference = {"a": grid(0.0, 1.0), "b": np.stack([grid(0.0, 2.0), grid(5.0, 2.0)], -1)}
    found = compare(fit, reference)
    assert found.names == ("a", "b[0]", "b[1]")
    np.testing.assert_allclose(found.mean_errors, [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(found.sd_errors, [0, 0.5, 0], atol=1e-3)
    np.testing.assert_allclose(found.wasserstein, [1, 0.5 * np.sqrt(2 / np.pi), 0], atol=1e-3)
    assert (found.worst, found.left_out) == ("a", ("only",))
    assert found.largest_mean_error == pytest.approx(1, abs=1e-3)
    assert found.largest_sd_error == pytest.approx(0.5, abs=1e-3)
    assert list(found.to_dataframe().index) == ["a", "b[0]", "b[1]"]
    assert "3 marginals: means within 1.00 posterior sd, sds within 50%, the worst is a" in str(found)
    assert "not in both: only" in str(found)


def test_a_conjugate_posterior_agrees_with_the_exact_one(result):
    """Within four standard errors of 10,000 draws, and what the fit's noise adds."""
    exact = {"mean": grid(10 / 4.01, 4.01**-0.5)}
    exact["double"] = 2 * exact["mean"]
    found = lvm.against(result, exact)
    assert found.names == ("mean", "double")
    assert found.largest_mean_error < 0.1 + 4 / 100
    assert found.largest_sd_error < 0.1 + 4 / 141


def test_constants_are_passed_over():
    fit = {"matrix": np.random.default_rng(0).normal(size=(50, 2, 2))}
    reference = {"matrix": fit["matrix"] * np.array([[1.0, 0.0], [1.0, 1.0]])}
    assert compare(fit, reference).names == ("matrix[0, 0]", "matrix[1, 0]", "matrix[1, 1]")
    with pytest.raises(ValueError, match="constant"):
        compare(fit, {"matrix": np.zeros((50, 2, 2))})


def holders():
    draws = torch.randn(200, generator=torch.Generator().manual_seed(0)) / 2 + 2.5
    mcmc = MCMC(NUTS(model), num_samples=200, warmup_steps=50, disable_progbar=True)
    pyro.set_rng_seed(0)
    mcmc.run(Y)
    yield {"mean": draws}
    yield {"mean": draws.numpy()}
    yield mcmc
    yield az.from_dict({"mean": draws.reshape(4, 50).numpy()})
    yield xarray.DataTree.from_dict({"posterior": xarray.Dataset({"mean": (("chain", "draw"), draws.reshape(4, 50))})})


def test_every_holder_of_draws_is_read(result):
    for holder in holders():
        found = lvm.against(result, holder, num_draws=500)
        assert found.names[0] == "mean"
        assert found.largest_mean_error < 0.6


def test_a_run_of_numpyro_is_read(result):
    """By the method that its MCMC shares with Pyro's."""

    class Run:
        def get_samples(self):
            return {"mean": grid(2.5, 0.5)}

    assert lvm.against(result, Run()).largest_mean_error < 0.2


def test_the_picture_has_a_line_for_each_number(result):
    ax = lvm.against(result, {"mean": grid(2.5, 0.5)}).plot()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["mean"]
    with pytest.raises(ValueError, match="scales"):
        lvm.plots.standardized(["a"], [0.0], [1.0, 2.0])


@pytest.mark.parametrize(
    "reference, error, message",
    [
        ([1.0, 2.0], TypeError, "expected a dict of arrays"),
        ({}, ValueError, "at least two draws"),
        ({"mean": [1.0]}, ValueError, "at least two draws"),
        ({"mean": [1.0, 2.0], "double": [1.0, 2.0, 3.0]}, ValueError, "as many of one as of another"),
        ({"mean": [1.0, float("nan")]}, ValueError, "not finite"),
        ({"other": [1.0, 2.0]}, ValueError, "no variable is in both"),
        ({"mean": [[1.0], [2.0]]}, ValueError, r"'mean' has shape \[\], in the reference \[1\]"),
        (az.from_dict(prior={"mean": np.ones((1, 5))}), ValueError, "no group 'posterior'"),
    ],
)
def test_what_is_wrong_with_a_reference_is_said(result, reference, error, message):
    with pytest.raises(error, match=message):
        lvm.against(result, reference)


def test_it_takes_results_alone():
    with pytest.raises(TypeError, match="result of a fit"):
        lvm.against({"mean": [1.0, 2.0]}, {"mean": [1.0, 2.0]})


@pytest.fixture(scope="module")
def three_groups():
    """Three groups of rows by a mixture, with what follows from the latents."""

    def mixture(x):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        scales = pyro.sample("scales", dist.LogNormal(torch.zeros(3), 0.5).to_event(1))
        pyro.deterministic("squares", locs.square())
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(Vindex(locs)[..., z], Vindex(scales)[..., z]), obs=x)

    def guide(x):
        locs = pyro.param("at", torch.tensor([-3.0, 0.0, 3.0]))
        pyro.sample("locs", dist.Normal(locs, 0.3).to_event(1))
        pyro.sample("scales", dist.LogNormal(torch.tensor([-0.5, 0.0, 0.5]), 0.1).to_event(1))

    x = torch.randn(30, generator=torch.Generator().manual_seed(0))
    x += torch.tensor([-3.0, 0.0, 3.0])[torch.arange(30) % 3]
    return lvm.fit(mixture, guide, x, num_steps=1, optim=1e-9, progress=False)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_components_are_numbered_as_in_the_reference(three_groups, order):
    """Of its own draws with other numbers a fit is off by Monte Carlo error alone, here of means and sds of 5,000."""
    order = list(order)
    own = three_groups.sample(5_000, seed=1)
    reference = {
        "locs": own["locs"][:, order],
        "scales": own["scales"][:, order],
        "squares": own["locs"][:, order].square(),
        "z": torch.tensor(order).argsort()[own["z"]],
    }
    found = lvm.against(three_groups, reference, num_draws=5_000, seed=2)
    means = dict(zip(found.names, found.mean_errors, strict=True))
    assert {"locs[0]", "scales[0]", "squares[0]", "z[0]"} <= means.keys()
    assert found.largest_mean_error < 4.5 * (2 / 5_000) ** 0.5
    if order == [0, 1, 2]:
        plain = compare(draws_by_name(posterior_draws(three_groups, 5_000, 2)), draws_by_name(reference))
        np.testing.assert_array_equal(found.mean_errors, plain.mean_errors)


def test_a_reference_that_knows_of_no_component_is_taken_as_it_is(three_groups):
    first = three_groups.sample(500, seed=1)["z"][:, :1]
    assert lvm.against(three_groups, {"z": first.expand(-1, 30) + torch.zeros(500, 30)}, num_draws=500).left_out
