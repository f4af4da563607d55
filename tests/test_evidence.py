"""The evidence's lower and upper bounds, against quadrature and weights whose tails are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm import Estimate, Evidence

SGD = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731  a fit that stands still


def still(model, guide, *data, **options):
    """A result at the parameters that the programs start with."""
    return lvm.fit(model, guide, *data, **({"num_steps": 1, "optim": SGD, "progress": False} | options))


# A conjugate Normal: mean ~ N(0, 2^2), x_i ~ N(mean, 1)
X = torch.tensor([0.5, -1.0, 2.0, 0.1, 3.0])
PRECISION = 0.25 + len(X)
POSTERIOR = dist.Normal(X.sum() / PRECISION, PRECISION**-0.5)
LOG_P = dist.MultivariateNormal(torch.zeros(5), torch.eye(5) + 4.0).log_prob(X).item()


def conjugate(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def normal_guide(shift, widened):
    """A guide whose mean is ``shift`` of the posterior's standard deviations off, and its law."""
    law = dist.Normal(POSTERIOR.loc + shift * POSTERIOR.scale, widened * POSTERIOR.scale)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", law.loc), law.scale))

    return guide, law


# z_i ~ N(0, 1), x_i ~ N(z_i, 1)
ROW_LAW = dist.Normal(0.0, math.sqrt(2.0))


def local(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x):
    half = pyro.param("half", torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(half * x, 1.1))


def on_grid(law, log_weight):
    """Logarithms of probabilities under a normal law and of weights, over a fine grid: ``[..., M]``."""
    noise = torch.linspace(-9.0, 9.0, 4_001, dtype=torch.float64)
    z = law.loc.double()[..., None] + torch.as_tensor(law.scale).double()[..., None] * noise
    return (-0.5 * noise**2).log_softmax(0), log_weight(z)


def expected_log_mean(mass, log_weight, num):
    """E log mean_k w_k of ``num`` draws: of their sum S, E log S is the integral of (exp(-t) - E exp(-t S)) / t."""
    t = torch.arange(-50.0, 60.0, 0.1, dtype=torch.float64).exp()
    centre = (mass + log_weight).logsumexp(-1, keepdim=True)
    laplace = (mass - t[:, None] * (log_weight - centre).exp().unsqueeze(-2)).logsumexp(-1)
    return 0.1 * ((-t).exp() - (num * laplace).exp()).sum(-1) + centre.squeeze(-1) - math.log(num)


def joint_grid(law):
    return on_grid(law, lambda z: LOG_P + POSTERIOR.log_prob(z) - law.log_prob(z))


def within_errors(values, exact, errors=4.0):
    values = torch.as_tensor(values, dtype=torch.float64)
    return abs(values.mean().item() - exact) < errors * values.std().item() / math.sqrt(len(values))


@pytest.fixture(scope="module")
def off():
    """Evidence of many seeds under a guide that is off, and the exact bound of 10 particles."""
    guide, law = normal_guide(1.2, 0.9)
    result = still(conjugate, guide, X)
    return [result.evidence(200, seed=seed) for seed in range(80)], expected_log_mean(*joint_grid(law), 10).item()


def test_the_quadrature_knows_the_elbo_and_the_evidence():
    law = normal_guide(1.2, 0.9)[1]
    elbo = LOG_P - torch.distributions.kl_divergence(law, POSTERIOR).item()
    assert expected_log_mean(*joint_grid(law), 1).item() == pytest.approx(elbo, abs=1e-4)
    assert expected_log_mean(*joint_grid(law), 10**6).item() == pytest.approx(LOG_P, abs=1e-3)


def test_the_lower_bound_is_that_of_its_particles(off):
    evidences, exact = off
    assert {e.bound_particles for e in evidences} == {10}
    assert within_errors([e.lower_bound.value for e in evidences], exact)


def test_the_lower_bound_is_below_the_evidence(off):
    evidences, exact = off
    values = torch.tensor([e.lower_bound.value for e in evidences])
    assert exact < LOG_P
    assert values.mean() + 4 * values.std() / math.sqrt(len(values)) < LOG_P


def test_the_error_of_the_lower_bound_is_its_spread(off):
    evidences, _ = off
    values = torch.tensor([e.lower_bound.value for e in evidences], dtype=torch.float64)
    claimed = torch.tensor([e.lower_bound.standard_error for e in evidences], dtype=torch.float64).square()
    deviations = (values - values.mean()).square() * len(values) / (len(values) - 1)
    error = math.sqrt((claimed.var() + deviations.var()) / len(values))
    assert abs(claimed.mean() - deviations.mean()) < 4 * error


