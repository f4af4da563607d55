"""Hidden Markov models equal hmmlearn, and brute force over all paths."""

import itertools
import math

import hmmlearn.hmm
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch.distributions import constraints
from torch.utils.data import DataLoader

import pyro_lvm as lvm
from pyro_lvm.models import HMM
from pyro_lvm.models._chains import Smoothed
from pyro_lvm.models.mixture import Bernoulli, Categorical, Gaussian, Multinomial, Poisson

K = 3
INITIAL = np.array([0.5, 0.3, 0.2])
TRANSITION = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])
LOCS = np.array([[-2.0, 0.0], [1.0, 1.0], [3.0, -2.0]])
SCALE_TRIL = np.array([[[1.0, 0.0], [0.5, 0.8]], [[1.5, 0.0], [-0.7, 1.0]], [[0.6, 0.0], [0.1, 2.0]]])
SCALE = np.array([[1.0, 0.7], [1.5, 1.2], [0.6, 2.0]])
RATE = np.array([[1.0, 6.0], [4.0, 0.5], [9.0, 3.0]])
PROBS = np.array([[0.7, 0.2, 0.05, 0.05], [0.1, 0.1, 0.4, 0.4], [0.25, 0.25, 0.25, 0.25]])
KINDS = ["full", "diag", "categorical", "poisson"]


def model_of(kind, dtype=torch.float64):
    """A model with known parameters."""
    family = {
        "full": Gaussian(2),
        "diag": Gaussian(2, "diag"),
        "categorical": Categorical(4),
        "poisson": Poisson(2),
        "product": {"numbers": Gaussian(2), "counts": Poisson(2)},
    }[kind]
    model = HMM(K, family).to(dtype)
    model.initial, model.transition = INITIAL, TRANSITION
    values = {
        "full": {"locs": LOCS, "scale_tril": SCALE_TRIL},
        "diag": {"locs": LOCS, "scale": SCALE},
        "categorical": {"probs": PROBS[:, None]},
        "poisson": {"rate": RATE},
        "product": {"numbers_locs": LOCS, "numbers_scale_tril": SCALE_TRIL, "counts_rate": RATE},
    }[kind]
    for name, value in values.items():
        setattr(model, name, value)
    return model


def peer_of(kind, model, **options):
    """hmmlearn's model with the same parameters, its priors flat."""
    common = {"n_components": model.num_states, "init_params": "", "implementation": "log", **options}
    if kind in ("full", "diag"):
        covariance = "full" if kind == "full" else "diag"
        peer = hmmlearn.hmm.GaussianHMM(
            covariance_type=covariance, covars_prior=0, covars_weight=0, min_covar=0, **common
        )
        peer.means_ = model.locs.detach().numpy()
        tril = model.scale_tril.detach().numpy() if kind == "full" else None
        peer.covars_ = tril @ tril.swapaxes(1, 2) if kind == "full" else model.scale.detach().numpy() ** 2
    elif kind == "categorical":
        peer = hmmlearn.hmm.CategoricalHMM(**common)
        peer.emissionprob_, peer.n_features = model.probs[:, 0].detach().numpy(), 4
    else:
        peer = hmmlearn.hmm.PoissonHMM(**common)
        peer.lambdas_ = model.rate.detach().numpy()
    peer.startprob_, peer.transmat_ = model.initial.detach().numpy(), model.transition.detach().numpy()
    return peer


def log_densities(kind, x):
    """Of rows in each state, `[T, K]`, by SciPy."""
    if kind == "full":
        columns = [stats.multivariate_normal(m, L @ L.T).logpdf(x) for m, L in zip(LOCS, SCALE_TRIL, strict=True)]
        return np.stack(columns, -1).reshape(len(x), K)
    if kind == "diag":
        return stats.norm(LOCS, SCALE).logpdf(x[:, None]).sum(-1)
    if kind == "categorical":
        return np.log(PROBS[:, x[:, 0]]).T
    return stats.poisson(RATE).logpmf(x[:, None]).sum(-1)


