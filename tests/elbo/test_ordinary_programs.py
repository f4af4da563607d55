"""Programs that Pyro takes are taken: discrete latents that decide supports, and control flow on draws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_lvm as lvm

X = torch.linspace(0.1, 1.9, 20)
Y = torch.tensor([3.0, 1.0, 4.0, 2.0, 5.0, 3.0, 2.0, 1.0] * 3)
TOTALS = torch.arange(1.0, 21.0)


def probability():
    return pyro.param("q", torch.tensor(0.5), constraint=constraints.unit_interval)


def supports(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        w = pyro.sample("w", dist.Uniform(z, z + 1))
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def guide_of_supports(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(probability()))
        pyro.sample("w", dist.Uniform(z, z + 1))


def abundance(y):
    with pyro.plate("rows", len(y)):
        count = pyro.sample("count", dist.Categorical(torch.ones(12)))
        pyro.sample("y", dist.Binomial(count.float(), 0.6), obs=y)


def guide_of_abundance(y):
    logits = pyro.param("logits", torch.zeros(12))
    possible = torch.arange(12) >= y[:, None]
    with pyro.plate("rows", len(y)):
        pyro.sample("count", dist.Categorical(logits=torch.where(possible, logits, torch.tensor(-1e30))))


def totals(x, n):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Binomial(n, torch.full_like(n, 0.3)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of_totals(x, n):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Binomial(n, probability().expand(len(n))))


def branches(x):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    mean = pyro.sample("high", dist.Normal(0.0, 1.0)) if k > 0.5 else pyro.sample("low", dist.Normal(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide_of_branches(x):
    k = pyro.sample("k", dist.Bernoulli(probability()))
    a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(2.0))
    if k > 0.5:
        pyro.sample("high", dist.Normal(a, 1.0))
    else:
        pyro.sample("low", dist.Normal(b, 1.0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("model", "guide", "data"),
    [
        (supports, guide_of_supports, (X,)),
        (abundance, guide_of_abundance, (Y,)),
        (totals, guide_of_totals, (X, TOTALS)),
        (branches, guide_of_branches, (X,)),
    ],
    ids=["supports", "abundance", "totals", "branches"],
)
def test_the_loss_is_that_of_pyro(model, guide, data, seed):
    if model is not branches:  # of which a fit sees one branch
        result = lvm.fit(model, guide, *data, num_steps=3, seed=seed, progress=False)
        assert torch.isfinite(result.losses).all()
    with pyro.get_param_store().scope():
        ours, theirs = lvm.elbo.Trace_ELBO(), pyro.infer.Trace_ELBO()
        ours.loss(model, guide, *data)  # makes the parameters
        losses = []
        for elbo in (ours, theirs):
            torch.manual_seed(seed)
            losses.append(elbo.loss(model, guide, *data))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("estimator", [lvm.elbo.TraceIWAE_ELBO, lvm.elbo.TraceVIMCO_ELBO])
@pytest.mark.parametrize(
    ("model", "guide", "data"),
    [
        (supports, guide_of_supports, (X,)),
        (abundance, guide_of_abundance, (Y,)),
        (totals, guide_of_totals, (X, TOTALS)),
    ],
    ids=["supports", "abundance", "totals"],
)
def test_rows_are_separate_and_have_minibatches(model, guide, data, estimator):
    result = lvm.fit(model, guide, *data, elbo=estimator(3), num_steps=3, batch_size=6, progress=False)
    assert torch.isfinite(result.losses).all()