def test_rows_that_are_separate_have_bounds_of_their_own():
    result = still(local, local_guide, X)
    law = dist.Normal(0.3 * X, torch.full((5,), 1.1))
    x = X.double()[:, None]

    def log_weight(z):
        log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
        return log_p - dist.Normal(law.loc.double()[:, None], 1.1).log_prob(z)

    exact = expected_log_mean(*on_grid(law, log_weight), 5).sum().item()
    found = [result.evidence(100, seed=seed) for seed in range(60)]
    assert {e.bound_particles for e in found} == {5}
    assert within_errors([e.lower_bound.value for e in found], exact)
    # Were all rows weighed together, the bound would be further from the evidence by far.
    together = torch.stack([e.log_weights.reshape(20, 5).logsumexp(1).mean() - math.log(5) for e in found])
    assert together.mean() < exact - 4 * together.std() / math.sqrt(len(found))


def test_rows_that_a_guide_draws_jointly_have_one_bound():
    found = still(local, "full_rank", X).evidence(200)
    groups = found.log_weights.reshape(20, 10).logsumexp(1) - math.log(10)
    assert found.lower_bound.value == pytest.approx(groups.mean().item(), abs=1e-6)
    assert found.lower_bound.standard_error == pytest.approx((groups.std() / math.sqrt(20)).item(), abs=1e-6)


def test_draws_that_fill_no_group_count_for_the_estimate_alone():
    found = still(conjugate, normal_guide(1.2, 0.9)[0], X).evidence(45)
    assert found.bound_particles == 2
    groups = found.log_weights[:44].reshape(22, 2).logsumexp(1) - math.log(2)
    assert found.lower_bound.value == pytest.approx(groups.mean().item(), abs=1e-9)
    assert found.value == pytest.approx((found.log_weights.logsumexp(0) - math.log(45)).item(), abs=1e-9)


def test_what_lies_outside_the_rows_counts_once():
    def model(x):
        pyro.factor("term", torch.tensor(-3.0))
        local(x)

    plain, shifted = (still(m, local_guide, X).evidence(100) for m in (local, model))
    assert shifted.lower_bound.value == pytest.approx(plain.lower_bound.value - 3.0, abs=1e-5)
    assert shifted.lower_bound.standard_error == pytest.approx(plain.lower_bound.standard_error, abs=1e-6)


@pytest.mark.parametrize(("model", "guide"), [(conjugate, normal_guide(1.2, 0.9)[0]), (local, local_guide)])
def test_a_single_draw_has_bounds_without_errors(model, guide):
    found = still(model, guide, X).evidence(1)
    assert found.bound_particles == 1
    assert math.isfinite(found.lower_bound.value)
    assert found.lower_bound.value == pytest.approx(found.value, abs=1e-6)
    assert math.isnan(found.standard_error)
    assert math.isnan(found.lower_bound.standard_error)


@pytest.mark.parametrize("count", [1, 2, 5, 10, 20])
def test_few_draws_have_no_upper_bound(count):
    assert still(conjugate, normal_guide(1.2, 1.2)[0], X).evidence(count).cubo is None


def test_the_upper_bound_of_a_wide_guide_is_right():
    guide, law = normal_guide(0.2, 1.5)
    mass, log_weight = joint_grid(law)
    exact = 0.5 * (mass + 2 * log_weight).logsumexp(0).item()
    assert exact > LOG_P + 0.05
    result = still(conjugate, guide, X)
    cubos = [result.evidence(500, seed=seed).cubo for seed in range(60)]
    # The exponential of twice the estimate is an unbiased estimate of the mean squared weight.
    assert within_errors(torch.tensor([2 * (cubo - exact) for cubo in cubos]).exp(), 1.0)


def test_the_upper_bound_of_a_narrow_guide_is_none():
    # The squared weights have a Pareto k of 2 (1 - 0.5^2) = 1.5.
    found = still(conjugate, normal_guide(0.0, 0.5)[0], X).evidence(4_000)
    assert found.squared_pareto_k > 0.7
    assert found.cubo is None


def exponential_weights(k, count, seed):
    """log w for p = Exp(1 - k) and q = Exp(1), which is exactly Pareto of shape k, around an evidence of 3 nats."""
    z = torch.empty(count, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed))
    return 3.0 + math.log(1 - k) + k * z


def evidence_of(log_weights):
    return Evidence(0.0, 0.0, Estimate(0.0, 0.0), 1, log_weights)


