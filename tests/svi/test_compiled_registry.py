"""Compiled fits of all kinds: each equals a plain loop over eager steps that draw the same random numbers.

The step that a compiled fit runs is first compared without the compiler: the traced graph, one step at the start and
at other parameters, data and noise, and 100 steps one after another. A few cells are then compiled for good.
"""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import pyro_lvm as lvm
from pyro_lvm import elbo, randomness
from pyro_lvm.compiling import Scan
from pyro_lvm.noise import Given
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.step import Step

from .compiled_cells import ESTIMATORS, QUICK, SEED, SLOW, Cell

NUM_STEPS = 100


ALL = QUICK | SLOW
CELLS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ALL]


def test_every_estimator_has_a_cell():
    assert {name.split(",")[0].split(" ")[0] for name in ESTIMATORS} == set(elbo.__all__)


@dataclass
class Sides:
    """The same fit twice: the traced step, run in Python, and a plain eager loop."""

    cell: Cell
    traced: EagerLoop = field(init=False)
    eager: EagerLoop = field(init=False)

    def __post_init__(self):
        with randomness.seeded(SEED):
            self.traced = self.cell.loop()
        with randomness.seeded(SEED):
            self.eager = self.cell.loop()
        same(self.traced.params, self.eager.params, 0.0)
        with randomness.seeded(SEED):
            self.step = Step(self.traced, SEED)
            self.scan = Scan(self.step, *self.step.example())
        for loop in (self.traced, self.eager):
            self.take_eager_step(loop, 0)  # makes the state of the optimizer
        same(self.traced.params, self.eager.params, 0.0)

    def take_eager_step(self, loop, number):
        given = {kind: v[0].clone() for kind, v in self.step.noise.between(number, number + 1).items()}
        size = len(loop.batches.get(number)[0][0])
        if self.cell.numbers and self.cell.batch_size != size:  # a short batch takes those of its own rows
            full, taken = (self.cell.numbers * rows for rows in (self.cell.batch_size, size))
            given = {kind: v.view(-1, full)[:, :taken].reshape(-1) for kind, v in given.items()}
        torch.manual_seed(number)
        with Given(given):
            return torch.tensor(float(loop.run(number, number + 1, lambda: False)[0]), dtype=torch.float64)

    def take_traced_step(self, carry, number):
        own = tree_map(lambda t: t[0], self.step.block(number, number + 1))
        tensors = [t for part in self.scan._used(carry, own, self.step.fixed()) for t in part]
        torch.manual_seed(number)
        with torch.no_grad():
            outputs = self.scan.graph(*tensors)
        return tree_unflatten(outputs, self.scan._out)

    def compare(self, carry, tolerance):
        """Parameters, optimizer, scheduler and buffers."""
        self.step.write(carry)
        ours, theirs = self.traced, self.eager
        same(ours.params, theirs.params, tolerance)
        states = [{n: loop.optimizer.state[p] for n, p in loop.params.items()} for loop in (ours, theirs)]
        same(*states, tolerance)
        same(*(loop.objective.program.parameters.untrained() for loop in (ours, theirs)), tolerance)
        assert ours.optimizer.state_dict()["param_groups"] == theirs.optimizer.state_dict()["param_groups"]
        if ours.scheduler is not None:
            assert ours.scheduler.get_last_lr() == theirs.scheduler.get_last_lr()

    def carry(self):
        return tree_map(torch.clone, self.step.carry())

    def move(self, scale):
        """To other parameters, with an empty memory of the optimizer, so that it will show the gradient alone."""
        noise = torch.Generator().manual_seed(8)
        self.traced.load_state_dict(copy.deepcopy(self.eager.state_dict()))
        for name, ours in self.traced.params.items():
            theirs = self.eager.params[name]
            shift = scale * torch.randn(ours.shape, generator=noise, dtype=ours.dtype)
            for loop, p in ((self.traced, ours), (self.eager, theirs)):
                p.data += shift
                for held in loop.optimizer.state[p].values():
                    if isinstance(held, torch.Tensor) and held.shape == p.shape and held.dim():
                        held.zero_()

    def change_data(self):
        for loop in (self.traced, self.eager):
            for t in loop.batches.data.args:
                few = torch.equal(t, t.round())  # labels and counts
                t.copy_(t.min() + t.max() - t if few else 0.7 * t + 0.2)


def same(ours, theirs, tolerance):
    """Trees of the same form, whose tensors differ by no more than a part of their greatest number."""
    (ours, kind), (theirs, expected) = tree_flatten(ours), tree_flatten(theirs)
    assert kind == expected
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(other, torch.Tensor):
            assert one == pytest.approx(other, rel=tolerance)
            continue
        greatest = float(other.detach().abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * greatest)


