"""Weighted rows of models with enumerated sites, against Pyro's estimator on repeated rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

import pyro_lvm as lvm

X = torch.tensor([0.3, -1.0, 2.5])
LOCS = torch.tensor([-1.0, 2.0])


def model(x):
    with poutine.scale(scale=0.1):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        with poutine.scale(scale=0.5):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(LOCS[z] + shift + noise, 1.0), obs=x)


def guide(x):
    """Its draws have no spread to speak of, so that rows may be repeated without repeating noise."""
    with poutine.scale(scale=0.1):
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 1e-4))
    with pyro.plate("rows", len(x)), poutine.scale(scale=0.5):
        pyro.sample("noise", dist.Delta(pyro.param("slope", torch.tensor(0.1)) * x))


@pytest.mark.parametrize("weight", [[1, 1, 1], [0, 2, 1], [3, 0, 0]])
def test_weights_are_repetitions_and_other_scales_count(weight):
    objective = lvm.Objective(model, guide, TraceEnum_ELBO())
    params = objective.init(X)
    repeated = X.repeat_interleave(torch.tensor(weight))
    losses = []
    for batch, weights in ((X, torch.tensor(weight, dtype=torch.float32)), (repeated, None)):
        torch.manual_seed(0)
        loss = objective(params, batch, sample_weight=weights)
        losses.append(torch.stack([loss, *torch.autograd.grad(loss, list(params.values()))]))
    assert torch.allclose(*losses, rtol=1e-3, atol=1e-3)


def test_sites_summed_out_together_need_one_scale():
    def uneven(x):
        base = pyro.param("base", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(LOCS[z] + base, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"must share one poutine.scale"):
        lvm.fit(uneven, None, X, sample_weight=torch.ones(3), num_steps=1, progress=False)
