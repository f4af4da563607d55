"""What an estimator finds when it first sees a model and a guide, how often it looks, and what it says of itself."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import nn

import pyro_lvm as lvm
from pyro_lvm import elbo

X = torch.tensor([0.3, -1.2, 0.8, 2.0])
ENUM = {"infer": {"enumerate": "parallel"}}

ESTIMATORS = {
    "Trace_ELBO(num_particles=1)": lambda: elbo.Trace_ELBO(),
    "Trace_ELBO(num_particles=3, plate='rows')": lambda: elbo.Trace_ELBO(3, plate="rows"),
    "TraceMeanField_ELBO(num_particles=2)": lambda: elbo.TraceMeanField_ELBO(2),
    "TraceSTL_ELBO(num_particles=4)": lambda: elbo.TraceSTL_ELBO(4),
    "TraceScore_ELBO(num_particles=2, baseline='leave_one_out')": lambda: elbo.TraceScore_ELBO(),
    "TraceScore_ELBO(num_particles=1, baseline=None)": lambda: elbo.TraceScore_ELBO(1, None),
    "TraceIWAE_ELBO(num_particles=5, gradient='dreg')": lambda: elbo.TraceIWAE_ELBO(5, "dreg"),
    "TraceIWAE_ELBO(num_particles=2, gradient='total', plate='rows')": lambda: elbo.TraceIWAE_ELBO(2, plate="rows"),
    "TraceVIMCO_ELBO(num_particles=3)": lambda: elbo.TraceVIMCO_ELBO(3),
    "TraceRenyi_ELBO(alpha=0.5, num_particles=3)": lambda: elbo.TraceRenyi_ELBO(0.5, 3),
    "TraceCUBO(num_particles=3, shift=-1.5)": lambda: elbo.TraceCUBO(3, shift=-1.5),
    "TraceWakePhi(num_particles=10)": lambda: elbo.TraceWakePhi(),
    "Beta(elbo=TraceIWAE_ELBO(num_particles=5, gradient='stl'), beta=0.5, warm_up=10)": lambda: elbo.Beta(
        elbo.TraceIWAE_ELBO(5, "stl"), 0.5, 10
    ),
    "FreeBits(elbo=Trace_ELBO(num_particles=2), nats=0.1)": lambda: elbo.FreeBits(elbo.Trace_ELBO(2), 0.1),
}
every = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS.keys())


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


def model(x):
    slope = pyro.param("slope", lambda: x.new_tensor(1.5))
    zero = x.new_zeros(())
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(zero, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


def guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", lambda: x.new_tensor(0.3)) * x, 0.8))


def empty_guide(x):
    pyro.param("loc", torch.tensor(0.3))


@pytest.mark.parametrize("text", ESTIMATORS)
def test_an_estimator_names_its_settings(text):
    assert repr(ESTIMATORS[text]()) == text


def test_every_public_estimator_is_here():
    assert {text.split("(")[0] for text in ESTIMATORS} == set(elbo.__all__)


@every
def test_a_guide_without_a_latent_of_the_model_is_refused(make):
    with pytest.raises(ValueError, match="the guide has no site 'z', which the model leaves latent"):
        make().loss(model, empty_guide, X)
    with pytest.raises(ValueError, match="the guide has no site 'z', which the model leaves latent"):
        SVI(model, empty_guide, pyro.optim.Adam({"lr": 0.01}), make()).step(X)
    with pytest.raises(ValueError, match="the guide has no site 'z', which the model leaves latent"):
        lvm.Objective(model, empty_guide, make()).init(X)


class Counted(nn.Module):
    """A model and a guide as methods, which count their runs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.decoder, self.encoder = nn.Linear(1, 1), nn.Linear(1, 1)
        self.runs = {"model": 0, "guide": 0}

    def model(self, x):
        self.runs["model"] += 1
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.decoder(z[..., None]).squeeze(-1), 1.0), obs=x)

    def guide(self, x):
        self.runs["guide"] += 1
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x[:, None]).squeeze(-1), 0.8))


