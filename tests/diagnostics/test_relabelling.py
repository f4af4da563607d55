"""Relabelled draws, against what was shuffled and against all ways to permute."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import pyro_lvm as lvm

S, K = 200, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def take(value, order, *dims):
    """Each draw with its own order of the entries of some dimensions."""
    draws = []
    for draw, own in zip(value, order, strict=True):
        for dim in dims:
            draw = draw.index_select(dim, own)
        draws.append(draw)
    return torch.stack(draws)


def shuffles(seed=1, num_draws=S, size=K):
    """A permutation for each draw, [S, K]."""
    return torch.rand(num_draws, size, generator=generator(seed)).argsort(1)


@pytest.fixture(scope="module")
def chain():
    """Draws of a mixture on a chain: well separated components, and rows that know theirs."""
    noise = generator()
    locs = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]) + 0.3 * torch.randn(S, K, 2, generator=noise)
    weights = torch.tensor([0.2, 0.3, 0.5]) + 0.02 * torch.rand(S, K, generator=noise)
    transitions = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.5, 0.2], [0.0, 0.1, 0.9]])
    transitions = transitions + 0.05 * torch.rand(S, K, K, generator=noise)
    z = torch.randint(K, (S, 7), generator=noise)
    scale = torch.rand(S, generator=noise)
    probs = (4 * torch.eye(K)[torch.arange(12) % K] + torch.randn(S, 12, K, generator=noise)).softmax(-1)
    return {"locs": locs, "weights": weights, "transitions": transitions, "z": z, "scale": scale}, probs


def shuffled(chain):
    """The same under other labels in each draw."""
    draws, probs = chain
    order = shuffles()
    place = order.argsort(1)
    other = {
        "locs": take(draws["locs"], order, 0),
        "weights": take(draws["weights"], order, 0),
        "transitions": take(draws["transitions"], order, 0, 1),
        "z": place.gather(1, draws["z"]),
        "scale": draws["scale"],
    }
    return other, take(probs, order, 1), order


DIMS = {"locs": 0, "weights": -1, "transitions": (0, 1)}


def check_recovered(found, chain, order):
    """All is as it was, but for one permutation of all draws."""
    draws, probs = chain
    total = order.gather(1, found.permutations)  # component k is that component of the draws before
    assert (total == total[0]).all()
    everywhere = total[0].expand(S, -1)
    for name, dims in (("locs", (0,)), ("weights", (0,)), ("transitions", (0, 1))):
        assert_close(found.draws[name], take(draws[name], everywhere, *dims), rtol=0, atol=0)
    assert torch.equal(found.draws["z"], everywhere.argsort(1).gather(1, draws["z"]))
    assert torch.equal(found.draws["scale"], draws["scale"])
    if found.responsibilities is not None:
        assert_close(found.responsibilities, take(probs, everywhere, 1), rtol=0, atol=0)


@pytest.mark.parametrize("given", [True, False])
def test_shuffled_components_are_recovered(chain, given):
    draws, probs, order = shuffled(chain)
    found = lvm.relabel(draws, DIMS, probs if given else None, labels=("z",))
    check_recovered(found, chain, order)
    counts = order.unique(dim=0, return_counts=True)[1]
    assert found.switched == pytest.approx(1 - counts.max().item() / S)  # most draws keep their labels
    assert f"{found.switched:.0%} of them relabelled" in str(found)


def test_draws_that_have_not_switched_stay_as_they_are(chain):
    draws, probs = chain
    for found in (lvm.relabel(draws, DIMS), lvm.relabel(draws, DIMS, probs)):
        assert found.switched == 0.0
        assert torch.equal(found.permutations, torch.arange(K).expand(S, -1))
        assert torch.equal(found.draws["locs"], draws["locs"])


def test_transitions_alone_are_told_by_their_diagonal(chain):
    draws, _, order = shuffled(chain)
    found = lvm.relabel({"transitions": draws["transitions"]}, {"transitions": (0, 1)})
    total = order.gather(1, found.permutations)
    assert (total == total[0]).all()


def test_labels_alone_follow_the_responsibilities(chain):
    draws, probs, order = shuffled(chain)
    found = lvm.relabel({"z": draws["z"].float()}, {}, probs, labels=["z"])
    assert found.draws["z"].dtype == torch.float32
    total = order.gather(1, found.permutations)
    assert torch.equal(found.draws["z"].long(), total.argsort(1).gather(1, chain[0]["z"]))


def test_arrays_are_taken_and_nothing_given_changes(chain):
    draws, probs, _ = shuffled(chain)
    arrays = {name: value.numpy().copy() for name, value in draws.items()}
    arrays["locs"].setflags(write=False)
    before = {name: value.copy() for name, value in arrays.items()}
    found = lvm.relabel(arrays, DIMS, probs.numpy(), labels=("z",))
    expected = lvm.relabel(draws, DIMS, probs, labels=("z",))
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)
    assert all(torch.equal(found.draws[name], expected.draws[name]) for name in arrays)


def stephens(probs):
    """The sum over draws of the divergence of each one's classification from the mean."""
    mean = probs.mean(0)
    return (torch.special.xlogy(probs, probs) - torch.special.xlogy(probs, mean)).sum().item()


def squares(parts):
    return (parts - parts.mean(0)).square().sum().item()


def least(parts, dim, loss):
    """By all ways to permute every draw but the first."""
    kinds = [torch.tensor(kind) for kind in itertools.permutations(range(parts.shape[dim]))]
    few = len(parts)
    ways = itertools.product(kinds, repeat=few - 1)
    return min(loss(take(parts, [torch.arange(parts.shape[dim]), *way], dim - 1)) for way in ways)


