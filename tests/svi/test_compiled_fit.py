"""A fit that runs as one compiled program is the fit that was asked for, or says why it cannot be."""

import logging
import math
import os
import random
import re
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.compiling import Scan
from pyro_lvm.svi import choice
from pyro_lvm.svi.compiled import CompiledLoop
from pyro_lvm.svi.stopping import FitState

from .processes import Process

X = torch.linspace(-2, 2, 22)


def fit(model, guide, *data, num_steps=200, compile=True, **options):
    return lvm.fit(model, guide, *(data or (X,)), num_steps=num_steps, compile=compile, **{"progress": False} | options)


def same(one, other):
    """Bit for bit."""
    assert torch.equal(one.losses, other.losses)
    assert list(one.params) == list(other.params)
    assert all(torch.equal(v, other.params[n]) for n, v in one.params.items())


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.param("scale", torch.tensor(1.2), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def density(x):
    """No latent, so that losses have no noise."""
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def precision(x):
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(0.0, tau.rsqrt()), obs=x)


def gamma_guide(x):
    shape = pyro.param("shape", torch.tensor(3.0), constraint=constraints.positive)
    pyro.sample("tau", dist.Gamma(shape, pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)))


def nothing(state):
    """A callback, before which a block must end."""


KINDS = {
    "minibatch": (model, "mean_field", {"batch_size": 5}),
    "full": (model, "mean_field", {}),
    "gamma": (precision, gamma_guide, {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.999)}),
}


@pytest.fixture(scope="module")
def fits():
    """Fits of 2,100 steps, which is more than two chunks of random numbers, by kind and options; each is made once."""
    made = {}

    def get(kind, **options):
        key = (kind, *sorted(options.items()))
        if key not in made:
            program, guide, own = KINDS[kind]
            made[key] = fit(program, guide, num_steps=2_100, callbacks=[nothing], **own, **options)
            assert made[key].compiled
            assert len(made[key].losses) == 2_100
        return made[key]

    return get


