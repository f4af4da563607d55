"""The importance-weighted bound of minibatches, where every row has a latent: it is the full data's, on average.

x_i | z_i ~ N(z_i, 1) with z_i ~ N(0, 1), so that log p(x_i) = log N(x_i; 0, 2); the guide N(a x_i, s^2) is off the
posterior N(x_i / 2, 1/2), which leaves a gap to see.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO

import pyro_lvm as lvm

N, B, K = 64, 8, 5
SLOPE, SCALE = 0.2, 1.0  # the posterior has 0.5 and 0.71


@pytest.fixture(scope="module")
def x():
    return torch.linspace(1.0, 2.0, N)  # rows much alike, so that a mean over batches has little noise of theirs


def model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(SLOPE))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(slope * x, SCALE))


def subsampled_model(x):
    """The same, as Pyro writes minibatches: the plate draws 8 of its 64 rows."""
    with pyro.plate("rows", N, subsample_size=B) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def subsampled_guide(x):
    slope = pyro.param("slope", torch.tensor(SLOPE))
    with pyro.plate("rows", N, subsample_size=B) as rows:
        pyro.sample("z", dist.Normal(slope * x[rows], SCALE))


def mean_and_error(values):
    values = torch.as_tensor(values)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def exact(x):
    return dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()


def in_plain_torch(x, num_draws):
    """The bound of all rows, many times over: log-mean-exp of the weights of each row, added."""
    z = SLOPE * x + SCALE * torch.randn(num_draws, K, N)
    log_weights = (
        dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x) - dist.Normal(SLOPE * x, SCALE).log_prob(z)
    )
    return (log_weights.logsumexp(1) - math.log(K)).sum(1)


def by_objective(x, num_batches):
    objective = lvm.Objective(model, guide, lvm.elbo.TraceIWAE_ELBO(K))
    params = objective.init(x)
    batches = [x[torch.randperm(N)[:B]] for _ in range(num_batches)]
    with torch.no_grad():
        return torch.stack([-objective(params, batch, num_rows=N) for batch in batches])


def by_pyro(elbo, x, num_batches):
    svi = SVI(subsampled_model, subsampled_guide, pyro.optim.Adam({"lr": 0.0}), elbo)
    values = torch.tensor([-svi.evaluate_loss(x) for _ in range(num_batches)])
    pyro.clear_param_store()
    return values


@pytest.mark.slow
def test_minibatches_have_the_bound_of_all_rows_and_pyros_renyi_elbo_bounds_nothing(x):
    full, full_error = mean_and_error(in_plain_torch(x, 20_000))
    log_p = exact(x)
    print(f"exact {log_p:.2f}, bound of all rows {full:.3f} +- {full_error:.3f}")
    assert full < log_p - 1

    found = {
        "lvm.Objective": by_objective(x, 2_000),
        "pyro.infer.SVI": by_pyro(lvm.elbo.TraceIWAE_ELBO(K), x, 2_000),
    }
    for name, values in found.items():
        mean, error = mean_and_error(values)
        print(f"TraceIWAE_ELBO({K}) on batches of {B} by {name}: {mean:.3f} +- {error:.3f}")
        assert error < 0.25
        assert abs(mean - full) < 3 * math.hypot(error, full_error)
        assert mean + 3 * error < log_p

    # Pyro puts N / B inside the logarithm: (N / B) log w is averaged over particles, and the largest one wins
    renyi = RenyiELBO(alpha=0.0, num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    mean, error = mean_and_error(by_pyro(renyi, x, 500))
    print(f"RenyiELBO(alpha=0) on batches of {B}: {mean:.2f} +- {error:.2f}")
    assert mean - 3 * error > log_p + 10
