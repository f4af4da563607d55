"""What is said of rows' latents, against closed forms, quadrature and plain Monte Carlo."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import pyro_lvm as lvm
from pyro_lvm.diagnostics import aggregated, codes
from pyro_lvm.diagnostics.aggregated import Aggregated
from pyro_lvm.diagnostics.codes import Codes, examine_codes
from pyro_lvm.importance import Estimate

N, L, D, NOISE = 60, 4, 5, 0.7


class Linear(nn.Module):
    """A linear Gaussian model with a linear guide. Its third unit is the prior, its fourth the same for all rows."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.loading = nn.Parameter(torch.randn(D, L, generator=generator).double())
        slope = 0.5 * torch.randn(L, D, generator=generator).double()
        slope[2:] = 0
        self.register_buffer("slope", slope)
        self.register_buffer("shift", torch.tensor([0.4, 0.0, 0.0, 0.0]).double())
        self.register_buffer("scale", torch.tensor([0.5, 0.8, 1.0, 0.3]).double())

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(L).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.loading.T, NOISE).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.means(x), self.scale).to_event(1))

    def means(self, x):
        return x @ self.slope.T + self.shift


def at_start(model, guide, *data):
    """A fit that has not moved."""
    return lvm.fit(model, guide, *data, num_steps=1, optim=1e-300, progress=False)


@pytest.fixture(scope="module")
def linear():
    part = Linear()
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(4)).double()
    result = at_start(part.model, part.guide, x)
    return part, x, result, examine_codes(result, num_draws=200)


def near(estimate, expected, error=0.0, sigmas=4):
    assert abs(estimate.value - expected) < sigmas * math.hypot(estimate.standard_error, error), (estimate, expected)


