"""How rows come does not matter: batches, loaders, files, weights, masks; and hard assignment of them."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from pyro_lvm.data import Data

from .checks import assert_at_the_top, assert_closed, assert_rises, assert_same_path, fit, rules, textbook

NUM_ROWS = 100
LABELS = torch.arange(NUM_ROWS) % 2


def normals(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([0.0, 2.0]), constraint=constraints.real)
    scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def full_covariances(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[0.0, 0.0], [2.0, 1.0]]), constraint=constraints.real)
    factor = pyro.param("factor", torch.eye(2).repeat(2, 1, 1), constraint=constraints.lower_cholesky)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=factor[z]), obs=x)


def negative_binomials(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    count = pyro.param("count", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
    probs = pyro.param("probs", torch.tensor([0.5, 0.8]), constraint=constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.NegativeBinomial(count[z], probs[z]), obs=x)


def gammas(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    a = pyro.param("a", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor([1.0, 0.5]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Gamma(a[z], b[z]), obs=x)


def searched(x):
    """Rates of which no rule knows."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    low = pyro.param("low", torch.tensor(1.0), constraint=constraints.positive)
    gap = pyro.param("gap", torch.tensor(3.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(low + gap * z), obs=x)


def chain(x):
    first = pyro.param("first", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    moves = pyro.param("moves", torch.tensor([[0.7, 0.3], [0.4, 0.6]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([0.0, 2.0]), constraint=constraints.real)
    with pyro.plate("rows", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(first if z is None else moves[z]))
            pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])


def without_latents(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def numbers():
    return torch.tensor([-1.5, 3.5])[LABELS] + torch.tensor([0.8, 1.4])[LABELS] * torch.randn(NUM_ROWS)


DATA = {
    normals: numbers,
    full_covariances: lambda: numbers().unsqueeze(-1) + torch.randn(NUM_ROWS, 2),
    negative_binomials: lambda: dist.NegativeBinomial(3.0, torch.tensor([0.4, 0.9])[LABELS]).sample(),
    gammas: lambda: dist.Gamma(torch.tensor([2.0, 30.0])[LABELS], 2.0).sample(),
    searched: lambda: torch.poisson(torch.tensor([2.0, 14.0])[LABELS]),
    chain: lambda: torch.randn(NUM_ROWS, 4) + 3 * torch.bernoulli(torch.full((NUM_ROWS, 4), 0.5)),
    without_latents: numbers,
}
each_model = pytest.mark.parametrize("model", DATA, ids=lambda model: model.__name__)


def assert_same_fit(one, other, rtol=1e-10):
    num = min(len(one.objective), len(other.objective))
    torch.testing.assert_close(one.objective[:num], other.objective[:num], rtol=rtol, atol=rtol)
    assert abs(len(one.objective) - len(other.objective)) <= 1
    for name, value in one.params.items():
        torch.testing.assert_close(value, other.params[name], rtol=1e4 * rtol, atol=1e4 * rtol)


@each_model
@pytest.mark.parametrize("batch_size", [9, 64, 1000])
def test_batches_take_the_path_of_all_rows_at_once(model, batch_size):
    x = DATA[model]()
    whole = fit(model, x, max_iter=8)
    assert_same_fit(fit(model, x, max_iter=8, batch_size=batch_size), whole)


def test_rows_one_by_one_take_the_path_of_all_rows_at_once():
    x = numbers()[:30]
    assert_same_fit(fit(normals, x, max_iter=4, batch_size=1), fit(normals, x, max_iter=4))


@each_model
@pytest.mark.parametrize("shuffle", [pytest.param(False, marks=pytest.mark.slow), True])
def test_loader_takes_the_path_of_all_rows_at_once(model, shuffle):
    x = DATA[model]()
    loader = DataLoader(TensorDataset(x), batch_size=13, shuffle=shuffle)
    assert_same_fit(fit(model, loader, max_iter=8), fit(model, x, max_iter=8))


def test_rows_of_a_file_in_memory_take_the_path_of_a_tensor(tmp_path):
    x = numbers()
    written = np.memmap(tmp_path / "rows", dtype=np.float64, mode="w+", shape=x.shape)
    written[:] = x.numpy()
    written.flush()
    rows = np.memmap(tmp_path / "rows", dtype=np.float64, mode="r", shape=x.shape)
    whole = fit(normals, x)
    assert_same_fit(fit(normals, rows), whole)
    assert_same_fit(fit(normals, rows, batch_size=16), whole)


def test_rows_of_a_file_stay_in_it(tmp_path):
    """Arrays share the memory of the map, whichever it may be opened in, and are checked like others."""
    rows = np.memmap(tmp_path / "rows", dtype=np.float64, mode="w+", shape=(3_000_000, 1))
    rows[:] = np.random.default_rng(0).normal(size=rows.shape)
    (held,) = Data((rows,)).args
    assert held.data_ptr() == rows.ctypes.data
    (readonly,) = Data((np.memmap(tmp_path / "rows", dtype=np.float64, mode="r", shape=rows.shape),)).args
    assert torch.equal(readonly, held)
    rows[2_500_000] = np.nan
    with pytest.raises(ValueError, match="row 2500000"):
        Data((rows,))


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist], ids=["array", "list"])
def test_arrays_and_lists_of_numbers_are_data(convert):
    x = numbers()
    assert_same_fit(fit(normals, convert(x)), fit(normals, x))


@each_model
@pytest.mark.parametrize("options", [{}, {"batch_size": 13}], ids=["whole", "batches"])
def test_whole_weights_are_repeated_rows(model, options):
    x = DATA[model]()
    weight = torch.randint(4, (NUM_ROWS,))
    weighted = fit(model, x, sample_weight=weight, max_iter=8, **options)
    repeated = fit(model, x.repeat_interleave(weight, 0), max_iter=8)
    assert_rises(weighted)
    assert_same_fit(weighted, repeated)


def normal_log_density(x):
    return lambda p: stats.norm.logpdf(x[:, None], p["loc"], p["scale"])


def normal_maximum(x):
    def maximum(resp):
        loc = resp.T @ x / resp.sum(0)
        return {"loc": loc, "scale": np.sqrt((resp * (x[:, None] - loc) ** 2).sum(0) / resp.sum(0))}

    return maximum


def start():
    return {"weights": np.array([0.4, 0.6]), "loc": np.array([0.0, 2.0]), "scale": np.array([1.0, 2.0])}


def test_fractions_as_weights_take_the_path_of_a_weighted_loop():
    x, weight = numbers(), torch.rand(NUM_ROWS)
    result = fit(normals, x, sample_weight=weight)
    values = x.numpy()
    loop = textbook(normal_log_density(values), normal_maximum(values), start(), result.num_iter, weight.numpy())
    assert_same_path(result, *loop)
    torch.testing.assert_close(fit(normals, x, sample_weight=10 * weight).params, result.params, rtol=1e-5, atol=1e-5)


def test_hard_em_is_classification_em():
    x = numbers()
    result = fit(normals, x, e_step="hard")
    values, params, path = x.numpy(), start(), []
    for i in range(result.num_iter + 1):
        log_joint = np.log(params["weights"]) + normal_log_density(values)(params)
        path.append(log_joint.max(1).sum())
        if i < result.num_iter:
            resp = np.eye(2)[log_joint.argmax(1)]
            params = {"weights": resp.mean(0), **normal_maximum(values)(resp)}
    assert result.objective_name == "classification log-likelihood"
    assert result.converged
    assert "best state" in result.summary()
    assert_rises(result)
    assert_same_path(result, params, np.array(path))
    assert_same_fit(fit(normals, x, e_step="hard", batch_size=9), result)


def test_hard_em_with_one_scale_and_equal_weights_is_k_means():
    x = numbers()

    def model(x):
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]), constraint=constraints.real)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    result = fit(model, x, e_step="hard")
    centres = torch.tensor([0.0, 2.0])
    for _ in range(100):
        nearest = (x.unsqueeze(-1) - centres).abs().argmin(-1)
        centres = torch.stack([x[nearest == k].mean() for k in range(2)])
    torch.testing.assert_close(result.params["loc"], centres)


