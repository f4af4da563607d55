"""Models in which a rule of the M-step could go wrong without a sign of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm

from .checks import pyros_log_density

generator = torch.Generator().manual_seed(0)
Z = torch.arange(400) % 2
H = torch.tensor([0.0, 2.0], dtype=torch.float64)[Z] + 0.05 * torch.randn(400, generator=generator, dtype=torch.float64)
INCOME = 1e5 * torch.randn(400, generator=generator, dtype=torch.float64)


def fit(model, *data, **options):
    return lvm.fit_em(model, *data, progress=False, **options)


def height(x, mask=None):
    loc = pyro.param("loc", torch.tensor([0.5, 1.5]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        with poutine.mask(mask=True if mask is None else mask):
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def test_floors_of_one_site_are_not_those_of_another():
    def both(income, x):
        spread = pyro.param("spread", torch.tensor(1e5), constraint=constraints.positive)
        with pyro.plate("more", len(income)):
            pyro.sample("income", dist.Normal(0.0, spread), obs=income)
        height(x)

    result = fit(both, INCOME, H, plate="rows")
    assert (result.params["scale"] < 0.06).all()
    torch.testing.assert_close(result.params["spread"], INCOME.square().mean().sqrt())


def test_what_a_mask_hides_sets_no_floor():
    hidden = H.clone()
    hidden[::10] = -9_999.0
    result = fit(height, hidden, hidden > -9_000)
    assert (result.params["scale"] < 0.06).all()


def test_rows_of_no_weight_set_no_floor():
    far = torch.cat([H, torch.tensor([1e5])])
    weight = torch.cat([torch.ones(400), torch.zeros(1)])
    assert (fit(height, far, sample_weight=weight).params["scale"] < 0.06).all()
    mixture = lvm.models.GaussianMixture(2, 1)
    start = {"weights": [0.5, 0.5], "locs": [[0.0], [2.0]], "scale_tril": torch.full((2, 1, 1), 0.2)}
    fit(mixture, far.unsqueeze(1), sample_weight=weight, init=start)
    assert (mixture.covariances < 0.01).all()


@pytest.mark.parametrize("bound", [constraints.greater_than(0.5), constraints.interval(0.5, 5.0)])
def test_a_maximum_outside_its_constraint_is_not_taken(bound):
    def bounded(x):
        scale = pyro.param("scale", torch.tensor([2.0, 2.0]), constraint=bound)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(torch.tensor([0.0, 2.0])[z], scale[z]), obs=x)

    result = fit(bounded, H)
    assert "outside its constraint" in result.summary()
    assert ((result.params["scale"] >= 0.5) & (result.params["scale"] < 0.51)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_lies_outside_the_rows_counts_once(dtype):
    def outside(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(5.0, dtype=dtype), 1.0))
        with pyro.plate("three", 3):
            pyro.sample("counts", dist.Poisson(rate), obs=torch.tensor([1.0, 2.0, 0.0], dtype=dtype))
        scale = pyro.param("scale", torch.ones((), dtype=dtype), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    x = torch.randn(2_000, dtype=dtype, generator=generator)
    whole, batched = fit(outside, x), fit(outside, x, batch_size=100)
    torch.testing.assert_close(whole.params["rate"], torch.tensor(7 / 4, dtype=dtype))
    torch.testing.assert_close(batched.params["rate"], whole.params["rate"])


def test_a_scaled_prior_counts_as_often():
    def scaled(x):
        with poutine.scale(scale=5.0):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    result = fit(scaled, torch.full((10,), 3.0))
    torch.testing.assert_close(result.params["loc"], torch.tensor(2.0))  # 30 / (10 + 5)


def test_a_parameter_of_loc_and_scale_is_searched():
    def both(x, y):
        b = pyro.param("b", torch.tensor(0.1))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(b * x, b.exp()), obs=y)

    x = torch.linspace(-2, 2, 100)
    result = fit(both, x, 0.7 * x + 0.5 * torch.randn(100, generator=generator), tol=1e-10)
    assert "L-BFGS" in result.summary()
    assert (result.objective.diff() > -1e-8).all()


def test_many_parameters_in_single_precision_are_told_apart():
    torch.set_default_dtype(torch.float32)
    model = lvm.models.Mixture(20, "bernoulli", num_features=784)
    x = (torch.rand(100, 784, generator=generator) < 0.3).float()
    assert "probs    weighted proportion" in fit(model, x, max_iter=2).summary()


def test_online_em_waits_for_rare_features():
    def items(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    x = (torch.rand(600, 3, generator=generator) < torch.tensor([0.5, 0.02, 0.8])).double()
    result = fit(items, x, online=0.7, batch_size=5, max_iter=3)
    torch.testing.assert_close(result.params["logits"].sigmoid(), x.mean(0), atol=0.1, rtol=0.0)
    assert (result.params["logits"] != 0).all()


def test_integers_are_converted():
    counts = torch.randint(0, 9, (50, 2), generator=generator)
    result = fit(lvm.models.GaussianMixture(2, 2), counts)
    assert (result.objective.diff() > -1e-8).all()


def test_masked_values_that_a_family_does_not_take():
    def waits(x):
        a = pyro.param("a", torch.tensor(1.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)), poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Gamma(a, b, validate_args=False), obs=x)

    x = dist.Gamma(torch.full((200,), 3.0), 2.0).sample()
    whole, masked = fit(waits, x), fit(waits, torch.cat([x, torch.zeros(20)]))
    torch.testing.assert_close(masked.params, whole.params)
    assert "L-BFGS" not in masked.summary()


def test_an_infinite_objective_says_so():
    def tutorial(x):
        weights = pyro.sample("weights", dist.Dirichlet(0.1 * torch.ones(2)))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(torch.tensor([0.0, 500.0])[z], 1.0), obs=x)

    with pytest.raises(ValueError, match="infinite"):
        fit(tutorial, torch.zeros(5) + 0.1)


def test_weights_that_rows_pick_take_the_counts_of_all_rows():
    """The labels come sorted, so that the first rows show one group only; with batches they need all rows."""
    group = torch.arange(3).repeat_interleave(8_000)
    x = torch.randint(0, 3, (24_000,), generator=generator)

    def model(group, x):
        share = pyro.param("share", torch.full((3, 3), 1 / 3), constraint=constraints.simplex)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Categorical(share[group]), obs=x)

    counts = torch.stack([x[group == g].bincount(minlength=3) for g in range(3)]).double()
    expected = counts / counts.sum(1, keepdim=True)
    for options in ({}, {"batch_size": 1_000}):
        torch.testing.assert_close(fit(model, group, x, **options).params["share"], expected)


@pytest.mark.parametrize("options", [{}, {"batch_size": 1_000}], ids=["whole", "batches"])
def test_a_slope_whose_inputs_begin_with_zeros_is_least_squares(options):
    dose = torch.cat([torch.zeros(3_000), torch.rand(3_000, generator=generator)])
    response = 1.5 * dose + 0.3 * torch.randn(6_000, generator=generator)

    def model(dose, response):
        slope = pyro.param("slope", torch.tensor(0.1))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(dose)):
            pyro.sample("response", dist.Normal(slope * dose, scale), obs=response)

    result = fit(model, dose, response, tol=1e-12, **options)
    slope = dose @ response / dose.square().sum()
    torch.testing.assert_close(result.params["slope"], slope)
    torch.testing.assert_close(result.params["scale"], (response - slope * dose).square().mean().sqrt())
    assert "L-BFGS" not in result.summary()


def test_offsets_that_components_pick_beside_a_slope_are_at_the_top():
    """Many rows, of which a part shows the rules."""
    z = torch.arange(24_000) % 2
    at = torch.randn(24_000, generator=generator)
    y = torch.tensor([0.0, 4.0])[z] + 0.7 * at + 0.5 * torch.randn(24_000, generator=generator)

    def model(at, y):
        offset = pyro.param("offset", torch.tensor([1.0, 3.0]))
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("y", dist.Normal(offset[z] + slope * at, 0.5), obs=y)

    result = fit(model, at, y, batch_size=5_000, tol=1e-10)
    _, slopes = pyros_log_density(model, result.params, at, y)
    assert "L-BFGS" not in result.summary()
    assert all(slope.abs().max() < 1e-5 * len(y) for slope in slopes.values())


def test_equal_starts_do_not_tie_scales_together():
    """Two components that start as one share their scales for one M-step only."""
    x = torch.cat([0.3 * torch.randn(300, generator=generator), 5 + 2 * torch.randn(300, generator=generator)])

    def model(x, y):
        loc = pyro.param("loc", torch.tensor([0.0, 5.0]))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)
            pyro.sample("y", dist.Normal(loc[z], scale[1 - z]), obs=y)

    y = torch.cat([2 * torch.randn(300, generator=generator), 5 + 0.3 * torch.randn(300, generator=generator)])
    result = fit(model, x, y, tol=1e-12, max_iter=2_000)
    _, slopes = pyros_log_density(model, result.params, x, y)
    assert (result.objective.diff() > -1e-8).all()
    assert all(slope.abs().max() < 1e-4 * len(x) for slope in slopes.values())


def test_online_em_of_a_shape_that_several_rates_share_is_refused():
    """The one has a closed form only where the other has one for each: this shows in the sums, not in the model."""

    def model(x):
        a = pyro.param("a", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        b = pyro.param("b", torch.ones(2, 2), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            u = pyro.sample("u", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Gamma(a[z], b[z, u]), obs=x)

    with pytest.raises(ValueError, match="online EM needs a closed form for every parameter"):
        fit(model, H.abs() + 0.1, online=0.7, batch_size=40)


in_parts_or_weighted = pytest.mark.parametrize(
    "options", [{"batch_size": 100}, {"sample_weight": torch.ones(400)}], ids=["parts", "weighted"]
)


@in_parts_or_weighted
def test_a_latent_of_all_rows_lets_them_neither_be_weighted_nor_parted(options):
    def model(x):
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]))
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    with pytest.raises(ValueError, match="ties the rows together"):
        fit(model, H, **options)


def sized(x, num_rows):
    """Rows of which the model knows how many there are in all."""
    loc = pyro.param("loc", torch.tensor([0.5, 1.5]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("rows", num_rows, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 70},
        {"sample_weight": torch.linspace(0, 2, 400)},
        {"online": 0.6, "batch_size": 100, "max_iter": 5},
    ],
    ids=["whole", "batches", "weights", "online"],
)
@pytest.mark.parametrize("times", [1, 3])
def test_rows_that_stand_for_more_count_as_often(options, times):
    plain, found = fit(height, H, **options), fit(sized, H, times * len(H), **options)
    torch.testing.assert_close(found.objective[-1], times * plain.objective[-1])
    torch.testing.assert_close(found.params, plain.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"batch_size": 70}], ids=["whole", "batches"])
def test_what_stands_beside_rows_that_stand_for_all_counts_once(options):
    def model(x, num_rows):
        spread = pyro.sample("spread", dist.Gamma(3.0, 1.0))
        slope = pyro.param("slope", torch.tensor(0.0))
        pyro.sample("known", dist.Normal(2.0 * slope, spread), obs=torch.tensor(1.0))
        sized(x, num_rows)

    result = fit(model, H, len(H), **options)
    value, _ = pyros_log_density(model, result.params, H, len(H))
    torch.testing.assert_close(result.objective[-1], value)
    assert float(result.params["slope"]) == pytest.approx(0.5, abs=1e-4)
    assert float(result.params["spread"]) == pytest.approx(1.0, abs=1e-2)  # of (3 - 1 - 1) log s - s


def test_minibatches_that_a_model_draws_itself_are_refused():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x), subsample_size=50) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match="leave minibatches to batch_size="):
        fit(model, H)


@in_parts_or_weighted
def test_rows_in_two_plates_are_neither_weighted_nor_parted(options):
    def model(x):
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]))
        with pyro.plate("labels", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)), obs=Z.double()[: len(x)])
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)

    assert fit(model, H, plate="rows").converged
    with pytest.raises(ValueError, match="'rows'"):
        fit(model, H, plate="rows", **options)


def test_a_loader_that_drops_rows_is_refused():
    loader = DataLoader(TensorDataset(H), batch_size=64, drop_last=True)
    with pytest.raises(ValueError, match="drop_last"):
        fit(height, loader)


def test_a_start_of_another_shape_is_refused():
    found = fit(lvm.models.GaussianMixture(2, 1, covariance="diag"), H.unsqueeze(1))
    with pytest.raises(ValueError, match="shape"):
        fit(lvm.models.GaussianMixture(3, 1, covariance="diag"), H.unsqueeze(1), init=found)
