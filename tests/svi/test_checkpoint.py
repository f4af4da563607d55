"""A fit that was killed, at any moment, ends where one that was not killed ends, bit for bit."""

import functools
import pickle
import random
import signal
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm import checkpoint, files

from .processes import Process

SCRIPT = """
import os, time
import torch, pyro, pyro.distributions as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import pyro_lvm as lvm

torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # each process has another random state
x = torch.linspace(-2, 2, 23)[:, None]
net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))  # and another start
net[0].bias.requires_grad_(False)  # which a fit does not touch
decoder = nn.Linear(1, 1)

def model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(decoder(z[:, None]), 1.0).to_event(1), obs=x)

def guide(x):
    loc, scale = net(x).unbind(-1)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, scale.exp()))

def slow(state):
    time.sleep(float(pause))
    with open(out + ".steps", "a") as file:
        file.write(f"{state.step} ")

options = {
    "full": {},
    "minibatch": {"batch_size": 5},
    "scheduler": {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.97), "clip": 1.0},
    "loader": {},
    "own generator": {},
}[kind]
data = x
if kind in ("loader", "own generator"):
    generator = torch.Generator().manual_seed(4) if kind == "own generator" else None
    data = DataLoader(TensorDataset(x), batch_size=5, shuffle=True, generator=generator)
result = lvm.fit(model, guide, data, num_steps=60, every=7, checkpoint=path, callbacks=[slow], validation=x,
                 progress=False, seed=3, **options)
torch.save({"losses": result.losses, "params": result.params, "validation": result.validation,
            "net": net.state_dict(), "decoder": decoder.state_dict(),
            "draw": result.guide(x) or result.sample(2)["z"] if kind not in ("loader", "own generator") else 0}, out)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return functools.partial(Process, path)


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("full", "minibatch", "loader")),
        "scheduler",
        "own generator",
    ],
)
def test_killed_and_restarted_equals_not_killed(script, tmp_path, kind):
    checkpoint, out, copy = tmp_path / "c", tmp_path / "out", tmp_path / "copy"
    moments = random.Random(kind)
    for _ in range(3):
        process = script(kind, 0.03, checkpoint, out)
        process.wait_for_a_block()
        if not copy.exists():
            # Modules start at random, so that the fit that is never killed must start from this one's file.
            copy.write_bytes(checkpoint.read_bytes())
        time.sleep(moments.uniform(0.0, 0.07))
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
    assert not out.exists()
    assert script(kind, 0.0, checkpoint, out).end() == 0
    assert script(kind, 0.0, copy, tmp_path / "straight").end() == 0
    one, other = torch.load(out, weights_only=True), torch.load(tmp_path / "straight", weights_only=True)
    assert len(one["losses"]) == 60
    assert torch.equal(one["losses"], other["losses"])
    assert one["validation"] == other["validation"]
    assert sorted(one["validation"]) == [*range(7, 60, 7), 60]
    for part in ("params", "net", "decoder"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items()), part
    assert torch.equal(torch.as_tensor(one["draw"]), torch.as_tensor(other["draw"]))


def test_ctrl_c_returns_what_was_reached_and_the_next_call_goes_on(script, tmp_path):
    checkpoint, out = tmp_path / "c", tmp_path / "out"
    process = script("minibatch", 0.05, checkpoint, out)
    process.wait_for_a_block()
    assert process.end(signal.SIGINT) == 0
    reached = torch.load(out, weights_only=True)
    assert 7 <= len(reached["losses"]) < 60
    assert script("minibatch", 0.0, checkpoint, out).end() == 0
    whole = torch.load(out, weights_only=True)
    assert len(whole["losses"]) == 60
    assert torch.equal(whole["losses"][: len(reached["losses"])], reached["losses"])


X = torch.tensor([0.5, -1.0, 2.0, 0.1])


def model(x, shift=0.0):
    mean = pyro.sample("mean", dist.Normal(shift, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def other_model(x):
    return model(x)


def fit(path, *data, num_steps=20, **options):
    options = {"every": 5, "progress": False, "checkpoint": path} | options
    programs = options.pop("model", model), options.pop("guide", "mean_field")
    return lvm.fit(*programs, *(data or (X,)), num_steps=num_steps, **options)


def test_in_process_a_stopped_fit_continues_as_if_it_had_not_stopped(tmp_path):
    straight = fit(None)

    def crash(state):
        if state.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "c", callbacks=[crash])
    resumed = fit(tmp_path / "c")
    assert torch.equal(resumed.losses, straight.losses)
    assert all(torch.equal(v, straight.params[n]) for n, v in resumed.params.items())


def test_a_checkpoint_changes_nothing(tmp_path):
    assert torch.equal(fit(tmp_path / "c").losses, fit(None).losses)


def test_a_finished_one_returns_its_result_without_a_step(tmp_path):
    first = fit(tmp_path / "c", validation=X)
    before = (tmp_path / "c").read_bytes()
    calls = []
    again = fit(tmp_path / "c", validation=X, callbacks=[calls.append], optim=lambda p: Never(p, lr=1e-2))
    assert calls == []
    assert torch.equal(first.losses, again.losses)
    assert first.validation == again.validation
    assert first.seconds == again.seconds
    assert all(torch.equal(v, again.params[n]) for n, v in first.params.items())
    assert (tmp_path / "c").read_bytes() == before


class Never(torch.optim.Adam):
    def step(self, closure=None):
        raise AssertionError("a step was taken")


Never.__name__ = "Adam"


def test_one_that_a_callback_stopped_is_finished(tmp_path):
    first = fit(tmp_path / "c", callbacks=[lambda s: s.step == 10])
    assert len(first.losses) == 10
    assert len(fit(tmp_path / "c").losses) == 10


DIFFERENT = {
    "data": {"data": X + 1},
    "shapes": {"guide": "full_rank"},
    "guide": {"guide": "full_rank"},
    "num_steps": {"num_steps": 30},
    "model": {"model": other_model},
    "optim": {"optim": 0.5},
    "elbo": {"elbo": pyro.infer.Trace_ELBO(num_particles=2)},
    "scheduler": {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)},
    "clip": {"clip": 2.0},
    "seed": {"seed": 1},
    "every": {"every": 4},
    "batch_size": {"batch_size": 2},
    "sample_weight": {"sample_weight": [1.0, 2.0, 1.0, 1.0]},
    "model_kwargs": {"model_kwargs": {"shift": 1.0}},
    "validation": {"validation": X},
    "plate": {"plate": "rows"},
    "rows": {"rows": [0]},
    "num_rows": {"num_rows": 5},
    "init": {"init": {"AutoNormal.locs.mean": 3.0}},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_fit_is_refused_by_name(tmp_path, what):
    fit(tmp_path / "c")
    options = dict(DIFFERENT[what])
    data = options.pop("data", X)
    with pytest.raises(ValueError, match=rf"belongs to another fit \(.*{what} was .*, is .*delete it to start anew"):
        fit(tmp_path / "c", data, **options)


def grouped(lr):
    return lambda params: torch.optim.SGD([{"params": params[:1], "lr": lr}, {"params": params[1:]}], lr=0.1)


def shifted(last):
    shift = torch.zeros(5000)  # of which str shows the ends alone
    shift[2500] = last
    return {"model": lambda x, shift: model(x, shift[2500]), "model_kwargs": {"shift": shift}}


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("model_kwargs", shifted(0.0), shifted(1.0)),
        ("optim", {"optim": grouped(0.1)}, {"optim": grouped(0.2)}),
        *[
            ("optim", {"optim": pyro.optim.SGD({"lr": 0.1}, one)}, {"optim": pyro.optim.SGD({"lr": 0.1}, other)})
            for one, other in [({}, {"clip_norm": 1.0}), ({"clip_value": 1.0}, {"clip_value": 2.0})]
        ],
    ],
)
def test_what_differs_inside_an_option_is_seen(tmp_path, what, first, second):
    fit(tmp_path / "c", **first)
    fit(tmp_path / "c", **first)
    with pytest.raises(ValueError, match=rf"belongs to another fit \({what} was "):
        fit(tmp_path / "c", **second)


def test_other_rows_of_a_loader_are_seen(tmp_path):
    def loader(x):
        return DataLoader(TensorDataset(x), batch_size=2)

    fit(tmp_path / "c", loader(X))
    fit(tmp_path / "c", loader(X))
    with pytest.raises(ValueError, match=r"belongs to another fit \(data was "):
        fit(tmp_path / "c", loader(X + 1))


@pytest.mark.parametrize(("name", "owner"), [("torch", torch), ("pyro", pyro), ("pyro_lvm", checkpoint)])
def test_other_versions_are_refused_by_name(tmp_path, monkeypatch, name, owner):
    fit(tmp_path / "c")
    monkeypatch.setattr(owner, "__version__", "7.0")
    with pytest.raises(ValueError, match=rf"\({name} was .*, is 7\.0"):
        fit(tmp_path / "c")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        fit(path, callbacks=[lambda s: stop_at(s, 10)])
    before = path.read_bytes()
    save = torch.save

    def half(state, file):
        save(state, file)
        file.truncate(100)
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        fit(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert torch.equal(fit(path).losses, fit(None).losses)


def stop_at(state, step):
    if state.step == step:
        raise KeyboardInterrupt


class Evil:
    """Leaves a file beside the given one when it is unpickled."""

    def __init__(self, path):
        self.trace = str(path) + ".was_here"

    def __reduce__(self):
        return (open, (self.trace, "w"))


def evil_torch(path):
    torch.save({"kind": "checkpoint", "fingerprint": Evil(path)}, path)


def evil_pickle(path):
    path.write_bytes(pickle.dumps(Evil(path)))


def garbage(path):
    path.write_bytes(random.Random(0).randbytes(1000))


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("losses: 1, 2, 3\n")


def cut(path):
    fit(path)
    path.write_bytes(path.read_bytes()[:-500])


def a_result(path):
    fit(None).save(path)


def a_list(path):
    torch.save([1, 2], path)


def a_stub(path):
    torch.save({"kind": "checkpoint"}, path)


@pytest.mark.parametrize("spoil", [evil_torch, evil_pickle, garbage, empty, text, cut, a_result, a_list, a_stub])
def test_what_is_no_checkpoint_is_refused_and_never_unpickled(tmp_path, spoil):
    path = tmp_path / "c"
    spoil(path)
    with pytest.raises(ValueError, match="is no checkpoint of pyro_lvm"):
        fit(path)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {"kind": "k", "x": torch.arange(3), "nested": {"a": [1, 2.5, "b", None, True]}}
    files.write(state, tmp_path / "f")
    back = files.read(tmp_path / "f", "k", ["nested"])
    assert back["nested"] == state["nested"]
    assert torch.equal(back["x"], state["x"])
