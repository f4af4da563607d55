"""Whether rows are independent of each other is tried out, and what follows from it for bounds and for the evidence."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm

X = torch.tensor([0.3, -1.2, 0.8, 2.0])
ENUM = {"infer": {"enumerate": "parallel"}}


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


def separate(model, guide, *args):
    return lvm.elbo.TraceIWAE_ELBO(2).look(model, guide, args, {}).separate


def latents(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)
    return z


def ordinary(x):
    with pyro.plate("rows", len(x)):
        latents(x)


def shared_and_own(x):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def observed_apart(x):
    """An observation outside the rows that depends on none of them."""
    slope = pyro.param("slope", torch.tensor(1.5))
    pyro.sample("y", dist.Normal(slope, 1.0), obs=torch.tensor(0.5))
    with pyro.plate("rows", len(x)):
        latents(x)


def observed_sum(x):
    with pyro.plate("rows", len(x)):
        z = latents(x)
    pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(0.5))


def cumulated(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.cumsum(0), 1.0), obs=x)


def cumulated_from_the_end(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.flip(0).cumsum(0).flip(0), 1.0), obs=x)


def one_row_and_the_next(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        weights = torch.eye(len(x))
        weights[2, 1] = 1.0
        pyro.sample("x", dist.Normal(weights @ z, 1.0), obs=x)


def next_row(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + 0.1 * z.roll(1, 0), 1.0), obs=x)


def prior_of_the_mean(x):
    """The rows' latents depend on each other by the prior of another."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(z.mean(0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def rare(x):
    """Counted latents, nearly all of which are 0 in every draw."""
    with pyro.plate("rows", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.01))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)
    pyro.sample("y", dist.Normal(c.sum(-1), 1.0), obs=torch.tensor(0.5))


def rare_rows(x):
    with pyro.plate("rows", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.01))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def rare_neighbours(x):
    with pyro.plate("rows", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.98, 0.01, 0.01])))
        pyro.sample("x", dist.Normal(c.cumsum(0).to(x.dtype), 1.0), obs=x)


def guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, 0.8))


def guide_of_both(x):
    pyro.sample("g", dist.Normal(0.2, 0.7))
    guide(x)


def guide_of_two(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, 0.8))
        pyro.sample("w", dist.Normal(0.0, 1.0))


def rare_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("c", dist.Bernoulli(pyro.param("probs", torch.tensor(0.01), constraint=constraints.unit_interval)))


def rare_guide_of_three(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("c", dist.Categorical(torch.tensor([0.98, 0.01, 0.01])))


def two_independent(x):
    with pyro.plate("rows", len(x)):
        z = latents(x)
        pyro.sample("w", dist.Normal(z, 1.0))


SEPARATE = {
    "own latents": (ordinary, guide),
    "own and shared latents": (shared_and_own, guide_of_both),
    "two own latents": (two_independent, guide_of_two),
    "an observation apart": (observed_apart, guide),
    "rare values": (rare_rows, rare_guide),
}
TOGETHER = {
    "an observation of the sum": (observed_sum, guide),
    "sums over rows": (cumulated, guide),
    "sums from the end": (cumulated_from_the_end, guide),
    "two rows of all": (one_row_and_the_next, guide),
    "the row before": (next_row, guide),
    "a prior by the mean": (prior_of_the_mean, guide_of_two),
    "an observation of a rare count": (rare, rare_guide),
    "sums over rare values": (rare_neighbours, rare_guide_of_three),
}
together = pytest.mark.parametrize("name", TOGETHER)


@pytest.mark.parametrize("name", SEPARATE)
def test_rows_that_do_not_see_each_other_are_separate(name):
    for seed in range(20):
        torch.manual_seed(seed)
        assert separate(*SEPARATE[name], X)


@together
def test_rows_that_see_each_other_are_not_whatever_is_drawn(name):
    for seed in range(20):
        torch.manual_seed(seed)
        assert not separate(*TOGETHER[name], X)


@pytest.mark.parametrize("name", ["an observation of the sum", "sums over rows", "a prior by the mean"])
def test_rows_that_see_each_other_have_no_minibatches(name):
    model, of_model = TOGETHER[name]
    objective = lvm.Objective(model, of_model, lvm.elbo.TraceIWAE_ELBO(3))
    params = objective.init(X)
    objective(params, X)
    with pytest.raises(ValueError, match="minibatch has no unbiased estimate"):
        objective(params, X[:2], num_rows=4)
    objective = objective.with_elbo(lvm.elbo.Trace_ELBO())
    objective(params, X[:2], num_rows=4)


@pytest.mark.parametrize("name", ["own latents", "own and shared latents", "an observation apart"])
def test_rows_that_do_not_see_each_other_have_minibatches(name):
    objective = lvm.Objective(*SEPARATE[name], lvm.elbo.TraceIWAE_ELBO(3))
    objective(objective.init(X), X[:2], num_rows=4).backward()


def log_joint(name, z):
    """log p(x, z) of rows of draws ``[K, N]``, written out."""
    slope = torch.tensor(1.0 if name == "sums over rows" else 1.5)
    log_p = dist.Normal(0.0, 1.0).log_prob(z)
    loc = z.cumsum(1) if name == "sums over rows" else slope * z
    log_p = (log_p + dist.Normal(loc, 1.0).log_prob(X)).sum(1)
    return log_p + (dist.Normal(z.sum(1), 1.0).log_prob(torch.tensor(0.5)) if "observation" in name else 0.0)


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("name", ["an observation of the sum", "sums over rows"])
def test_rows_that_see_each_other_have_one_bound(name, num):
    drawn = []

    def recorded(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.3 * x, 0.8))
        drawn.append(z.tolist())  # no program of this kind runs for all particles at a time

    elbo = lvm.elbo.TraceIWAE_ELBO(num)
    elbo.loss(TOGETHER[name][0], recorded, X)
    drawn.clear()
    loss = elbo.loss(TOGETHER[name][0], recorded, X)
    assert len(drawn) == num
    z = torch.tensor(drawn)
    log_w = log_joint(name, z) - dist.Normal(0.3 * X, 0.8).log_prob(z).sum(1)
    assert -loss == pytest.approx((log_w.logsumexp(0) - math.log(num)).item(), rel=1e-5)