def sequences_of(kind, lengths, seed=0):
    x, _ = model_of(kind).sample(len(lengths), max(lengths), seed=seed)
    if kind == "product":
        return [[x[part][n, :length] for n, length in enumerate(lengths)] for part in x]
    x = x.long() if kind in ("categorical", "poisson") else x
    return [x[n, :length] for n, length in enumerate(lengths)]


def by_brute_force(density, initial=INITIAL, transition=TRANSITION):
    """Log-density, posterior probabilities and the best path of one sequence, from all paths."""
    T = len(density)
    with np.errstate(divide="ignore"):
        initial, transition = np.log(initial), np.log(transition)
    paths = np.array(list(itertools.product(range(K), repeat=T)))
    joint = initial[paths[:, 0]] + density[np.arange(T), paths].sum(-1)
    joint += transition[paths[:, :-1], paths[:, 1:]].sum(-1)
    weight = np.exp(joint - logsumexp(joint))
    probs = np.stack([[weight[paths[:, t] == k].sum() for k in range(K)] for t in range(T)])
    return logsumexp(joint), probs, paths[joint.argmax()]


# The exact posterior ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "product"])
def test_posterior_is_that_of_all_paths(kind, param_setting):
    lengths = [4, 1, 6, 2, 6]
    model, data = model_of(kind), sequences_of(kind, lengths)
    parts = [data] if kind != "product" else data
    arguments = [parts[0]] if kind != "product" else parts
    log_prob, probs, paths = (f(*arguments) for f in (model.log_prob, model.state_probs, model.viterbi))
    assert probs.shape == (5, 6, K)
    for n, length in enumerate(lengths):
        kinds = [kind] if kind != "product" else ["full", "poisson"]
        density = sum(log_densities(k, part[n].numpy()) for k, part in zip(kinds, parts, strict=True))
        expected = by_brute_force(density)
        assert log_prob[n].item() == pytest.approx(expected[0], rel=1e-12)
        np.testing.assert_allclose(probs[n, :length], expected[1], atol=1e-12)
        np.testing.assert_array_equal(paths[n, :length], expected[2])
        assert (probs[n, length:] == 0).all()
        assert (paths[n, length:] == -1).all()


