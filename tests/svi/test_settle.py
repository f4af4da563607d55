"""Steps at falling learning rates, on posteriors that are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_lvm import randomness
from pyro_lvm.batches import WholeData
from pyro_lvm.data import Data
from pyro_lvm.elbo import Trace_ELBO
from pyro_lvm.svi.compiled import CompiledLoop
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.nonfinite import NonFiniteError
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.settle import settle

Y = torch.tensor([1.0, 2.0, 3.0, 4.0])


def normal(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def steps_of(model, seed=0, compiled=False):
    objective = Objective(model, "mean_field", Trace_ELBO(4))
    held = Data((Y,))
    objective.prepare(held)
    start = objective.program.parameters.start()
    loop = EagerLoop(
        objective, start, WholeData(held, None), 4, lambda params: torch.optim.Adam(params, 0.05), None, None
    )
    if compiled:
        loop = CompiledLoop(loop, seed, True, False)
        loop.scan.compile()
    return loop


def settled(model=normal, compiled=False, seed=0, **options):
    """Epochs that begin with 100 steps."""
    with randomness.seeded(seed):
        loop = steps_of(model, seed, compiled)
        parameters = (loop.eager if compiled else loop).objective.program.parameters
        return settle(loop, (0.05, 0.002), 100, seed, **options), parameters


@pytest.fixture(scope="module")
def eager():
    return settled()


def check_normal(found, parameters):
    """Within the 0.02 nats that matter of the posterior, and of the evidence."""
    params = parameters.constrained(found.values)
    guide = dist.Normal(params["AutoNormal.locs.mean"], params["AutoNormal.scales.mean"])
    posterior = dist.Normal(10 / 4.01, 4.01**-0.5)
    assert torch.distributions.kl_divergence(guide, posterior) < 0.02
    evidence = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 100.0).log_prob(Y).item()
    assert found.elbo.value == pytest.approx(evidence, abs=0.02 + 3 * found.elbo.standard_error)


def test_it_comes_to_the_posterior_and_to_the_evidence(eager):
    check_normal(*eager)


@pytest.mark.slow
def test_compiled_steps_come_there_too():
    check_normal(*settled(compiled=True))


def test_rates_fall_and_elbos_do_not(eager):
    found, _ = eager
    rates = [epoch.learning_rate for epoch in found.epochs]
    assert rates == sorted(rates, reverse=True)
    assert {rates[0], rates[-1]} == {0.05, 0.002}
    steps = [epoch.num_steps for epoch in found.epochs]
    assert steps[0] == 0
    assert steps[-1] == len(found.losses)
    assert found.elbo.value == max(epoch.elbo.value for epoch in found.epochs)
    assert found.note == ""


@pytest.mark.slow
def test_the_seed_decides_all(eager):
    again, _ = settled()
    assert again.epochs == eager[0].epochs
    assert torch.equal(again.losses, eager[0].losses)


def test_what_is_compared_is_the_mean_of_the_second_half():
    """The first epoch, 100 steps; the mean of their last 50, of which each second is kept."""
    path = []
    with randomness.seeded(0):
        loop = steps_of(normal)
        for step in range(100):
            loop.run(step, step + 1, lambda: False)
            path.append({name: v.detach().clone() for name, v in loop.params.items()})
    told = []
    found, _ = settled(interrupted=lambda: sum(told) >= 100, told=told.append)
    assert len(found.losses) == 100
    for name, value in found.values.items():
        torch.testing.assert_close(value, torch.stack([point[name] for point in path[49::2]]).mean(0))


def test_an_interrupt_leaves_what_was_reached():
    told = []
    found, _ = settled(interrupted=lambda: len(told) > 3, told=told.append)
    assert 0 < len(found.losses) < 100
    assert sum(told) == len(found.losses)


def test_a_loss_that_fails_later_ends_the_steps_with_a_note():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        pyro.factor("up", 10 * mean)
        pyro.factor("ends", -(mean - 50.0).clamp(min=0.0).mul(1e30).square())

    found, _ = settled(model)
    assert "step" in found.note
    assert len(found.epochs) >= 1


def test_a_loss_that_is_never_finite_raises():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        pyro.factor("never", -(mean.exp() + 1) * torch.inf)

    with pytest.raises(NonFiniteError):
        settled(model)
