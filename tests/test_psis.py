"""The Pareto k of weights whose tail is known."""

import math

import pytest
import scipy.stats
import torch

from pyro_lvm.psis import pareto_k

S = 10_000
SEEDS = range(20)


def generalised_pareto(k, seed):
    """Logarithms of draws from a generalised Pareto distribution, whose tail over any threshold is one again."""
    return torch.as_tensor(scipy.stats.genpareto.rvs(k, scale=2.0, size=S, random_state=seed)).log()


def exponential(k, seed):
    """log p(z) / q(z) for p = Exp(1 - k) and q = Exp(1): an exact Pareto distribution of shape k."""
    z = torch.empty(S, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed))
    return math.log(1 - k) + k * z


@pytest.mark.parametrize("k", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("weights", [generalised_pareto, exponential])
def test_the_shape_of_a_pareto_tail_is_found(weights, k):
    found = torch.tensor([pareto_k(weights(k, seed)) for seed in SEEDS])
    assert found.std() < 0.15  # some 300 draws make a tail, and tell the shape to (1 + k) / sqrt(300)
    shrunk = (300 * k + 10 * 0.5) / 310  # ArviZ adds ten draws with a shape of 1/2
    assert abs(found.mean() - shrunk) < 4 * found.std() / math.sqrt(len(SEEDS))


def test_squares_have_twice_the_shape():
    found = torch.tensor([pareto_k(2 * exponential(0.4, seed)) for seed in SEEDS])
    shrunk = (300 * 0.8 + 10 * 0.5) / 310
    assert abs(found.mean() - shrunk) < 4 * found.std() / math.sqrt(len(SEEDS))


def test_bounded_weights_have_no_heavy_tail():
    # The uniform distribution is the generalised Pareto of shape -1.
    weights = [torch.rand(S, generator=torch.Generator().manual_seed(seed)).log() for seed in SEEDS]
    assert max(map(pareto_k, weights)) < 0


def test_small_weights_count_for_nothing():
    """It is the tail of large weights that matters, however far down the small ones reach."""
    bounded = -exponential(0.9, 0)
    assert pareto_k(bounded) < 0 < 0.7 < pareto_k(-bounded)


@pytest.mark.parametrize("shift", [-1e5, -700.0, 700.0, 1e5])
def test_a_constant_in_nats_changes_nothing(shift):
    weights = exponential(0.5, 0)
    assert pareto_k(weights + shift) == pytest.approx(pareto_k(weights), abs=1e-6)


def test_the_order_of_the_draws_changes_nothing():
    weights = exponential(0.5, 0)
    assert pareto_k(weights.flip(0)) == pytest.approx(pareto_k(weights), abs=1e-12)


def test_the_weights_stay_as_they_are():
    weights = exponential(0.5, 0)
    before = weights.clone()
    k = pareto_k(weights)
    assert torch.equal(weights, before)
    assert isinstance(k, float)


def test_single_precision_will_do():
    weights = exponential(0.5, 0)
    assert pareto_k(weights.float()) == pytest.approx(pareto_k(weights), abs=1e-4)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_few_draws_have_no_tail_to_be_trusted(count):
    assert not pareto_k(exponential(0.1, 0)[:count]) < 0.7


def test_weights_of_few_values_have_some_shape_or_none():
    """As under a guide of few discrete latents: among the largest weights there may be only one value."""
    weights = torch.tensor([0.0, -1.0], dtype=torch.float64).repeat_interleave(500)
    assert isinstance(pareto_k(weights), float)


def test_weights_of_zero_leave_the_tail_as_it_is():
    weights = exponential(0.5, 0)
    weights[weights < weights.median()] = -math.inf
    assert pareto_k(weights) == pytest.approx(pareto_k(exponential(0.5, 0)), abs=1e-6)


def test_weights_of_which_few_are_not_zero_have_no_tail():
    weights = exponential(0.5, 0)
    weights[200:] = -math.inf
    assert pareto_k(weights) == math.inf


def test_large_densities_do_not_make_weights_equal():
    """The tail of a density of 400,000 nats differs by a nat, which single precision can tell."""
    assert pareto_k(exponential(0.8, 0) * 0.5 - 4e5) > 0
    assert pareto_k(torch.full((S,), -4e5) + 0.03 * torch.rand(S)) == -math.inf
    assert pareto_k(exponential(0.8, 0) * 0.5 - 6e6) > 0
