"""Rows that share a latent g and have their own: E_q(g) [log p(g) / q(g) + sum_i E bound_i(g)], by quadrature."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.diagnostics.gradients import draw_gradients

X = torch.tensor([0.3, -1.2, 0.8, 2.0])
K = 2
POSITIVE = {"gs", "s"}


def model(x):
    theta = pyro.param("theta", torch.tensor(0.7))
    g = pyro.sample("g", dist.Normal(pyro.param("mean", torch.tensor(0.2)), 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(g * theta, 1.0))
        pyro.sample("x", dist.Normal(z + theta, 0.8), obs=x)


def guide(x):
    gs = pyro.param("gs", torch.tensor(0.8), constraint=constraints.positive)
    g = pyro.sample("g", dist.Normal(pyro.param("gl", torch.tensor(0.3)), gs))
    s = pyro.param("s", torch.tensor(0.9), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        loc = pyro.param("a", torch.tensor(0.3)) * x + pyro.param("b", torch.tensor(0.2)) * g
        pyro.sample("z", dist.Normal(loc, s))


def exact_loss(params, power):
    """Minus the objective, on a grid of 24 Gauss-Hermite points for g and for each of the two draws of z."""
    p = {n: v.double().exp() if n in POSITIVE else v.double() for n, v in params.items()}
    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(24))
    weights = weights / weights.sum()
    g = (p["gl"] + p["gs"] * nodes)[:, None, None]  # [g, draw, row]
    z = p["a"] * X + p["b"] * g + p["s"] * nodes[:, None]
    q_g, q_z = dist.Normal(p["gl"], p["gs"]), dist.Normal(p["a"] * X + p["b"] * g, p["s"])
    lw = dist.Normal(g * p["theta"], 1.0).log_prob(z) + dist.Normal(z + p["theta"], 0.8).log_prob(X) - q_z.log_prob(z)
    pairs = torch.stack(torch.broadcast_tensors(lw[:, :, None], lw[:, None]))  # [K, g, draw, draw, row]
    bounds = ((power * pairs).logsumexp(0) - torch.tensor(K).log()) / power
    of_rows = torch.einsum("gijn,i,j->g", bounds, weights, weights)
    shared = dist.Normal(p["mean"], 1.0).log_prob(g) - q_g.log_prob(g)
    return -((of_rows + shared[:, 0, 0]) * weights).sum()


ESTIMATORS = {
    "total": (lvm.elbo.TraceIWAE_ELBO(K), 1.0),
    "dreg": (lvm.elbo.TraceIWAE_ELBO(K, "dreg"), 1.0),
    "VIMCO": (lvm.elbo.TraceVIMCO_ELBO(K), 1.0),
    "Renyi": (lvm.elbo.TraceRenyi_ELBO(0.5, K), 0.5),
}


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_are_those_of_the_nested_bound(name, batch_size):
    elbo, power = ESTIMATORS[name]
    objective = lvm.Objective(model, guide, elbo)
    params = objective.init(X)
    loss = exact_loss(params, power)
    exact = torch.cat([g.reshape(1) for g in torch.autograd.grad(loss, list(params.values()))]).double()
    torch.manual_seed(0)
    if batch_size is None:
        draws = draw_gradients(objective, params, (X,), 4_000)
        losses, gradients = draws.losses, draws.flat()
    else:
        parts = []
        for row in X:

            def once(row=row):
                values = {n: v.detach() for n, v in params.items()}
                return torch.func.grad_and_value(lambda p: objective(p, row.reshape(1), num_rows=len(X)))(values)

            parts.append(lvm.vectorize.repeat(once, 4_000))
        losses = torch.stack([loss for _, loss in parts]).mean(0)
        flat = [torch.stack([g[n].double() for n in params], 1) for g, _ in parts]
        gradients = torch.stack(flat).mean(0)
    assert (losses.double().mean() - loss).abs() < 4 * losses.std() / 4_000**0.5
    error = gradients.std(0) / 4_000**0.5
    assert ((gradients.mean(0) - exact).abs() < 4 * error).all()
    assert error.max() < 0.1 * exact.norm()
