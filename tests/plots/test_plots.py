"""What the pictures show: the data of their lines, the axes of their ellipses, the pixels of their sheets."""

import math
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from pyro_lvm import plots


@pytest.fixture
def ax():
    return Figure().subplots()


def line(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


# losses


def test_losses_shows_each_step_and_the_running_mean(ax):
    plots.losses(torch.tensor([4.0, 2.0, 6.0, 0.0]), window=2, ax=ax)
    np.testing.assert_array_equal(line(ax, "each step").get_xydata(), [[1, 4], [2, 2], [3, 6], [4, 0]])
    np.testing.assert_allclose(line(ax, "mean of 2 steps").get_xydata(), [[2, 3], [3, 4], [4, 3]])
    assert "nats" in ax.get_ylabel()


def test_losses_averages_a_fiftieth_unless_told(ax):
    plots.losses(np.arange(200.0), ax=ax)
    assert line(ax, "mean of 4 steps").get_ydata()[0] == 1.5


def test_losses_cuts_off_the_first_fall_only(ax):
    values = np.r_[np.full(5, 1e6), np.linspace(20, 10, 95)]
    plots.losses(values, ax=ax)
    low, high = ax.get_ylim()
    assert 9 < low <= 10
    assert 20 <= high < 21


def test_losses_draws_a_single_step_and_steps_that_are_not_finite(ax):
    plots.losses([3.0], ax=ax)
    plots.losses([3.0, 2.0, math.nan, math.inf], ax=ax)
    assert np.isfinite(ax.get_ylim()).all()


@pytest.mark.parametrize(
    ("values", "window", "message"),
    [
        (np.zeros((2, 2)), None, "losses: expected shape [num_steps], got [2, 2]"),
        ([], None, "losses: expected at least one step"),
        ([1.0, 2.0], 3, "window: expected an integer from 1 to the number of steps, 2, got 3"),
        ([1.0, 2.0], 0, "window"),
        ([1.0, 2.0], 1.5, "window"),
    ],
)
def test_losses_refuses(values, window, message, ax):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.losses(values, window=window, ax=ax)


# mixture

WEIGHTS = [0.25, 0.75]
LOCS = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
COVARIANCES = torch.tensor([[[4.0, 0.0, 1.0], [0.0, 9.0, 2.0], [1.0, 2.0, 5.0]], [[1.0, 0.0, 0.0]] * 3])
COVARIANCES[1] = torch.eye(3)


def test_mixture_has_two_ellipses_a_component(ax):
    x = torch.randn(20, 3)
    plots.mixture(x, WEIGHTS, LOCS, COVARIANCES, features=(2, 1), ax=ax)
    ellipses = [patch for patch in ax.patches if isinstance(patch, Ellipse)]
    assert [tuple(e.center) for e in ellipses] == [(0, 0), (0, 0), (3, 2), (3, 2)]
    np.testing.assert_allclose(ax.collections[0].get_offsets(), x[:, [2, 1]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "component 0, weight 0.25",
        "component 1, weight 0.75",
    ]


def test_an_ellipse_lies_along_the_eigenvectors(ax):
    plots.mixture(np.zeros((1, 2)), [1.0], np.zeros((1, 2)), np.array([[[2.0, 1.0], [1.0, 2.0]]]), ax=ax)
    inner, outer = ax.patches
    # Eigenvalues 3 along the diagonal and 1 across it.
    for ellipse, held in ((inner, 0.5), (outer, 0.9)):
        radius = math.sqrt(-2 * math.log(1 - held))
        assert ellipse.width == pytest.approx(2 * radius * math.sqrt(3))
        assert ellipse.height == pytest.approx(2 * radius)
        assert ellipse.angle % 180 == pytest.approx(45)


def test_an_ellipse_holds_the_mass_it_says(ax):
    covariance = np.array([[1.0, -0.8], [-0.8, 2.0]])
    x = np.random.default_rng(0).multivariate_normal([3, -1], covariance, size=20_000)
    plots.mixture(x[:1], [1.0], [[3.0, -1.0]], covariance[None], ax=ax)
    for ellipse, held in zip(ax.patches, (0.5, 0.9), strict=True):
        inside = ellipse.get_path().contains_points(ellipse.get_patch_transform().inverted().transform(x))
        assert inside.mean() == pytest.approx(held, abs=4 * math.sqrt(held * (1 - held) / len(x)))


def test_a_row_mixes_the_colours_of_its_components(ax):
    responsibilities = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    plots.mixture(torch.zeros(2, 3), WEIGHTS, LOCS, COVARIANCES, responsibilities, ax=ax)
    first, second = np.array([to_rgb(color) for color in plots.COLORS[:2]])
    shown = ax.collections[0].get_facecolors()[:, :3]
    np.testing.assert_allclose(shown, [first, 0.25 * first + 0.75 * second])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": np.zeros((5, 2))}, "x: expected shape [N, 3], got [5, 2]"),
        ({"weights": [1.0]}, "weights: expected shape [2], got [1]"),
        ({"locs": np.zeros(3)}, "locs: expected shape [K, D], got [3]"),
        ({"covariances": np.ones((2, 3))}, "covariances: expected shape [2, 3, 3], got [2, 3]; give tied"),
        ({"responsibilities": np.ones((4, 2))}, "responsibilities: expected shape [5, 2], got [4, 2]"),
        ({"features": (0, 3)}, "features: expected two different integers from 0 to 2, got (0, 3)"),
        ({"features": (1, 1)}, "features"),
        ({"features": (1,)}, "features"),
    ],
)
def test_mixture_refuses(changed, message, ax):
    given = {"x": np.zeros((5, 3)), "weights": WEIGHTS, "locs": LOCS, "covariances": COVARIANCES}
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.mixture(**(given | changed), ax=ax)