def test_masked_rows_are_left_out():
    x, kept = numbers(), torch.rand(NUM_ROWS) > 0.3
    x = torch.where(kept, x, 1e3)

    def model(x, kept):
        with poutine.mask(mask=kept):
            return normals(x)

    result, without = fit(model, x, kept, tol=1e-13), fit(normals, x[kept], tol=1e-13)
    assert_rises(result)
    assert_closed(result)
    torch.testing.assert_close(result.objective[-1], without.objective[-1], rtol=1e-9, atol=1e-9)
    for name, value in result.params.items():
        torch.testing.assert_close(value, without.params[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"batch_size": 13}], ids=["whole", "batches"])
def test_masked_observations_leave_the_rest_of_a_row(options):
    x, seen = torch.poisson(torch.tensor([[2.0, 9.0, 4.0], [9.0, 3.0, 12.0]])[LABELS]), torch.rand(NUM_ROWS, 3) > 0.3

    def model(x, seen):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        rate = pyro.param("rate", torch.tensor([[3.0, 6.0, 5.0], [6.0, 5.0, 8.0]]), constraint=constraints.positive)
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Categorical(weights))
            with pyro.plate("columns", 3, dim=-1), poutine.mask(mask=seen):
                columns = torch.arange(3)
                pyro.sample("x", dist.Poisson(rate[z, columns]), obs=x)

    values, there = x.numpy(), seen.numpy().astype(float)

    def log_density(p):
        return (there[:, None] * stats.poisson.logpmf(values[:, None], p["rate"])).sum(-1)

    result = fit(model, x, seen, **options)
    begin = {"weights": np.array([0.4, 0.6]), "rate": np.array([[3.0, 6.0, 5.0], [6.0, 5.0, 8.0]])}
    loop = textbook(log_density, lambda r: {"rate": r.T @ (there * values) / (r.T @ there)}, begin, result.num_iter)
    assert_closed(result, weights="counts", rate="mean")
    assert_same_path(result, *loop)
    assert_at_the_top(result, model, x, seen)