@pytest.mark.parametrize("seed", range(10))
def test_stephens_objective_is_the_least_of_all_permutations(seed):
    """Four draws of rows that hardly know their component: 6^3 ways."""
    logits = torch.randn(5, K, generator=generator(100 + seed)) + torch.randn(4, 5, K, generator=generator(seed))
    probs = take(logits.softmax(-1).double(), shuffles(seed, 4), 1)
    found = lvm.relabel({"z": torch.zeros(4)}, {}, probs, labels=("z",))
    assert stephens(found.responsibilities) == pytest.approx(least(probs, 2, stephens), abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_squared_distances_are_the_least_of_all_permutations(seed):
    parts = 2 * torch.randn(K, 2, generator=generator(100 + seed)) + torch.randn(4, K, 2, generator=generator(seed))
    parts = take(parts.double(), shuffles(seed, 4), 0)
    found = lvm.relabel({"locs": parts}, {"locs": 0})
    units = parts.reshape(-1, 2).std(0, correction=0)
    assert squares(found.draws["locs"] / units) == pytest.approx(least(parts / units, 1, squares), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_permutation_of_a_single_draw_is_better(seed):
    """Of noise, where there may be several local optima."""
    probs = (2 * torch.randn(6, 5, K, generator=generator(seed))).softmax(-1).double()
    found = lvm.relabel({"z": torch.zeros(6)}, {}, probs, labels=("z",)).responsibilities
    mean = found.mean(0)
    for draw, kind in itertools.product(found, map(list, itertools.permutations(range(K)))):
        assert (draw * mean.log()).sum() >= (draw[:, kind] * mean.log()).sum() - 1e-12


def test_variables_count_in_their_own_units():
    """Components that differ in a small number, beside a large one that says nothing."""
    small = torch.tensor([0.001, 0.002]) + 1e-5 * torch.randn(S, 2, generator=generator(0))
    large = 1e6 * torch.randn(S, 2, generator=generator(1))
    order = shuffles(2, size=2)
    found = lvm.relabel({"small": take(small, order, 0), "large": take(large, order, 0)}, {"small": 0, "large": 0})
    total = order.gather(1, found.permutations)
    assert (total == total[0]).double().mean() > 0.95


def test_certain_rows_and_a_single_component_are_no_trouble():
    certain = torch.eye(2)[torch.tensor([[0, 0, 1], [1, 1, 0], [0, 0, 1]])]
    found = lvm.relabel({"w": torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.6, 0.4]])}, {"w": 0}, certain)
    assert found.permutations.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert_close(found.draws["w"], torch.tensor([[0.6, 0.4]]).expand(3, -1))
    assert lvm.relabel({"w": torch.ones(5, 1)}, {"w": 0}).switched == 0.0


LOCS, PROBS = torch.zeros(4, 3, 2), torch.full((4, 6, 3), 1 / 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((LOCS, {"locs": 0}), TypeError, "draws must be a dict"),
        (({}, {"locs": 0}), TypeError, "draws must be a dict"),
        (({"locs": "no"}, {"locs": 0}), TypeError, "must be a tensor or array; got str"),
        (({"locs": LOCS}, ["locs"]), TypeError, "components must be a dict"),
        (({"locs": LOCS}, {"locs": "0"}), TypeError, "must be a dimension"),
        (({"locs": LOCS}, {"locs": ()}), TypeError, "must be a dimension"),
        (({"locs": LOCS}, {"locs": 0.0}), TypeError, "must be a dimension"),
        (({"locs": LOCS}, {"scales": 0}), ValueError, r"no variable 'scales'; they have \['locs'\]"),
        (({"locs": LOCS}, {"locs": 2}), ValueError, r"draw of it has shape \[3, 2\]"),
        (({"locs": torch.zeros(4)}, {"locs": 0}), ValueError, r"draw of it has shape \[\]"),
        (({"locs": LOCS}, {"locs": (0, -2)}), ValueError, "names a dimension twice"),
        (({"locs": LOCS}, {"locs": (0, 1)}), ValueError, "same number of components"),
        (({"locs": LOCS, "w": torch.zeros(5, 3)}, {"locs": 0}), ValueError, "same number of draws"),
        (({"locs": LOCS}, {}), ValueError, "nothing to tell components by"),
        (({"locs": LOCS / 0}, {"locs": 0}), ValueError, "finite"),
        (({"locs": LOCS}, {"locs": 0}, [[1.0]]), TypeError, "responsibilities must be a tensor"),
        (({"locs": LOCS}, {"locs": 0}, PROBS[0]), ValueError, r"probabilities \[S, N, K\]"),
        (({"locs": LOCS}, {"locs": 0}, 2 * PROBS), ValueError, "sum to 1"),
        (({"locs": LOCS}, {"locs": 0}, PROBS / 0), ValueError, "sum to 1"),
        (({"locs": LOCS}, {"locs": 0}, PROBS[:3]), ValueError, "same number of draws"),
        (({"locs": LOCS}, {"locs": 1}, PROBS), ValueError, "same number of components"),
        (({"locs": LOCS}, {"locs": 0}, None, "locs"), TypeError, "labels must be a list of names"),
        (({"locs": LOCS}, {"locs": 0}, None, ("z",)), ValueError, "no variable 'z'"),
        (({"locs": LOCS}, {"locs": 0}, None, ("locs",)), ValueError, "both in components and in labels"),
        (({"locs": LOCS, "z": LOCS + 3}, {"locs": 0}, None, ("z",)), ValueError, "components from 0 to 2"),
        (({"locs": LOCS, "z": LOCS + 0.5}, {"locs": 0}, None, ("z",)), ValueError, "components from 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lvm.relabel(*arguments)
