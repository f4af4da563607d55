"""A step of maximum likelihood, traced as a compiled fit traces it, has the losses of an eager fit."""

import pytest
import torch
from torch.utils._pytree import tree_map, tree_unflatten

import pyro_lvm as lvm
from pyro_lvm import randomness
from pyro_lvm.batches import WholeData
from pyro_lvm.compiling import Scan
from pyro_lvm.data import Data
from pyro_lvm.flows import Flow
from pyro_lvm.models import FlowDensity
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.step import Step
from pyro_lvm.transforms import ActNorm, _root
from tests.flows.test_flows import flow_of
from tests.transforms.registry import CONTEXT, LAYERS
from tests.transforms.test_layers import contexts, points

RATE = 0.02
NUM_STEPS = 5

PARAMETERLESS = {"permutation": lambda: ActNorm(5), "squeeze": lambda: ActNorm(1, images=True)}
"""Something to train behind them."""


def fit_of(name, context):
    """A density by one layer, and its data, made anew."""
    case = LAYERS[name]
    layers = [case.layer(context), *(make().double() for n, make in PARAMETERLESS.items() if n == name)]
    model = FlowDensity(Flow(layers, case.shape).double())
    shape = model.flow.stack(contexts(context, 1)).forward_shape(torch.Size(case.shape))
    x = 0.5 * points(shape, 20) + 0.3
    return model, ((x, contexts(context, 20)) if context else (x,))


def traced_losses(model, data):
    """The first step of an eager loop, as a compiled fit takes it, and the traced step for the others."""
    rows = Data(data)
    objective = lvm.Objective(model, None)
    objective.prepare(rows, rows.args)
    start = objective.program.parameters.start()
    loop = EagerLoop(objective, start, WholeData(rows, None), rows.num_rows, RATE, None, None)
    step = Step(loop, 0)
    scan = Scan(step, *step.example())
    losses = [float(loop.run(0, 1, lambda: False))]
    carry = tree_map(torch.clone, step.carry())
    for number in range(1, NUM_STEPS):
        own = tree_map(lambda t: t[0], step.block(number, number + 1))
        given = [t for part in scan._used(carry, own, step.fixed()) for t in part]
        with torch.no_grad():
            carry, loss = tree_unflatten(scan.graph(*given), scan._out)
        losses.append(float(loss))
    return losses


@pytest.fixture(autouse=True)
def _few_steps_to_a_root(monkeypatch):
    """A traced step of a monotone network has them one by one, 60 in all. Fewer than 14 do not reach the root."""
    monkeypatch.setattr(_root, "_NUM_STEPS", 16)


QUICK = [("plu", CONTEXT), ("planar", 0)]
CELLS = [(name, context) for name, case in LAYERS.items() for context in ((0, CONTEXT) if case.takes_context else (0,))]


@pytest.mark.parametrize(
    "name, context", [pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow) for cell in CELLS]
)
def test_traced_steps_are_eager_steps(name, context):
    model, data = fit_of(name, context)
    eager = lvm.fit(model, None, *data, num_steps=NUM_STEPS, optim=RATE, compile=False, progress=False).losses
    with randomness.seeded(0):
        losses = traced_losses(*fit_of(name, context))
    torch.testing.assert_close(torch.tensor(losses, dtype=torch.float64), eager, rtol=1e-10, atol=1e-10)
    assert len(set(losses)) == NUM_STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name, context", [("maf", 0), ("nsf-coupling", CONTEXT), ("real-nvp", CONTEXT)])
def test_compiled_fits_are_eager_fits(name, context):
    """The sums of a compiled step come in another order: their rounding grows from step to step."""
    x, c = points((3,), 50), contexts(context, 50)
    losses = []
    for compile in (True, False):
        model = FlowDensity(flow_of(name, 3, context))
        data = (x, c) if context else (x,)
        result = lvm.fit(model, None, *data, num_steps=20, optim=RATE, compile=compile, progress=False)
        assert result.compiled == compile
        losses.append(result.losses)
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
    assert losses[0][-1] < losses[0][0]