def test_rate_and_units_are_exact(linear):
    part, x, _, found = linear
    loc, scale = part.means(x), part.scale
    kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).mean(0)
    torch.testing.assert_close(found.divergences, kl, rtol=1e-10, atol=1e-12)
    assert found.divergences[2] == 0
    assert found.rate == pytest.approx((kl.sum().item(), 0.0), abs=1e-10)
    torch.testing.assert_close(found.spread, loc.var(0, correction=0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.loc, loc.mean(0))
    torch.testing.assert_close(found.scale, (loc.var(0, correction=0) + scale.square()).sqrt())
    assert found.active.tolist() == [True, True, False, False]
    assert found.collapsed.tolist() == [False, False, True, False]
    assert found.names == ("z[0]", "z[1]", "z[2]", "z[3]")
    assert found.num_rows == N


def test_distortion_is_that_of_a_linear_decoder(linear):
    part, x, result, found = linear
    with torch.no_grad():
        residual = x - part.means(x) @ part.loading.T
        spread = (part.loading * part.scale).square().sum()
    expected = 0.5 * (residual.square().sum(1) + spread).mean() / NOISE**2 + D / 2 * math.log(2 * math.pi * NOISE**2)
    near(found.distortion, expected.item())
    assert 0 < found.distortion.standard_error < 0.2
    elbo = result.evidence(4_000, seed=5).log_weights / N
    near(found.distortion, -elbo.mean().item() - found.rate.value, elbo.std().item() / 4_000**0.5)


def mixture_of(part, x):
    rows = torch.distributions.Normal(part.means(x), part.scale)
    return torch.distributions.Independent(rows, 1)


def test_aggregated_posterior_by_plain_monte_carlo(linear):
    part, x, _, found = linear
    torch.manual_seed(6)
    rows, S = mixture_of(part, x), 100_000
    i = torch.randint(N, (S,))
    z = part.means(x)[i] + part.scale * torch.randn(S, L).double()
    log_q = rows.log_prob(z.unsqueeze(1))
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    divergence = log_q.logsumexp(1) - math.log(N) - log_p
    others = log_q.scatter(1, i.unsqueeze(1), -torch.inf).logsumexp(1) - math.log(N - 1) - log_p
    assert found.aggregated.num_rows == N
    near(found.aggregated.divergence, divergence.mean().item(), divergence.std().item() / S**0.5)
    near(found.aggregated.least, others.mean().item(), others.std().item() / S**0.5)
    near(found.aggregated.information, found.rate.value - divergence.mean().item(), divergence.std().item() / S**0.5)


def test_without_its_own_row_a_draw_of_two_is_the_other_rows():
    """Then the bound is the mean divergence between the two rows' posteriors, less that from the prior."""
    part = Linear()
    x = torch.tensor([[0.5] * D, [-0.2] * D]).double()
    found = examine_codes(at_start(part.model, part.guide, x), num_draws=2).aggregated
    first, second = (dist.Normal(loc, part.scale) for loc in part.means(x))
    prior = dist.Normal(torch.zeros(L).double(), 1.0)
    kl = torch.distributions.kl_divergence
    expected = sum((kl(q, prior) - kl(q, p)).sum().item() for q, p in ((first, second), (second, first))) / 2
    near(found.least, expected)


def test_bounds_of_all_rows_that_there_might_be(monkeypatch):
    """Of normal rows the aggregated posterior is normal; both bounds are near for one unit, and on the right side."""
    slope, scale, offset = 0.9, 0.3, 1.5

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + pyro.param("shift", torch.tensor(0.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(slope * x + offset, scale))

    torch.manual_seed(0)
    result = at_start(model, guide, torch.randn(3_000))
    variance = slope**2 + scale**2
    information = 0.5 * math.log(variance / scale**2)
    divergence = 0.5 * (variance + offset**2 - 1 - math.log(variance))
    monkeypatch.setattr(aggregated, "_NUM_PLACES", 4_000)
    found = examine_codes(result, num_draws=2).aggregated
    assert found.num_rows == 2_000
    assert found.least.value < found.divergence.value
    near(found.information, information, 0.01)
    near(found.divergence, divergence, 0.01)
    near(found.least, divergence, 0.01)


def test_rows_come_in_parts_of_bounded_size(linear, monkeypatch):
    _, _, result, whole = linear
    monkeypatch.setattr(codes, "_NUMBERS_AT_ONCE", 7 * 200 * L)
    parts = examine_codes(result, num_draws=200)
    for name in ("spread", "divergences", "loc", "scale"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    near(parts.distortion, whole.distortion.value, whole.distortion.standard_error)
    assert parts.rate.value == pytest.approx(whole.rate.value)


def test_draws_stand_in_for_means_and_divergences_without_a_closed_form():
    """A Student t guide: its divergence by quadrature, and the variance of its means without what draws add to it."""
    df, scale, slope = 5.0, 0.6, 0.3

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + pyro.param("shift", torch.tensor(0.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.StudentT(df, slope * x, scale))

    torch.manual_seed(1)
    x = torch.randn(2_000)
    found = examine_codes(at_start(model, guide, x), num_draws=4)
    grid = torch.linspace(-60, 60, 200_001).double()
    q = torch.distributions.StudentT(df, 0.0, scale).log_prob(grid)
    p = torch.distributions.Normal(0.0, 1.0)
    at_zero = torch.trapezoid(q.exp() * (q - p.log_prob(grid)), grid).item()
    near(found.rate, at_zero + 0.5 * slope**2 * x.square().mean().item())
    assert found.divergences.item() == pytest.approx(found.rate.value)
    exact, noise = slope**2 * x.var().item(), scale**2 * df / (df - 2)
    assert found.names == ("z",)
    # the variance of a mean of four draws, whose own variance is estimated, over 2,000 rows
    assert abs(found.spread.item() - exact) < 4 * (2 / 2_000) ** 0.5 * (exact + noise / 4) * 2
    assert noise / 4 > 4 * (2 / 2_000) ** 0.5 * (exact + noise / 4) * 2  # which would be seen
    assert found.scale.item() == pytest.approx((exact + noise) ** 0.5, rel=0.1)


def test_beta_and_free_bits_leave_the_figures_alone():
    torch.manual_seed(0)
    plain = lvm.models.VAE(6, 2, hidden=(8,))
    weighted = lvm.models.VAE(6, 2, hidden=(8,), beta=5.0)
    weighted.load_state_dict(plain.state_dict())
    x = (torch.randn(50, 6) > 0).float()
    one, other = (examine_codes(at_start(vae, None, x), num_draws=10) for vae in (plain, weighted))
    assert one.rate == other.rate
    assert one.distortion == other.distortion
    assert one.aggregated == other.aggregated


def two_levels(scale=0.5):
    """Latents in two sites, one of them in a plate within the row, whose prior follows the other."""
    loading = nn.Parameter(torch.tensor([1.0, -0.5, 2.0]))

    def model(x):
        rows = pyro.plate("rows", len(x), dim=-1)
        with rows:
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("parts", 3, dim=-2), rows:
            low = pyro.sample("low", dist.Normal(top.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(low * pyro.param("loading", loading.detach())[:, None], 1.0), obs=x.T)

    def guide(x):
        rows = pyro.plate("rows", len(x), dim=-1)
        with rows:
            pyro.sample("top", dist.Normal(x[:, :2], scale).to_event(1))
        with pyro.plate("parts", 3, dim=-2), rows:
            pyro.sample("low", dist.Normal(0.3 * x.T, scale))

    return model, guide


def test_sites_with_inner_plates_and_priors_that_follow_other_latents():
    torch.manual_seed(2)
    model, guide = two_levels()
    x = torch.randn(80, 3)
    result = at_start(model, guide, x)
    found = examine_codes(result, num_draws=400)
    assert found.names == ("top[0]", "top[1]", "low[0]", "low[1]", "low[2]")
    # KL(N(m, s), N(t, 1)), averaged over t, whose mean and variance are those of a sum of two
    top, v = x[:, :2], 0.25
    shared = 0.5 * (top.square() + v - 1 - math.log(v)).mean(0)
    low = 0.5 * ((0.3 * x - top.sum(1, keepdim=True)).square() + 2 * v + v - 1 - math.log(v)).mean(0)
    torch.testing.assert_close(found.divergences[:2].float(), shared)
    torch.testing.assert_close(found.divergences[2:].float(), low, rtol=0, atol=0.03)
    near(found.rate, (shared.sum() + low.sum()).item())
    elbo = result.evidence(4_000, seed=5).log_weights / 80
    near(found.distortion, -elbo.mean().item() - found.rate.value, elbo.std().item() / 4_000**0.5)
    torch.testing.assert_close(found.spread.float(), torch.cat([top, 0.3 * x], 1).var(0, correction=0))


def test_a_flow_has_totals_alone():
    torch.manual_seed(0)
    vae = lvm.models.VAE(6, 2, hidden=(8,), flow=lvm.flows.IAF(2, num_transforms=1, hidden=(8,)))
    x = (torch.randn(40, 6) > 0).float()
    result = lvm.fit(vae, None, x, num_steps=50, optim=1e-2, progress=False)
    found = examine_codes(result, num_draws=500)
    assert found.divergences is None
    elbo = result.evidence(4_000, seed=5).log_weights / 40
    error = math.hypot(found.distortion.standard_error, elbo.std().item() / 4_000**0.5)
    near(found.rate, -elbo.mean().item() - found.distortion.value, error)
    together = found.aggregated.information.value + found.aggregated.divergence.value
    errors = found.aggregated.information.standard_error, found.aggregated.divergence.standard_error
    near(found.rate, together, math.hypot(*errors))
    draws = result.sample(2_000)["z"].double()
    torch.testing.assert_close(found.loc, draws.mean((0, 1)), rtol=0, atol=0.05)
    torch.testing.assert_close(found.scale, draws.flatten(0, 1).std(0), rtol=0.05, atol=0)
    assert "variance of posterior means" in found.findings()[0].text
    assert found.plot(Figure().subplots()).get_ylabel() == "variance of posterior means"


def test_a_full_covariance_has_totals_and_exact_means():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * pyro.param("w", torch.ones(2)), 1.0).to_event(1), obs=x)

    tril = torch.tensor([[0.5, 0.0], [0.3, 0.4]])

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.MultivariateNormal(0.5 * x, scale_tril=tril))

    x = torch.randn(50, 2)
    found = examine_codes(at_start(model, guide, x), num_draws=300)
    assert found.divergences is None
    torch.testing.assert_close(found.spread.float(), (0.5 * x).var(0, correction=0))
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    posterior = torch.distributions.MultivariateNormal(0.5 * x, scale_tril=tril)
    near(found.rate, torch.distributions.kl_divergence(posterior, prior).mean().item())


# what is no such fit


def conditional(x, c):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("x", dist.Normal(z + pyro.param("shift", torch.tensor(0.0)), 1.0), obs=x)


def conditional_guide(x, c):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(0.5 * (x + c), 0.7))


def test_a_prior_of_each_row_has_no_aggregated_posterior():
    found = examine_codes(at_start(conditional, conditional_guide, torch.randn(20), torch.randn(20)), num_draws=5)
    assert found.aggregated is None
    assert found.rate.standard_error == 0
    assert examine_codes(at_start(conditional, conditional_guide, torch.randn(1), torch.randn(1)), 5).aggregated is None


def test_a_single_draw_has_no_error():
    found = examine_codes(at_start(conditional, conditional_guide, torch.randn(20), torch.zeros(20)), num_draws=1)
    assert math.isnan(found.distortion.standard_error)
    assert found.aggregated is not None


def shared_latent(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_latent_guide(x):
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def local_latent(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + pyro.param("shift", torch.tensor(0.0)), 1.0), obs=x)


def point(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Delta(0.5 * x))


def binary(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + pyro.param("shift", torch.tensor(0.0)), 1.0), obs=x)


