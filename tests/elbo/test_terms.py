"""Sums of log-densities over plates, against sums over every index."""

import itertools
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine

from pyro_lvm.elbo.terms import Term, by_row, equal_numbers, over_plates, sum_to
from pyro_lvm.sites import sample_sites

PLATES = ("a", "b", "c", "d")
SIZES = st.fixed_dictionaries({plate: st.integers(1, 3) for plate in PLATES})
SOME_PLATES = st.lists(st.sampled_from(PLATES), unique=True)
PARTICLES = st.sampled_from([(), (1,), (3,)])


def by_index(term, sizes, plates, particles):
    """The sum over all indices that agree with those of ``plates``, one number at a time."""
    kept = [sizes[p] if p in term.plates else 1 for p in plates]
    total = torch.zeros([*particles, *kept], dtype=torch.float64)
    for k in itertools.product(*map(range, particles)):
        for index in itertools.product(*(range(sizes[p]) for p in term.plates)):
            at = dict(zip(term.plates, index, strict=True))
            total[(*k, *(at.get(p, 0) for p in plates))] += term.value[(*k, *index)]
    return total


@st.composite
def terms(draw, sizes, particles):
    own = tuple(draw(SOME_PLATES))
    seed = draw(st.integers(0, 1000))
    noise = torch.Generator().manual_seed(seed)
    value = torch.randn([*particles, *(sizes[p] for p in own)], generator=noise, dtype=torch.float64)
    return Term(own, value, "site")


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES, PARTICLES, SOME_PLATES)
def test_a_term_is_summed_over_all_plates_but_the_named_in_their_order(data, sizes, particles, plates):
    term = data.draw(terms(sizes, particles))
    torch.testing.assert_close(sum_to(term, tuple(plates)), by_index(term, sizes, plates, particles))


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES, PARTICLES)
def test_rows_get_their_share_and_the_rest_is_summed(data, sizes, particles):
    several = data.draw(st.lists(terms(sizes, particles), max_size=4))
    outside, inside = by_row(iter(several), ["b"])
    without = [by_index(t, sizes, [], particles) for t in several if "b" not in t.plates]
    within = [by_index(t, sizes, ["b"], particles) for t in several if "b" in t.plates]
    expected = torch.stack(without).sum(0) if without else torch.zeros(())
    torch.testing.assert_close(outside, expected, check_dtype=False)
    if within:
        torch.testing.assert_close(inside, torch.stack(within).sum(0))
    else:
        assert inside is None


def test_a_plate_of_rows_may_have_two_names():
    of_model = Term(("rows",), torch.tensor([1.0, 2.0]))
    of_guide = Term(("data", "columns"), torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    outside, inside = by_row([of_model, of_guide], {"rows", "data"})
    assert outside == 0
    assert inside.tolist() == [31.0, 72.0]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5),
    st.lists(st.integers(1, 3), max_size=2),
    st.permutations([-1, -2, -3]),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.integers(0, 3),
)
def test_a_log_density_has_its_plates_from_left_to_right_and_no_other_dimension(seed, event, dims, sizes, depth):
    """The sum of a term over all plates is Pyro's, whatever plates are open and in which order."""
    names = {dim: f"plate{dim}" for dim in dims}

    def program():
        with ExitStack() as stack:
            for dim in dims[:depth]:
                stack.enter_context(pyro.plate(names[dim], sizes[-dim - 1], dim=dim))
            pyro.sample("x", dist.Normal(torch.zeros(event), 1.0).to_event(len(event)))

    torch.manual_seed(seed)
    trace = poutine.trace(program).get_trace()
    site = sample_sites(trace)["x"]
    term = over_plates(site, site["fn"].log_prob(site["value"]))
    assert term.plates == tuple(names[d] for d in sorted(dims[:depth]))
    assert list(term.value.shape) == [sizes[-d - 1] for d in sorted(dims[:depth])]
    torch.testing.assert_close(by_row([term], ())[0], trace.log_prob_sum())


def test_only_numbers_are_known_to_be_equal():
    assert equal_numbers(1, 1.0)
    assert not equal_numbers(1.0, 2.0)
    assert not equal_numbers(torch.tensor(1.0), torch.tensor(1.0))
    assert not equal_numbers(1.0, torch.tensor(1.0))


@pytest.mark.parametrize("particles", [(), (4,)])
def test_a_term_without_plates_is_a_number_for_each_particle(particles):
    value = torch.randn(particles)
    outside, inside = by_row([Term((), value)], ["rows"])
    torch.testing.assert_close(outside, value)
    assert inside is None
    assert sum_to(Term((), value), ("rows",)).shape == (*particles, 1)