@pytest.mark.parametrize("lengths", [[40] * 5, [300, 1, 17, 120], [5000], [3000, 1234, 1]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_posterior_is_that_of_hmmlearn(kind, lengths):
    model, data = model_of(kind), sequences_of(kind, lengths)
    peer = peer_of(kind, model)
    stacked = np.concatenate(data)
    assert model.log_prob(data).sum().item() == pytest.approx(peer.score(stacked, lengths), rel=1e-12)
    ours, path = model.state_probs(data), model.viterbi(data)
    there = path >= 0
    np.testing.assert_allclose(ours[there], peer.predict_proba(stacked, lengths), atol=1e-8)
    theirs_log_prob, theirs = peer.decode(stacked, lengths)
    np.testing.assert_array_equal(path[there], theirs)
    assert there.sum(-1).tolist() == lengths
    assert math.isfinite(theirs_log_prob)


def extreme(transition, locs, x):
    """A model with narrow Gaussians, so that states are as good as impossible, and the log-densities of rows."""
    model = HMM(K, Gaussian(1, "diag")).double()
    model.initial, model.transition = np.array([1.0, 0.0, 0.0]), transition
    model.locs, model.scale = locs, np.full((K, 1), 0.01)
    return model, stats.norm(locs, 0.01).logpdf(x[:, None]).sum(-1)


LEFT_TO_RIGHT = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("T", [6, 9])
def test_probabilities_that_underflow_are_right(T):
    """The rows look like a state that has no way back, then like the one before it, nine hundred deviations off."""
    locs = np.array([[0.0], [9.0], [30.0]])
    x = np.array([0.0, 9.0, 0.0, 0.0, 9.0, 30.0, 30.0, 9.0, 30.0])[:T, None]
    model, density = extreme(LEFT_TO_RIGHT, locs, x)
    beside = x[::-1].copy()
    _, beside_density = extreme(LEFT_TO_RIGHT, locs, beside)
    data = [torch.as_tensor(x), torch.zeros(3, 1).double(), torch.as_tensor(beside)]
    expected = by_brute_force(density, np.array([1.0, 0.0, 0.0]), LEFT_TO_RIGHT)
    assert expected[0] < -1e5
    assert model.log_prob(data)[0].item() == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(model.state_probs(data)[0, :T], expected[1], atol=1e-12)
    np.testing.assert_array_equal(model.viterbi(data)[0, :T], expected[2])
    last = by_brute_force(beside_density, np.array([1.0, 0.0, 0.0]), LEFT_TO_RIGHT)
    np.testing.assert_allclose(model.state_probs(data)[2, :T], last[1], atol=1e-12)


@pytest.mark.parametrize("transition", [np.eye(2), [[0.9, 0.1], [0.0, 1.0]], [[1 - 1e-200, 1e-200], [1e-250, 1.0]]])
@pytest.mark.parametrize("num_later", [18, 24, 40])
def test_states_that_rare_moves_do_not_bring_back_are_not_lost(transition, num_later):
    """A first row rules a state out, and later ones make it the true one, each only somewhat."""
    transition = np.array(transition)
    locs = np.array([0.0, 40.0])
    for first, later in ((0.0, 21.2), (40.0, 18.8)):
        x = np.array([first, *[later] * num_later])
        density = stats.norm(locs, 1.0).logpdf(x[:, None])
        initial = np.array([0.5, 0.5])
        logs = np.log(np.maximum(transition, 0), where=transition > 0, out=np.full((2, 2), -np.inf))
        forward, back = [np.log(initial) + density[0]], [np.zeros(2)]
        for row in density[1:]:
            forward.append(logsumexp(forward[-1][:, None] + logs, axis=0) + row)
        for row in density[:0:-1]:
            back.append(logsumexp(logs + row + back[-1], axis=1))
        log_prob = logsumexp(forward[-1])
        states = np.exp(np.array(forward) + np.array(back[::-1]) - log_prob)
        found = Smoothed(torch.tensor(density), torch.tensor([len(x)]), torch.tensor(initial), torch.tensor(transition))
        assert found.log_prob.item() == pytest.approx(log_prob, rel=1e-10)
        np.testing.assert_allclose(found.states, states, atol=1e-8)


def test_long_chains_whose_moves_are_rare_are_right():
    """Too long to be left whole, were it not for that."""
    x = torch.cat([torch.zeros(1), torch.full((999,), 21.0)]).double()
    density = torch.distributions.Normal(torch.tensor([0.0, 40.0]).double(), 1.0).log_prob(x.unsqueeze(-1))
    found = Smoothed(density, torch.tensor([1000]), torch.tensor([0.5, 0.5]), torch.eye(2))
    assert found.log_prob.item() == pytest.approx((density.sum(0) + math.log(0.5)).logsumexp(0).item(), rel=1e-12)


def test_restarts_keep_zeros():
    """Three states from left to right, found in their order from clusters in any."""
    rng = np.random.default_rng(0)
    x = [
        torch.tensor(np.repeat([50.0, 0.0, 90.0], rng.integers(4, 9, 3))[:, None] + rng.normal(size=1))
        for _ in range(20)
    ]
    x = [row + torch.tensor(rng.normal(size=row.shape)) for row in x]
    model = HMM(3, Gaussian(1)).double()
    model.initial, model.transition = [1.0, 0.0, 0.0], [[0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 1.0]]
    for start in (model.initialize(x), model):
        em = lvm.fit_em(start, x, num_restarts=3, progress=False)
        assert (model.transition.tril(-1) == 0).all()
        assert model.transition[0, 2] == 0
        torch.testing.assert_close(model.locs[:, 0], torch.tensor([50.0, 0.0, 90.0]).double(), atol=1.0, rtol=0)
        assert em.converged


def test_impossible_sequence_has_log_density_minus_infinity():
    density = torch.tensor([[0.0, -1.0], [-torch.inf, 0.0], [0.0, 0.0]]).double()
    smoothed = Smoothed(density, torch.tensor([2, 1]), torch.tensor([1.0, 0.0]), torch.eye(2))
    assert smoothed.log_prob.tolist() == [-math.inf, 0.0]


# EM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_em_takes_the_path_of_hmmlearn(kind):
    lengths = [40, 25, 1, 60, 33]
    model, data = model_of(kind), sequences_of(kind, lengths, seed=3)
    peer = peer_of(kind, model, n_iter=20, tol=-math.inf).fit(np.concatenate(data), lengths)
    em = lvm.fit_em(model, data, max_iter=20, tol=0, progress=False)
    assert em.num_iter == 20
    np.testing.assert_allclose(em.objective[:-1], peer.monitor_.history, rtol=1e-9)
    assert em.objective[-1].item() == pytest.approx(peer.score(np.concatenate(data), lengths), rel=1e-9)
    assert (em.objective.diff() >= -1e-9).all()
    np.testing.assert_allclose(model.transition.detach(), peer.transmat_, atol=1e-7)
    np.testing.assert_allclose(model.initial.detach(), peer.startprob_, atol=1e-7)


def loop(x):
    """The same model as a Pyro program."""
    initial = pyro.param("initial", torch.as_tensor(INITIAL), constraint=constraints.simplex)
    transition = pyro.param("transition", torch.as_tensor(TRANSITION), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.as_tensor(LOCS))
    scale_tril = pyro.param("scale_tril", torch.as_tensor(SCALE_TRIL), constraint=constraints.lower_cholesky)
    with pyro.plate("rows", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
            pyro.sample(f"x_{t}", dist.MultivariateNormal(locs[z], scale_tril=scale_tril[z]), obs=x[:, t])


def test_own_steps_take_the_path_of_the_program_as_a_loop():
    x, _ = model_of("full").sample(6, 8, seed=4)
    generic = lvm.fit_em(loop, x, max_iter=10, tol=0, progress=False)
    model = model_of("full")
    own = lvm.fit_em(model, x, max_iter=10, tol=0, progress=False)
    np.testing.assert_allclose(own.objective, generic.objective, rtol=1e-10)
    for name, value in generic.params.items():
        torch.testing.assert_close(own.params[name], value)


@pytest.mark.slow
def test_a_loop_of_five_hundred_steps_takes_the_path_of_own_steps():
    x, _ = model_of("full").sample(2, 500, seed=5)
    generic = lvm.fit_em(loop, x, max_iter=1, tol=0, progress=False)
    own = lvm.fit_em(model_of("full"), x, max_iter=1, tol=0, progress=False)
    np.testing.assert_allclose(own.objective, generic.objective, rtol=1e-10)


def test_weights_are_repeated_sequences_and_batches_change_nothing():
    lengths = [10, 4, 7, 12]
    data = sequences_of("product", lengths)
    repeated = [[part[i] for i in (0, 0, 0, 1, 3, 3)] for part in data]
    options = {"max_iter": 5, "tol": 0, "progress": False}
    plain = lvm.fit_em(model_of("product"), *repeated, **options)
    weighted = lvm.fit_em(model_of("product"), *data, sample_weight=[3, 1, 0, 2], **options)
    batched = lvm.fit_em(model_of("product"), *data, sample_weight=[3, 1, 0, 2], batch_size=3, **options)
    for name, value in plain.params.items():
        torch.testing.assert_close(weighted.params[name], value)
        torch.testing.assert_close(batched.params[name], value)
    torch.testing.assert_close(batched.objective, plain.objective)


def test_what_stands_behind_the_ends_does_not_count():
    lengths = [5, 2]
    data = sequences_of("full", lengths)
    padded = torch.full((2, 9, 2), 7e8).double()
    for n, sequence in enumerate(data):
        padded[n, : len(sequence)] = sequence
    model, lengths = model_of("full"), torch.tensor(lengths)
    torch.testing.assert_close(model.log_prob(padded, lengths), model.log_prob(data), rtol=1e-14, atol=0)
    assert model.viterbi(padded, lengths).shape == (2, 9)
    options = {"max_iter": 3, "tol": 0, "progress": False}
    one, other = lvm.fit_em(model_of("full"), padded, lengths, **options), lvm.fit_em(model_of("full"), data, **options)
    torch.testing.assert_close(one.objective, other.objective, rtol=1e-14, atol=0)


def test_zeros_of_a_left_to_right_model_stay_zero():
    rng = np.random.default_rng(0)
    data = [
        torch.as_tensor(np.concatenate([rng.normal(m, 0.5, size=(n, 1)) for m, n in zip((0, 5, 9), ns, strict=True)]))
        for ns in rng.integers(2, 6, size=(20, 3))
    ]
    model = HMM(K, Gaussian(1, "diag")).double()
    model.initial, model.transition = np.array([1.0, 0.0, 0.0]), LEFT_TO_RIGHT
    model.locs, model.scale = np.array([[1.0], [4.0], [8.0]]), np.ones((K, 1))
    em = lvm.fit_em(model, data, progress=False)
    assert em.converged
    assert (model.transition[torch.as_tensor(LEFT_TO_RIGHT == 0)] == 0).all()
    np.testing.assert_allclose(model.locs.detach()[:, 0], [0, 5, 9], atol=0.3)
    # every path ends in the last state, with the middle one before it
    assert all(path[-1] == 2 and set(path) == {0, 1, 2} for path in (model.viterbi(d)[0].tolist() for d in data))


def test_state_without_rows_keeps_its_parameters():
    model = model_of("full")
    model.initial, model.transition = (
        np.array([0.5, 0.5, 0.0]),
        np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]),
    )
    lvm.fit_em(model, sequences_of("full", [30]), progress=False)
    np.testing.assert_allclose(model.transition.detach()[2], [0.2, 0.3, 0.5])
    np.testing.assert_allclose(model.locs.detach()[2], LOCS[2])


def test_restarts_come_in_one_order():
    data = sequences_of("full", [200, 150])
    em = lvm.fit_em(HMM(K, Gaussian(2)).double(), data, num_restarts=4, progress=False, tol=1e-10, max_iter=2000)
    best = em.restarts.argmax()
    same = (em.restarts - em.restarts[best]).abs() < 1e-4
    assert same.sum() >= 2
    for i in same.nonzero().flatten():
        for name, value in em.params.items():
            torch.testing.assert_close(em.restart_params[name][i], value, rtol=1e-2, atol=1e-2)


def test_start_is_near_what_made_the_data():
    model, data = HMM(K, Poisson(2)), sequences_of("poisson", [300] * 5)
    model.initialize(data)
    order = model.rate[:, 0].argsort()
    np.testing.assert_allclose(model.rate[order].detach(), RATE, rtol=0.5, atol=0.5)
    assert model.transition[order][:, order].diagonal().min() > 0.4
    lvm.fit_em(model, data, progress=False)
    order = model.rate[:, 0].argsort()
    num_rows = 300  # of the rarest state, about
    assert (np.abs(model.rate[order].detach().numpy() - RATE) < 4.5 * np.sqrt(RATE / num_rows)).all()
    error = np.abs(model.transition[order][:, order].detach().numpy() - TRANSITION)
    assert (error < 4.5 * np.sqrt(TRANSITION * (1 - TRANSITION) / num_rows)).all()


# A plain Pyro module ------------------------------------------------------------------------------------------


def test_slope_of_the_log_density_is_that_of_the_forward_recursion():
    model, data = model_of("full"), sequences_of("full", [7, 3, 1])
    padded, lengths = model.as_data(data)
    trace = pyro.poutine.trace(model).get_trace(padded, lengths)
    weight = torch.tensor([1.0, 2.0, -0.5]).double()
    total = trace.nodes["x"]["fn"].log_prob(trace.nodes["x"]["value"]) @ weight
    names = ("initial", "transition", "locs", "scale_tril")
    found = torch.autograd.grad(total, list(model.parameters()))

    initial, transition, locs, scale_tril = (getattr(model, name) for name in names)
    expected = 0.0
    for w, x in zip(weight, data, strict=True):
        density = dist.MultivariateNormal(locs, scale_tril=scale_tril).log_prob(x.unsqueeze(1))
        joint = initial.log() + density[0]
        for row in density[1:]:
            joint = (joint.unsqueeze(-1) + transition.log()).logsumexp(0) + row
        expected = expected + w * joint.logsumexp(0)
    torch.testing.assert_close(total, expected)
    for one, other in zip(found, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other)


def test_fit_reaches_the_maximum_of_em():
    data = sequences_of("product", [60] * 4)
    em = lvm.fit_em(model_of("product"), *data, tol=1e-9, max_iter=1000, progress=False)
    model = model_of("product")
    svi = lvm.fit(model, None, *data, num_steps=600, optim=0.02, progress=False)
    assert svi.losses[-1].item() == pytest.approx(-em.objective[-1].item(), rel=1e-4)


def test_drawn_sequences_have_the_moments_of_the_model():
    model, S, T = model_of("product"), 20_000, 4
    x, states = model.sample(S, T, seed=1)
    marginal = INITIAL
    for t in range(T):
        found = (states[:, t, None] == torch.arange(K)).double()
        assert_within(found, marginal)
        assert_within(x["counts"][:, t], marginal @ RATE)
        assert_within(x["numbers"][:, t], marginal @ LOCS)
        marginal = marginal @ TRANSITION


def assert_within(draws, expected, errors=4.5):
    """Means of draws are within so many standard errors."""
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - torch.as_tensor(expected)).abs() < errors * standard_error).all()


