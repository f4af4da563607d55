"""Hidden Markov models take the path of Baum and Welch's loop, and other discrete structure that of brute force."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from scipy import stats
from scipy.special import logsumexp

from .checks import assert_at_the_top, assert_closed, assert_rises, assert_same_path, fit, posteriors

N, T, K = 12, 6, 3
START = np.array([0.5, 0.3, 0.2])
MOVES = np.array([[0.6, 0.2, 0.2], [0.1, 0.7, 0.2], [0.25, 0.25, 0.5]])
LEFT_TO_RIGHT = np.array([[0.5, 0.5, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]])


def sequences(moves=((0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.2, 0.2, 0.6)), start=(1 / 3, 1 / 3, 1 / 3)):
    """States, numbers about a centre of each state, and symbols that it prefers."""
    moves = torch.tensor(moves)
    z = [dist.Categorical(torch.tensor(start).expand(N, K)).sample()]
    for _ in range(T - 1):
        z.append(dist.Categorical(moves[z[-1]]).sample())
    z = torch.stack(z, 1)
    x = torch.tensor([-3.0, 0.0, 4.0])[z] + torch.tensor([0.7, 1.0, 1.3])[z] * torch.randn(N, T)
    symbols = dist.Categorical(torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]])[z]).sample()
    return x, symbols


def hmm(start=START, moves=MOVES, with_symbols=False):
    def model(x, symbols=None):
        first = pyro.param("first", torch.tensor(start), constraint=constraints.simplex)
        transition = pyro.param("transition", torch.tensor(moves), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 2.0]), constraint=constraints.real)
        scale = pyro.param("scale", torch.ones(K), constraint=constraints.positive)
        if with_symbols:
            emission = pyro.param("emission", torch.tensor(MOVES), constraint=constraints.simplex)
        with pyro.plate("rows", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(first if z is None else transition[z]))
                pyro.sample(f"x{t}", dist.Normal(loc[z], scale[z]), obs=x[:, t])
                if with_symbols:
                    pyro.sample(f"s{t}", dist.Categorical(emission[z]), obs=symbols[:, t])

    return model


def baum_welch(params, num_iter, x, symbols=None):
    """EM of a hidden Markov model in numpy, by the forward and backward recursions in logarithms."""
    x, path = x.numpy(), []
    symbols = None if symbols is None else np.eye(3)[symbols.numpy()]
    for i in range(num_iter + 1):
        with np.errstate(divide="ignore"):
            log_first, log_moves = np.log(params["first"]), np.log(params["transition"])
            emitted = stats.norm.logpdf(x[..., None], params["loc"], params["scale"])
            if symbols is not None:
                emitted = emitted + symbols @ np.log(params["emission"]).T
        forward = [log_first + emitted[:, 0]]
        for t in range(1, T):
            forward.append(logsumexp(forward[-1][:, :, None] + log_moves, axis=1) + emitted[:, t])
        backward = [np.zeros((N, K))]
        for t in range(T - 1, 0, -1):
            backward.insert(0, logsumexp(log_moves + (emitted[:, t] + backward[0])[:, None, :], axis=-1))
        log_p = logsumexp(forward[-1], axis=-1)
        path.append(log_p.sum())
        if i == num_iter:
            break
        resp = np.exp(np.stack(forward, 1) + np.stack(backward, 1) - log_p[:, None, None])
        pairs = sum(
            np.exp(
                forward[t - 1][:, :, None] + log_moves + (emitted[:, t] + backward[t])[:, None] - log_p[:, None, None]
            ).sum(0)
            for t in range(1, T)
        )
        total = resp.sum((0, 1))
        loc = np.einsum("ntk,nt->k", resp, x) / total
        scale = np.sqrt(np.einsum("ntk,ntk->k", resp, (x[..., None] - loc) ** 2) / total)
        params = {
            "first": resp[:, 0].mean(0),
            "transition": pairs / pairs.sum(-1, keepdims=True),
            "loc": loc,
            "scale": scale,
        }
        if symbols is not None:
            params["emission"] = np.einsum("ntk,nts->ks", resp, symbols) / total[:, None]
    return params, np.array(path)


def start_of(start=START, moves=MOVES):
    return {"first": start, "transition": moves, "loc": np.array([-1.0, 0.5, 2.0]), "scale": np.ones(K)}


def test_hidden_markov_model_takes_the_path_of_baum_and_welch():
    x, _ = sequences()
    result = fit(hmm(), x, max_iter=25)
    assert_rises(result)
    assert_closed(result, first="counts", transition="counts", loc="mean", scale="deviation")
    assert_same_path(result, *baum_welch(start_of(), result.num_iter, x))


def test_hidden_markov_model_with_numbers_and_symbols_takes_the_path_of_baum_and_welch():
    x, symbols = sequences()
    result = fit(hmm(with_symbols=True), x, symbols, max_iter=25)
    assert_rises(result)
    assert_closed(result, emission="counts", transition="counts", loc="mean", scale="deviation")
    assert_same_path(result, *baum_welch(start_of() | {"emission": MOVES}, result.num_iter, x, symbols))


def test_hidden_markov_model_ends_at_the_top():
    """Transitions that die out are on the boundary, where the slope need not be zero."""
    x, _ = sequences()
    model = hmm()
    result = fit(model, x, max_iter=300, tol=1e-10)
    params = result.params
    inner = [n for n in ("first", "transition") if not (params[n] < 1e-3).any()]
    assert_at_the_top(result, model, x, except_for={"first", "transition"} - set(inner))


@pytest.mark.parametrize("options", [{}, {"batch_size": 5}], ids=["whole", "batches"])
def test_zeros_of_a_left_to_right_model_stay_exactly_zero(options):
    x, _ = sequences(((0.6, 0.4, 0.0), (0.0, 0.6, 0.4), (0.0, 0.0, 1.0)), (1.0, 0.0, 0.0))
    first = np.array([1.0, 0.0, 0.0])
    result = fit(hmm(first, LEFT_TO_RIGHT), x, max_iter=25, **options)
    assert_rises(result)
    assert_closed(result, first="counts", transition="counts", loc="mean", scale="deviation")
    assert (result.params["transition"][LEFT_TO_RIGHT == 0] == 0).all()
    assert result.params["first"].tolist() == [1.0, 0.0, 0.0]
    assert_same_path(result, *baum_welch(start_of(first, LEFT_TO_RIGHT), result.num_iter, x))


def test_fixed_transitions_leave_the_emissions_to_be_found():
    x, _ = sequences()
    moves = torch.tensor(LEFT_TO_RIGHT)

    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 2.0]), constraint=constraints.real)
        with pyro.plate("rows", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(torch.full((K,), 1 / K) if z is None else moves[z]))
                pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])

    result = fit(model, x)
    assert_rises(result)
    assert_closed(result, loc="mean")
    assert_at_the_top(result, model, x)


def test_hard_em_of_a_hidden_markov_model_takes_the_best_paths():
    """Segmental k-means, with the best of all paths of states found one by one."""
    x, _ = sequences()
    x = x[:, :4]
    result = fit(hmm(), x, e_step="hard", max_iter=30)
    params, values = start_of(), x.numpy()
    states = np.array(list(itertools.product(range(K), repeat=4)))
    path = []
    for i in range(result.num_iter + 1):
        with np.errstate(divide="ignore"):
            log_joint = np.log(params["first"])[states[:, 0]] + sum(
                np.log(params["transition"])[states[:, t - 1], states[:, t]] for t in range(1, 4)
            )
        emitted = stats.norm.logpdf(values[:, None], params["loc"][states], params["scale"][states]).sum(-1)
        log_joint = log_joint + emitted
        path.append(log_joint.max(1).sum())
        best = states[log_joint.argmax(1)]
        if i < result.num_iter:
            one_hot = np.eye(K)[best]
            pairs = np.einsum("nti,ntj->ij", one_hot[:, :-1], one_hot[:, 1:])
            total = one_hot.sum((0, 1))
            loc = np.einsum("ntk,nt->k", one_hot, values) / total
            params = {
                "first": one_hot[:, 0].mean(0),
                "transition": pairs / pairs.sum(-1, keepdims=True),
                "loc": loc,
                "scale": np.sqrt(np.einsum("ntk,ntk->k", one_hot, (values[..., None] - loc) ** 2) / total),
            }
    assert result.objective_name == "classification log-likelihood"
    assert_rises(result)
    assert_same_path(result, params, np.array(path))


def tree(x):
    """A class for each row, a state for each of its items, and what that shows."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    states = pyro.param("states", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=constraints.simplex)
    shown = pyro.param("shown", torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]]), constraint=constraints.simplex)
    with pyro.plate("rows", x.shape[0], dim=-2):
        c = pyro.sample("c", dist.Categorical(weights))
        with pyro.plate("items", x.shape[1], dim=-1):
            s = pyro.sample("s", dist.Categorical(states[c]))
            pyro.sample("x", dist.Categorical(shown[s]), obs=x)


