"""Predictive checks, on a conjugate model whose posterior is drawn from exactly."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest

import pyro_lvm as lvm
from pyro_lvm.diagnostics.pit import pit
from pyro_lvm.diagnostics.predictive_checks import STATISTICS, PredictiveChecks, check_predictions, quantities
from pyro_lvm.diagnostics.replications import examine_predictions
from pyro_lvm.verdict.weights import Weights, draw_weighted

S, N = 500, 40
MODEL = torch.distributions.Normal


def posterior(y):
    """Of the mean of N(mean, 1), with prior N(0, 10)."""
    precision = 0.01 + len(y)
    return MODEL(y.sum() / precision, precision**-0.5)


def weighed(draws, rows):
    """Draws that weigh the same, and the log-densities of rows at each."""
    flat, num_rows = torch.zeros(S, dtype=torch.float64), rows.shape[1]
    spared = torch.full_like(flat, -torch.inf)
    return Weights(draws, flat, flat, torch.arange(num_rows), num_rows, rows.double(), spared=spared)


def drawn(y):
    """Draws of the exact posterior, as weights, data anew at each of them, and at the first of them."""
    mean = posterior(y).sample((S,))
    rows = MODEL(mean[:, None], 1.0).log_prob(y)
    weights = weighed({"mean": mean}, rows)
    shape = (S, len(y))
    return weights, *(MODEL(loc.expand(shape), 1.0).sample() for loc in (mean[:, None], mean[0]))


def checks(y, statistics=STATISTICS, calibrated=True):
    _, many, one = drawn(y)
    parts = (quantities({"y": data}, statistics) for data in (y[None], many, one))
    return check_predictions(*parts, calibrated).each


@pytest.mark.slow
def test_p_values_are_uniform_under_the_model():
    """Those over all draws crowd around one half, for a mean is always where it was fitted."""
    torch.manual_seed(0)
    below, twice = {name: [] for name in STATISTICS}, []
    for _ in range(120):
        mean = 10 * torch.randn(())
        for check in checks(mean + torch.randn(N)):
            below[check.statistic].append(check.below)
            if check.statistic == "mean":
                twice.append((check.replicated < check.observed).double().mean().item())
    for name, values in below.items():
        assert kstest(values, "uniform").pvalue > 0.01, name
    assert kstest(twice, "uniform").pvalue < 1e-6


def test_rows_that_are_wider_than_the_model_are_seen():
    torch.manual_seed(1)
    by_name = {check.statistic: check for check in checks(2.5 * torch.randn(100))}
    assert by_name["sd"].p_value < 2 / S
    assert by_name["sd"].findings()[0].grade != "good"
    assert by_name["sd"].findings()[0].advice
    assert by_name["mean"].p_value > 1e-4


def test_points_are_said_to_be_conservative():
    assert all("conservative" in check.findings()[0].text for check in checks(torch.randn(N), calibrated=False))


def test_own_test_quantities():
    torch.manual_seed(4)
    (check,) = checks(torch.randn(N), {"share of positives": lambda rows: (rows > 0).double().mean()})
    assert 0 < check.observed < 1
    assert "share of positives of 'y'" in check.findings()[0].text
    with pytest.raises(ValueError, match=r"'rows' must return a number; got shape \[4\]"):
        checks(torch.randn(N), {"rows": lambda rows: rows[:4]})
    with pytest.raises(ValueError, match="'words' must return a number; got 'many'"):
        checks(torch.randn(N), {"words": lambda rows: "many"})


@pytest.mark.parametrize("kind", [float, lambda value: value.numpy(), lambda value: value.reshape(1)])
def test_numbers_of_all_kinds_are_taken(kind):
    y = torch.randn(N)
    (expected,), (found,) = (
        (torch.manual_seed(4), checks(y, {"mean": statistic}))[1]
        for statistic in (torch.mean, lambda rows: kind(rows.mean()))
    )
    assert (found.observed, found.below) == (expected.observed, expected.below)
    assert torch.equal(found.replicated, expected.replicated)


def test_a_test_quantity_that_fails_is_named():
    with pytest.raises(ValueError, match=r"'fifty-first' failed on rows \[40\]: index 50 is out of bounds") as info:
        checks(torch.randn(N), {"fifty-first": lambda rows: rows[50]})
    assert isinstance(info.value.__cause__, IndexError)


def test_what_is_no_number_tells_nothing():
    """Of the data, as where missing entries are NaN, or of data drawn anew."""
    y, statistics = torch.randn(N), {**STATISTICS, "nanmean": torch.nanmean}
    _, *replicated = drawn(y)
    y[3] = torch.nan
    parts = (quantities({"y": data}, statistics) for data in (y[None], *replicated))
    by_name = {check.statistic: check for check in check_predictions(*parts, True).each}
    found = {name: check.findings()[0] for name, check in by_name.items()}
    assert {name: finding.grade for name, finding in found.items()} == {
        **dict.fromkeys(STATISTICS, "unknown"),
        "nanmean": "good",
    }
    assert "mean of 'y' is NaN" in found["mean"].text
    (roots,) = checks(torch.randn(N), {"roots": lambda rows: (rows - rows.mean() + 2).sqrt().mean()})
    assert roots.findings()[0].grade == "unknown"
    assert len(PredictiveChecks((by_name["mean"], by_name["nanmean"])).plot().get_yticklabels()) == 1
    PredictiveChecks((by_name["mean"],)).plot()


def test_ties_share_the_unit_interval():
    """Ranks of a coin's values among its own are uniform, too."""
    torch.manual_seed(0)
    key = ("y", "max")
    below = []
    for _ in range(1_000):
        value, draws = torch.bernoulli(torch.full((1,), 0.3)), torch.bernoulli(torch.full((7,), 0.3))
        other = {key: torch.tensor([-1.0])}
        below.append(check_predictions({key: value}, other, {key: draws}, True).each[0].below)
    assert kstest(below, "uniform").pvalue > 0.01


