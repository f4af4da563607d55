"""Compiled fits of programs that a trace could easily get wrong: right, or refused."""

from types import SimpleNamespace

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_lvm as lvm
from pyro_lvm.batches import ShuffledRows
from pyro_lvm.data import Data

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


def lagged(table):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    past = table.as_strided((58, 4), (2, 1))
    with pyro.plate("rows", 58):
        pyro.sample("next", dist.Normal(past @ weights, 1.0), obs=table[2:, 0])


def test_numbers_picked_by_their_place_in_memory_are_refused():
    with pytest.raises(ValueError, match="as_strided picks numbers by their place in memory"):
        fit(lagged, "mean_field", torch.randn(60, 2))


def rotated(table):
    angle = pyro.sample("angle", dist.Normal(0.0, 1.0))
    turned = torch.view_as_complex(table) * torch.complex(angle.cos(), angle.sin())
    with pyro.plate("rows", len(table)):
        pyro.sample("real", dist.Normal(turned.real, 1.0), obs=table[:, 0])


def test_tables_read_as_complex_numbers():
    table = torch.randn(40, 2)
    eager = lvm.fit(rotated, "map", table, num_steps=12, compile=False, progress=False)
    torch.testing.assert_close(fit(rotated, "map", table).losses, eager.losses, rtol=1e-5, atol=1e-5)


def correlated(x):
    factor = pyro.sample("factor", dist.LKJCholesky(3, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=x)


def test_a_mask_that_is_always_the_same():
    x = torch.randn(30, 3)
    eager = lvm.fit(correlated, "map", x, num_steps=12, compile=False, progress=False)
    torch.testing.assert_close(fit(correlated, "map", x).losses, eager.losses, rtol=1e-5, atol=1e-5)


def clamped_after_each_step(params):
    optimizer = torch.optim.Adam(params, 0.05)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def with_a_hook_on_gradients(params):
    params = list(params)
    params[0].register_hook(lambda grad: 0 * grad)
    return torch.optim.Adam(params, 0.05)


@pytest.mark.parametrize("optim", [clamped_after_each_step, with_a_hook_on_gradients])
def test_hooks_that_only_an_eager_step_calls_are_refused(optim):
    with pytest.raises(ValueError, match="hook"):
        fit(plain, optim=optim)


def coin(y):
    logit = pyro.sample("logit", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=logit), obs=y)


@pytest.mark.parametrize("compile", [False, True])
def test_a_row_that_the_likelihood_does_not_take_is_told(compile):
    y = torch.ones(1_000)
    batches = ShuffledRows(Data((y,)), None, 10, seed=0)
    batches.get(0)
    y[batches.order[75]] = 7.0  # in the eighth batch
    with pytest.raises(ValueError, match="within the support"):
        lvm.fit(coin, "mean_field", y, batch_size=10, num_steps=12, compile=compile, progress=False)
    lvm.fit(coin, "mean_field", y, batch_size=10, num_steps=7, compile=compile, progress=False)


def sgd(params):
    return torch.optim.SGD(params, 0.0006)


def unbounded(y):
    probs = pyro.param("probs", torch.tensor(0.9))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(probs=probs), obs=y)


def test_a_fit_whose_next_step_would_fail_warns_and_keeps_its_result():
    """The last step leaves the range; an eager fit does not notice."""
    y = torch.ones(50)
    eager = lvm.fit(unbounded, None, y, num_steps=4, optim=sgd, compile=False, progress=False)
    assert eager.params["probs"] > 1
    with pytest.warns(RuntimeWarning, match="ends where an eager step would fail.*Bernoulli"):
        compiled = lvm.fit(unbounded, None, y, num_steps=4, optim=sgd, compile=True, progress=False)
    torch.testing.assert_close(compiled.params, eager.params)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.linear(self.norm(x)).squeeze(-1), 1.0), obs=x[:, 0])


def test_batch_norm_meets_no_batch_of_one_row():
    """10,001 rows are 73 batches of 137."""
    result = fit(Normed().model, None, torch.randn(10_001, 4), batch_size=137)
    assert result.compiled


class Differentiating(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        (slope,) = torch.autograd.grad((self.w * x).sin().sum(), self.w, create_graph=True)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(slope, 1.0), obs=x)


@pytest.mark.parametrize("batch_size", [None, 21])
def test_models_that_differentiate(batch_size):
    eager, compiled = (
        lvm.fit(Differentiating().model, None, X, num_steps=12, batch_size=batch_size, compile=c, progress=False)
        for c in (False, True)
    )
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-5, atol=1e-5)


def test_a_mask_that_was_always_the_same_until_data_are_written_to_it():
    def model(x):
        a = pyro.param("a", torch.tensor(0.3))
        mask = torch.ones(len(x), dtype=torch.bool)
        with torch.no_grad():
            torch.gt(x, a, out=mask)
        pyro.factor("f", -(x[mask] - a - 3.0).square().sum())

    with pytest.raises(ValueError, match="the shape of a tensor follows from values"):
        fit(model, None)


SETTINGS = {"nested": {"shift": 0.0}, "series": pd.Series([0.0]), "object": SimpleNamespace(shift=0.0)}


def set_nested(value):
    SETTINGS["nested"]["shift"] = value


def set_series(value):
    SETTINGS["series"][0] = value


def set_object(value):
    SETTINGS["object"].shift = value


READ = {
    set_nested: lambda: SETTINGS["nested"]["shift"],
    set_series: lambda: float(SETTINGS["series"][0]),
    set_object: lambda: SETTINGS["object"].shift,
}


@pytest.mark.parametrize("change", READ)
def test_settings_that_a_callback_changes_are_noticed(change):
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean + READ[change](), 1.0), obs=x)

    change(0.0)
    with pytest.raises(ValueError, match="has changed between two steps"):
        fit(model, every=4, callbacks=[lambda state: change(5.0)])


def test_keyword_arguments_that_a_callback_changes_are_noticed():
    def model(x, shifts):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean + shifts["a"], 1.0), obs=x)

    shifts = {"a": 0.0}
    with pytest.raises(ValueError, match="has changed between two steps"):
        fit(model, every=4, callbacks=[lambda state: shifts.update(a=5.0)], model_kwargs={"shifts": shifts})