def test_forecast_goes_on_from_the_last_state():
    model, lengths = model_of("poisson"), [5, 12]
    data = sequences_of("poisson", lengths)
    draws = model.forecast(data, num_steps=3, num_draws=20_000)
    assert draws.shape == (20_000, 2, 3, 2)
    for n, sequence in enumerate(data):
        density = log_densities("poisson", sequence.numpy())
        filtered = INITIAL
        for row in density:
            weight = filtered * np.exp(row)
            last = weight / weight.sum()
            filtered = last @ TRANSITION
        for h in range(3):
            assert_within(draws[:, n, h], last @ np.linalg.matrix_power(TRANSITION, h + 1) @ RATE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_answers_of_no_probability_are_impossible(dtype):
    """As hmmlearn has it; and in EM zeros stay."""
    probs = np.array([[0.5, 0.5, 0.0], [0.0, 0.3, 0.7]])
    model = HMM(2, Categorical(3)).to(dtype)
    model.initial, model.transition, model.probs = [1.0, 0.0], [[0.6, 0.4], [0.0, 1.0]], probs[:, None]
    peer = hmmlearn.hmm.CategoricalHMM(2, init_params="")
    peer.startprob_, peer.transmat_ = np.array([1.0, 0.0]), np.array([[0.6, 0.4], [0.0, 1.0]])
    peer.emissionprob_, peer.n_features = probs, 3
    for answers in ([0, 1, 2], [2, 1], [0, 1, 2, 0], [1, 1, 1, 2, 2]):
        x = torch.tensor(answers, dtype=dtype).unsqueeze(-1)
        with np.errstate(divide="ignore"):
            expected = peer.score(np.array(answers)[:, None])
        assert model.log_prob(x).item() == pytest.approx(expected, rel=1e-6)
        trace = pyro.poutine.trace(model).get_trace(x.unsqueeze(0))
        trace.compute_log_prob()
        assert trace.nodes["x"]["log_prob"].item() == pytest.approx(expected, rel=1e-6)
    x = [torch.tensor(answers, dtype=dtype).unsqueeze(-1) for answers in ([0, 1, 2], [1, 2, 2, 1], [0, 0, 1])]
    lvm.fit_em(model, x, max_iter=5, progress=False)
    assert (model.probs[:, 0] == 0).tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("family", [Bernoulli(2), Multinomial(3), Categorical(3, 2), Categorical([2, 3])])
def test_families_of_counts_and_answers_are_those_of_their_densities(family):
    generator = torch.Generator().manual_seed(0)
    params = {}
    for name, shape in family.shapes().items():
        raw = torch.rand(K, *shape, generator=generator).double()
        params[name] = raw if isinstance(family, Bernoulli) else raw / raw.sum(-1, keepdim=True)
    most = (
        torch.tensor([2, 2])
        if isinstance(family, Bernoulli)
        else torch.tensor([2, 3])
        if family == Categorical([2, 3])
        else torch.tensor(3)
    )
    size = 3 if isinstance(family, Multinomial) else 2
    x = (torch.rand(20, size, generator=generator) * most).floor().double()
    expected = sum(density.log_prob(value) for _, density, value in family.observe(params, x.unsqueeze(-2)))
    torch.testing.assert_close(family.log_prob(params, x), expected)


def test_results_take_what_models_take():
    """Lists of sequences, of any length, whatever the fit has seen."""
    x = [torch.randn(T, 2, generator=torch.Generator().manual_seed(T)).double() for T in (5, 9, 12)]
    model = HMM(2, Gaussian(2)).double()
    em = lvm.fit_em(model, x, max_iter=3, progress=False)
    for rows in (x, x[:2], [torch.cat(x)]):
        torch.testing.assert_close(em.score(rows).value, model.log_prob(rows).detach())
    svi = lvm.fit(model, None, x, num_steps=2, validation=[x[:1]], every=1, progress=False)
    torch.testing.assert_close(svi.score(x[:2]).value, model.log_prob(x[:2]).detach())


def test_result_predicts_scores_and_is_saved(tmp_path):
    data = sequences_of("poisson", [6, 4, 5])
    model = HMM(2, Poisson(2)).double()
    em = lvm.fit_em(model, data, progress=False)
    em.save(tmp_path / "hmm.pt")
    again = lvm.load(tmp_path / "hmm.pt", HMM(2, Poisson(2)).double(), None, data)
    for name, value in em.params.items():
        torch.testing.assert_close(again.params[name], value)


def test_one_table_is_one_sequence():
    model, (x,) = model_of("full"), sequences_of("full", [20])
    torch.testing.assert_close(model.log_prob(x), model.log_prob([x]))
    single_precision = model_of("full", torch.float32)
    torch.testing.assert_close(single_precision.log_prob(x.numpy()), single_precision.log_prob([x.float()]))
    single = HMM(2, Poisson(1))
    torch.testing.assert_close(single.log_prob([[1, 2, 3], [4]]), single.log_prob([torch.tensor([[1], [2], [3]]), [4]]))


def test_float32_is_near_float64():
    data = sequences_of("full", [200, 120])
    exact, rounded = model_of("full"), model_of("full", torch.float32)
    options = {"max_iter": 10, "tol": 0, "progress": False}
    one = lvm.fit_em(exact, data, **options)
    other = lvm.fit_em(rounded, [x.float() for x in data], **options)
    np.testing.assert_allclose(other.objective, one.objective, rtol=1e-5)
    assert rounded.locs.dtype == torch.float32
    torch.testing.assert_close(rounded.locs.double(), exact.locs, rtol=1e-4, atol=1e-4)


# Errors -------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 4, 2).double()


@pytest.mark.parametrize(
    "data, error, message",
    [
        ((), TypeError, r"data: expected 1 arguments \(x\) and perhaps lengths, got 0"),
        ((X, torch.tensor([4, 4]), 1), TypeError, r"expected 1 arguments \(x\) and perhaps lengths, got 3"),
        (("no",), TypeError, r"x: expected a tensor of shape \[N, T, 2\], got str"),
        ((X[..., :1],), ValueError, r"x: expected shape \[N, T, 2\], got \[2, 4, 1\]"),
        ((X[:, :0],), ValueError, r"x: expected shape \[N, T, 2\], got \[2, 0, 2\]"),
        ((X[0, :, :1],), ValueError, r"x: expected shape \[T, 2\], got \[4, 1\]"),
        (([X[0], X[0, :0]],), ValueError, "expected at least one row in each sequence, sequence 1 has none"),
        (([X[0], X[0, :, 0]],), ValueError, r"x: sequence 1: expected shape \[T, 2\], got \[4\]"),
        (([X[0]], torch.tensor([4])), ValueError, "lengths: expected only with padded sequences"),
        ((X, torch.tensor([4, 5])), ValueError, r"lengths: expected numbers from 1 to 4, got \[4, 5\]"),
        ((X, torch.tensor([4, 0])), ValueError, r"lengths: expected numbers from 1 to 4, got \[4, 0\]"),
        ((X, torch.tensor([4.0, 1.0])), ValueError, "lengths: expected 2 whole numbers"),
        ((X, torch.tensor([4])), ValueError, r"lengths: expected 2 whole numbers, one for each sequence, got \[1\]"),
        ((X.float(),), ValueError, "x: expected torch.float64, the dtype of the model, got torch.float32"),
        ((X + torch.nan,), ValueError, "x: expected a finite number, got nan in row 0, column 0"),
    ],
)
def test_wrong_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        model_of("full").log_prob(*data)


def test_sequences_of_several_families_must_match():
    x, counts = torch.zeros(2, 4, 2).double(), torch.zeros(2, 3, 2)
    with pytest.raises(ValueError, match=r"counts: expected \[2, 4\] rows, got \[2, 3\]"):
        model_of("product").log_prob(x, counts)
    with pytest.raises(ValueError, match="numbers, counts: expected sequences of the same lengths"):
        model_of("product").log_prob([x[0], x[0]], [counts[0], counts[0]])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0, "poisson"), ValueError, "num_states"),
        ((2, "normal"), ValueError, "emission: expected one of"),
        ((2, {}), ValueError, "at least one family"),
        ((2, {"initial": Poisson(1)}), ValueError, "other than rows, initial, transition, lengths, got 'initial'"),
        ((2, 3), TypeError, "emission: expected a family"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        HMM(*arguments, **({"num_features": 2} if arguments[1] in ("poisson", "normal") else {}))


@pytest.mark.parametrize(
    "data, error, message",
    [
        (torch.zeros(0, 4, 2), ValueError, r"x: expected shape \[N, T, 2\], got \[0, 4, 2\]"),
        ([], TypeError, "x: expected a tensor"),
        (["a", "b"], TypeError, "x: expected a tensor"),
        ([torch.ones(3, 2), torch.ones(2, 2).double()], ValueError, "x: expected sequences of one dtype"),
    ],
)
def test_wrong_sequences_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        HMM(2, Poisson(2)).log_prob(data)


def test_sequences_of_whole_numbers_take_the_dtype_of_the_others():
    model = HMM(2, Poisson(1))
    whole, other = [[1.0], [2.0]], [[0.5], [1.5]]
    for first in (torch.tensor(whole).long(), torch.tensor(whole)):
        torch.testing.assert_close(model.as_data([first, torch.tensor(other)])[0], torch.tensor([whole, other]))


def test_nan_behind_the_ends_of_sequences_does_not_count():
    lengths = torch.tensor([5, 3])
    x = torch.poisson(torch.full((2, 5, 1), 4.0))
    padded = x.clone()
    padded[1, 3:] = torch.nan
    found, expected = (
        lvm.fit_em(HMM(2, Poisson(1)), data, lengths, max_iter=3, progress=False) for data in (padded, x)
    )
    assert torch.equal(found.objective, expected.objective)
    assert padded[1, 3:].isnan().all()
    padded[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        lvm.fit_em(HMM(2, Poisson(1)), padded, lengths, progress=False)


def test_nothing_comes_after_an_impossible_sequence():
    model = HMM(2, Categorical(3))
    model.probs = torch.tensor([[[0.5, 0.5, 0.0]], [[0.2, 0.8, 0.0]]])
    with pytest.raises(ValueError, match="sequence 1 is impossible"):
        model.forecast([torch.tensor([[0.0]]), torch.tensor([[2.0]])], num_steps=1)


@pytest.mark.parametrize("lengths", [torch.tensor([True, True]), torch.tensor([1.0, 2.0]), torch.tensor([1]), [3, 9]])
def test_wrong_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths: expected"):
        HMM(2, Poisson(1)).log_prob(torch.ones(2, 3, 1), lengths)


def test_batches_of_other_widths_are_refused():
    loader = DataLoader([torch.ones(n, 1) for n in (2, 3, 4, 5)], batch_size=2, collate_fn=lambda b: (list(b),))
    with pytest.raises(ValueError, match="rows of one shape"):
        lvm.fit_em(HMM(2, Poisson(1)), loader, progress=False)


def test_fewer_rows_than_states_make_no_start():
    with pytest.raises(ValueError, match="x: expected at least as many rows as states, 3, got 2"):
        HMM(K, Poisson(2)).initialize(torch.zeros(2, 2))
