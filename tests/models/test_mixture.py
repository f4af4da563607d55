import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

import pyro_lvm as lvm
from pyro_lvm.models._mixture_base import clusters
from pyro_lvm.models.mixture import Bernoulli, Categorical, Exponential, Gamma, Mixture, Multinomial, Poisson

K = 3
FAMILIES = {
    "poisson": Poisson(2),
    "multinomial": Multinomial(4, total_count=6),
    "bernoulli": Bernoulli(5),
    "categorical": Categorical(3, 4),
    "several categorical": Categorical([3, 4, 2]),
    "exponential": Exponential(2),
    "gamma": Gamma(2),
    "product": {"visits": Poisson(2), "answers": Categorical([3, 4]), "item": Categorical(2), "time": Gamma(1)},
}
NAN = float("nan")


def parts(family):
    return list(family.values()) if isinstance(family, dict) else [family]


def rows(member, rng, N):
    """Rows of a family that are not those of any mixture."""
    D = member.num_features
    if isinstance(member, Poisson):
        return rng.poisson(3, size=(N, D))
    if isinstance(member, Multinomial):
        return rng.poisson(2, size=(N, D))  # totals differ
    if isinstance(member, Bernoulli):
        return rng.integers(2, size=(N, D))
    if isinstance(member, Categorical):
        return rng.integers(member.sizes, size=(N, D))
    return rng.gamma(2, size=(N, D))


def data_of(family, N=20, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    arrays = [torch.as_tensor(rows(member, rng, N)) for member in parts(family)]
    return [x.to(dtype) if x.is_floating_point() else x for x in arrays]


def mixture_of(family, dtype=torch.float64):
    model = Mixture(K, family).to(dtype)
    model.weights = np.random.default_rng(1).dirichlet(np.ones(K))
    return model


def logpdf(member, params, x):
    """Log-densities of rows in one component, by SciPy, `[N]`."""
    if isinstance(member, Poisson):
        return stats.poisson(params["rate"]).logpmf(x).sum(-1)
    if isinstance(member, Multinomial):
        probs = params["probs"] / params["probs"].sum()
        return np.array([stats.multinomial(row.sum(), probs).logpmf(row) for row in x])
    if isinstance(member, Bernoulli):
        return stats.bernoulli(params["probs"]).logpmf(x).sum(-1)
    if isinstance(member, Categorical):
        tables = list(params["probs"]) if "probs" in params else [params[f"probs_{j}"] for j in range(x.shape[-1])]
        return sum(np.log(table[x[:, j]]) for j, table in enumerate(tables))
    if isinstance(member, Exponential):
        return stats.expon(scale=1 / params["rate"]).logpdf(x).sum(-1)
    return stats.gamma(params["concentration"], scale=1 / params["rate"]).logpdf(x).sum(-1)


def log_joint_of(model, family, data):
    """log p(x, z = k), `[N, K]`, in NumPy."""
    named = family if isinstance(family, dict) else {"": family}
    total = np.log(model.weights.detach().numpy())[None]
    for (part, member), x in zip(named.items(), data, strict=True):
        prefix = part and part + "_"
        values = {n: getattr(model, prefix + n).detach().numpy() for n in member.shapes()}
        columns = [logpdf(member, {n: v[k] for n, v in values.items()}, x.numpy()) for k in range(K)]
        total = total + np.stack(columns, -1)
    return total


def log_likelihood(model, *data):
    return -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda *_: None, *data)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", FAMILIES)
