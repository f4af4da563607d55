"""Moments, their errors, and the grades that rest on them."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

from pyro_lvm.verdict.marginals import Marginals, Moments, of_chains, of_weighted
from pyro_lvm.verdict.table import table


def moments(mean, sd, mean_error=0.0, sd_error=0.0):
    return Moments(*(np.atleast_1d(np.array(v, float)) for v in (mean, sd, mean_error, sd_error)))


def test_weighted_moments_are_those_of_the_target_and_their_errors_hold():
    """N(0, 1.3) weighted to N(0.5, 1): over 200 runs, the errors in standard errors have variance 1."""
    rng, scores = np.random.default_rng(0), []
    for _ in range(200):
        x = rng.normal(0, 1.3, (1_000, 1))
        weights = norm.pdf(x[:, 0], 0.5, 1) / norm.pdf(x[:, 0], 0, 1.3)
        found = of_weighted(x, weights / weights.sum())
        scores.append([(found.means[0] - 0.5) / found.mean_errors[0], (found.sds[0] - 1) / found.sd_errors[0]])
    scores = np.array(scores)
    assert (abs(scores.mean(0)) < 4 / np.sqrt(200)).all()
    assert (abs((scores**2).mean(0) - 1) < 4 * np.sqrt(2 / 200)).all()


def test_errors_of_chains_take_their_own_dependence_into_account():
    """Autoregressive chains of correlation 0.9, whose 20 draws are worth about two."""
    rng, scores = np.random.default_rng(1), []
    for _ in range(200):
        x = [rng.normal(size=(100, 1))]
        for _ in range(19):
            x.append(0.9 * x[-1] + np.sqrt(1 - 0.81) * rng.normal(size=(100, 1)))
        found = of_chains(np.stack(x))
        scores.append([found.means[0] / found.mean_errors[0], (found.sds[0] - 1) / found.sd_errors[0]])
    assert (abs((np.array(scores) ** 2).mean(0) - 1) < 4 * np.sqrt(2 / 200)).all()


def marginals(names, guide, corrected, sites=None, collapsed=None):
    sites = names if sites is None else sites
    return Marginals(names, sites, guide, corrected, np.zeros(len(names), bool) if collapsed is None else collapsed)


@pytest.mark.parametrize(
    ("guide", "corrected", "grade"),
    [
        (moments(0.24, 1.0), moments(0.0, 1.0), "good"),
        (moments(0.26, 1.0), moments(0.0, 1.0), "bad"),
        (moments(0.24, 1.0), moments(0.0, 1.0, 0.01), "doubtful"),
        (moments(0.3, 1.0), moments(0.0, 1.0, 0.04), "doubtful"),
        (moments(0.48, 2.0), moments(0.0, 2.0), "good"),
        (moments(0.0, 0.81), moments(0.0, 1.0), "good"),
        (moments(0.0, 0.79), moments(0.0, 1.0), "bad"),
        (moments(0.0, 1.21), moments(0.0, 1.0), "bad"),
        (moments(0.0, 0.81), moments(0.0, 1.0, 0.0, 0.01), "doubtful"),
    ],
)
def test_a_grade_is_sure_by_two_standard_errors(guide, corrected, grade):
    found = marginals(("a",), guide, {"weights": corrected})
    assert found.grade == found.grades[0] == found.findings()[0].grade == grade


def test_corrections_that_disagree_are_in_doubt():
    found = marginals(("a",), moments(0.5, 1), {"weights": moments(0, 1), "moves": moments(0.5, 1)})
    assert found.grade == "doubtful"
    assert found.mean_errors[0] == 0.5


def test_a_correction_has_no_say_where_it_is_silent():
    weights, moves = moments([0, np.nan, np.nan], [1, np.nan, np.nan]), moments([0.1, 0.4, np.nan], [1, 1, np.nan])
    found = marginals(("a", "b", "c"), moments([0] * 3, [1] * 3), {"weights": weights, "moves": moves})
    assert found.grades == ("good", "bad", "unknown")
    np.testing.assert_array_equal(abs(found.mean_errors), [0.1, 0.4, np.nan])


def test_a_point_is_bad_whatever_corrects_it():
    """Also where that says nothing."""
    silent, point = moments([np.nan, 0, 0], [np.nan, 1, 1]), np.array([True, False, False])
    names, guide = ("a[0]", "a[1]", "b"), moments([2, 0, 0], [0, 1, 1])
    for corrected in ({"weights": silent}, {}):
        found = marginals(names, guide, corrected, ("a", "a", "b"), point)
        assert found.by_site()["a"] == found.grade == "bad"
        first, second = found.findings()
        assert first.text == "a: the guide has collapsed to a point in 1 of 2 numbers"
        assert first.advice
        assert "nan" not in second.text
    found = marginals(("a",), moments(2, 0), {}, collapsed=np.array([True]))
    assert [finding.text for finding in found.findings()] == ["a: the guide has collapsed to a point"]


def test_sites_are_told_apart():
    guide, weights = moments([0, 0.9, 0], [1, 1, 1.1]), {"weights": moments([0] * 3, [1] * 3)}
    found = marginals(("a[0]", "a[1]", "b"), guide, weights, ("a", "a", "b"))
    assert found.by_site() == {"a": "bad", "b": "good"}
    assert marginals(("a[0]", "a[1]", "b"), guide, weights).by_site() == {"a[0]": "good", "a[1]": "bad", "b": "good"}
    bad, good = found.findings()
    assert "a: means are within 0.90 sd" in bad.text
    assert "b: means are within 0.00 sd, sds within 10% (the largest is +10%)" in good.text
    assert bad.advice
    assert not good.advice


def test_without_a_correction_nothing_is_known():
    found = marginals(("a",), moments(0, 1), {})
    assert found.grade == found.findings()[0].grade == "unknown"


def test_the_worst_numbers_are_drawn_first():
    names = tuple(f"a[{i}]" for i in range(20))
    guide = moments(np.linspace(0, 1, 20), np.ones(20))
    ax = marginals(names, guide, {"weights": moments(np.zeros(20), np.ones(20))}).plot(Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"a[{i}]" for i in range(19, 3, -1)]
    assert "the worst 16 of 20" in ax.get_xlabel()


def test_a_table_has_a_column_for_each_number():
    names, columns = table({"a": np.arange(4.0).reshape(2, 2), "b": np.array([7.0, 8.0])})
    assert names == ("a[0]", "a[1]", "b")
    assert columns.tolist() == [[0, 1, 7], [2, 3, 8]]