@pytest.mark.parametrize(
    "kind", ["minibatch", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gamma", "full"))]
)
def test_blocks_of_any_length_give_the_same_fit_bit_for_bit(fits, kind):
    same(fits(kind, every=100), fits(kind, every=7))
    same(fits(kind, every=100), fits(kind, every=1_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["minibatch", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gamma", "full"))]
)
def test_the_seed_decides_all(fits, kind):
    program, guide, own = KINDS[kind]
    torch.manual_seed(77)
    same(fits(kind, every=100), fit(program, guide, num_steps=2_100, **own))
    other = fits(kind, seed=1)
    assert (other.losses != fits(kind, every=100).losses).float().mean() > 0.99


@pytest.mark.parametrize(
    "kind", ["minibatch", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gamma", "full"))]
)
def test_it_ends_where_an_eager_fit_does(fits, kind):
    """Other random numbers, the same optimum: the last losses agree within four standard errors."""
    program, guide, own = KINDS[kind]
    eager = fit(program, guide, num_steps=2_100, compile=False, **own)
    assert not eager.compiled
    one, other = eager.losses[-500:], fits(kind, every=100).losses[-500:]
    error = math.sqrt((one.var() + other.var()).item() / 500)
    assert abs((one.mean() - other.mean()).item()) < 4 * error + 0.02


BASE = 16_000


def telling(x):
    """Its loss tells the draws of two sites and a uniform number, which belong to the digits of a number."""
    first, second = pyro.sample("first", dist.Normal(0.0, 1.0)), pyro.sample("second", dist.Normal(0.0, 1.0))
    u = torch.rand((), dtype=torch.float64)
    digits = [(1_000 * (z.double() + 8)).floor() for z in (first, second)]
    pyro.factor("told", digits[0] * BASE + digits[1] + 0.05 + 0.9 * u + 0 * pyro.param("a", torch.zeros(()).double()))


def telling_guide(x):
    for name in ("first", "second"):
        pyro.sample(name, dist.Normal(0.0, 1.0))


def standard(x, mean, variance, fourth):
    n = len(x)
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / n)
    assert abs(((x - mean) ** 2).mean() - variance) < 4 * math.sqrt((fourth - variance**2) / n)


def uncorrelated(x, y):
    assert abs(np.corrcoef(x, y)[0, 1]) < 4 / math.sqrt(len(x))


def test_each_step_has_numbers_of_its_own():
    told = -fit(telling, telling_guide, torch.zeros(1, dtype=torch.float64), num_steps=5_000, every=300).losses.numpy()
    whole = np.floor(told)
    u = (told - whole - 0.05) / 0.9
    z = [(part + 0.5) / 1_000 - 8 for part in (whole // BASE, whole % BASE)]
    for x in z:
        standard(x, 0.0, 1.0, 3.0)
        assert len(np.unique(np.round(x, 3))) > 2_000
    assert 0 <= u.min() < u.max() < 1
    standard(u, 0.5, 1 / 12, 1 / 80)
    assert len(np.unique(u)) > 4_990
    for lag in (1, 2, 100, 300, 1_024):
        for x in (*z, u):
            uncorrelated(x[lag:], x[:-lag])
    for x, y in ((z[0], z[1]), (z[0], u), (z[1], u)):
        uncorrelated(x, y)
        uncorrelated(x[1:], y[:-1])
        uncorrelated(x[:-1], y[1:])


def summed(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("told", z + 0 * pyro.param("a", torch.tensor(0.0)))


def summed_guide(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.slow
def test_each_particle_has_numbers_of_its_own():
    """The average of three independent draws has a third of their variance."""
    elbo = lvm.elbo.Trace_ELBO(num_particles=3)
    told = -fit(summed, summed_guide, torch.zeros(1), num_steps=5_000, elbo=elbo).losses.numpy()
    standard(told, 0.0, 1 / 3, 3 / 9)
    uncorrelated(told[1:], told[:-1])


def direct(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    noise = torch.randn(()).mul_(2.0) + torch.normal(torch.zeros(()))
    pyro.factor("told", noise + 0 * (z + pyro.param("a", torch.tensor(0.0))))


@pytest.mark.slow
def test_random_numbers_may_be_changed_in_place_and_have_a_scale_by_default():
    told = -fit(direct, summed_guide, torch.zeros(1), num_steps=2_000).losses.numpy()
    standard(told, 0.0, 5.0, 3 * 25.0)


def test_a_generator_of_the_users_runs_eagerly_or_goes_on_in_each_step(monkeypatch):
    monkeypatch.setattr(choice, "FEWEST_STEPS", 0)
    generator = torch.Generator().manual_seed(1)

    def program(x):
        pyro.factor("told", torch.randn((), generator=generator) + 0 * pyro.param("a", torch.tensor(0.0)))

    with pytest.warns(RuntimeWarning, match="runs eagerly"):
        result = fit(program, None, compile="auto", num_steps=200)
    assert result.losses.unique().numel() == 200
    with pytest.raises(ValueError, match="compile=True"):
        fit(program, None)


def regression(x, y):
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(pyro.param("slope", torch.tensor(0.3)) * x, 1.0), obs=y)


def test_one_tensor_may_be_given_twice():
    result = fit(regression, None, X, X, num_steps=100)
    assert torch.equal(result.losses, fit(regression, None, X, X.clone(), num_steps=100).losses)


def line(x, y):
    level, slope = (pyro.param(name, torch.tensor(0.3)) for name in ("level", "slope"))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(level + slope * x, 1.0), obs=y)


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_of_some_parameters_leaves_the_others(compile):
    """Of y = 1 + x, with a slope held at 0.3; the xs are symmetric, so that the level is 1 for any slope."""
    result = fit(line, None, X, 1 + X, compile=compile, optim=lambda params: torch.optim.Adam(list(params)[:1], 0.05))
    assert result.compiled == compile
    assert result.params["slope"].item() == torch.tensor(0.3).item()
    assert result.params["level"].item() == pytest.approx(1.0, abs=0.01)


SCRIPT = """
import os, time
import torch, pyro, pyro.distributions as dist
from pyro.distributions import constraints
from torch import nn
import pyro_lvm as lvm

torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # each process has another random state
x = torch.linspace(-2, 2, 22)[:, None]
net = nn.Linear(1, 2)  # and another start
drop = nn.Dropout(0.2)

def model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

def guide(x):
    loc, scale = drop(net(x)).unbind(-1)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, scale.exp()))

def precision(x):
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(net.bias[:1].expand(len(x), 1), tau.rsqrt()).to_event(1), obs=x)

def gamma(x):
    shape = pyro.param("shape", torch.tensor(3.0), constraint=constraints.positive)
    pyro.sample("tau", dist.Gamma(shape, 2.0))

def slow(state):
    time.sleep(float(pause))
    with open(out + ".steps", "a") as file:
        file.write(f"{state.step} ")
    return kind == "stopped" and state.step >= 49

programs = (precision, gamma) if kind == "gamma" else (model, guide)
options = {
    "minibatch": {"batch_size": 5},
    "gamma": {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.97), "clip": 1.0},
    "stopped": {},
}[kind]
result = lvm.fit(*programs, x, num_steps=60, every=7, checkpoint=path, callbacks=[slow], progress=False, seed=3,
                 compile=True, **options)
assert result.compiled
torch.save({"losses": result.losses, "params": result.params, "net": net.state_dict()}, out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["minibatch", "gamma", "stopped"])
def test_killed_and_restarted_equals_not_killed(tmp_path, kind):
    script, checkpoint, out, copy = (tmp_path / name for name in ("script.py", "c", "out", "copy"))
    script.write_text(SCRIPT)
    moments = random.Random(kind)
    for _ in range(2):
        process = Process(script, kind, 0.1, checkpoint, out)
        process.wait_for_a_block()
        if not copy.exists():
            copy.write_bytes(checkpoint.read_bytes())  # modules start at random: the other fit starts from this one's
        time.sleep(moments.uniform(0.0, 0.2))
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
    assert not out.exists()
    assert Process(script, kind, 0.0, checkpoint, out).end() == 0
    assert Process(script, kind, 0.0, copy, tmp_path / "straight").end() == 0
    one, other = torch.load(out, weights_only=True), torch.load(tmp_path / "straight", weights_only=True)
    assert len(one["losses"]) == (49 if kind == "stopped" else 60)
    assert torch.equal(one["losses"], other["losses"])
    for part in ("params", "net"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items()), part


def crash_at(step):
    def crash(state):
        if state.step == step:
            raise KeyboardInterrupt

    return crash


def never(*_):
    raise AssertionError("something was compiled")


def test_a_stopped_fit_goes_on_and_a_finished_one_returns_without_compiling(tmp_path, monkeypatch, fits):
    path, options = tmp_path / "c", {"num_steps": 2_100, "every": 100, "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        fit(model, "mean_field", callbacks=[crash_at(1_100)], **options)
    resumed = fit(model, "mean_field", **options)
    assert resumed.compiled
    same(resumed, fits("full", every=100))
    before = path.read_bytes()
    for name in ("trace", "_compile_scan"):
        monkeypatch.setattr(f"pyro_lvm.compiling.{name}", never)
    again = fit(model, "mean_field", **options)
    same(again, resumed)
    assert again.compiled
    assert again.seconds == resumed.seconds
    assert path.read_bytes() == before


@pytest.fixture
def eager_to_compile(monkeypatch):
    """Compiling costs nothing, so that "auto" always does."""
    monkeypatch.setattr(choice, "FEWEST_STEPS", 0)
    monkeypatch.setattr(choice, "_SECONDS_TO_COMPILE", 0.0)
    monkeypatch.setattr(choice, "_SECONDS_TO_COMPILE_AN_OPERATION", 0.0)


def test_a_checkpoint_of_an_eager_fit_goes_on_eagerly(tmp_path, monkeypatch, request):
    options = {"compile": "auto", "every": 20}
    straight = fit(model, "mean_field", **options)
    assert not straight.compiled
    with pytest.raises(KeyboardInterrupt):
        fit(model, "mean_field", callbacks=[crash_at(60)], checkpoint=tmp_path / "c", **options)
    request.getfixturevalue("eager_to_compile")
    monkeypatch.setattr("pyro_lvm.compiling._compile_scan", never)
    resumed = fit(model, "mean_field", checkpoint=tmp_path / "c", **options)
    assert not resumed.compiled
    same(resumed, straight)


def test_a_checkpoint_of_a_compiled_fit_goes_on_compiled(tmp_path, monkeypatch):
    options = {"compile": "auto", "every": 100, "num_steps": 2_100}
    with monkeypatch.context() as free:
        free.setattr(choice, "FEWEST_STEPS", 0)
        free.setattr(choice, "_SECONDS_TO_COMPILE", 0.0)
        free.setattr(choice, "_SECONDS_TO_COMPILE_AN_OPERATION", 0.0)
        with pytest.raises(KeyboardInterrupt):
            fit(model, "mean_field", callbacks=[crash_at(500)], checkpoint=tmp_path / "c", **options)
    monkeypatch.setattr(choice, "FEWEST_STEPS", 10**9)
    resumed = fit(model, "mean_field", checkpoint=tmp_path / "c", **options)
    assert resumed.compiled
    straight = fit(model, "mean_field", num_steps=2_100)
    same(resumed, straight)


def test_another_answer_to_compile_is_another_fit(tmp_path):
    options = {"num_steps": 20, "checkpoint": tmp_path / "c"}
    fit(model, "mean_field", compile=False, **options)
    with pytest.raises(ValueError, match=r"belongs to another fit \(compile was False, is auto"):
        fit(model, "mean_field", compile="auto", **options)


@pytest.mark.slow
def test_twenty_fits_in_one_process():
    """Each against itself made alone: programs do not take each other's place."""

    def program_of(width, scale):
        def program(x):
            w = pyro.sample("w", dist.Normal(torch.zeros(width), scale).to_event(1))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

        return program

    made = {}
    for width in range(1, 11):
        for scale in (1.0, 2.0):
            made[width, scale] = fit(program_of(width, scale), "mean_field", num_steps=300)
            assert made[width, scale].compiled
    for i, one in enumerate(made):
        for other in list(made)[:i]:
            assert not torch.equal(made[one].losses, made[other].losses)
    for key in ((1, 1.0), (4, 2.0), (10, 1.0)):
        same(made[key], fit(program_of(*key), "mean_field", num_steps=300))


def test_fits_from_two_threads_are_those_from_one(fits):
    found = {}

    def run(kind, key):
        program, guide, own = KINDS[kind]
        found[key] = fit(program, guide, num_steps=2_100, **own)

    threads = [threading.Thread(target=run, args=args) for args in (("full", 0), ("minibatch", 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(found[0], fits("full", every=100))
    same(found[1], fits("minibatch", every=100))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_is_the_users(two_threads, fits):
    result = fit(model, "mean_field", num_steps=300)
    assert torch.get_num_threads() == 2
    torch.testing.assert_close(result.losses, fits("full", every=100).losses[:300], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="compile=True"):
        fit(reads, "mean_field", num_steps=300)
    assert torch.get_num_threads() == 2


def test_ctrl_c_returns_what_was_reached_and_the_next_call_goes_on(tmp_path, fits):
    def press(state):
        if state.step == 300:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    options = {"num_steps": 2_100, "every": 100, "checkpoint": tmp_path / "c"}
    reached = fit(model, "mean_field", callbacks=[press], **options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(reached.losses) == 300
    assert torch.equal(reached.losses, fits("full", every=100).losses[:300])
    same(fit(model, "mean_field", **options), fits("full", every=100))


def test_ctrl_c_acts_within_a_long_block(monkeypatch, fits):
    """Between two programs, of which a block of many steps has several."""
    run = Scan.__call__

    def pressed(scan, *args):
        os.kill(os.getpid(), signal.SIGINT)
        return run(scan, *args)

    monkeypatch.setattr(Scan, "__call__", pressed)
    reached = fit(model, "mean_field", num_steps=100_000, every=100_000)
    assert 1 < len(reached.losses) < 2_100
    assert torch.equal(reached.losses, fits("full", every=100).losses[: len(reached.losses)])


def test_callbacks_and_validation_see_each_block():
    held_out = torch.tensor([0.5, 3.0, -1.0])
    seen = []
    result = fit(density, None, callbacks=[seen.append], validation=held_out, every=30, num_steps=100)
    assert result.compiled
    assert [state.step for state in seen] == [30, 60, 90, 100]
    assert sorted(result.validation) == [30, 60, 90, 100]
    for state in seen:
        assert torch.equal(state.losses, result.losses[: state.step])
        direct = -dist.Normal(state.params["loc"], 1.0).log_prob(held_out).sum()
        assert state.validation[state.step] == pytest.approx(direct.item(), rel=1e-5)
        assert sorted(state.validation) == [s.step for s in seen if s.step <= state.step]
    assert len({state.params["loc"].item() for state in seen}) == 4
    torch.testing.assert_close(seen[-1].params, result.params, rtol=0, atol=0)
    eager_seen = []
    eager = fit(
        density, None, callbacks=[eager_seen.append], validation=held_out, every=30, num_steps=100, compile=False
    )
    torch.testing.assert_close(result.losses, eager.losses, rtol=1e-5, atol=1e-5)
    for one, other in zip(seen, eager_seen, strict=True):
        assert one.step == other.step
        torch.testing.assert_close(one.params, other.params, rtol=1e-5, atol=1e-5)
        assert one.validation == pytest.approx(other.validation, rel=1e-5)


def test_flat_losses_stop_it_where_they_should(fits):
    stop = lvm.StopWhenFlat(patience=2, num_errors=5.0, min_steps=200)
    whole = fits("full", every=100).losses
    expected = next(n for n in range(100, 2_101, 100) if stop(FitState(n, whole[:n], {}, {}, 100)))
    assert 200 < expected < 2_100
    result = fit(model, "mean_field", callbacks=[stop], num_steps=2_100)
    assert result.compiled
    assert torch.equal(result.losses, whole[:expected])


def test_nothing_global_changes():
    pyro.get_param_store()["loc"] = torch.tensor(5.0)
    before = torch.get_rng_state(), pyro.settings.get(), random.getstate(), np.random.get_state()[1].tolist()
    fit(density, None, callbacks=[lambda state: None])
    fit(precision, gamma_guide, num_steps=10, **KINDS["gamma"][2])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pyro.settings.get() == before[1]
    assert random.getstate() == before[2]
    assert np.random.get_state()[1].tolist() == before[3]
    assert list(pyro.get_param_store()) == ["loc"]
    assert pyro.get_param_store()["loc"] == 5.0
    pyro.clear_param_store()


def reads(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean + 0 * mean.item(), 1.0), obs=x)


def branches(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    if mean > 0:
        mean = mean * 1.5
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def numpy_noise(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    noise = np.random.randn()
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean + noise, 1.0), obs=x)


COUNT = [0]


def counts(x):
    COUNT[0] += 1
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0 + 1 / COUNT[0]), obs=x)


def sees_the_size(x):
    """Its loss depends on the number of rows beside their weights."""
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc * len(x) / 5, 1.0), obs=x)


def sees_the_others(x):
    """Its loss depends on rows beside their weights."""
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc + x.mean(), 1.0), obs=x)


def shuffles(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    order = torch.randperm(len(x))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[order][order.argsort()])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.loc = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.norm(x[:, None])[:, 0] + self.loc, 1.0), obs=x)


class OwnRate(torch.optim.Adam):
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.99
        return loss


def loader():
    return DataLoader(TensorDataset(X), batch_size=11)


HERE = Path(__file__).name
LAST = "the last batch of an epoch is short"
REFUSED = {
    "a branch on a sample": (branches, {}, rf"{HERE}, line \d+, 'if mean > 0:'.*reads the value of a tensor"),
    "a read": (reads, {}, rf"{HERE}, line \d+, 'pyro.sample.*mean.item\(\).*reads the value of a tensor"),
    "numpy's random numbers": (numpy_noise, {}, "changes from run to run.*draw random numbers by torch or Pyro"),
    "a counter": (counts, {}, "changes from run to run"),
    "ClippedAdam": (model, {"optim": pyro.optim.ClippedAdam({"lr": 0.01})}, "ClippedAdam"),
    "L-BFGS": (density, {"optim": lambda p: torch.optim.LBFGS(p), "guide": None}, "L-BFGS takes several losses"),
    "Adafactor": (model, {"optim": lambda p: torch.optim.Adafactor(p)}, "Adafactor"),
    "a rate of its own": (model, {"optim": lambda p: OwnRate(p)}, "OwnRate changes its learning rate by itself"),
    "Pyro's RenyiELBO": (model, {"elbo": pyro.infer.RenyiELBO(num_particles=2)}, "RenyiELBO"),
    "a DataLoader": (model, {"data": loader}, "DataLoader.*batch_size="),
    "the size of a batch": (sees_the_size, {"batch_size": 5, "guide": None}, LAST),
    "the other rows of a batch": (sees_the_others, {"batch_size": 5, "guide": None}, LAST),
    "draws of their own in a short batch": (shuffles, {"batch_size": 5, "guide": None}, f"{LAST}.*randperm"),
    "batch norm": (None, {"batch_size": 5, "guide": None}, f"{LAST}.*running_mean"),
}


def refused(name):
    program, options, pattern = REFUSED[name]
    options = dict(options)
    net = Normed() if program is None else None
    data = options.pop("data", lambda: X)()
    return (net.model if net else program, options.pop("guide", "mean_field"), data), options, pattern, net


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_runs_eagerly_with_one_warning(name, monkeypatch):
    monkeypatch.setattr(choice, "FEWEST_STEPS", 0)
    arguments, options, pattern, _ = refused(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        result = fit(*arguments, compile="auto", num_steps=20, **options)
    caught = [w for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(caught) == 1
    assert re.search(pattern, str(caught[0].message)), caught[0].message
    assert "runs eagerly" in str(caught[0].message) or "goes on eagerly" in str(caught[0].message)
    assert not result.compiled
    assert len(result.losses) == 20
    if name not in ("numpy's random numbers", "a counter"):
        arguments, options, _, _ = refused(name)
        same(result, fit(*arguments, compile=False, num_steps=20, **options))


@pytest.mark.parametrize("name", REFUSED)
def test_where_compiling_is_required_the_same_is_an_error(name):
    arguments, options, pattern, net = refused(name)
    before = {} if net is None else {n: v.clone() for n, v in net.state_dict().items()}
    calls = []
    with pytest.raises(ValueError, match=rf"compile=True: .*{pattern}"):
        fit(*arguments, num_steps=20, every=1, callbacks=[calls.append], **options)
    assert calls == []
    assert all(torch.equal(v, before[n]) for n, v in (net.state_dict() if net else {}).items())


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_the_warning_points_at_the_call_of_the_user(monkeypatch, num_restarts):
    monkeypatch.setattr(choice, "FEWEST_STEPS", 0)
    with pytest.warns(RuntimeWarning, match="runs eagerly") as caught:
        lvm.fit(reads, "mean_field", X, num_steps=5, progress=False, num_restarts=num_restarts)
    assert [warning.filename for warning in caught] == [__file__] * num_restarts


@pytest.mark.parametrize(
    ("program", "options"),
    [
        pytest.param(sees_the_size, {"batch_size": 11}, id="the size", marks=pytest.mark.slow),
        pytest.param(sees_the_others, {"batch_size": 11}, id="the others"),
        pytest.param(None, {"batch_size": 11}, id="batch norm", marks=pytest.mark.slow),
    ],
)
def test_batches_of_one_size_may_see_themselves(program, options):
    runs = []
    for compile in (True, False):
        net = Normed()
        runs.append(fit(program or net.model, None, compile=compile, **options))
        runs[-1].state = {n: v.clone() for n, v in net.state_dict().items()}
    assert runs[0].compiled
    torch.testing.assert_close(runs[0].losses, runs[1].losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(runs[0].state, runs[1].state, rtol=1e-4, atol=1e-4)


def cyclic(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=1_000)


class Late(torch.optim.lr_scheduler.LRScheduler):
    """It leaves all as it is for a while."""

    def get_lr(self):
        for group in self.optimizer.param_groups:
            if self.last_epoch >= 130:
                group["betas"] = (0.8, 0.99)
        return [group["lr"] for group in self.optimizer.param_groups]


SCHEDULES = {"runs": cyclic, "goes on": Late}


@pytest.mark.parametrize("way", SCHEDULES)
def test_a_scheduler_that_changes_more_than_the_rate_is_an_error(way):
    with pytest.raises(ValueError, match=r"compile=True: the scheduler changes betas .*beside its learning rate"):
        fit(density, None, scheduler=SCHEDULES[way])


@pytest.mark.parametrize("way", SCHEDULES)
def test_a_scheduler_that_changes_more_than_the_rate_runs_eagerly(way, eager_to_compile):
    options = {"scheduler": SCHEDULES[way], "callbacks": [nothing], "num_steps": 250}
    expected = fit(density, None, compile=False, **options)
    with pytest.warns(RuntimeWarning, match=rf"{way} eagerly.*: the scheduler changes betas") as caught:
        result = fit(density, None, compile="auto", **options)
    assert len(caught) == 1
    assert not result.compiled
    torch.testing.assert_close(result.losses, expected.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.params, expected.params, rtol=1e-5, atol=1e-5)


def test_a_parameter_that_would_appear_late_is_an_error():
    """As it is eagerly, where the step comes in which it would appear; what counts the steps is seen before them."""
    calls = []

    def program(x):
        calls.append(1)
        loc = pyro.param("loc", torch.tensor(0.3))
        if len(calls) >= 16:  # which is after the first step
            loc = loc + pyro.param("late", torch.tensor(1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"compile=True: 'calls\.\d+' changes as model and guide run"):
        fit(program, None)


def test_a_parameter_that_a_callback_brings_is_an_error():
    calls = []

    def program(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        if calls:
            loc = loc + pyro.param("late", torch.tensor(1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"compile=True: 'calls\.0' has changed between two steps"):
        fit(program, None, every=20, callbacks=[lambda state: calls.append(1)])


LEVEL = 0.0


class Shifted:
    """Models whose loss shows a number of Python's, which is kept in one place or another."""

    def __init__(self):
        self.level = 0.0
        self.tensor = torch.tensor(0.0)
        self.net = Leveled()
        self.leaky = nn.LeakyReLU(0.0)
        self.options = {"levels": [0.0, 1.0]}
        self.limit = None

    def attribute(self, x):
        shown(x, self.level)

    def nested(self, x):
        shown(x, self.options["levels"][0])

    def global_(self, x):
        shown(x, LEVEL)

    def of_module(self, x):
        shown(x, self.net.level)

    def in_module(self, x):
        shown(x, self.net.options["level"])

    def of_torchs_module(self, x):
        shown(x, -self.leaky(torch.tensor(-1.0)))

    def none_before(self, x):
        shown(x, 0.0 if self.limit is None else self.limit)

    def in_tensor(self, x):
        shown(x, self.tensor)

    def closure(self):
        held = [0.0]
        return (lambda x: shown(x, held[0])), lambda: held.__setitem__(0, 100.0)

    def twins(self):
        one, other = {"level": 0.0}, {"level": 0.0}
        return (lambda x: shown(x, one["level"] + other["level"])), lambda: one.update(level=100.0)


class Leveled(nn.Module):
    def __init__(self):
        super().__init__()
        self.level = 0.0
        self.options = {"level": 0.0}


def shown(x, level):
    pyro.factor("told", -(pyro.param("a", torch.tensor(3.0)) - x[0]).square() - level)


def shifted(where, monkeypatch):
    own = Shifted()
    if where in ("closure", "twins"):
        return getattr(own, where)()
    change = {
        "attribute": lambda: setattr(own, "level", 100.0),
        "nested": lambda: own.options["levels"].__setitem__(0, 100.0),
        "global_": lambda: monkeypatch.setitem(globals(), "LEVEL", 100.0),
        "of_module": lambda: setattr(own.net, "level", 100.0),
        "of_torchs_module": lambda: setattr(own.leaky, "negative_slope", 100.0),
        "none_before": lambda: setattr(own, "limit", 100.0),
        "in_module": lambda: own.net.options.update(level=100.0),
        "in_tensor": lambda: own.tensor.fill_(100.0),
    }[where]
    return getattr(own, where), change


def at(step, change):
    def callback(state):
        if state.step == step:
            change()

    return callback


NAMES = {"closure": "held.0", "of_torchs_module": "negative_slope", "none_before": "limit"}
NUMBERS = ["attribute", "nested", "global_", "of_module", "closure", "in_module", "of_torchs_module", "none_before"]
NUMBERS.append("twins")


@pytest.mark.parametrize("where", NUMBERS)
def test_a_number_that_a_callback_changes_is_seen_eagerly(where, monkeypatch, eager_to_compile):
    program, change = shifted(where, monkeypatch)
    if where != "attribute":  # what is watched does not depend on the compiler
        replayed(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        result = fit(program, None, compile="auto", every=20, callbacks=[at(100, change)])
    assert len(caught) == 1
    assert "goes on eagerly" in str(caught[0].message)
    assert NAMES.get(where, "level") in str(caught[0].message).lower()
    assert not result.compiled
    told = result.losses[100:]
    assert (told > 100).all()
    assert (result.losses[:100] < 30).all()
    program, change = shifted(where, monkeypatch)
    eager = fit(program, None, compile=False, every=20, callbacks=[at(100, change)])
    if where != "global_":
        torch.testing.assert_close(result.losses, eager.losses, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", NUMBERS)
def test_a_number_that_a_callback_changes_is_an_error_where_compiling_is_required(where, monkeypatch):
    program, change = shifted(where, monkeypatch)
    replayed(monkeypatch)
    with pytest.raises(ValueError, match=r"compile=True: .*has changed between two steps.*keep it in a tensor"):
        fit(program, None, every=20, callbacks=[at(100, change)])


def test_a_tensor_that_a_callback_changes_in_place_is_seen(monkeypatch):
    program, change = shifted("in_tensor", monkeypatch)
    result = fit(program, None, every=20, callbacks=[at(100, change)])
    assert result.compiled
    jump = result.losses[100] - result.losses[99]
    assert 99 < jump < 100.1
    assert (result.losses[100:] > 100).all()
    assert (result.losses[:100] < 30).all()


def test_a_fit_that_went_on_eagerly_does_so_after_a_restart(tmp_path, monkeypatch, eager_to_compile):
    options = {"compile": "auto", "every": 20, "checkpoint": tmp_path / "c"}
    program, change = shifted("attribute", monkeypatch)
    with pytest.warns(RuntimeWarning, match="goes on eagerly"), pytest.raises(KeyboardInterrupt):
        fit(program, None, callbacks=[at(60, change), crash_at(100)], **options)
    monkeypatch.setattr("pyro_lvm.compiling._compile_scan", never)
    resumed = fit(program, None, **options)
    assert not resumed.compiled
    assert len(resumed.losses) == 200
    assert (resumed.losses[60:] > 100).all()


def replayed(monkeypatch):
    """The steps of a compiled fit, taken one by one by the eager loop under the same numbers."""

    def block(loop, start, stop):
        return torch.cat([torch.as_tensor(loop._eager_step(step)) for step in range(start, stop)])

    monkeypatch.setattr(CompiledLoop, "_block", block)
    monkeypatch.setattr(Scan, "compile", lambda scan: None)


FAILURES = {
    "nan": lambda room: 1e-30 * room.log(),
    "gradient": lambda room: 1e-30 * (room * (room > 0)).sqrt(),
    "infinity": lambda room: -1e-30 / room.clamp(min=0),
}
LIMIT = torch.tensor(0.0)


def failing(kind, net=None):
    """A parameter grows by one in each step until the limit is reached; a sample makes the losses random."""

    def program(x):
        a = pyro.param("a", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            loc = z if net is None else z + net(x[:, None])[:, 0]
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        told = a + FAILURES[kind](LIMIT - a)
        pyro.sample("fragile", dist.Unit(told, validate_args=False), obs=torch.empty(0))

    return program


def failure(program, step, **options):
    LIMIT.fill_(step - 0.5)
    sgd = {"optim": lambda p: torch.optim.SGD([{"params": [v], "lr": 1.0 if v.dim() == 0 else 0.0} for v in p])}
    with pytest.raises(lvm.NonFiniteError) as caught:
        fit(program, summed_guide, num_steps=260, callbacks=[nothing], **sgd | options)
    return caught.value


def same_failure(one, other, step):
    assert one.step == other.step == step
    assert one.site == other.site == "fragile"
    assert str(one) == str(other)
    assert list(one.params) == list(other.params)
    torch.testing.assert_close(one.params, other.params, rtol=1e-5, atol=1e-6)
    assert all(torch.isfinite(v).all() for v in one.params.values())
    assert one.params["a"] == pytest.approx(max(0, step - 1) if step else 0.0, abs=1e-3)


MOMENTS = [0, 1, 50, 99, 100, 259]
"""Of the first step, the first that is compiled, one in a block, its last, the first of the next, and the very last."""
DEFAULT = {("nan", step) for step in (0, 1, 50)}


def moments():
    for kind in FAILURES:
        for step in MOMENTS:
            marks = [] if (kind, step) in DEFAULT else [pytest.mark.slow]
            yield pytest.param(kind, step, marks=marks)


@pytest.mark.parametrize(("kind", "step"), [*moments()])
def test_a_failure_is_that_of_the_eager_loop(kind, step, monkeypatch):
    one = failure(failing(kind), step)
    replayed(monkeypatch)
    same_failure(one, failure(failing(kind), step), step)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 150])
def test_a_failure_in_minibatches_with_batch_norm(step, monkeypatch):
    errors = []
    for how in (lambda patch: None, replayed):
        torch.manual_seed(1)
        net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
        before = {n: v.clone() for n, v in net.state_dict().items()}
        how(monkeypatch)
        errors.append(failure(failing("nan", net), step, batch_size=11))
        assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    same_failure(*errors, step)


def overflowing(x):
    """A gradient that is finite, but too large for the step that it makes."""
    a = pyro.param("a", torch.tensor(0.0))
    pyro.sample("fragile", dist.Unit(a + 1e38 * (a - LIMIT).clamp(min=0), validate_args=False), obs=torch.empty(0))


@pytest.mark.parametrize("step", [50, 99])
def test_parameters_that_overflow_fail_in_the_step_after(step, monkeypatch):
    LIMIT.fill_(10 * step - 0.1)
    errors = []
    for compile in (True, False):
        sgd = {"optim": lambda p: torch.optim.SGD(p, lr=10.0)}
        with pytest.raises(lvm.NonFiniteError) as caught:
            fit(overflowing, None, compile=compile, callbacks=[nothing], **sgd)
        errors.append(caught.value)
    assert [error.step for error in errors] == [step + 1] * 2
    assert [error.site for error in errors] == ["fragile"] * 2
    assert str(errors[0]) == str(errors[1])
    assert [error.params["a"].item() for error in errors] == [10.0 * step] * 2


def rare(x):
    """NaN where a draw is beyond three, which is for the random numbers to decide."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("rare", (3.0 - z).log() + pyro.param("a", torch.tensor(0.0)) * 0)


@pytest.mark.slow
def test_a_failure_by_chance_is_that_of_the_same_numbers(monkeypatch):
    found = []
    for how in (lambda patch: None, replayed):
        how(monkeypatch)
        with pytest.raises(lvm.NonFiniteError) as caught:
            fit(rare, summed_guide, num_steps=100_000, seed=4)
        found.append(caught.value)
    assert found[0].step == found[1].step > 10
    assert found[0].site == found[1].site == "rare"
    assert str(found[0]) == str(found[1])


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "pyro_lvm.svi.choice"]


def test_few_steps_run_eagerly_and_say_so(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "pyro_lvm.svi.choice")
    monkeypatch.setattr("pyro_lvm.compiling.trace", never)
    result = fit(density, None, compile="auto", num_steps=50)
    assert not result.compiled
    assert told(caplog) == ["compile='auto': eager, since compiling would not pay within 50 steps"]


def test_steps_that_do_not_pay_run_eagerly_and_say_so(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "pyro_lvm.svi.choice")
    monkeypatch.setattr("pyro_lvm.compiling._compile_scan", never)
    result = fit(density, None, compile="auto", num_steps=2_500, every=100, callbacks=[lambda state: True])
    assert not result.compiled
    assert len(told(caplog)) == 1
    assert told(caplog)[0].startswith("compile='auto': eager, since compiling would not pay for 2500 steps of ")


def test_steps_that_pay_run_compiled_and_say_so(caplog):
    caplog.set_level(logging.INFO, "pyro_lvm.svi.choice")
    results = [
        fit(density, None, compile=compile, num_steps=steps, every=100, callbacks=[lambda state: True])
        for compile, steps in (("auto", 10_000_000), (True, 200))
    ]
    assert all(result.compiled for result in results)
    assert torch.equal(results[0].losses, results[1].losses)
    first, second = told(caplog)
    assert first.startswith("compile='auto': compiled, 10000000 steps of ")
    assert second.startswith("compile=True: compiled, 200 steps of ")
    assert first.endswith(" operations")
    assert first.split(" of ")[1] == second.split(" of ")[1]


def test_the_choice_depends_on_steps_and_size_alone(monkeypatch):
    """Not on the clock, nor on what was fitted before."""
    chosen = []

    def record(scan):
        chosen.append(scan.size)
        scan._run, scan._threads = None, 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Scan, "compile", record)
    size = None
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(density, None, compile="auto", num_steps=10_000_000)
        size = chosen[-1]
    assert chosen == [size] * 2
    limit = (choice._SECONDS_TO_COMPILE / size + choice._SECONDS_TO_COMPILE_AN_OPERATION) / choice._SECONDS_AN_OPERATION
    with pytest.raises(KeyboardInterrupt):
        fit(density, None, compile="auto", num_steps=math.ceil(limit) + 1)
    assert not fit(density, None, compile="auto", num_steps=math.floor(limit) - 1, callbacks=[lambda s: True]).compiled


def test_without_compiling_nothing_is_said_or_traced(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "pyro_lvm.svi.choice")
    monkeypatch.setattr("pyro_lvm.compiling.trace", never)
    assert not fit(density, None, compile=False, num_steps=5_000, every=50, callbacks=[lambda state: True]).compiled
    assert told(caplog) == []


def test_without_a_compiler_it_runs_eagerly(monkeypatch, eager_to_compile):
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    with pytest.warns(RuntimeWarning, match=r"runs eagerly, for it cannot be compiled: .*torch 2\.13 alone"):
        assert not fit(density, None, compile="auto", num_steps=10).compiled
    with pytest.raises(ValueError, match=r"compile=True: .*torch 2\.13 alone; this is 2\.12"):
        fit(density, None, num_steps=10)
