"""Compiled fits of programs that a trace could easily get wrong: right, or refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_lvm as lvm

torch.manual_seed(3)
X = torch.randn(42) + 2


def fit(model, guide="mean_field", *data, **options):
    return lvm.fit(model, guide, *(data or (X,)), num_steps=12, compile=True, progress=False, **options)


def observed_only(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
    pyro.factor("more", dist.Normal(mean, 1.0).log_prob(x[x > 2]).sum())


def test_shapes_that_follow_from_values_are_refused():
    with pytest.raises(ValueError, match=r"x\[x > 2\].*the shape of a tensor follows from values"):
        fit(observed_only, batch_size=21)


class Annealed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.tensor(1.0))

    def forward(self, x):
        self.beta = self.beta * 0.9
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0 + self.beta), obs=x)


def test_a_buffer_that_is_replaced_is_refused():
    model = Annealed()
    with pytest.raises(ValueError, match=r"beta' is replaced by another: change it in place"):
        fit(model)
    assert model.beta == 1.0


class Centred(nn.Module):
    """A guide in which rows see each other, though not where its weight starts."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.weight * (x - x.mean()), 1.0))


def test_rows_that_see_those_of_weight_zero_are_refused():
    programs = Centred()
    with pytest.raises(ValueError, match="last batch of an epoch is short"):
        fit(programs.model, programs.guide, batch_size=20)


class Counting(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.sub_(group["lr"] / self.count**2 * p.grad)


def plain(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_an_optimizer_that_counts_in_python_is_refused():
    with pytest.raises(ValueError, match=r"Counting counts in Python \(count\)"):
        fit(plain, optim=lambda p: Counting(p, lr=0.01))


def blows_up(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    slope = pyro.param("slope", torch.tensor(0.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
    pyro.factor("f", torch.where(x.max() > 6, (slope * slope).sqrt(), slope * 0.0))  # 0 / 0 in the gradient


@pytest.mark.parametrize(
    "optim", [pyro.optim.Adam({"lr": 0.01}, {"clip_value": 1.0}), lambda p: torch.optim.Rprop(p, lr=0.01)]
)
def test_gradients_that_an_optimizer_makes_finite_are_told_all_the_same(optim):
    x = X.clone()
    x[11] = 7.0
    errors = []
    for compile in (False, True):
        with pytest.raises(lvm.NonFiniteError) as caught:
            lvm.fit(blows_up, "mean_field", x, num_steps=60, batch_size=6, optim=optim, compile=compile, progress=False)
        errors.append(caught.value)
    assert errors[0].site == errors[1].site == "f"
    assert errors[0].step == errors[1].step


class Diary(nn.Module):
    def __init__(self):
        super().__init__()
        self.losses = []

    def forward(self, x):
        plain(x)


def test_a_log_that_a_callback_keeps_on_the_model_changes_nothing():
    model = Diary()
    result = fit(model, every=4, callbacks=[lambda state: model.losses.append(float(state.losses[-1]))])
    assert result.compiled
    assert len(model.losses) == 3
