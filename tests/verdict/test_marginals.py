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
    marginals = Marginals(("a",), guide, {"weights": corrected})
    assert marginals.grade == marginals.grades[0] == marginals.findings()[0].grade == grade


def test_corrections_that_disagree_are_in_doubt():
    marginals = Marginals(("a",), moments(0.5, 1), {"weights": moments(0, 1), "moves": moments(0.5, 1)})
    assert marginals.grade == "doubtful"
    assert marginals.mean_errors[0] == 0.5


def test_sites_are_told_apart():
    marginals = Marginals(
        ("a[0]", "a[1]", "b"), moments([0, 0.9, 0], [1, 1, 1.1]), {"weights": moments([0] * 3, [1] * 3)}
    )
    assert marginals.by_site() == {"a": "bad", "b": "good"}
    bad, good = marginals.findings()
    assert "a: means are within 0.90 sd" in bad.text
    assert "b: means are within 0.00 sd, sds within 10% (the largest is +10%)" in good.text
    assert bad.advice
    assert not good.advice


def test_without_a_correction_nothing_is_known():
    marginals = Marginals(("a",), moments(0, 1), {})
    assert marginals.grade == marginals.findings()[0].grade == "unknown"


def test_the_worst_numbers_are_drawn_first():
    names = tuple(f"a[{i}]" for i in range(20))
    guide = moments(np.linspace(0, 1, 20), np.ones(20))
    ax = Marginals(names, guide, {"weights": moments(np.zeros(20), np.ones(20))}).plot(Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"a[{i}]" for i in range(19, 3, -1)]
    assert "the worst 16 of 20" in ax.get_xlabel()


def test_a_table_has_a_column_for_each_number():
    names, columns = table({"a": np.arange(4.0).reshape(2, 2), "b": np.array([7.0, 8.0])})
    assert names == ("a[0]", "a[1]", "b")
    assert columns.tolist() == [[0, 1, 7], [2, 3, 8]]