# how often a call runs the model and the guide, whatever the number of particles
RUNS = {
    "one particle": (lambda: elbo.Trace_ELBO(), (1, 1)),
    "several": (lambda: elbo.Trace_ELBO(7), (1, 1)),
    "bound": (lambda: elbo.TraceIWAE_ELBO(7), (1, 1)),
    "stl": (lambda: elbo.TraceSTL_ELBO(7), (1, 2)),
    "dreg": (lambda: elbo.TraceIWAE_ELBO(7, "dreg"), (2, 2)),
    "score": (lambda: elbo.TraceScore_ELBO(7), (1, 1)),
    "beta": (lambda: elbo.Beta(elbo.TraceCUBO(7), 0.5), (1, 1)),
    "free bits": (lambda: elbo.FreeBits(elbo.TraceIWAE_ELBO(7), 0.5), (2, 2)),
}


@pytest.mark.parametrize("name", RUNS)
def test_methods_are_looked_at_once(name):
    make, expected = RUNS[name]
    vae, estimator, runs = Counted(), make(), []
    for step in range(5):
        before = dict(vae.runs)
        call = estimator.loss if step % 2 else estimator.differentiable_loss
        call(vae.model, vae.guide, X)  # a new object each time, equal to the last
        runs.append((vae.runs["model"] - before["model"], vae.runs["guide"] - before["guide"]))
    assert runs[1:] == [expected] * 4
    assert runs[0] > expected


def other_model(x):
    """Other plates and other latents under the same names."""
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def other_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("at", torch.tensor(0.4)), 0.3))


@every
def test_an_estimator_of_two_models_in_turn_is_a_fresh_one_for_each(make):
    one = make()
    for seed in range(3):
        for programs in ((model, guide), (other_model, other_guide)):
            losses = []
            for estimator in (one, make()):
                torch.manual_seed(seed)
                losses.append(estimator.loss(*programs, X))
            assert losses[0] == losses[1]


@pytest.mark.parametrize("make", [elbo.Trace_ELBO, elbo.TraceIWAE_ELBO, elbo.TraceCUBO])
def test_a_plate_other_than_that_of_the_rows_is_refused(make):
    with pytest.raises(ValueError, match="the estimator names the plate 'columns', and the rows of the data are those"):
        lvm.fit(model, guide, X, elbo=make(2, plate="columns"), num_steps=1, progress=False)
    wrapped = elbo.Beta(make(2, plate="columns"), 0.5)
    with pytest.raises(ValueError, match="the estimator names the plate 'columns'"):
        lvm.fit(model, guide, X, elbo=wrapped, num_steps=1, progress=False)
    lvm.fit(model, guide, X, elbo=make(2, plate="rows"), num_steps=1, progress=False)


@every
@pytest.mark.parametrize("default, own", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_losses_have_the_dtype_of_the_model(make, default, own):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        x = X.to(own)
        loss = make().differentiable_loss(model, guide, x)
        objective = lvm.Objective(model, guide, make())
        params = objective.init(x)
        of_objective = objective(params, x)
        of_objective.backward()
    finally:
        torch.set_default_dtype(before)
    assert loss.dtype == own
    assert of_objective.dtype == own
    assert {p.grad.dtype for p in params.values()} == {own}
    assert math.isfinite(loss.item())


# Guides that enumerate


def discrete(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
        z = pyro.sample("z", dist.Normal(locs[c], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def enumerating_guide(x):
    logits = pyro.param("logits", torch.tensor([-0.5, 0.5])) * x[:, None]
    with pyro.plate("rows", len(x)):
        pyro.sample("c", dist.Categorical(logits=logits), **ENUM)
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, 0.8))


@pytest.mark.parametrize("num", [1, 3])
def test_a_guide_that_enumerates_is_left_to_pyro(num):
    objective = lvm.Objective(discrete, enumerating_guide, elbo.Trace_ELBO(num))
    params = objective.init(X)
    torch.manual_seed(5)
    loss = objective(params, X)
    gradients = torch.autograd.grad(loss, list(params.values()))
    torch.manual_seed(5)
    theirs = TraceEnum_ELBO(num, max_plate_nesting=1).differentiable_loss(discrete, enumerating_guide, X)
    store = pyro.get_param_store()
    expected = torch.autograd.grad(theirs, [store[name] for name in params])
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    for found, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, value)


def test_a_guide_that_enumerates_is_refused_elsewhere():
    for text, make in ESTIMATORS.items():
        with pytest.raises(ValueError, match=r"marks 'c' for enumeration.* or use pyro.infer.TraceEnum_ELBO"):
            make().loss(discrete, enumerating_guide, X)
        if not text.startswith("Trace_ELBO"):
            with pytest.raises(ValueError, match="marks 'c' for enumeration"):
                lvm.Objective(discrete, enumerating_guide, make()).init(X)
