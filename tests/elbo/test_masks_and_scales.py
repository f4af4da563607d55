"""Masks, scales and wrappers where they meet: masked chains, scaled mixtures, free bits of what rows share."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

import pyro_lvm as lvm
from pyro_lvm import elbo

X = torch.tensor([0.3, -1.2, 0.8, 2.0, 1.1, -0.4])
ENUM = {"infer": {"enumerate": "parallel"}}


def none(*args):
    """The guide of a model without latents to draw."""


@pytest.fixture(autouse=True)
def _store():
    with pyro.get_param_store().scope():
        yield


def test_masked_enumerated_sites_are_summed_out_with_their_density():
    x, lengths = torch.randn(4, 3), torch.tensor([3, 1, 2, 3])
    table = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def chains(x):
        with pyro.plate("rows", len(x)):
            z = 0
            for t in pyro.markov(range(3)):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z{t}", dist.Categorical(table[z]), **ENUM)
                    pyro.sample(f"x{t}", dist.Normal(2.0 * z, 1.0), obs=x[:, t])

    assert elbo.Trace_ELBO().loss(chains, none, x) == pytest.approx(
        TraceEnum_ELBO(max_plate_nesting=1).loss(chains, none, x), rel=1e-5
    )


def both_model(x, by=1.0):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)), poutine.scale(scale=by):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def both_guide(x, by=1.0):
    g = pyro.sample("g", dist.Normal(pyro.param("g_loc", torch.tensor(0.5)), pyro.param("g_width", torch.tensor(0.3))))
    with pyro.plate("rows", len(x)), poutine.scale(scale=by):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)) * x + 0.1 * g, 0.8))


def test_a_scale_of_the_rows_is_none_of_shared_free_bits():
    def model(x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)), poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + g, 1.0), obs=x)

    def guide(x):
        pyro.sample("g", dist.Normal(0.5, 1.0))
        with pyro.plate("rows", len(x)), poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(1.0, 1.0))

    losses = []
    for e in (elbo.TraceMeanField_ELBO(), elbo.FreeBits(elbo.TraceMeanField_ELBO(), 2.0)):
        torch.manual_seed(0)
        losses.append(e.loss(model, guide, X))
    assert losses[1] - losses[0] == pytest.approx((2 - 0.125) + 0.5 * 6 * (2 - 0.5), rel=1e-4)


def test_a_scale_around_everything_multiplies_free_bits_of_shared_latents():
    torch.manual_seed(0)
    plain = elbo.FreeBits(elbo.Trace_ELBO(), 3.0).loss(both_model, both_guide, X)
    m, g = (poutine.scale(p, scale=0.25) for p in (both_model, both_guide))
    torch.manual_seed(0)
    times = elbo.FreeBits(elbo.Trace_ELBO(), 3.0).loss(m, g, X)
    assert times == pytest.approx(plain / 4, rel=1e-4)


def test_free_bits_of_rows_that_weigh_nothing_are_none():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, 0.8))

    o = lvm.Objective(model, guide, elbo.FreeBits(elbo.Trace_ELBO(), 0.5))
    p = o.init(X)
    assert o(p, X, sample_weight=torch.zeros(6)) == 0


def test_free_bits_compare_the_rows_of_the_loss():
    def model(x):
        with pyro.plate("rows", len(x), subsample_size=2) as i:
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[i])

    def guide(x):
        with pyro.plate("rows", len(x), subsample_size=2) as i:
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)) * x[i], 0.8))

    estimator = elbo.FreeBits(elbo.TraceMeanField_ELBO(), 100.0)
    for _ in range(4):
        (g,) = torch.autograd.grad(estimator.differentiable_loss(model, guide, X), [pyro.param("loc")])
        assert abs(g) < 1e-4


def mixture(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def test_a_tensor_may_scale_a_mixture():
    m = poutine.scale(mixture, scale=torch.tensor(0.5))
    assert elbo.Trace_ELBO().loss(m, none, X) == pytest.approx(
        TraceEnum_ELBO(max_plate_nesting=1).loss(m, none, X), rel=1e-5
    )


def test_a_checkpoint_knows_the_estimator_that_is_wrapped(tmp_path):
    o = {"num_steps": 4, "every": 2, "progress": False, "checkpoint": tmp_path / "c"}
    lvm.fit(both_model, both_guide, X, elbo=elbo.Beta(elbo.Trace_ELBO(2), 2.0), **o)
    with pytest.raises(ValueError, match="belongs to another fit"):
        lvm.fit(both_model, both_guide, X, elbo=elbo.Beta(elbo.TraceSTL_ELBO(2), 2.0), **o)


def test_scales_of_float64_models_are_not_rounded():
    one = torch.tensor(1.0, dtype=torch.float64)

    def m(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0], dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)), **ENUM)
            pyro.sample("x", dist.Normal(locs[z], one), obs=x)
        with poutine.scale(scale=0.1), pyro.plate("others", 3):
            pyro.sample("p", dist.Normal(locs[0], one), obs=torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))

    assert elbo.Trace_ELBO().loss(m, none, X.double()) == pytest.approx(
        TraceEnum_ELBO(max_plate_nesting=1).loss(m, none, X.double()), rel=1e-12
    )


def test_a_warm_up_goes_on_in_an_elbo_module():
    estimator = elbo.Beta(elbo.TraceMeanField_ELBO(), 1.0, warm_up=3)
    module = estimator(both_model, both_guide)
    for _ in range(5):
        module(X).backward()
    torch.manual_seed(0)
    value = float(module(X).detach())
    torch.manual_seed(0)
    assert value == pytest.approx(elbo.TraceMeanField_ELBO().loss(both_model, both_guide, X), rel=1e-5)