# latent_map


def test_latent_map_names_each_class_at_its_median(ax):
    z = torch.tensor([[0.0, 0.0], [2.0, 4.0], [1.0, 2.0], [9.0, 9.0]])
    plots.latent_map(z, ["a", "a", "a", "b"], ax=ax)
    assert [(t.get_text(), t.get_position()) for t in ax.texts] == [("a", (1, 2)), ("b", (9, 9))]
    assert [len(points.get_offsets()) for points in ax.collections] == [3, 1]
    assert len({tuple(points.get_facecolors()[0]) for points in ax.collections}) == 2


def test_latent_map_needs_no_labels(ax):
    plots.latent_map(torch.randn(7, 2), ax=ax)
    assert len(ax.collections[0].get_offsets()) == 7
    assert not ax.texts


@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        (np.zeros((4, 3)), None, "z: expected shape [N, 2], got [4, 3]"),
        (np.zeros((4, 2)), [0, 1], "labels: expected shape [4], got [2]"),
    ],
)
def test_latent_map_refuses(z, labels, message, ax):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.latent_map(z, labels, ax=ax)


# images


def test_images_come_in_reading_order(ax):
    values = torch.arange(18.0).reshape(3, 6)
    plots.images(values, (2, 3), num_columns=2, ax=ax)
    sheet = ax.images[0].get_array().filled(-1)
    expected = [
        [0, 1, 2, -1, 6, 7, 8],
        [3, 4, 5, -1, 9, 10, 11],
        [-1] * 7,
        [12, 13, 14, -1, -1, -1, -1],
        [15, 16, 17, -1, -1, -1, -1],
    ]
    np.testing.assert_array_equal(sheet, expected)


def test_images_make_a_square_unless_told(ax):
    plots.images(np.zeros((9, 4)), (2, 2), ax=ax)
    assert ax.images[0].get_array().shape == (8, 8)


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        (np.zeros((2, 5)), None, "values: expected shape [M, 6], got [2, 5]"),
        (np.zeros((0, 6)), None, "values: expected at least one row"),
        (np.zeros((2, 6)), 0, "num_columns: expected a positive integer, got 0"),
    ],
)
def test_images_refuses(values, columns, message, ax):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.images(values, (2, 3), columns, ax=ax)


# intervals