@pytest.mark.parametrize("name", CELLS)
def test_traced_steps_are_eager_steps(name):
    cell = ALL[name]
    with cell.default_dtype():
        sides = Sides(cell)
        carry, losses = sides.carry(), []
        for number in range(1, NUM_STEPS):
            expected = sides.take_eager_step(sides.eager, number)
            carry, loss = sides.take_traced_step(carry, number)
            losses.append((loss.to(expected), expected))
            if number == 1:
                same(*losses[0], cell.tight)
                sides.compare(carry, cell.tight)
        sides.compare(carry, 10 * cell.tight)
        same(*zip(*losses, strict=True), 10 * cell.tight)

        found = []
        for number, change in enumerate((lambda: None, lambda: sides.move(0.1), sides.change_data), NUM_STEPS):
            sides.move(0.0)
            change()
            expected = sides.take_eager_step(sides.eager, number)
            carry, loss = sides.take_traced_step(sides.carry(), number)
            same(loss.to(expected), expected, cell.tight)
            sides.compare(carry, cell.tight)
            found.append(float(expected))
        assert len(set(found)) == 3, "other values make a difference"


def test_a_parameter_without_a_gradient_stays():
    """Weight decay must not move it, as it does not in torch, where such a parameter is skipped."""
    sides = Sides(ALL["idle"])
    carry = sides.carry()
    for number in range(1, 4):
        carry, _ = sides.take_traced_step(carry, number)
    sides.step.write(carry)
    params = sides.traced.params
    assert params["idle"].tolist() == [3.0, -2.0]
    assert not sides.traced.optimizer.state.get(params["idle"])
    assert params["AutoNormal.locs.mean"] != 0


COMPILED = {
    "minibatches, a short one": 120,
    "batch norm": 50,
    "idle": 40,
}
COMPILED_SLOW = {
    "float64, written out": 60,
    "HMM, schedule": 40,
    "rejection": 40,
    "IWAE, dreg, warm-up": 130,
    "logistic, AutoNormal": 40,
    "constraints": 200,
    "PPCA, float64": 60,
    "groups, clipped": 200,
    "discrete, VIMCO": 60,
    "Pyro modules": 60,
}


def held(*programs):
    """What the user's modules hold."""
    owners = [getattr(thing, "__self__", thing) for thing in programs]
    return [{k: v.clone() for k, v in o.state_dict().items()} for o in owners if isinstance(o, torch.nn.Module)]


@pytest.mark.parametrize("name", [*COMPILED, *(pytest.param(n, marks=pytest.mark.slow) for n in COMPILED_SLOW)])
def test_compiled_fits_are_plain_loops(name):
    cell, num_steps = ALL[name], (COMPILED | COMPILED_SLOW)[name]
    with cell.default_dtype():
        result, (model, guide, _) = cell.fit(num_steps)
        assert result.compiled
        assert result.losses.shape == (num_steps,)
        with randomness.seeded(SEED):
            loop = cell.loop()
            step = Step(loop, SEED)
            losses = []
            for number in range(num_steps):
                with Given({kind: v[0] for kind, v in step.noise.between(number, number + 1).items()}):
                    losses.append(float(loop.run(number, number + 1, lambda: False)[0]))
        parameters = loop.objective.program.parameters
        parameters.write(loop.params)
        same(result.losses, torch.tensor(losses, dtype=torch.float64), 10 * cell.tight)
        same(result.params, parameters.constrained(loop.params), 10 * cell.tight)
        same(held(model, guide), held(loop.objective.model, loop.objective.given_guide), 10 * cell.tight)


def test_a_compiled_fit_is_saved_and_loaded(tmp_path):
    result, (model, guide, data) = ALL["idle"].fit(20)
    result.save(tmp_path / "fit.pt")
    read = lvm.load(tmp_path / "fit.pt", model, guide, *data)
    assert read.compiled
    same([read.losses, read.params], [result.losses, result.params], 0.0)


def test_a_fit_that_tries_to_compile_and_runs_eagerly_is_the_eager_fit(monkeypatch):
    model, guide, data, _ = ALL["rejection"].make()
    eager = lvm.fit(model, guide, *data, num_steps=20, compile=False, progress=False)
    monkeypatch.setattr("pyro_lvm.svi.choice.FEWEST_STEPS", 1)
    tried = lvm.fit(model, guide, *data, num_steps=20, compile="auto", progress=False)
    assert not tried.compiled
    same(tried.losses, eager.losses, 0.0)