def test_infinite_log_densities_of_impossible_states_count_nothing():
    """A component that cannot have made a row: Poisson with rate zero."""
    x = torch.cat([torch.zeros(40), torch.poisson(torch.full((60,), 3.0))])

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
        rates = torch.stack([torch.tensor(0.0), rate])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    def log_density(p):
        return np.stack([np.where(x.numpy() == 0, 0.0, -np.inf), stats.poisson.logpmf(x.numpy(), p["rate"])], -1)

    result = fit(model, x)
    begin = {"weights": np.array([0.5, 0.5]), "rate": np.array(1.0)}
    loop = textbook(log_density, lambda r: {"rate": r[:, 1] @ x.numpy() / r[:, 1].sum()}, begin, result.num_iter)
    assert_rises(result)
    assert_same_path(result, *loop)


def in_single_precision(offset, x, **options):
    torch.set_default_dtype(torch.float32)

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]) + offset, constraint=constraints.real)
        scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    result = fit(model, x, tol=1e-6, **options)
    torch.set_default_dtype(torch.float64)
    return result


@pytest.mark.parametrize("options", [{}, {"batch_size": 13}], ids=["whole", "batches"])
def test_single_precision_far_from_zero_is_double_precision_at_zero(options):
    x = (numbers() + 1e4).float()
    result = in_single_precision(1e4, x, **options)
    exact = fit(normals, x.double() - 1e4)
    assert "L-BFGS" not in result.summary()
    assert result.params["scale"].dtype == torch.float32
    assert float(result.objective[-1]) == pytest.approx(float(exact.objective[-1]), rel=1e-3)
    torch.testing.assert_close(result.params["loc"].double() - 1e4, exact.params["loc"], rtol=0, atol=1e-2)
    torch.testing.assert_close(result.params["scale"].double(), exact.params["scale"], rtol=1e-2, atol=0)


def test_single_precision_of_covariances_far_from_zero_is_double_precision_at_zero():
    x = (DATA[full_covariances]() + 1e4).float()
    torch.set_default_dtype(torch.float32)

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([[0.0, 0.0], [2.0, 1.0]]) + 1e4, constraint=constraints.real)
        factor = pyro.param("factor", torch.eye(2).repeat(2, 1, 1), constraint=constraints.lower_cholesky)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=factor[z]), obs=x)

    result = fit(model, x, tol=1e-6)
    torch.set_default_dtype(torch.float64)
    exact = fit(full_covariances, x.double() - 1e4)
    assert "L-BFGS" not in result.summary()
    torch.testing.assert_close(result.params["loc"].double() - 1e4, exact.params["loc"], rtol=0, atol=2e-2)
    torch.testing.assert_close(result.params["factor"].double(), exact.params["factor"], rtol=0, atol=2e-2)


@each_model
def test_single_precision_ends_where_double_precision_does(model):
    x = DATA[model]()
    exact = fit(model, x, tol=1e-8)
    torch.set_default_dtype(torch.float32)
    result = fit(model, x.float(), tol=1e-6)
    torch.set_default_dtype(torch.float64)
    assert result.converged
    assert ("L-BFGS" in result.summary()) == (model is searched)
    assert float(result.objective[-1]) == pytest.approx(float(exact.objective[-1]), rel=1e-4)