def test_two_levels_of_states_take_the_path_of_brute_force():
    x = torch.randint(3, (60, 4))
    x[:30] = x[:30].clamp(max=1)
    answers = np.eye(3)[x.numpy()]
    result = fit(tree, x, max_iter=60)
    params = {
        "weights": np.array([0.4, 0.6]),
        "states": np.array([[0.7, 0.3], [0.2, 0.8]]),
        "shown": np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]]),
    }
    path = []
    configurations = np.array(list(itertools.product(range(2), repeat=5)))  # the class, then the states of four items
    c, s = configurations[:, 0], configurations[:, 1:]
    for i in range(result.num_iter + 1):
        log_joint = np.log(params["weights"])[c] + np.log(params["states"])[c[:, None], s].sum(-1)
        log_joint = log_joint + np.log(params["shown"])[s[None], x.numpy()[:, None]].sum(-1)
        resp, log_p = posteriors(log_joint)
        path.append(log_p.sum())
        if i < result.num_iter:
            of_class = np.einsum("nm,mc->c", resp, np.eye(2)[c])
            moves = np.einsum("nm,mc,mjs->cs", resp, np.eye(2)[c], np.eye(2)[s])
            shown = np.einsum("nm,mjs,njx->sx", resp, np.eye(2)[s], answers)
            params = {
                "weights": of_class / of_class.sum(),
                "states": moves / moves.sum(-1, keepdims=True),
                "shown": shown / shown.sum(-1, keepdims=True),
            }
    assert_rises(result)
    assert_closed(result, weights="counts", states="counts", shown="counts")
    assert_same_path(result, params, np.array(path))