def test_rows_that_do_not_see_each_other_have_bounds_of_their_own():
    drawn = []

    def recorded(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.3 * x, 0.8))
        drawn.append(z.tolist())

    elbo = lvm.elbo.TraceIWAE_ELBO(4)
    elbo.loss(ordinary, recorded, X)
    drawn.clear()
    loss = elbo.loss(ordinary, recorded, X)
    z = torch.tensor(drawn)
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(1.5 * z, 1.0).log_prob(X)
    log_w = log_w - dist.Normal(0.3 * X, 0.8).log_prob(z)
    assert -loss == pytest.approx((log_w.logsumexp(0) - math.log(4)).sum().item(), rel=1e-5)


# Rows without anything to draw


LOCS, PROBS = torch.tensor([-1.0, 1.0]), torch.tensor([0.3, 0.7])


def mixture(x):
    locs = pyro.param("locs", LOCS)
    with pyro.plate("rows", len(x)):
        c = pyro.sample("c", dist.Categorical(PROBS), **ENUM)
        pyro.sample("x", dist.Normal(locs[c], 1.0), obs=x)


ROW_LOG_P = (PROBS.log() + dist.Normal(LOCS, 1.0).log_prob(X[:, None])).logsumexp(1)


@pytest.mark.parametrize("elbo", [lvm.elbo.TraceIWAE_ELBO(3), lvm.elbo.TraceRenyi_ELBO(0.5, 3)])
def test_rows_that_are_summed_out_have_their_evidence_in_minibatches(elbo):
    objective = lvm.Objective(mixture, None, elbo)
    params = objective.init(X)
    assert objective.structure.separate
    assert -objective(params, X).item() == pytest.approx(ROW_LOG_P.sum().item(), rel=1e-6)
    for size in (1, 2):
        losses = [objective(params, part, num_rows=4) for part in X.split(size)]
        assert -torch.stack(losses).mean().item() == pytest.approx(ROW_LOG_P.sum().item(), rel=1e-6)


def test_rows_that_are_summed_out_have_squared_weights_of_their_own():
    objective = lvm.Objective(mixture, None, lvm.elbo.TraceCUBO(2, shift=-1.5))
    params = objective.init(X)
    exact = (2 * (ROW_LOG_P + 1.5)).exp().sum().item()
    assert objective(params, X).item() == pytest.approx(exact, rel=1e-6)
    losses = [objective(params, part, num_rows=4) for part in X.split(1)]
    assert torch.stack(losses).mean().item() == pytest.approx(exact, rel=1e-6)


def test_an_observation_outside_the_rows_is_in_no_squared_weight():
    with pytest.raises(ValueError, match="TraceCUBO has a loss for each row, and 'y' lies outside all rows"):
        lvm.elbo.TraceCUBO(2).loss(observed_apart, guide, X)
    with pytest.raises(ValueError, match="'y' lies outside all rows"):
        lvm.Objective(observed_apart, guide, lvm.elbo.TraceCUBO(2)).init(X)
    lvm.elbo.TraceCUBO(2).loss(observed_sum, guide, X)  # where all rows are one cell, it belongs to that


# The evidence: z_i ~ N(0, 1), x_i ~ N(z_i, 1), y ~ N(sum_i z_i, 1)


Y = torch.tensor(2.0)


def tied_by_a_sum(x, y):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


def tied_guide(x, y):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 0.8))


def exact_tied_evidence():
    by_z = torch.cat([torch.eye(len(X)), torch.ones(1, len(X))]).double()
    covariance = by_z @ by_z.T + torch.eye(len(X) + 1)
    law = dist.MultivariateNormal(torch.zeros(len(X) + 1).double(), covariance)
    return law.log_prob(torch.cat([X, Y[None]]).double()).item()


def test_the_evidence_of_rows_that_an_observation_ties_together_is_exact_up_to_its_error():
    still = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    result = lvm.fit(tied_by_a_sum, tied_guide, X, Y, num_steps=1, optim=still, plate="rows", progress=False)
    exact = exact_tied_evidence()
    found = [result.evidence(20_000, seed=seed) for seed in range(5)]
    for evidence in found:
        assert 0 < evidence.standard_error < 0.1
        assert abs(evidence.value - exact) < 4 * evidence.standard_error
        assert evidence.lower_bound.value < exact + 4 * evidence.lower_bound.standard_error
    mean = sum(evidence.value for evidence in found) / len(found)
    error = math.sqrt(sum(evidence.standard_error**2 for evidence in found)) / len(found)
    assert abs(mean - exact) < 4 * error


def test_the_lower_bound_of_rows_that_an_observation_ties_together_lies_below():
    still = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    result = lvm.fit(tied_by_a_sum, tied_guide, X, Y, num_steps=1, optim=still, plate="rows", progress=False)
    bounds = torch.tensor([result.evidence(40, seed=seed).lower_bound.value for seed in range(40)])
    assert bounds.mean() + 4 * bounds.std() / math.sqrt(len(bounds)) < exact_tied_evidence()
