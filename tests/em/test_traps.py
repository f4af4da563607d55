"""Models in which a rule of the M-step could go wrong without a sign of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

import pyro_lvm as lvm

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