def test_latent_that_all_rows_share_is_summed_out():
    x = 2 + torch.randn(20)

    def model(x):
        prob = pyro.param("prob", torch.tensor(0.3), constraint=constraints.unit_interval)
        loc = pyro.param("loc", torch.tensor([1.5, 2.2]), constraint=constraints.real)
        switch = pyro.sample("switch", dist.Bernoulli(prob))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc[switch.long()], 1.0), obs=x)

    result = fit(model, x, max_iter=8)
    prob, loc, path = 0.3, np.array([1.5, 2.2]), []
    for i in range(result.num_iter + 1):
        log_joint = np.log([1 - prob, prob]) + stats.norm.logpdf(x.numpy()[:, None], loc, 1.0).sum(0)
        resp, log_p = posteriors(log_joint)
        path.append(log_p)
        if i < result.num_iter:
            prob, loc = resp[1], np.where(resp > 0, x.numpy().mean(), loc)
    assert_rises(result)
    assert_closed(result)
    assert_same_path(result, {"prob": np.array(prob), "loc": loc}, np.array(path))


def test_factorial_states_take_the_path_of_a_mixture_over_their_pairs():
    """Two states that add up, in one observation."""
    i, j = torch.randint(2, (200,)), torch.randint(2, (200,))
    x = torch.poisson(torch.tensor([[1.0, 6.0], [20.0, 50.0]])[i, j])

    def model(x):
        first = pyro.param("first", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        second = pyro.param("second", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        rate = pyro.param("rate", torch.tensor([[2.0, 5.0], [15.0, 40.0]]), constraint=constraints.positive)
        with pyro.plate("rows", len(x)):
            i = pyro.sample("i", dist.Categorical(first))
            j = pyro.sample("j", dist.Categorical(second))
            pyro.sample("x", dist.Poisson(rate[i, j]), obs=x)

    result = fit(model, x)
    first, second, rate, path = np.array([0.4, 0.6]), np.array([0.5, 0.5]), np.array([[2.0, 5.0], [15.0, 40.0]]), []
    for step in range(result.num_iter + 1):
        log_joint = np.log(np.outer(first, second)) + stats.poisson.logpmf(x.numpy()[:, None, None], rate)
        resp, log_p = posteriors(log_joint.reshape(len(x), 4))
        path.append(log_p.sum())
        if step < result.num_iter:
            resp = resp.reshape(-1, 2, 2)
            first, second = resp.mean(0).sum(1), resp.mean(0).sum(0)
            rate = np.einsum("nij,n->ij", resp, x.numpy()) / resp.sum(0)
    assert_closed(result, first="counts", second="counts", rate="mean")
    assert_same_path(result, {"first": first, "second": second, "rate": rate}, np.array(path))
    assert_at_the_top(result, model, x)


def test_sequences_of_unequal_length_are_masked_at_their_ends():
    """Steps beyond the end of a sequence say nothing of emissions and change no likelihood."""
    x, _ = sequences()
    lengths = torch.randint(2, T + 1, (N,))

    def model(x, lengths):
        first = pyro.param("first", torch.tensor(START), constraint=constraints.simplex)
        transition = pyro.param("transition", torch.tensor(MOVES), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 2.0]), constraint=constraints.real)
        with pyro.plate("rows", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z{t}", dist.Categorical(first if z is None else transition[z]))
                    pyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])

    result = fit(model, x, lengths, max_iter=40)
    values, (first, moves), loc = x.numpy(), (START, MOVES), np.array([-1.0, 0.5, 2.0])
    log_p = 0.0
    for row, length in zip(values, lengths.tolist(), strict=True):
        forward = np.log(first) + stats.norm.logpdf(row[0], loc)
        for t in range(1, length):
            forward = logsumexp(forward[:, None] + np.log(moves), axis=0) + stats.norm.logpdf(row[t], loc)
        log_p += logsumexp(forward)
    assert float(result.objective[0]) == pytest.approx(log_p, rel=1e-10)
    assert_rises(result)
    assert_closed(result, loc="mean", first="counts", transition="counts")


def test_first_state_drawn_from_a_row_of_the_transitions_is_counted_there():
    x, _ = sequences()

    def model(x):
        transition = pyro.param("transition", torch.tensor(MOVES), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 2.0]), constraint=constraints.real)
        with pyro.plate("rows", len(x)):
            z = 0
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z{t}", dist.Categorical(transition[z]))
                pyro.sample(f"x{t}", dist.Normal(loc[z], 1.5), obs=x[:, t])

    result = fit(model, x)
    assert_rises(result)
    assert_closed(result, transition="counts", loc="mean")
    assert_at_the_top(result, model, x)