def test_model_without_latents_is_fitted_by_maximum_likelihood():
    x = numbers()
    result = fit(without_latents, x)
    torch.testing.assert_close(result.params["loc"], x.mean())
    torch.testing.assert_close(result.params["scale"], x.std(correction=0))
    assert_closed(result, loc="mean", scale="deviation")
    assert result.num_iter <= 2


def test_model_without_rows_is_fitted_too():
    """Data in the closure of the model."""
    x = numbers()
    result = fit(lambda: normals(x), max_iter=12)
    assert_same_fit(result, fit(normals, x, max_iter=12))


def test_observations_in_no_plate_are_fitted():
    def model(count):
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("count", dist.Poisson(rate), obs=count)

    result = fit(model, torch.tensor(7.0))
    torch.testing.assert_close(result.params["rate"], torch.tensor(7.0))
    assert_closed(result, rate="mean")


def test_one_row_is_data():
    result = fit(negative_binomials, torch.tensor([4.0]), max_iter=5)
    assert_rises(result)


def test_parameter_that_no_site_uses_stays():
    def model(x):
        idle = pyro.param("idle", torch.tensor(3.0))
        normals(x + 0 * idle.detach())

    result = fit(model, numbers())
    assert float(result.params["idle"]) == 3.0
    assert "not used" in rules(result)["idle"]