def test_likelihood_is_the_mixture_density(name, dtype, rtol, param_setting):
    family = FAMILIES[name]
    model, data = mixture_of(family, dtype), data_of(family, dtype=dtype)
    joint = log_joint_of(model, family, data)
    expected = logsumexp(joint, -1)
    assert log_likelihood(model, *data).item() == pytest.approx(expected.sum(), rel=rtol)
    np.testing.assert_allclose(model.log_prob(*data), expected, rtol=max(rtol, 1e-9))
    responsibilities = np.exp(joint - expected[:, None])
    np.testing.assert_allclose(model.responsibilities(*data), responsibilities, rtol=100 * rtol, atol=rtol)
    np.testing.assert_array_equal(model.labels(*data), responsibilities.argmax(-1))
    assert model.log_prob(*data).dtype == dtype


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihood_sums_the_joint_over_all_assignments(name, log_joint):
    family = FAMILIES[name]
    model, data = mixture_of(family), data_of(family, N=3)
    joint = log_joint(model)
    logs = [joint({"z": torch.tensor(z)}, *data) for z in itertools.product(range(K), repeat=3)]
    torch.testing.assert_close(model.log_prob(*data).sum(), torch.stack(logs).logsumexp(0).detach())


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_and_traces(name, param_setting, check_transforms):
    family = FAMILIES[name]
    check_transforms(mixture_of(family), {"z": torch.randint(K, (4, 6))}, *data_of(family, N=6))


NUM_PARAMETERS = {
    "poisson": 2 + 3 * 2,
    "multinomial": 2 + 3 * 3,
    "bernoulli": 2 + 3 * 5,
    "categorical": 2 + 3 * 4 * 2,
    "several categorical": 2 + 3 * (2 + 3 + 1),
    "exponential": 2 + 3 * 2,
    "gamma": 2 + 3 * 4,
    "product": 2 + 3 * (2 + 2 + 3 + 1 + 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_criteria_by_hand(name):
    family = FAMILIES[name]
    model, data = mixture_of(family), data_of(family)
    joint = log_joint_of(model, family, data)
    log_prob = logsumexp(joint, -1)
    p = NUM_PARAMETERS[name]
    bic = p * math.log(20) - 2 * log_prob.sum()
    entropy = stats.entropy(np.exp(joint - log_prob[:, None]), axis=-1).sum()
    assert model.num_parameters == p
    assert model.aic(*data) == pytest.approx(2 * p - 2 * log_prob.sum())
    assert model.bic(*data) == pytest.approx(bic)
    assert model.icl(*data) == pytest.approx(bic + 2 * entropy)


def test_the_criteria_fit_a_gaussian_mixture():
    """Free numbers of Cholesky factors and scales are those of scikit-learn's covariances."""
    import sklearn.mixture

    x = np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0, 0], [4, 4]], 30, axis=0)
    for covariance in ("full", "tied", "diag", "spherical"):
        theirs = sklearn.mixture.GaussianMixture(2, covariance_type=covariance, random_state=0).fit(x)
        ours = lvm.models.GaussianMixture(2, 2, covariance=covariance).double()
        ours.weights, ours.locs, ours.covariances = theirs.weights_, theirs.means_, theirs.covariances_
        data = torch.as_tensor(x)
        assert ours.bic(data) == pytest.approx(theirs.bic(x))
        assert ours.aic(data) == pytest.approx(theirs.aic(x))
        np.testing.assert_allclose(ours.responsibilities(data), theirs.predict_proba(x), atol=1e-9)


# Fitting ---------------------------------------------------------------------------------------------------

TRUE = {
    "poisson": {"rate": [[1.0, 20.0], [20.0, 1.0], [20.0, 20.0]]},
    "multinomial": {"probs": [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]},
    "bernoulli": {"probs": [[0.95] * 5, [0.05] * 5, [0.95, 0.95, 0.05, 0.05, 0.5]]},
    "categorical": {"probs": np.stack([np.roll([[0.9, 0.05, 0.05]] * 4, k, -1) for k in range(3)])},
    "exponential": {"rate": [[100.0, 100.0], [1.0, 1.0], [0.01, 0.01]]},
    "gamma": {"concentration": [[4.0, 9.0], [4.0, 9.0], [9.0, 4.0]], "rate": [[40.0, 1.0], [1.0, 90.0], [0.5, 0.4]]},
}
WEIGHTS = [0.2, 0.3, 0.5]