def binary_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=x))


@pytest.mark.parametrize(
    ("model", "guide"),
    [
        (local_latent, "mean_field"),
        (local_latent, "map"),
        (local_latent, point),
        (shared_latent, shared_latent_guide),
        (shared_latent, "mean_field"),
        (binary, binary_guide),
    ],
)
def test_other_fits_have_no_codes(model, guide):
    assert examine_codes(at_start(model, guide, torch.randn(10))) is None


def test_a_mixture_has_no_codes():
    x = torch.cat([torch.randn(20, 2) - 3, torch.randn(20, 2) + 3])
    assert examine_codes(lvm.fit_em(lvm.models.GaussianMixture(2, 2), x, progress=False)) is None


def test_a_call_is_seeded_and_leaves_no_trace(linear):
    _, _, result, found = linear
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = examine_codes(result, num_draws=200, seed=result.seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert (again.distortion, again.aggregated) == (found.distortion, found.aggregated)
    assert examine_codes(result, num_draws=200, seed=9).distortion != found.distortion


# findings


def made(divergences, spread, aggregated=None):
    zeros, L = torch.zeros(len(spread)), len(spread)
    return Codes(
        names=tuple(map(str, range(L))),
        spread=torch.tensor(spread),
        divergences=None if divergences is None else torch.tensor(divergences),
        loc=zeros,
        scale=zeros + 1,
        rate=Estimate(2.5, 0.0),
        distortion=Estimate(10.0, 0.1),
        aggregated=aggregated,
        num_rows=100,
    )


@pytest.mark.parametrize(
    ("divergences", "spread", "grade", "text"),
    [
        ([1.0, 2.0], [0.5, 0.5], "good", "all 2 units are active"),
        ([1.0, 2.0, 0.001], [0.5, 0.5, 0.0], "good", "1 of 3 units are inactive (KL below 0.01 nats)"),
        ([2.0] + [0.001] * 9, [0.5] + [0.0] * 9, "doubtful", "9 of 10 units are inactive"),
        ([0.001, 0.0], [0.0, 0.0], "bad", "2 of 2 units are inactive"),
        (None, [0.5, 0.0], "doubtful", "1 of 2 units are inactive (variance of posterior means at most 0.01)"),
    ],
)
def test_units_are_graded(divergences, spread, grade, text):
    units, *_, rates = made(divergences, spread).findings()
    assert units.grade == grade
    assert text in units.text
    assert bool(units.advice) == (grade != "good")
    assert "rate 2.50 +- 0 nats and distortion 10.00 +- 0.1 nats" in rates.text


def test_units_that_cost_and_tell_nothing_are_named():
    found = made([2.0, 1.5, 0.001], [0.5, 0.001, 0.0]).findings()
    assert [f.about for f in found] == ["units", "idle units", "rate and distortion"]
    assert "1 units cost 1.50 nats" in found[1].text


@pytest.mark.parametrize(
    ("divergence", "least", "grade", "text"),
    [
        (0.4, 0.3, "good", "0.40 +- 0.01 nats from the prior"),
        (6.0, 5.0, "bad", "6.00 +- 0.01 nats from the prior: draws of the prior decode badly"),
        (2.5, 2.0, "doubtful", "draws of the prior decode badly"),
        (6.0, -80.0, "unknown", "between 0.0 and 6.0 nats from the prior: 500 rows do not tell more"),
    ],
)
def test_the_aggregated_posterior_is_graded(divergence, least, grade, text):
    mixed = Aggregated(Estimate(2.0, 0.1), Estimate(divergence, 0.01), Estimate(least, 0.1), 500)
    finding = made([1.0], [0.5], mixed).findings()[-1]
    assert (finding.about, finding.grade) == ("aggregated posterior", grade)
    assert text in finding.text
    assert text in str(made([1.0], [0.5], mixed))


def test_the_plot_shows_divergences(linear):
    ax = Figure().subplots()
    found = linear[3]
    assert found.plot(ax) is ax
    heights = [bar.get_height() for bar in ax.patches]
    assert sorted(heights) == pytest.approx(sorted(found.divergences.tolist()))
