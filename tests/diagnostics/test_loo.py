"""Leave-one-out from draws of guides, against exact leave-one-out of conjugate models."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics.loo import LOO, leave_one_out
from pyro_lvm.psis import USEFUL
from pyro_lvm.verdict import weights as weights_module
from pyro_lvm.verdict.weights import draw_weighted

PRIOR, WITHIN, NOISE = 3.0, 0.7, 0.5
S, SEEDS = 2_000, range(6)


def rows(count):
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) + 2.0


def shared(y):
    mu = pyro.sample("mu", dist.Normal(0.0, PRIOR))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, math.hypot(WITHIN, NOISE)), obs=y)


def nested(y):
    mu = pyro.sample("mu", dist.Normal(0.0, PRIOR))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(mu, WITHIN))
        pyro.sample("y", dist.Normal(z, NOISE), obs=y)


def exact(y):
    """log p(y_i | y_-i), the same for both models."""
    variance = WITHIN**2 + NOISE**2
    found = []
    for i in range(len(y)):
        others = torch.cat([y[:i], y[i + 1 :]])
        precision = PRIOR**-2 + len(others) / variance
        loc = others.sum() / variance / precision
        found.append(dist.Normal(loc, (1 / precision + variance) ** 0.5).log_prob(y[i]))
    return torch.stack(found).double()


def off_target(y):
    """A posterior half an sd too low, and half as wide again."""
    variance = WITHIN**2 + NOISE**2
    precision = PRIOR**-2 + len(y) / variance
    sd = precision**-0.5
    shift = pyro.param("shift", torch.tensor(-0.5))
    return pyro.sample("mu", dist.Normal(y.sum() / variance / precision + shift * sd, 1.5 * sd))


def off_target_nested(y):
    """The same, and the latents of the rows a quarter wider than they are given the mean."""
    mu = off_target(y)
    precision = WITHIN**-2 + NOISE**-2
    with pyro.plate("rows", len(y)):
        loc = (mu / WITHIN**2 + y / NOISE**2) / precision
        pyro.sample("z", dist.Normal(loc, 1.25 * precision**-0.5))


def elpds(result, corrected=True):
    found = [leave_one_out(draw_weighted(result, S, seed), corrected) for seed in SEEDS]
    assert max(loo.pareto_k.max() for loo in found) < 0.7
    return torch.tensor([loo.elpd for loo in found]).double(), found


def check(result, y):
    values, found = elpds(result)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - exact(y).sum()) < 3 * error + 1e-3
    torch.testing.assert_close(torch.stack([loo.rows for loo in found]).mean(0), exact(y), rtol=0, atol=0.02)
    assert found[0].standard_error == pytest.approx((exact(y).var() * len(y)).sqrt().item(), rel=0.02)
    assert found[0].num_unreliable == 0


def fitted(model, guide, y, **options):
    return lvm.fit(model, guide, y, progress=False, **options)


def test_a_guide_that_is_off_is_corrected():
    """Without the correction the sum is off by many standard errors."""
    y = rows(25)
    result = fitted(shared, off_target, y, num_steps=1, optim=1e-9)
    check(result, y)
    values, _ = elpds(result, corrected=False)
    assert abs(values.mean() - exact(y).sum()) > 10 * values.std() / len(values) ** 0.5


def test_latents_of_the_rows_are_integrated_out():
    y = rows(25)
    result = fitted(nested, off_target_nested, y, num_steps=1, optim=1e-9)
    weights = draw_weighted(result, S)
    assert weights.own.shape == weights.rows.shape == (S, 25)
    assert weights.draws["z"].shape == (S, 25)
    torch.testing.assert_close(weights.joint - weights.marginal, (weights.own - weights.rows).double().sum(-1))
    variance = WITHIN**2 + NOISE**2
    rowwise = dist.Normal(weights.draws["mu"][:, None], variance**0.5).log_prob(y)
    assert (weights.rows - rowwise).abs().mean() < 0.1  # by twenty draws
    check(result, y)


@pytest.mark.slow
def test_latents_that_are_drawn_together_are_integrated_out_by_their_prior():
    """A hundred draws are enough where a row says little of its own latent."""

    def weak(y):
        mu = pyro.sample("mu", dist.Normal(0.0, PRIOR))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(mu, NOISE))
            pyro.sample("y", dist.Normal(z, WITHIN), obs=y)

    y = rows(6)
    result = fitted(weak, "full_rank", y, num_steps=2_000, optim=0.01)
    weights = draw_weighted(result, 500)
    assert weights.own is None
    assert torch.equal(weights.joint, weights.marginal)
    rowwise = dist.Normal(weights.draws["mu"][:, None], math.hypot(WITHIN, NOISE)).log_prob(y)
    ratios = (rowwise - weights.rows).exp().mean(0)  # by reciprocals rows are left out
    torch.testing.assert_close(ratios, torch.ones(6).double(), rtol=0, atol=0.02)
    values = torch.tensor([leave_one_out(draw_weighted(result, 500, seed)).elpd for seed in SEEDS[:3]]).double()
    assert abs(values.mean() - exact(y).sum()) < 3 * values.std() / len(values) ** 0.5 + 0.01


def test_rows_that_say_too_much_of_their_latents_are_not_integrated_out_by_the_prior():
    def strong(y):
        mu = pyro.sample("mu", dist.Normal(0.0, PRIOR))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0).expand([2]).to_event(1))
            pyro.sample("y", dist.Normal(z, 0.1).to_event(1), obs=y)

    y = rows(6)[:, None].expand(6, 2)
    result = fitted(strong, "full_rank", y, num_steps=1)
    with pytest.raises(ValueError, match="draws of their prior cannot integrate them out"):
        draw_weighted(result, 50)
    found = lvm.diagnose(fitted(strong, "full_rank", y, num_steps=1), 100)
    assert "mean_field" in found.not_available["LOO"]


def test_a_row_that_a_draw_makes_impossible_is_left_out_of_its_weight():
    """Rows uniform up to the shared scale, on a grid of scales that the largest row rules out in part."""

    def model(y):
        scale = pyro.sample("scale", dist.Uniform(0.5, 3.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Uniform(0.0, scale, validate_args=False), obs=y)

    def guide(y):
        pyro.sample("scale", dist.Uniform(pyro.param("low", torch.tensor(0.5)), 3.0))

    y = torch.tensor([0.3, 0.6, 1.2])
    loo = leave_one_out(draw_weighted(fitted(model, guide, y, num_steps=1, optim=1e-9), 20_000))
    scale = torch.linspace(0.5, 3.0, 200_001).double()
    rowwise = torch.where(scale[:, None] >= y, 1 / scale[:, None], 0.0)
    others = torch.stack([rowwise[:, [j for j in range(3) if j != i]].prod(1) for i in range(3)], 1)
    exact = ((others * rowwise).mean(0) / others.mean(0)).log()
    torch.testing.assert_close(loo.rows, exact, rtol=0, atol=0.03)


def test_some_of_many_rows_stand_for_all(monkeypatch):
    y = rows(400)
    result = fitted(nested, off_target_nested, y, num_steps=1, optim=1e-9)
    monkeypatch.setattr(weights_module, "MOST_ROWS", 100)
    weights = draw_weighted(result, 200)
    assert weights.rows.shape == weights.own.shape == (200, 100)
    loo = leave_one_out(weights)
    assert "by 100 of 400 rows" in str(loo)
    assert loo.elpd == pytest.approx(4 * loo.rows.sum().item())
    assert loo.standard_error == pytest.approx(400 * loo.rows.std().item() / 10)
    assert abs(loo.elpd - exact(y).sum()) < 3 * loo.standard_error
    monkeypatch.undo()
    assert torch.equal(draw_weighted(result, 200).rows[:, weights.kept], weights.rows)


def test_draws_of_rows_that_nothing_reads_are_not_kept():
    weights = draw_weighted(fitted(nested, off_target_nested, rows(1_001), num_steps=1, optim=1e-9), 10)
    assert set(weights.draws) == {"mu"}


def test_weights_without_rows_are_those_of_the_whole():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.2))

    weights = draw_weighted(lvm.fit(model, guide, num_steps=1, optim=1e-9, progress=False), 50)
    x = weights.draws["x"]
    expected = dist.Normal(0.0, 1.0).log_prob(x) - dist.Normal(0.3, 1.2).log_prob(x)
    torch.testing.assert_close(weights.joint, expected.double(), rtol=0, atol=1e-5)
    assert weights.rows is None


def test_unreliable_rows_are_named():
    y = rows(25)
    y[3] = 60.0
    loo = leave_one_out(draw_weighted(fitted(shared, "mean_field", y, num_steps=1_500, optim=0.05), S))
    assert loo.pareto_k.argmax() == 3
    assert loo.num_unreliable >= 1
    assert f"Pareto k of 0.7 or above for {loo.num_unreliable} of 25 rows" in str(loo)
    assert "K-fold" in loo.findings()[0].advice


def test_a_row_at_the_limit_is_not_reliable():
    """As elsewhere, weights are useful below 0.7."""
    rows = torch.zeros(3, dtype=torch.float64)
    pareto_k = torch.tensor([0.69, USEFUL, 0.71], dtype=torch.float64)
    assert LOO(0.0, 0.0, 0.0, rows, pareto_k, len(rows)).num_unreliable == 2


def test_rows_whose_latents_hang_on_enumerated_sites_have_no_likelihood():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(mu + 2 * k, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    result = fitted(model, "full_rank", rows(3), num_steps=1)
    with pytest.raises(ValueError, match="prior of 'z' depends on an enumerated site"):
        draw_weighted(result, 20)


@pytest.mark.slow
def test_eight_schools_against_a_grid():
    """The schools' own effects have a closed form, and the two latents that are left a grid."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)

    mu = torch.linspace(-25, 35, 601).double()[:, None]
    log_tau = torch.linspace(-12, 7, 1_901).double()
    tau = log_tau.exp()
    prior = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau) + log_tau
    rows = dist.Normal(mu[..., None], (tau[:, None] ** 2 + sigma**2).sqrt()).log_prob(y)
    joint = prior + rows.sum(-1)
    left_out = torch.stack([joint.logsumexp((0, 1)) - (joint - rows[..., i]).logsumexp((0, 1)) for i in range(8)])
    result = lvm.fit(model, "mean_field", y, sigma, num_steps=600, optim=0.05, progress=False)
    loo = leave_one_out(draw_weighted(result, 2_000))
    assert abs(loo.elpd - left_out.sum()) < 0.5
    torch.testing.assert_close(loo.rows, left_out, rtol=0, atol=0.1)