def drawn(name, N=600):
    model = Mixture(3, FAMILIES[name])
    model.weights = WEIGHTS
    for parameter, value in TRUE[name].items():
        setattr(model, parameter, value)
    data = data_of(FAMILIES[name], N, dtype=torch.float32)
    trace = poutine.trace(poutine.uncondition(model)).get_trace(*data)
    return model, trace.nodes["z"]["value"], trace.nodes["x"]["value"].detach()


@pytest.mark.parametrize("name", TRUE)
def test_a_fit_recovers_the_components(name):
    true, z, x = drawn(name)
    model = Mixture(3, FAMILIES[name]).initialize(x)
    before = model.log_prob(x).sum()
    lvm.fit(model, None, x, num_steps=400, optim=0.05, progress=False, compile=False)
    after = model.log_prob(x).sum()
    assert after >= before - 0.1
    assert after >= true.log_prob(x).sum()
    together = torch.zeros(3, 3).index_put((z, model.labels(x)), torch.ones(()), accumulate=True)
    _, order = linear_sum_assignment(-together)
    np.testing.assert_allclose(model.weights.detach()[order], WEIGHTS, atol=4 * math.sqrt(0.25 / 600))
    for parameter, value in TRUE[name].items():
        actual, value = getattr(model, parameter).detach().numpy()[order], np.asarray(value)
        counts = 600 * np.array(WEIGHTS).reshape(-1, *[1] * (value.ndim - 1))
        # a few standard errors: relative ones of positive numbers, those of a proportion for the others
        error = 6 * value / np.sqrt(counts) if parameter != "probs" else 5 * 0.5 / np.sqrt(counts)
        assert (np.abs(actual - value) < error).all(), (parameter, actual)


def test_a_product_shares_its_component():
    """Neither part tells all three components apart; both together do."""
    z = torch.arange(600) % 3
    counts = torch.poisson(torch.tensor([[2.0], [20.0], [20.0]])[z])
    answers = torch.bernoulli(torch.tensor([[0.5] * 4, [0.9] * 4, [0.1] * 4])[z])
    model = Mixture(3, {"counts": Poisson(1), "answers": Bernoulli(4)})
    lvm.fit(model, None, counts, answers, num_steps=300, optim=0.05, progress=False, compile=False)
    together = torch.zeros(3, 3).index_put((z, model.labels(counts, answers)), torch.ones(()), accumulate=True)
    truth, order = linear_sum_assignment(-together)
    assert together[truth, order].sum() > 0.95 * 600
    np.testing.assert_allclose(model.counts_rate.detach()[order, 0], [2, 20, 20], atol=4 * math.sqrt(20 / 200))


def test_draws_have_the_shape_of_the_data():
    family = FAMILIES["product"]
    model, data = mixture_of(family), data_of(family, N=7)
    nodes = poutine.trace(poutine.uncondition(model)).get_trace(*data).nodes
    shapes = {"visits": (7, 2), "answers_0": (7,), "answers_1": (7,), "item": (7, 1), "time": (7, 1)}
    assert {name: tuple(nodes[name]["value"].shape) for name in shapes} == shapes
    assert nodes["z"]["infer"] == {"enumerate": "parallel"}
    for name in ("z", *shapes):
        (plate,) = nodes[name]["cond_indep_stack"]
        assert (plate.name, plate.size, plate.dim) == ("rows", 7, -1)


def test_drawn_totals_are_as_said():
    _, _, x = drawn("multinomial")
    assert x.sum(-1).unique().tolist() == [6]


# Data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisson", "multinomial", "bernoulli", "several categorical"])
def test_integers_floats_and_frames_are_the_same_rows(name):
    family = FAMILIES[name]
    model, (x,) = mixture_of(family, torch.float32), data_of(family)
    expected = model.log_prob(x)
    for other in (x.float(), x.int(), x.numpy(), pd.DataFrame(x.numpy())):
        torch.testing.assert_close(model.log_prob(other), expected, rtol=0, atol=0)
    torch.testing.assert_close(log_likelihood(model, x), log_likelihood(model, x.float()), rtol=0, atol=0)
    first, second = (Mixture(K, family).initialize(rows) for rows in (x, x.float()))
    torch.testing.assert_close(first.log_prob(x), second.log_prob(x), rtol=0, atol=0)