def test_intervals_show_means_and_equal_tails(ax):
    draws = np.linspace([0.0, 10.0], [1.0, 30.0], 101)
    plots.intervals({"one": draws, "two": torch.as_tensor(draws + 1)}, ["a", "b"], probability=0.8, ax=ax)
    np.testing.assert_allclose(line(ax, "one").get_xdata(), [0.5, 20])
    np.testing.assert_allclose(line(ax, "two").get_xdata(), [1.5, 21])
    ends = [[segment[:, 0] for segment in lines.get_segments()] for lines in ax.collections]
    np.testing.assert_allclose(ends, [[[0.1, 0.9], [12, 28]], [[1.1, 1.9], [13, 29]]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()
    assert (line(ax, "one").get_ydata() < line(ax, "two").get_ydata()).all()
    assert "80%" in ax.get_xlabel()


@pytest.mark.parametrize(
    ("draws", "options", "message"),
    [
        ({}, {}, "draws: expected at least one fit, got none"),
        ({"a": np.zeros(3)}, {}, "draws: expected shape [S, D], got [3]"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((3, 1))}, {}, "draws['b']: expected shape [S, 2], got [3, 1]"),
        ({"a": np.zeros((3, 2))}, {"names": ["x"]}, "names: expected 2 names"),
        ({"a": np.zeros((3, 2))}, {"probability": 1.0}, "probability: expected a number between 0 and 1, got 1.0"),
    ],
)
def test_intervals_refuses(draws, options, message, ax):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.intervals(draws, **options, ax=ax)


# units


def test_units_are_sorted_and_the_active_ones_in_colour(ax):
    values = torch.tensor([0.1, 3.0, 0.0, 2.0])
    assert plots.units(values, [False, True, False, True], ax=ax) is ax
    assert [(bar.get_center()[0], bar.get_height()) for bar in ax.patches] == [(0, 3), (1, 2), (2, values[0]), (3, 0)]
    blue, grey = to_rgb(plots.COLORS[0]), to_rgb("#BBBBBB")
    assert [bar.get_facecolor()[:3] for bar in ax.patches] == [blue, blue, grey, grey]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["active: 2 of 4", "inactive: 2 of 4"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "3", "0", "2"]
    assert "nats" in ax.get_ylabel()


def test_units_are_all_active_unless_told_and_not_all_labelled_where_they_are_many(ax):
    plots.units(np.arange(60.0), label="variance", ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["active: 60 of 60"]
    assert [label.get_text() for label in ax.get_xticklabels()][:3] == ["59", "56", "53"]
    assert ax.get_ylabel() == "variance"


@pytest.mark.parametrize(
    ("values", "active", "message"),
    [
        ([], None, "values: expected at least one unit, got none"),
        ([[1.0]], None, "values: expected shape [L], got [1, 1]"),
        ([1.0, 2.0], [True], "active: expected shape [2], got [1]"),
    ],
)
def test_units_refuses(values, active, message, ax):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.units(values, active, ax=ax)


# dots


def test_dots_stand_from_top_to_bottom_with_their_numbers(ax):
    assert plots.dots({"first": 2.0, "second": 0.5, "third": 12_345.0}, "nats", log=False, ax=ax) is ax
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(2.0, 0), (0.5, 1), (12_345.0, 2)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second", "third"]
    assert ax.yaxis_inverted()
    assert [text.get_text() for text in ax.texts] == ["2", "0.5", "12,300"]
    assert ax.get_xlabel() == "nats"
    assert ax.get_xscale() == "linear"


def test_a_dot_keeps_its_colour_where_others_have_none(ax):
    plots.dots({"a": math.nan, "b": 0.0, "c": -1.0, "d": math.inf, "e": 3.0}, "", ax=ax)
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(3.0, 4)]
    assert to_rgb(ax.lines[0].get_color()) == to_rgb(plots.COLORS[4])
    assert [label.get_text() for label in ax.get_yticklabels()] == list("abcde")


def test_dots_below_zero_are_shown_on_a_linear_axis(ax):
    plots.dots({"a": -2.0, "b": 0.0, "c": math.nan}, "", log=False, ax=ax)
    assert [line.get_xdata()[0] for line in ax.lines] == [-2.0, 0.0]
    assert [text.get_text() for text in ax.texts] == ["-2", "0"]


def test_a_logarithmic_axis_holds_every_dot_and_its_number(ax):
    plots.dots({"a": 1e-3, "b": 1e4}, "", ax=ax)
    low, high = ax.get_xlim()
    assert ax.get_xscale() == "log"
    assert low < 1e-3
    assert high > 1e4


@pytest.mark.parametrize("log", [False, True])
def test_dots_of_nothing_finite_are_an_empty_picture(ax, log):
    plots.dots({"a": math.nan, "b": math.inf}, "", log=log, ax=ax)
    assert not ax.lines
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, ValueError, "values: expected at least one, got none"),
        ([1.0], TypeError, "values: expected a dict of numbers by name, got list"),
        ({"a": "b"}, TypeError, "values\\['a'\\]: expected a number, got 'b'"),
    ],
)
def test_wrong_dots_are_explained(ax, values, error, message):
    with pytest.raises(error, match=message):
        plots.dots(values, "", ax=ax)


def test_curves_that_are_no_pairs_are_explained(ax):
    with pytest.raises(TypeError, match=r"points\['a'\]: expected places and values"):
        plots.curves({"a": [1, 2, 3]}, "", "", ax=ax)