@pytest.mark.parametrize("k", [0.1, 0.2, 0.4])
def test_the_tail_of_the_squares_is_twice_that_of_the_weights(k):
    found = torch.tensor([evidence_of(exponential_weights(k, 10_000, seed)).squared_pareto_k for seed in range(20)])
    shrunk = (300 * 2 * k + 10 * 0.5) / 310  # ArviZ adds ten draws with a shape of 1/2 to the 300 of the tail
    assert abs(found.mean() - shrunk) < 4 * found.std() / math.sqrt(20)


def test_the_mean_squared_weight_is_that_of_its_pareto_distribution():
    k = 0.2
    exact = 3.0 + 0.5 * math.log((1 - k) ** 2 / (1 - 2 * k))
    cubos = torch.tensor([evidence_of(exponential_weights(k, 2_000, seed)).cubo for seed in range(60)])
    assert within_errors((2 * (cubos - exact)).exp(), 1.0)


def test_there_is_an_upper_bound_below_a_shape_of_0_7_only():
    for k in (0.1, 0.2, 0.3, 0.35, 0.4, 0.6, 0.9):
        found = evidence_of(exponential_weights(k, 5_000, 0))
        assert (found.cubo is None) == (found.squared_pareto_k >= 0.7)
    assert evidence_of(exponential_weights(0.1, 5_000, 0)).cubo is not None
    assert evidence_of(exponential_weights(0.9, 5_000, 0)).cubo is None


def test_constant_weights_are_their_own_bounds():
    guide, _ = normal_guide(0.0, 1.0)
    found = still(conjugate, guide, X).evidence(100)
    assert found.cubo == pytest.approx(LOG_P, abs=1e-4)
    assert found.lower_bound.value == pytest.approx(LOG_P, abs=1e-4)
    assert found.lower_bound.standard_error < 1e-5
    assert evidence_of(torch.full((50,), -2.5)).cubo == pytest.approx(-2.5)


@pytest.mark.parametrize("count", [50, 2_000])
def test_weights_are_constant_up_to_the_rounding_of_many_rows(count):
    x = torch.randn(count)
    law = dist.Normal(x.sum() / (0.25 + count), (0.25 + count) ** -0.5)

    def guide(x):
        pyro.sample("mean", dist.Normal(pyro.param("loc", law.loc), law.scale))

    found = still(conjugate, guide, x).evidence(200)
    exact = dist.Normal(0.0, 1.0).log_prob(x.double()).sum() - 0.5 * math.log(1 + 4 * count)
    exact = exact + 0.5 * x.double().sum() ** 2 / (0.25 + count)
    assert found.value == pytest.approx(exact.item(), rel=1e-5)
    assert found.cubo == pytest.approx(exact.item(), rel=1e-5)


def test_weights_of_a_few_values_raise_nothing():
    """As a guide over few discrete latents gives them."""

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)))

    found = still(model, guide, X).evidence(400)
    assert found.cubo is None or found.cubo >= found.value - 1e-6


def test_an_evidence_is_its_estimate_and_error():
    found = still(conjugate, normal_guide(0.5, 1.2)[0], X).evidence(100)
    value, error = found
    assert (value, error) == (found.value, found.standard_error)
    assert str(found) == f"{value:.2f} +- {error:.2g} nats"
    assert str(found) == str(Estimate(value, error))


def test_the_bounds_of_a_seed_are_the_same_again():
    result = still(conjugate, normal_guide(0.5, 1.2)[0], X)
    first, second, other = result.evidence(100, seed=1), result.evidence(100, seed=1), result.evidence(100, seed=2)
    assert first == second
    assert torch.equal(first.log_weights, second.log_weights)
    assert first.lower_bound != other.lower_bound


@pytest.mark.parametrize("enumerated", [True, False])
def test_the_evidence_is_exact_where_nothing_is_latent(enumerated):
    weights = torch.tensor([0.3, 0.7])

    def model(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 2.0]))
        with pyro.plate("rows", len(x)):
            if enumerated:
                z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)
            else:
                pyro.sample("x", dist.Normal(locs[0], 1.0), obs=x)

    by_component = dist.Normal(torch.tensor([-1.0, 2.0]), 1.0).log_prob(X[:, None])
    exact = (weights.log() + by_component).logsumexp(1).sum() if enumerated else by_component[:, 0].sum()
    found = still(model, None, X).evidence()
    assert found.value == pytest.approx(exact.item(), rel=1e-6)
    assert found.lower_bound == Estimate(found.value, 0.0)
    assert found.standard_error == 0
    assert found.cubo == pytest.approx(found.value)