def test_booleans_are_answers():
    x = torch.rand(30, 5) < 0.5
    model = Mixture(2, "bernoulli", num_features=5).initialize(x)
    torch.testing.assert_close(log_likelihood(model, x), model.log_prob(x.long()).sum())


BAD_DATA = [
    ("poisson", [[1, -1]], r"x: expected a count \(0, 1, 2, ...\), got -1 in row 0, column 1"),
    ("poisson", [[1.0, 2.0], [0.5, 1.0]], r"x: expected a count \(0, 1, 2, ...\), got 0.5 in row 1, column 0"),
    ("poisson", [[NAN, 2.0]], "got nan in row 0, column 0"),
    ("poisson", [[math.inf, 2.0]], "got inf in row 0, column 0"),
    ("poisson", [[1, 2, 3]], r"x: expected shape \[N, 2\], got \[1, 3\]"),
    ("poisson", [1, 2], r"x: expected shape \[N, 2\], got \[2\]"),
    ("multinomial", [[1, 2, -3, 1]], "expected a count .* got -3"),
    ("multinomial", [[1, 2, 0.5, 1]], "expected a count .* got 0.5"),
    ("bernoulli", [[0, 1, 2, 0, 0]], "x: expected 0 or 1, got 2 in row 0, column 2"),
    ("categorical", [[0, 1, 2, 3]], "x: expected a category from 0 to 2, got 3 in row 0, column 3"),
    ("several categorical", [[0, 4, 0]], "x: expected a category from 0 to 3, got 4 in row 0, column 1"),
    ("several categorical", [[0.5, 1.0, 0.0]], "x: expected a category from 0 to 2, got 0.5 in row 0, column 0"),
    ("exponential", [[1.0, -1.0]], "x: expected a finite number that is not negative, got -1"),
    ("gamma", [[1.0, 0.0]], "x: expected a finite positive number, got 0"),
    ("gamma", [[1.0, NAN]], "x: expected a finite positive number, got nan"),
]


@pytest.mark.parametrize("name, x, message", BAD_DATA)
def test_bad_data_is_refused(name, x, message):
    model, x = Mixture(1, FAMILIES[name]), torch.tensor(x)
    for call in (model, model.initialize, model.log_prob, model.responsibilities, model.bic):
        with pytest.raises(ValueError, match=message):
            call(x)
    if not (x.is_floating_point() and not x.isfinite().all()):  # which a fit refuses in words of its own
        with pytest.raises(ValueError, match=message):
            lvm.fit(model, None, x, num_steps=1, progress=False)


def test_bad_arguments_are_refused():
    model = Mixture(2, {"visits": Poisson(1), "items": Bernoulli(2)})
    visits, items = torch.ones(4, 1), torch.ones(4, 2)
    with pytest.raises(TypeError, match=r"data: expected 2 arguments \(visits, items\), got 1"):
        model(visits)
    with pytest.raises(ValueError, match="visits, items: expected equally many rows, got 4, 3"):
        model(visits, items[:3])
    with pytest.raises(ValueError, match=r"visits: expected shape \[N, 1\], got \[4, 2\]"):
        model(items, visits)
    with pytest.raises(ValueError, match="items: expected 0 or 1, got 3 in row 0, column 0"):
        model.log_prob(visits, 3 * items)
    with pytest.raises(TypeError, match=r"visits: expected a tensor of shape \[N, 1\], got ndarray"):
        model(visits.numpy(), items)
    with pytest.raises(ValueError, match=r"visits: expected torch.float32, the dtype of the model"):
        model(visits.double(), items)
    with pytest.raises(ValueError, match="visits: expected at least as many rows as components, 2, got 1"):
        model.initialize(visits[:1], items[:1])


# Starting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_default_start(name):
    model = Mixture(K, FAMILIES[name])
    assert not model.initialized
    torch.testing.assert_close(model.weights, torch.full((K,), 1 / K))
    for value in (getattr(model, n) for n in model._pyro_params if n != "weights"):
        assert value.shape[0] == K
        assert not torch.equal(value[0], value[1])