# curves


def test_curves_show_their_points(ax):
    given = {"one": ([0, 1, 2], torch.tensor([3.0, 1.0, 2.0])), "two": (np.array([0.5, 4.0]), [1.0, 5.0])}
    assert plots.curves(given, "steps", "nats", ax=ax) is ax
    np.testing.assert_array_equal(line(ax, "one").get_xydata(), [[0, 3], [1, 1], [2, 2]])
    np.testing.assert_array_equal(line(ax, "two").get_xydata(), [[0.5, 1], [4, 5]])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale(), ax.get_yscale()) == ("steps", "nats", "linear", "linear")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert [line(ax, name).get_color() for name in given] == list(plots.COLORS[:2])


def test_curves_may_have_logarithmic_axes(ax):
    plots.curves({"one": ([1, 10], [1.0, 100.0])}, "", "", log=True, ax=ax)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "points: expected at least one curve, got none"),
        ({"a": ([1, 2], [1.0])}, "points['a']: expected shape [2], got [1]"),
        ({"a": ([[1, 2]], [1.0, 2.0])}, "points['a']: expected shape [M], got [1, 2]"),
        ({"a": ([1], [1.0]), "b": ([1], [[1.0]])}, "points['b']: expected shape [1], got [1, 1]"),
    ],
)
def test_curves_refuses(points, message, ax):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.curves(points, "", "", ax=ax)


# all


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax=None: plots.losses(torch.ones(3, requires_grad=True), ax=ax),
        lambda ax=None: plots.mixture(np.zeros((5, 3)), WEIGHTS, LOCS, COVARIANCES, ax=ax),
        lambda ax=None: plots.latent_map(np.eye(2), ax=ax),
        lambda ax=None: plots.images(np.eye(4), (2, 2), ax=ax),
        lambda ax=None: plots.intervals({"fit": np.eye(2)}, ax=ax),
        lambda ax=None: plots.units([1.0, 0.0], [True, False], ax=ax),
        lambda ax=None: plots.dots({"one": 1.0, "two": 10.0}, "nats", ax=ax),
        lambda ax=None: plots.curves({"one": ([1, 2], [3.0, 4.0])}, "steps", "nats", log=True, ax=ax),
    ],
)
def test_given_axes_are_used_and_new_ones_made_otherwise(draw, ax):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    assert draw(ax) is ax
    made = draw()
    assert made is not ax
    assert plt.get_fignums() == [made.figure.number]
    plt.close(made.figure)
    assert dict(matplotlib.rcParams) == before


def test_pareto_k_marks_what_is_too_large(ax):
    ax = plots.pareto_k([0.1, 0.9, 5.0, -3.0], ax=ax)
    low, high, limit = ax.lines
    assert low.get_xdata().tolist() == [0, 3]
    assert low.get_ydata().tolist() == [0.1, -0.5]
    assert high.get_ydata().tolist() == [0.9, 2.0]
    assert set(limit.get_ydata()) == {0.7}


def test_uniformity_shows_the_distribution_function_less_the_expected(ax):
    ax = plots.uniformity([0.2, 0.2, 0.2, 0.8], ax=ax)
    grid, values = ax.lines[0].get_data()
    at = {0.1: -0.1, 0.5: 0.25, 0.9: 0.1}
    for place, expected in at.items():
        assert values[np.argmin(abs(grid - place))] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("values", [[0.5, 1.2], [-0.1], [], [[0.5]], [float("nan")]])
def test_uniformity_takes_probabilities(values):
    with pytest.raises(ValueError, match="values: expected"):
        plots.uniformity(values)


def test_predictions_are_in_units_of_half_the_bar(ax):
    draws = np.linspace(-10, 10, 201)
    ax = plots.predictions(["a", "b"], [4.5, 100.0], [draws, draws], ax=ax)
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([0.5, 4.0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match="expected draws of 2 quantities, got 1"):
        plots.predictions(["a", "b"], [1, 2], [draws])


def test_similarity_is_an_image_from_0_to_1(ax):
    image = plots.similarity([[1.0, 0.25], [0.25, 1.0]], ax=ax).images[0]
    assert image.get_array().tolist() == [[1.0, 0.25], [0.25, 1.0]]
    assert image.get_clim() == (0, 1)
    with pytest.raises(ValueError, match="expected a square matrix"):
        plots.similarity([[1.0, 0.25]])
