"""Resampled draws of guides that are off, against exact posteriors."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm import resampling

S = 4_000
ERRORS = 4 * 1.5  # standard errors of S independent draws; a draw that is kept twice is worth less


def fitted(model, guide, *data):
    return lvm.fit(model, guide, *data, num_steps=1, optim=1e-9, progress=False)


def check_normal(draws, loc, scale):
    """Means and standard deviations, of one or of many."""
    assert ((draws.mean(0) - loc).abs() < ERRORS * scale / S**0.5).all()
    assert ((draws.std(0) / scale - 1).abs() < ERRORS / (2 * S) ** 0.5).all()


def location(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


Y = torch.randn(20, generator=torch.Generator().manual_seed(0)) + 1.0
EXACT = dist.Normal(Y.sum() / (20 + 1 / 9), (20 + 1 / 9) ** -0.5)


def off(y):
    shift = pyro.param("shift", torch.tensor(0.6))
    pyro.sample("mu", dist.Normal(EXACT.loc + shift * EXACT.scale, 1.4 * EXACT.scale))


def test_what_all_rows_share_is_corrected():
    result = fitted(location, off, Y)
    check_normal(result.sample(S, correct="psis")["mu"], EXACT.loc, EXACT.scale)
    assert abs(result.sample(S)["mu"].mean() - EXACT.loc) > 10 * EXACT.scale / S**0.5
    draws = result.sample(S, seed=3, correct="psis")["mu"]
    assert torch.equal(draws, result.sample(S, seed=3, correct="psis")["mu"])
    assert abs(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1]) < 0.1  # in random order


def test_a_single_draw_can_be_corrected():
    assert fitted(location, off, Y).sample(1, correct="psis")["mu"].shape == (1,)


def test_rows_are_corrected_one_by_one():
    """Jointly, thirty rows of two latents would have weights that correct nothing."""
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1)) * 2

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8).to_event(1), obs=x)
            pyro.sample("w_seen", dist.Normal(w, 1.0), obs=x[:, 0])

    def guide(x):
        shift = pyro.param("shift", torch.tensor(0.3))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 1.64 + shift, 0.8).to_event(1))
            pyro.sample("w", dist.Normal(x[:, 0] / 2 - shift, 0.9))

    draws = fitted(model, guide, x).sample(S, correct="psis")
    assert draws["z"].shape == (S, 30, 2)
    check_normal(draws["z"], x / 1.64, torch.tensor((1 + 1 / 0.64) ** -0.5))
    check_normal(draws["w"], x[:, 0] / 2, torch.tensor(0.5**0.5))


def test_enumerated_sites_are_drawn_beside_what_was_kept():
    """Frequencies of the components by a fine grid over the mean."""
    y = torch.tensor([-1.0, 1.5, 0.9])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mu + 2 * k, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 1.0))

    draws = fitted(model, guide, y).sample(S, correct="psis")
    grid = torch.linspace(-8, 8, 4_001).double()
    parts = torch.stack([dist.Normal(grid[:, None] + 2 * k, 1.0).log_prob(y.double()) for k in (0, 1)])
    parts = parts + torch.tensor([0.6, 0.4]).double().log()[:, None, None]
    posterior = (parts.logsumexp(0).sum(-1) + dist.Normal(0.0, 1.0).log_prob(grid)).softmax(0)
    expected = posterior @ parts.softmax(0)[1]
    error = (expected * (1 - expected) / S).sqrt()
    assert ((draws["k"].double().mean(0) - expected).abs() < ERRORS * error).all()


def test_a_site_that_lies_left_of_another_plate_is_moved_right():
    """Rows in the second dimension from the right, and an inner plate beside them."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("z", dist.Normal(x / 2 + pyro.param("shift", torch.tensor(0.1)), 0.8))

    def model(x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("inner", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    draws = fitted(model, guide, x).sample(S, correct="psis")["z"]
    check_normal(draws, x / 2, torch.tensor(0.5**0.5))


def test_weights_with_a_heavy_tail_are_refused():
    def narrow(y):
        pyro.sample("mu", dist.Normal(EXACT.loc + pyro.param("shift", torch.tensor(0.0)), 0.3 * EXACT.scale))

    with pytest.raises(ValueError, match=r"weights of all latents together have a Pareto k of .*full_rank"):
        fitted(location, narrow, Y).sample(200, correct="psis")


def test_the_median_of_five_large_runs_decides_however_few_draws_are_asked_for(monkeypatch):
    """A single run of a thousand draws puts a Pareto k of 0.84 below 0.7 four times in ten."""
    result, sizes = fitted(location, off, Y), []

    def found(*khats):
        def joint_khats(program, values, args, num_draws):
            sizes.append(num_draws)
            return khats

        return joint_khats

    monkeypatch.setattr(resampling, "joint_khats", found(0.1, 0.9, 0.2, 0.8, 0.75))
    with pytest.raises(ValueError, match=r"of all latents together have a Pareto k of 0\.75"):
        result.sample(100, correct="psis")
    monkeypatch.setattr(resampling, "joint_khats", found(0.1, 0.9, 0.2, 0.8, 0.6))
    assert result.sample(100, correct="psis")["mu"].shape == (100,)
    assert sizes == [10_000, 10_000]


@pytest.mark.parametrize(
    "guide, correct, message",
    [
        ("map", "psis", "weights draws by the guide's density, but"),
        (off, "is", "correct: expected one of 'psis', got 'is'"),
    ],
)
def test_what_cannot_be_corrected_is_refused(guide, correct, message):
    with pytest.raises(ValueError, match=message):
        fitted(location, guide, Y).sample(50, correct=correct)