def test_initialize_is_the_documented_formula():
    x = torch.tensor([[0, 4], [0, 6], [90, 0]])
    model = Mixture(2, "poisson", num_features=2).double().initialize(x)
    first = int(model.rate[:, 0].argmin())
    pseudo = np.array([91, 11]) / 4
    np.testing.assert_allclose(model.rate[first].detach(), (np.array([0, 10]) + pseudo) / 3)
    np.testing.assert_allclose(model.rate[1 - first].detach(), (np.array([90, 0]) + pseudo) / 2)
    np.testing.assert_allclose(model.weights[[first, 1 - first]].detach(), [3 / 5, 2 / 5])


def test_a_single_component_starts_near_its_maximum():
    x = torch.as_tensor(np.random.default_rng(0).gamma(3, 2, size=(2000, 1)))
    model = Mixture(1, "gamma", num_features=1).double().initialize(x)
    concentration, _, scale = stats.gamma.fit(x.numpy(), floc=0)
    assert model.concentration.item() == pytest.approx(concentration, rel=0.02)
    assert model.rate.item() == pytest.approx(1 / scale, rel=0.02)


POOR = {
    "poisson": [[0, 0]] * 4,
    "multinomial": [[0, 0, 0, 0]] * 4,
    "bernoulli": [[0, 1, 1, 1, 1]] * 4,
    "several categorical": [[0, 0, 0]] * 4,
    "exponential": [[0.0, 5.0]] * 4,
    "gamma": [[1e-3, 1e6]] * 4,
}


@pytest.mark.parametrize("name", POOR)
def test_initialize_survives_poor_data(name):
    x = torch.tensor(POOR[name])
    for rows_ in (x, x[:3]):
        model = Mixture(3, FAMILIES[name]).initialize(rows_)
        assert all(value.isfinite().all() for value in model.parameters())
        assert log_likelihood(model, rows_).isfinite()
        assert model.log_prob(rows_).isfinite().all()


def test_initialize_is_seeded_and_leaves_random_states_alone():
    x = torch.poisson(torch.full((200, 3), 5.0))
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = Mixture(5, "poisson", num_features=3)
    state = torch.get_rng_state()
    first, again, other = (model.initialize(x, seed=seed).rate.detach() for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpys)


def test_clusters_finds_what_is_apart():
    data = np.repeat([[0.0], [10.0], [20.0]], 20, axis=0) + np.random.default_rng(0).normal(size=(60, 1))
    labels = clusters(data, 3, seed=1)
    assert [len(set(labels[i : i + 20])) for i in (0, 20, 40)] == [1, 1, 1]
    assert len(set(labels)) == 3


# Parameters and constructor --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "several categorical", "multinomial"])
def test_assigned_values_read_back(name, param_setting):
    model, other = mixture_of(FAMILIES[name]), Mixture(K, FAMILIES[name]).double()
    for parameter in FAMILIES[name].shapes():
        setattr(other, parameter, getattr(model, parameter))
        torch.testing.assert_close(getattr(other, parameter), getattr(model, parameter))
    assert other.initialized


@pytest.mark.parametrize(
    "name, parameter, value, message",
    [
        ("poisson", "rate", [[1.0, 0.0]], r"rate: expected positive numbers, got \[\[1.0, 0.0\]\]"),
        ("poisson", "rate", [1.0, 2.0], r"rate: expected shape \[1, 2\], got \[2\]"),
        ("bernoulli", "probs", [[0.5, 0.5, 0.5, 0.5, 1.5]], "probs: expected numbers from 0 to 1, got"),
        ("bernoulli", "probs", [[0.5, 0.5, 0.5, 0.5, NAN]], "probs: expected finite values, got nan"),
        ("multinomial", "probs", [[0.5, 0.5, 0.5, 0.5]], "probs: expected non-negative numbers that sum to 1, got"),
        ("multinomial", "probs", [[1.5, -0.5, 0.0, 0.0]], "probs: expected non-negative numbers that sum to 1, got"),
        ("multinomial", "probs", [0.5, 0.5], r"probs: expected shape \[1, 4\], got \[2\]"),
        ("several categorical", "probs_2", [[0.4, 0.4]], "probs_2: expected non-negative numbers that sum to 1, got"),
    ],
)
def test_assignments_are_checked(name, parameter, value, message):
    model = Mixture(1, FAMILIES[name])
    with pytest.raises(ValueError, match=message):
        setattr(model, parameter, value)
    assert not model.initialized


