"""A fit by EM that was stopped goes on as if it had not been, bit for bit."""

import signal
import subprocess
import sys
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_lvm as lvm

generator = torch.Generator().manual_seed(0)
LABELS = torch.arange(120) % 2
X = torch.tensor([-1.0, 1.5], dtype=torch.float64)[LABELS] + torch.randn(120, generator=generator, dtype=torch.float64)
PAIRS = torch.stack([X, X.flip(0)], 1)


def normals(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([0.0, 2.0]))
    scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def lines(x, y):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    slope = pyro.param("slope", torch.tensor([0.0, 1.0]))
    scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(slope[z] * x, scale[z]), obs=y)


def effects(x):
    mu = pyro.param("mu", torch.tensor(0.0))
    tau = pyro.param("tau", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def counts(x):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    size = pyro.param("size", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
    logits = pyro.param("logits", torch.tensor([1.0, 2.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.NegativeBinomial(size[z], logits=logits[z]), obs=x)


COUNTS = (10 * (PAIRS[:, 0] + 6)).round()  # of which each batch has others
ALIKE = torch.cat([X, torch.full((40,), 9.0)])  # a component that ends at the smallest variance
FITS = {
    "found steps": lambda: (normals, (X,), {}),
    "batches": lambda: (normals, (X,), {"batch_size": 50}),
    "restarts": lambda: (normals, (X,), {"num_restarts": 3}),
    "counts in batches": lambda: (counts, (COUNTS,), {"batch_size": 30}),
    "counts online": lambda: (counts, (COUNTS,), {"online": 0.7, "batch_size": 30, "max_iter": 12}),
    "smallest variance": lambda: (normals, (ALIKE,), {"init": {"loc": [5.0, 9.0], "scale": [5.0, 5.0]}}),
    "own steps": lambda: (lvm.models.GaussianMixture(3, 2), (PAIRS,), {"num_restarts": 3}),
    "Monte Carlo": lambda: (normals, (X,), {"e_step": "monte_carlo", "max_iter": 12}),
    "online": lambda: (normals, (X,), {"online": 0.7, "batch_size": 30, "max_iter": 12}),
    "least squares": lambda: (lines, (PAIRS[:, 0], PAIRS[:, 1]), {}),
    "search": lambda: (normals, (X,), {"m_step": "numeric", "max_iter": 6}),
    "guide": lambda: (effects, (X,), {"guide": "mean_field", "max_iter": 6}),
}


class Stop(Exception):
    pass


class Crash:
    """Fails at its n-th call."""

    def __init__(self, n):
        self.left = n

    def __call__(self, state):
        self.left -= 1
        if self.left == 0:
            raise Stop


def fit(name, **more):
    torch.manual_seed(0)  # modules start at random
    model, data, options = FITS[name]()
    return lvm.fit_em(model, *data, **({"progress": False, "tol": 1e-7, "max_iter": 30} | options | more))


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_fit_that_was_stopped_goes_on_to_the_same_numbers(name, stop_at, tmp_path):
    whole = fit(name)
    with pytest.raises(Stop):
        fit(name, checkpoint=tmp_path / "c", callbacks=[Crash(stop_at)])
    resumed = fit(name, checkpoint=tmp_path / "c")
    assert torch.equal(resumed.objective, whole.objective)
    assert torch.equal(resumed.restarts, whole.restarts)
    for key, value in whole.params.items():
        assert torch.equal(resumed.params[key], value), key
    assert resumed.summary() == whole.summary()
    assert (resumed.converged, resumed.num_iter) == (whole.converged, whole.num_iter)


@pytest.mark.parametrize("name", ["found steps", "own steps", "online"])
def test_a_finished_fit_returns_its_result(name, tmp_path):
    first = fit(name, checkpoint=tmp_path / "c")
    calls = []
    again = fit(name, checkpoint=tmp_path / "c", callbacks=[calls.append])
    assert not calls
    assert torch.equal(again.objective, first.objective)
    assert str(again).splitlines()[1:] == str(first).splitlines()[1:]


CHANGES = {
    "max_iter": {"max_iter": 7},
    "tol": {"tol": 1e-3},
    "seed": {"seed": 5},
    "e_step": {"e_step": "hard"},
    "start": {"init": {"loc": [0.1, 2.0]}},
    "sample_weight": {"sample_weight": torch.ones(120)},
    "batch_size": {"batch_size": 50},
    "num_restarts": {"num_restarts": 2},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_fit_is_refused(name, tmp_path):
    fit("found steps", checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=f"belongs to another fit .*{name} was .*delete it"):
        fit("found steps", checkpoint=tmp_path / "c", **CHANGES[name])


def test_other_data_are_refused(tmp_path):
    fit("found steps", checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="data was"):
        lvm.fit_em(normals, X + 1, tol=1e-7, max_iter=30, progress=False, checkpoint=tmp_path / "c")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "c").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint"):
        fit("found steps", checkpoint=tmp_path / "c")
    lvm.fit(effects, "mean_field", X, num_steps=2, progress=False, checkpoint=tmp_path / "svi")
    with pytest.raises(ValueError, match="is no checkpoint"):
        fit("found steps", checkpoint=tmp_path / "svi")


SCRIPT = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
import pyro_lvm as lvm
from tests.em import test_checkpoints as here
torch.set_default_dtype(torch.float64)
pause = float(sys.argv[4])
result = here.fit("found steps", checkpoint=sys.argv[2], callbacks=[lambda state: time.sleep(pause)])
result.save(sys.argv[3])
"""


def test_a_killed_fit_goes_on(tmp_path, request):
    script, kept, out = tmp_path / "script.py", tmp_path / "c", tmp_path / "out"
    script.write_text(SCRIPT)

    def start(pause):
        return subprocess.Popen([sys.executable, script, request.config.rootpath, kept, out, str(pause)])

    process = start(0.2)
    while not kept.exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert start(0.0).wait() == 0
    found = lvm.load(out, normals, None, X)
    whole = fit("found steps")
    assert torch.equal(found.objective, whole.objective)
    assert torch.equal(found.params["loc"], whole.params["loc"])
