"""A loss or gradient that is not finite is an error that names the site and keeps the last good parameters."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn

import pyro_lvm as lvm

X = torch.tensor([0.3, -1.2, 0.8, 2.0])


class AtStep:
    """Multiplies by a factor from the given run on, in the value or in its gradient alone."""

    def __init__(self, run, factor, gradient=False):
        self.run, self.factor, self.gradient, self.count = run, factor, gradient, 0

    def __call__(self, value):
        self.count += 1
        if self.count < self.run:
            return value
        if not self.gradient:
            return value * self.factor
        return Spoiled.apply(value)


class Spoiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def model_with(spoil, where):
    def spoiled(value, site):
        return spoil(value) if site == where else value

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.5), constraint=constraints.positive)
        first = pyro.sample("first", dist.Normal(spoiled(scale, "first"), 1.0, validate_args=False))
        second = pyro.sample("second", dist.Normal(spoiled(first, "second"), 1.0, validate_args=False))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(spoiled(second, "x"), scale, validate_args=False), obs=x)

    return model


LATE = 40
"""A run of the model beyond those that look at it before the first step, and far from the last step."""


@pytest.mark.parametrize("where", ["first", "second", "x"])
@pytest.mark.parametrize(
    ("factor", "gradient", "reason"),
    [
        (math.nan, False, "its log-density is nan"),
        (math.inf, False, "its log-density is -inf"),
        (1.0, True, "the gradient of its log-density is not finite"),
    ],
    ids=["nan", "infinity", "gradient"],
)
def test_the_first_bad_site_is_named(where, factor, gradient, reason):
    model = model_with(AtStep(LATE, factor, gradient), where)
    with pytest.raises(lvm.NonFiniteError, match=f"step .*: {reason}; first to blame is site '{where}'") as caught:
        lvm.fit(model, "mean_field", X, num_steps=200, progress=False)
    assert caught.value.site == where
    assert 0 < caught.value.step < LATE


def test_the_guides_sites_come_first():
    def guide(x):
        bad = AtStep.__call__(spoil, pyro.param("loc", torch.tensor(0.0)))
        pyro.sample("first", dist.Normal(bad, 1.0, validate_args=False))
        pyro.sample("second", dist.Normal(0.0, 1.0))

    spoil = AtStep(LATE, math.nan)
    with pytest.raises(lvm.NonFiniteError) as caught:
        lvm.fit(model_with(lambda v: v, None), guide, X, num_steps=200, progress=False)
    assert caught.value.site == "first"


def shrinking(x):
    """Its log-density is that of a Normal whose scale a large step makes negative."""
    scale = pyro.param("scale", torch.tensor(1.0))
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("rows", len(x)):
        pyro.factor("density", -0.5 * ((x - loc) / scale) ** 2 - scale.log())


@pytest.mark.parametrize(
    "optim",
    [lambda p: torch.optim.SGD(p, lr=0.3), lambda p: torch.optim.LBFGS(p, lr=5.0)],
    ids=["SGD", "LBFGS"],
)
def test_the_last_good_parameters_start_a_fit(optim):
    x = torch.tensor([5.0, 5.1])  # the scale shrinks at first and then jumps
    with pytest.raises(lvm.NonFiniteError) as caught:
        lvm.fit(shrinking, None, x, num_steps=300, optim=optim, progress=False)
    error = caught.value
    assert error.site == "density"
    assert error.params["scale"] > 0
    assert all(torch.isfinite(v).all() for v in error.params.values())
    again = lvm.fit(shrinking, None, x, num_steps=50, optim=1e-3, init=error.params, progress=False)
    assert torch.isfinite(again.losses).all()
    start = lvm.fit(shrinking, None, x, num_steps=1, optim=lambda p: torch.optim.SGD(p, 0.0), init=error.params)
    torch.testing.assert_close(start.params, error.params)


def test_parameters_that_overflow_are_not_called_good():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0, validate_args=False), obs=x)

    with pytest.raises(lvm.NonFiniteError) as caught:
        lvm.fit(model, None, X, optim=lambda p: torch.optim.SGD(p, lr=1e30), progress=False)
    assert math.isfinite(caught.value.params["loc"])


def test_the_step_is_counted_from_zero_and_the_message_helps():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.factor("f", x.sum() * pyro.param("a", torch.tensor(1.0)) / 0)

    message = r"step 0: its log-density is inf.*'f'.*init= to continue.*smaller learning rate"
    with pytest.raises(lvm.NonFiniteError, match=message) as caught:
        lvm.fit(model, None, X.abs(), progress=False)
    assert caught.value.step == 0
    assert caught.value.params == {"a": torch.tensor(1.0)}


def test_the_step_that_fails_is_the_one_without_a_loss():
    losses = []
    spoil = AtStep(LATE, math.nan)
    note = [lambda state: losses.append(state.step)]
    with pytest.raises(lvm.NonFiniteError) as caught:
        lvm.fit(model_with(spoil, "x"), "mean_field", X, every=1, callbacks=note, progress=False)
    assert losses == list(range(1, caught.value.step + 1))


def test_a_failed_fit_leaves_modules_as_they_were():
    net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))

    def model(x):
        with pyro.plate("rows", len(x)):
            mean = net(x[:, None])[:, 0]
            pyro.sample("x", dist.Normal(spoil(mean), 1.0, validate_args=False), obs=x)

    spoil = AtStep(LATE, math.nan)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    with pytest.raises(lvm.NonFiniteError):
        lvm.fit(model, None, X, progress=False)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_an_error_of_the_users_own_passes_through():
    calls = []

    def model(x):
        calls.append(1)
        if len(calls) > LATE:
            raise ValueError("mine")
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    with pytest.raises(ValueError, match="mine"):
        lvm.fit(model, None, X, progress=False)


def test_a_distribution_that_refuses_nan_is_the_same_error():
    """Pyro's validation raises before any loss is there."""
    spoil = AtStep(LATE, math.nan)

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(spoil(pyro.param("loc", torch.tensor(0.0))), 1.0), obs=x)

    with pytest.raises(lvm.NonFiniteError, match="site 'x'"):
        lvm.fit(model, None, X, progress=False)


def test_minibatches_blame_their_own_rows():
    x = torch.tensor([1.0, 2.0, 3.0, 0.0, 5.0])

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.factor("logs", x.log() * pyro.param("a", torch.tensor(1.0)))

    with pytest.raises(lvm.NonFiniteError, match="'logs'") as caught:
        lvm.fit(model, None, x, batch_size=1, progress=False)
    assert caught.value.step < 5