@pytest.mark.parametrize(
    "name, sizes, family",
    [
        ("poisson", {"num_features": 2}, Poisson(2)),
        ("multinomial", {"num_features": 2, "total_count": 9}, Multinomial(2, 9)),
        ("bernoulli", {"num_features": 2}, Bernoulli(2)),
        ("categorical", {"num_categories": 4, "num_features": 3}, Categorical(4, num_features=3)),
        ("categorical", {"num_categories": [4, 3]}, Categorical([4, 3], num_features=2)),
        ("exponential", {"num_features": 1}, Exponential(1)),
        ("gamma", {"num_features": 1}, Gamma(1)),
    ],
)
def test_names_stand_for_families(name, sizes, family):
    assert Mixture(2, name, **sizes).families == Mixture(2, family).families == {"x": family}


def test_items_alike_share_a_parameter():
    assert Mixture(2, Categorical([3, 3])).probs.shape == (2, 2, 3)
    assert Mixture(2, Categorical(3)).probs.shape == (2, 1, 3)
    assert Mixture(2, Categorical([3, 4])).probs_1.shape == (2, 4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Mixture(0, Poisson(2)), ValueError, "num_components must be a positive integer; got 0"),
        (lambda: Mixture(2.0, Poisson(2)), TypeError, "num_components must be a positive integer; got 2.0"),
        (
            lambda: Mixture(2, "cauchy"),
            ValueError,
            "family: expected one of 'gaussian', 'poisson', .*, got 'cauchy'",
        ),
        (lambda: Mixture(2, "poisson"), TypeError, "num_features"),
        (lambda: Mixture(2, "poisson", num_features=2, total_count=3), TypeError, "total_count"),
        (
            lambda: Mixture(2, Poisson(2), num_features=2),
            TypeError,
            "num_features: expected only where family is a name",
        ),
        (lambda: Mixture(2, Poisson), TypeError, r"family: expected a family such as Poisson\(2\)"),
        (lambda: Mixture(2, {"x": "poisson"}), TypeError, r"family: expected a family such as Poisson\(2\)"),
        (lambda: Mixture(2, {}), ValueError, "family: expected at least one family"),
        (lambda: Mixture(2, {"z": Poisson(1)}), ValueError, "other than z, rows, weights, got 'z'"),
        (lambda: Mixture(2, {"my visits": Poisson(1)}), ValueError, "got 'my visits'"),
        (lambda: Poisson(0), ValueError, "num_features must be a positive integer; got 0"),
        (lambda: Poisson(True), TypeError, "num_features must be a positive integer; got True"),
        (lambda: Multinomial(2, 0), ValueError, "total_count must be a positive integer; got 0"),
        (lambda: Categorical(1), ValueError, "num_categories: expected at least 2, got 1"),
        (lambda: Categorical([]), ValueError, "num_features must be a positive integer; got 0"),
        (lambda: Categorical([3, 1]), ValueError, r"num_categories: expected at least 2, got \[3, 1\]"),
        (lambda: Categorical([3, 4], 3), ValueError, r"expected one for each of 3 items, got \[3, 4\]"),
        (lambda: Categorical("34"), TypeError, "num_categories must be a positive integer; got '3'"),
        (lambda: Categorical(2.5), TypeError, "num_categories must be a positive integer; got 2.5"),
    ],
)
def test_constructors_refuse_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_values_are_not_looked_at_where_validation_is_off():
    with pyro.validation_enabled(False):
        poutine.trace(Mixture(2, Poisson(1))).get_trace(torch.tensor([[-1.0]]))
