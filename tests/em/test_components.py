"""Components: empty ones get rows, and those of several starts are put in one order."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm

generator = torch.Generator().manual_seed(0)
LOCS = torch.tensor([[-6.0, 0.0], [0.0, 6.0], [6.0, 0.0]], dtype=torch.float64)
X = LOCS[torch.arange(300) % 3] + torch.randn(300, 2, generator=generator, dtype=torch.float64)
FAR = torch.tensor([[-6.0, 0.0], [0.0, 6.0], [300.0, 300.0]], dtype=torch.float64)
SCALES = {
    "full": {"scale_tril": torch.eye(2).repeat(3, 1, 1)},
    "tied": {"scale_tril": torch.eye(2)},
    "diag": {"scale": torch.ones(3, 2)},
    "spherical": {"scale": torch.ones(3)},
}


def mixture(start, weights=(1 / 3, 1 / 3, 1 / 3)):
    def model(x):
        w = pyro.param("weights", torch.tensor(weights), constraint=constraints.simplex)
        loc = pyro.param("loc", start.clone())
        scale = pyro.param("scale", torch.ones(3, 2), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)

    return model


def fit(model, *data, **options):
    return lvm.fit_em(model, *data, **({"progress": False, "tol": 1e-10} | options))


def loader(x):
    return DataLoader(TensorDataset(x), batch_size=70)


WAYS = {
    "all rows": lambda: (X, {}),
    "batches": lambda: (X, {"batch_size": 70}),
    "loader": lambda: (loader(X), {}),
    "weights that sum to one": lambda: (X, {"sample_weight": torch.full((300,), 1 / 300, dtype=torch.float64)}),
}


@pytest.mark.parametrize("way", WAYS)
def test_empty_component_gets_rows(way):
    data, options = WAYS[way]()
    good = fit(mixture(LOCS), X)
    found = fit(mixture(FAR), data, **options)
    ((iteration, component),) = found.refilled
    assert (iteration, component) == (1, 2)
    assert "component  2        was empty and got rows in iteration 1" in found.summary()
    torch.testing.assert_close(found.params["loc"], good.params["loc"], rtol=0, atol=1e-3)
    scale = 1 / 300 if "one" in way else 1.0
    torch.testing.assert_close(found.objective[-1], scale * good.objective[-1], rtol=0, atol=1e-4)
    assert (found.objective[1:].diff() > -1e-8).all()


@pytest.mark.parametrize("covariance", SCALES)
@pytest.mark.parametrize("way", [*WAYS, "missing"])
def test_empty_component_of_a_gaussian_mixture_gets_rows(covariance, way):
    x, options = X, {}
    if way == "missing":
        x = X.clone()
        x[::7, 0] = torch.nan
        options = {"missing": True}
        data = x
    else:
        data, options = WAYS[way]()
    start = {"weights": [1 / 3] * 3} | SCALES[covariance]
    fits = []
    for locs, rows, how in ((LOCS, x, {"missing": True} if way == "missing" else {}), (FAR, data, options)):
        model = lvm.models.GaussianMixture(3, 2, covariance=covariance)
        fits.append(fit(model, rows, init=start | {"locs": locs}, **how))
    good, found = fits
    assert not good.refilled
    assert found.refilled == [(1, 2)]
    torch.testing.assert_close(found.params["locs"], good.params["locs"], rtol=0, atol=1e-3)
    assert (found.objective[1:].diff() > -1e-8).all()


def test_zero_weight_is_part_of_the_model():
    found = fit(mixture(FAR, (0.5, 0.5, 0.0)), X, max_iter=20)
    assert not found.refilled
    assert found.params["loc"][2].tolist() == [300.0, 300.0]
    gaussian = lvm.models.GaussianMixture(3, 2)
    found = fit(gaussian, X, init={"weights": [0.5, 0.5, 0.0], "locs": FAR} | SCALES["full"], max_iter=20)
    assert not found.refilled


def test_rare_component_is_left_alone():
    x = torch.cat([X, torch.tensor([[60.0, 60.0], [61.0, 60.0]])])
    start = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [60.0, 60.0]])
    found = fit(mixture(start), x)
    assert not found.refilled
    torch.testing.assert_close(found.params["loc"][2], torch.tensor([60.5, 60.0]))


def test_more_components_than_rows_come_to_an_end():
    x = torch.tensor([0.0, 0.0, 5.0, 5.0]).repeat(10)

    def model(x):
        w = pyro.param("weights", torch.full((8,), 1 / 8), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.cat([torch.tensor([0.0, 5.0]), torch.linspace(100, 700, 6)]))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    found = fit(model, x, max_iter=300)
    assert found.converged
    assert len(found.refilled) <= 16


def test_a_component_that_can_never_keep_rows_gets_them_ten_times():
    """Its weight is fixed, and next to nothing."""

    def model(x):
        loc = pyro.param("loc", FAR.clone())
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5, 1e-12])))
            pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)

    found = fit(model, X[torch.arange(300) % 3 < 2], max_iter=200)
    assert found.converged
    assert len(found.refilled) == 10


def test_rows_of_little_weight_make_no_component_empty():
    weight = torch.full((300,), 1e-6, dtype=torch.float64)
    found = fit(mixture(LOCS), X, sample_weight=weight)
    assert not found.refilled
    torch.testing.assert_close(found.params, fit(mixture(LOCS), X).params, rtol=1e-3, atol=1e-3)


def test_restarts_have_the_order_of_the_best():
    found = fit(mixture(LOCS), X, num_restarts=5)
    assert found.restart_params["loc"].shape == (5, 3, 2)
    same = found.restarts > found.restarts.max() - 1e-6
    assert same.sum() >= 3
    for name in ("weights", "loc", "scale"):
        values = found.restart_params[name][same]
        torch.testing.assert_close(values, found.params[name].expand_as(values), rtol=0, atol=1e-3)


@pytest.mark.parametrize("covariance", SCALES)
def test_restarts_of_a_gaussian_mixture_have_the_order_of_the_best(covariance):
    found = fit(lvm.models.GaussianMixture(3, 2, covariance=covariance), X, num_restarts=5)
    same = found.restarts > found.restarts.max() - 1e-6
    assert same.sum() >= 3
    for name, values in found.restart_params.items():
        torch.testing.assert_close(values[same], found.params[name].expand_as(values[same]), rtol=0, atol=1e-3)


def test_as_many_components_as_features_do_not_mix_them_up():
    x = torch.tensor([[-6.0, 0.0], [6.0, 0.0]])[torch.arange(200) % 2]
    x = x + torch.randn(200, 2, generator=generator) @ torch.tensor([[1.0, 0.8], [0.0, 0.4]])
    found = fit(lvm.models.GaussianMixture(2, 2, covariance="tied"), x.double(), num_restarts=4)
    values = found.restart_params["scale_tril"]
    torch.testing.assert_close(values, found.params["scale_tril"].expand_as(values), rtol=0, atol=1e-4)


def chain(fixed_start):
    def model(x):
        first = torch.tensor([1.0, 0.0]) if fixed_start else None
        if first is None:
            first = pyro.param("first", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        moves = pyro.param("moves", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("rows", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(first if z is None else moves[z]))
                pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])

    return model


def sequences():
    states = torch.zeros(60, 6, dtype=torch.long)
    moves = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    for t in range(1, 6):
        states[:, t] = torch.multinomial(moves[states[:, t - 1]], 1, generator=generator).squeeze(-1)
    return torch.tensor([-2.0, 2.0])[states] + torch.randn(60, 6, generator=generator)


def test_states_of_a_chain_are_put_in_order_in_all_their_places():
    x = sequences().double()
    found = fit(chain(fixed_start=False), x, num_restarts=6)
    same = found.restarts > found.restarts.max() - 1e-4
    assert same.sum() >= 2
    for name in ("moves", "loc"):
        values = found.restart_params[name][same]
        torch.testing.assert_close(values, found.params[name].expand_as(values), rtol=0, atol=2e-2)
    for r in same.nonzero().flatten().tolist():  # each start as it stands in the result has the objective that it had
        init = {name: values[r] for name, values in found.restart_params.items()}
        again = fit(chain(fixed_start=False), x, init=init, max_iter=1)
        torch.testing.assert_close(again.objective[0], found.restarts[r], rtol=0, atol=1e-6)


def test_states_whose_order_means_something_keep_it():
    x = sequences().double()
    found = fit(chain(fixed_start=True), x, num_restarts=4)
    for r in range(4):
        init = {name: values[r] for name, values in found.restart_params.items()}
        again = fit(chain(fixed_start=True), x, init=init, max_iter=1)
        torch.testing.assert_close(again.objective[0], found.restarts[r], rtol=0, atol=1e-6)