def test_component_that_no_row_belongs_to_keeps_its_parameters():
    x = numbers()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5, 0.0]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([0.0, 2.0, 77.0]), constraint=constraints.real)
        scale = pyro.param("scale", torch.tensor([1.0, 2.0, 0.5]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    result = fit(model, x)
    assert_rises(result)
    assert float(result.params["weights"][2]) == 0.0
    assert (float(result.params["loc"][2]), float(result.params["scale"][2])) == (77.0, 0.5)


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_rows_that_pick_parameters_may_stand_alone_in_a_batch(batch_size):
    """One row says of itself alone which effect it picks; one is left over at the end of each sweep."""
    group = torch.arange(NUM_ROWS) % 4
    x = torch.tensor([1.0, -2.0, 3.0, 0.5])[group] + 0.7 * torch.randn(NUM_ROWS)

    def model(x, group):
        effects = pyro.param("effects", torch.zeros(4) + 0.1)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(effects[group], scale), obs=x)

    means = torch.stack([x[group == g].mean() for g in range(4)])
    result = fit(model, x, group, batch_size=batch_size)
    torch.testing.assert_close(result.params["effects"], means)
    torch.testing.assert_close(result.params["scale"], (x - means[group]).square().mean().sqrt())
    assert_closed(result, effects="mean", scale="deviation")


def test_rows_sorted_by_what_they_pick_are_told_apart_in_batches():
    group = torch.arange(NUM_ROWS) // 25
    x = torch.poisson(torch.tensor([1.0, 4.0, 9.0, 16.0])[group])

    def model(x, group):
        rate = pyro.param("rate", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(rate[group]), obs=x)

    means = torch.stack([x[group == g].mean() for g in range(4)])
    for batch_size in (5, 25, 40):
        torch.testing.assert_close(fit(model, x, group, batch_size=batch_size).params["rate"], means)


def columns_first(x):
    """The plate of the rows is the inner one."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    rate = pyro.param("rate", torch.tensor([[3.0, 6.0], [6.0, 5.0], [5.0, 8.0]]), constraint=constraints.positive)
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("columns", 3, dim=-2):
            pyro.sample("x", dist.Poisson(rate[torch.arange(3).unsqueeze(-1), z]), obs=x.T)


def test_rows_may_be_the_inner_plate():
    x = torch.poisson(torch.tensor([[2.0, 9.0, 4.0], [9.0, 3.0, 12.0]])[LABELS])
    weight, values = torch.rand(NUM_ROWS), x.numpy()

    def log_density(p):
        return stats.poisson.logpmf(values[:, :, None], p["rate"]).sum(1)

    begin = {"weights": np.array([0.4, 0.6]), "rate": np.array([[3.0, 6.0], [6.0, 5.0], [5.0, 8.0]])}
    for options in ({}, {"batch_size": 7}):
        result = fit(columns_first, x, sample_weight=weight, **options)
        loop = textbook(
            log_density, lambda r: {"rate": values.T @ r / r.sum(0)}, begin, result.num_iter, weight.numpy()
        )
        assert_closed(result)
        assert_same_path(result, *loop)


def test_weights_of_rows_that_are_the_outer_plate_count_without_latents():
    x, weight = torch.randn(NUM_ROWS, 3) + torch.tensor([1.0, 2.0, 3.0]), torch.rand(NUM_ROWS)

    def model(x):
        loc = pyro.param("loc", torch.ones(3))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    result = fit(model, x, sample_weight=weight)
    mean = weight @ x / weight.sum()
    torch.testing.assert_close(result.params["loc"], mean)
    variance = (weight @ (x - mean).square()).sum() / (3 * weight.sum())
    torch.testing.assert_close(result.params["scale"], variance.sqrt())


def test_scaled_model_has_the_scaled_objective_and_the_same_top():
    x = numbers()

    def model(x):
        with poutine.scale(scale=0.5):
            return normals(x)

    result, plain = fit(model, x), fit(normals, x)
    assert_rises(result)
    assert_closed(result)
    torch.testing.assert_close(result.objective[-1], plain.objective[-1] / 2, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.params["loc"], plain.params["loc"], rtol=1e-5, atol=1e-5)


def test_states_in_one_hot_coding_take_the_path_of_numbers():
    x = numbers()

    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([0.0, 2.0]), constraint=constraints.real)
        scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(weights))
            pyro.sample("x", dist.Normal(z @ loc, z @ scale), obs=x)

    result, plain = fit(model, x), fit(normals, x)
    assert_rises(result)
    num = min(result.num_iter, plain.num_iter) + 1
    torch.testing.assert_close(result.objective[:num], plain.objective[:num], rtol=1e-7, atol=1e-7)


def test_masked_distributions_leave_their_entries_out():
    """The mask of a distribution, and not of the handler."""
    x = torch.tensor([[0.0, 5.0], [4.0, -2.0]])[LABELS] + torch.randn(NUM_ROWS, 2)
    seen = torch.rand(NUM_ROWS, 2) > 0.3
    x = torch.where(seen, x, 50.0)

    def model(x, seen):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([[1.0, 2.0], [2.0, 1.0]]), constraint=constraints.real)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], 1.0).mask(seen).to_event(1), obs=x)

    values, there = x.numpy(), seen.numpy().astype(float)
    result = fit(model, x, seen)
    loop = textbook(
        lambda p: (there[:, None] * stats.norm.logpdf(values[:, None], p["loc"], 1.0)).sum(-1),
        lambda r: {"loc": r.T @ (there * values) / (r.T @ there)},
        {"weights": np.array([0.4, 0.6]), "loc": np.array([[1.0, 2.0], [2.0, 1.0]])},
        result.num_iter,
    )
    assert_rises(result)
    assert_same_path(result, *loop, rtol=1e-7)
    assert_at_the_top(result, model, x, seen)


def test_labels_of_some_rows_hold_those_and_the_others_are_summed_out():
    x = torch.poisson(torch.tensor([2.0, 7.0])[LABELS])
    known, labels = torch.rand(NUM_ROWS) < 0.3, LABELS.clone()

    def model(x, labels, known):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        rate = pyro.param("rate", torch.tensor([1.0, 6.0]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
            pyro.sample("x", dist.Poisson(rate[z.long()]), obs=x)

    values, one_hot = x.numpy(), np.eye(2)[labels.numpy()]
    excluded = np.where(known.numpy()[:, None] & (one_hot == 0), -np.inf, 0.0)
    result = fit(model, x, labels, known)
    params, path = textbook(
        lambda p: stats.poisson.logpmf(values[:, None], p["rate"]) + excluded,
        lambda r: {"rate": r.T @ values / r.sum(0)},
        {"weights": np.array([0.4, 0.6]), "rate": np.array([1.0, 6.0])},
        2000,
    )
    assert_rises(result)
    assert float(result.objective[-1]) == pytest.approx(path[-1], rel=1e-9)
    np.testing.assert_allclose(result.params["rate"], params["rate"], rtol=1e-4)
    np.testing.assert_allclose(result.params["weights"], params["weights"], rtol=1e-4)


def test_parameters_that_the_first_batch_does_not_meet_are_found():
    group = torch.arange(NUM_ROWS) // (NUM_ROWS // 2)
    x = torch.poisson(torch.tensor([2.0, 9.0])[group])

    def model(x, group):
        low = pyro.param("low", torch.tensor(1.0), constraint=constraints.positive)
        high = pyro.param("high", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(torch.stack([low, high])[group]), obs=x)

    for options in ({}, {"batch_size": 20}):
        result = fit(model, x, group, **options)
        torch.testing.assert_close(result.params["low"], x[group == 0].mean())
        torch.testing.assert_close(result.params["high"], x[group == 1].mean())