def test_a_quantity_that_never_varies_is_passed_over():
    assert {check.statistic for check in checks(torch.randn(1))} == {"mean", "min", "max"}


def test_the_place_of_each_row_among_its_predictions():
    """Against the exact predictive distribution given all other rows, within four standard errors."""
    torch.manual_seed(6)
    y = torch.randn(N) + 1.0
    weights, replicated, _ = drawn(y)
    found = pit("y", weights, replicated, y)
    expected = torch.stack(
        [
            MODEL(given.loc, (given.scale**2 + 1) ** 0.5).cdf(y[i])
            for i, given in ((i, posterior(torch.cat([y[:i], y[i + 1 :]]))) for i in range(N))
        ]
    )
    error = (expected * (1 - expected) / S).sqrt()
    assert (abs(found.values - expected) < 4 * error + 1e-3).all()
    assert found.p_value == pytest.approx(kstest(found.values.numpy(), "uniform").pvalue)
    assert found.findings()[0].grade == "good"


def test_ties_are_broken_at_random():
    """A coin's two values share the unit interval."""
    torch.manual_seed(7)
    y = torch.bernoulli(torch.full((400,), 0.3))
    weights = weighed({}, torch.zeros(S, 400))
    found = pit("y", weights, torch.bernoulli(torch.full((S, 400), 0.3)), y)
    assert found.p_value > 0.01
    narrow = pit("y", weights, torch.bernoulli(torch.full((S, 400), 0.6)), y)
    assert narrow.findings()[0].grade == "bad"


def test_shared_states_are_predicted_by_their_posterior():
    """Which of two places all rows have is certain given them, and a coin before."""

    def places(y):
        off = pyro.sample("off", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(10 * k - 5 + off, 1.0), obs=y)

    def exact(y):
        """Given that all have the upper place."""
        precision = 1 + len(y)
        width = pyro.param("width", torch.tensor(precision**-0.5))
        pyro.sample("off", dist.Normal((y - 5).sum() / precision, width))

    y = torch.randn(N) + 5
    result = lvm.fit(places, exact, y, num_steps=1, optim=1e-12, progress=False)
    weights = draw_weighted(result, S, 0)
    _, found = examine_predictions(result, weights, True, {"mean": torch.mean}, 0)
    (check,) = found.each
    sd = (1 / N + 1 / (1 + N)) ** 0.5  # of the rows' mean, and of where it is
    centre = (5 + (y - 5).sum() / (1 + N)).item()
    assert abs(check.replicated.mean() - centre) < 4 * sd / S**0.5
    assert abs(check.replicated.std() / sd - 1) < 4 / (2 * S) ** 0.5


def test_a_site_that_holds_a_parameter_is_no_data():
    """What follows from it is predicted at the parameter, and not at draws of its prior."""

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 100.0), obs=pyro.param("at", torch.tensor(7.0)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    y = torch.randn(N) + 7
    result = lvm.fit(model, None, y, num_steps=1, optim=1e-12, progress=False)
    _, found = examine_predictions(result, None, False, {"mean": torch.mean}, 0)
    (check,) = found.each
    assert check.site == "y"
    draws = len(check.replicated)
    assert abs(check.replicated.mean() - 7) < 4 / (N * draws) ** 0.5
    data = lvm.to_arviz(result, 200)
    for group in ("posterior_predictive", "prior_predictive"):
        assert set(data[group].data_vars) == {"y"}
        assert abs(data[group]["y"].values.mean() - 7) < 4 / (N * 200) ** 0.5
    assert result.predict(num_draws=3).keys() == {"y"}


@pytest.mark.parametrize("num_rows", [50, 1_100])
def test_states_that_many_rows_share_are_predicted_by_their_posterior(num_rows):
    """Data of the first state; rows' latents are more than are kept in the second case."""

    def model(y):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 3.0))
            pyro.sample("y", dist.Normal(z, 1 + 9 * c), obs=y)

    def guide(y):  # exact in the first state
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal(pyro.param("share", torch.tensor(0.9)) * y, 0.9**0.5))

    torch.manual_seed(0)
    y = 10**0.5 * torch.randn(num_rows)
    result = lvm.fit(model, guide, y, num_steps=1, optim=1e-9, progress=False)
    (check,) = (check for check in lvm.diagnose(result, num_draws=500).checks.each if check.statistic == "sd")
    error = (10 / (2 * num_rows)) ** 0.5  # of the sd of as many rows; that of the other state is 10.4
    assert abs(check.replicated - 10**0.5).max() < 5 * error


def test_data_that_a_parameter_transforms_are_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y - shift)

    result = lvm.fit(model, "mean_field", torch.randn(20), num_steps=5, progress=False)
    assert result.predict(num_draws=3)["y"].shape == (3, 20)
    assert lvm.diagnose(result, num_draws=200).checks.each
