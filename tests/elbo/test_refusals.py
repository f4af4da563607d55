"""What estimators refuse, in words; and that what they take works with SVI, with fit and by itself."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, ReweightedWakeSleep
from pyro.infer import Trace_ELBO as PyroTrace_ELBO
from pyro.infer import TraceGraph_ELBO as PyroTraceGraph_ELBO

import pyro_lvm as lvm
from pyro_lvm import elbo

X = torch.tensor([0.3, -1.2, 0.8, 2.0, 1.1, -0.4])
ENUM = {"infer": {"enumerate": "parallel"}}


def local_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, 0.8))


def shared_model(x):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(g, 1.0), obs=x)


def shared_guide(x):
    pyro.sample("g", dist.Normal(pyro.param("g_loc", torch.tensor(0.3)), 0.5))


def both_model(x):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def both_guide(x):
    shared_guide(x)
    local_guide(x)


def discrete_model(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def discrete_guide(x):
    logits = pyro.param("logits", torch.tensor([-0.5, 0.5])) * x[:, None]
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))


def enumerating_guide(x):
    logits = pyro.param("logits", torch.tensor([-0.5, 0.5])) * x[:, None]
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits), **ENUM)


def mixture(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def tied(x):
    """An enumerated site that all rows share."""
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + locs[c], 1.0), obs=x)


def uneven(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
        with poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def shared_part(x):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=2) as index:
        pyro.sample("x", dist.Normal(g, 1.0), obs=x[index])


def inner_part(x):
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, subsample_size=2, dim=-1) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.stack([x, x, x], 1)[:, index])


def inner_part_guide(x):
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.8))


def common_model(x):
    """The model uses a parameter of the guide."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + pyro.param("loc", torch.tensor(0.3)), 1.0), obs=x)


class WithoutPath(dist.Normal):
    """A normal distribution whose draws have no path."""

    has_rsample = False

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(WithoutPath, _instance))


def partly_scored_guide(x):
    shared_guide(x)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", WithoutPath(pyro.param("loc", torch.tensor(0.3)) * x, 0.8))


def no_guide(x):
    pass


MINIBATCH = "minibatch has no unbiased estimate"
# what is called, the kind of error, and its message
WRONG = {
    "particles 0": (lambda: elbo.Trace_ELBO(0), ValueError, "num_particles must be a positive integer; got 0"),
    "particles -1": (lambda: elbo.TraceIWAE_ELBO(-1), ValueError, "num_particles must be a positive integer; got -1"),
    "particles 1.5": (lambda: elbo.TraceRenyi_ELBO(0.5, 1.5), TypeError, "positive integer; got 1.5"),
    "particles True": (lambda: elbo.TraceCUBO(True), TypeError, "num_particles must be a positive integer; got True"),
    "particles as a name": (lambda: elbo.TraceWakePhi("3"), TypeError, "num_particles must be .*; got '3'"),
    "one particle, VIMCO": (lambda: elbo.TraceVIMCO_ELBO(1), ValueError, "num_particles of at least 2"),
    "one particle with a baseline": (lambda: elbo.TraceScore_ELBO(1), ValueError, "num_particles of at least 2"),
    "gradient": (lambda: elbo.TraceIWAE_ELBO(2, "path"), ValueError, "gradient must be 'total', .*; got 'path'"),
    "gradient None": (lambda: elbo.TraceIWAE_ELBO(2, None), ValueError, "gradient must be .*; got None"),
    "baseline": (lambda: elbo.TraceScore_ELBO(2, "mean"), ValueError, "baseline must be .*; got 'mean'"),
    "alpha 1": (lambda: elbo.TraceRenyi_ELBO(1), ValueError, "alpha=1 is the ELBO: use Trace_ELBO"),
    "alpha 1.0": (lambda: elbo.TraceRenyi_ELBO(1.0), ValueError, "alpha=1 is the ELBO"),
    "alpha nan": (lambda: elbo.TraceRenyi_ELBO(math.nan), ValueError, "alpha must be a finite number; got nan"),
    "alpha inf": (lambda: elbo.TraceRenyi_ELBO(-math.inf), ValueError, "alpha must be a finite number; got -inf"),
    "alpha as a name": (lambda: elbo.TraceRenyi_ELBO("a"), ValueError, "alpha must be a finite number; got 'a'"),
    "alpha True": (lambda: elbo.TraceRenyi_ELBO(True), ValueError, "alpha must be a finite number; got True"),
    "shift nan": (lambda: elbo.TraceCUBO(2, math.nan), ValueError, "shift must be a finite number of nats; got nan"),
    "shift as a name": (lambda: elbo.TraceCUBO(2, "a"), ValueError, "shift must be a finite number of nats; got 'a'"),
    "beta negative": (lambda: elbo.Beta(elbo.Trace_ELBO(), -0.1), ValueError, "beta must be .* at least 0; got -0.1"),
    "beta nan": (lambda: elbo.Beta(elbo.Trace_ELBO(), math.nan), ValueError, "beta must be .*; got nan"),
    "beta as a name": (lambda: elbo.Beta(elbo.Trace_ELBO(), "1"), ValueError, "beta must be .*; got '1'"),
    "warm-up negative": (lambda: elbo.Beta(elbo.Trace_ELBO(), 1.0, -1), ValueError, "warm_up must be .*; got -1"),
    "warm-up 1.5": (lambda: elbo.Beta(elbo.Trace_ELBO(), 1.0, 1.5), ValueError, "warm_up must be .*; got 1.5"),
    "nats negative": (lambda: elbo.FreeBits(elbo.Trace_ELBO(), -1.0), ValueError, "nats must be .*; got -1.0"),
    "nats inf": (lambda: elbo.FreeBits(elbo.Trace_ELBO(), math.inf), ValueError, "nats must be .*; got inf"),
    "beta of nothing": (lambda: elbo.Beta(None), TypeError, "Beta wraps an estimator of pyro_lvm.elbo, .*; got None"),
    "beta of a class": (lambda: elbo.Beta(elbo.Trace_ELBO), TypeError, "Beta wraps an estimator .*; got <class"),
    "beta of another": (lambda: elbo.Beta(RenyiELBO(num_particles=2)), TypeError, "Beta wraps an estimator .*Renyi"),
    "bits of another": (lambda: elbo.FreeBits(PyroTraceGraph_ELBO(), 1.0), TypeError, "FreeBits wraps an estimator"),
    "bits of a number": (lambda: elbo.FreeBits(0.5, 1.0), TypeError, "FreeBits wraps an estimator .*; got 0.5"),
}


@pytest.fixture(autouse=True)
def _full_store():
    """A store that holds something, and holds no more and no less after each call."""
    with pyro.get_param_store().scope():
        pyro.param("kept", torch.tensor(3.0))
        yield


def kept():
    return {name: float(value.detach().sum()) for name, value in pyro.get_param_store().items()}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_settings_are_explained(what):
    make, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        make()
    assert kept() == {"kept": 3.0}


BOUNDS = {
    "IWAE": lambda: elbo.TraceIWAE_ELBO(3),
    "IWAE of 1": lambda: elbo.TraceIWAE_ELBO(1),
    "dreg": lambda: elbo.TraceIWAE_ELBO(3, "dreg"),
    "VIMCO": lambda: elbo.TraceVIMCO_ELBO(3),
    "Renyi": lambda: elbo.TraceRenyi_ELBO(0.5, 3),
    "CUBO": lambda: elbo.TraceCUBO(3),
    "WakePhi": lambda: elbo.TraceWakePhi(3),
    "Beta": lambda: elbo.Beta(elbo.TraceIWAE_ELBO(3), 0.5),
    "FreeBits": lambda: elbo.FreeBits(elbo.TraceIWAE_ELBO(3), 0.5),
    "nested": lambda: elbo.Beta(elbo.FreeBits(elbo.TraceWakePhi(3), 0.5)),
}

# model, guide, estimator, and the message
UNFIT = {
    "closed forms of scores": (
        discrete_model,
        discrete_guide,
        elbo.TraceMeanField_ELBO(),
        "needs reparametrised .*'z'",
    ),
    "closed forms, enumerated": (mixture, no_guide, elbo.TraceMeanField_ELBO(), "does not sum out sites, and 'z'"),
    "closed forms in Beta": (mixture, no_guide, elbo.Beta(elbo.TraceMeanField_ELBO()), "does not sum out sites"),
    "dreg of scores": (discrete_model, discrete_guide, elbo.TraceIWAE_ELBO(2, "dreg"), "'z' has none: use TraceVIMCO"),
    "common parameter, STL": (common_model, local_guide, elbo.TraceSTL_ELBO(), "TraceSTL_ELBO holds .*'loc' belongs"),
    "common parameter, dreg": (common_model, local_guide, elbo.TraceIWAE_ELBO(2, "dreg"), "'loc' belongs to the model"),
    "common parameter, stl": (common_model, local_guide, elbo.TraceIWAE_ELBO(2, "stl"), "'loc' belongs to the model"),
    "common parameter, wake": (common_model, local_guide, elbo.TraceWakePhi(2), "'loc' belongs to both"),
    "shared beside local, CUBO": (both_model, both_guide, elbo.TraceCUBO(2), r"TraceCUBO weighs .*\['g'\] beside"),
    "shared beside local, wake": (both_model, both_guide, elbo.TraceWakePhi(2), r"TraceWakePhi weighs .*\['g'\]"),
    "shared beside local, alpha": (both_model, both_guide, elbo.TraceRenyi_ELBO(-1.0), r"alpha=-1.0 .*\['g'\]"),
    "uneven scales": (uneven, no_guide, elbo.Trace_ELBO(), "must share one poutine.scale, and these differ"),
    "two latents in free bits": (
        both_model,
        partly_scored_guide,
        elbo.FreeBits(elbo.Trace_ELBO(), 0.5),
        "FreeBits needs reparametrised draws where there is more than one latent, and 'z'",
    ),
}


CALLS = {
    "fit": lambda model, guide, estimator: lvm.fit(model, guide, X, elbo=estimator, num_steps=2, progress=False),
    "Objective": lambda model, guide, estimator: evaluate(model, guide, estimator),
    "SVI": lambda model, guide, estimator: svi_step(model, guide, estimator),
    "ELBOModule": lambda model, guide, estimator: estimator(model, guide)(X),
    "loss": lambda model, guide, estimator: estimator.loss(model, guide, X),
}


def evaluate(model, guide, estimator, weight=None, **options):
    objective = lvm.Objective(model, guide, estimator)
    params = objective.init(X)
    return objective(params, X, sample_weight=weight, **options)


def svi_step(model, guide, estimator):
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), estimator).step(X)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", UNFIT)
def test_models_without_a_right_form_are_refused_everywhere(what, call):
    model, guide, estimator, message = UNFIT[what]
    own = call not in ("fit", "Objective")
    with pytest.raises(ValueError, match=message):
        CALLS[call](model, guide, estimator)
    store = kept()
    assert store.pop("kept") == 3.0
    assert own or not store


@pytest.mark.parametrize("call", ["SVI", "ELBOModule", "loss"])
@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(), elbo.TraceIWAE_ELBO(2), elbo.Beta(elbo.Trace_ELBO())])
def test_a_guide_that_enumerates_is_refused(call, estimator):
    with pytest.raises(ValueError, match=r"the guide marks 'z' for enumeration.*use pyro.infer.TraceEnum_ELBO"):
        CALLS[call](discrete_model, enumerating_guide, estimator)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("model", ["shared", "tied"])
def test_minibatches_that_share_all_latents_are_refused(name, model):
    program, guide = (shared_model, shared_guide) if model == "shared" else (tied, local_guide)
    with pytest.raises(ValueError, match=MINIBATCH):
        lvm.fit(program, guide, X, elbo=BOUNDS[name](), batch_size=2, num_steps=2, progress=False)
    with pytest.raises(ValueError, match=MINIBATCH):
        evaluate(program, guide, BOUNDS[name](), num_rows=12)
    assert kept() == {"kept": 3.0}
    assert torch.isfinite(evaluate(program, guide, BOUNDS[name](), num_rows=len(X)))


@pytest.mark.parametrize("name", BOUNDS)
def test_a_subsampled_plate_that_shares_all_latents_is_refused(name):
    with pytest.raises(ValueError, match=MINIBATCH):
        svi_step(shared_part, shared_guide, BOUNDS[name]())


@pytest.mark.parametrize("name", BOUNDS)
def test_a_plate_that_takes_a_part_of_a_row_is_refused(name):
    estimator = BOUNDS[name]()
    estimator.plate = "rows"
    with pytest.raises(ValueError, match="the plate 'columns' takes a part of its elements"):
        estimator.loss(inner_part, inner_part_guide, X)


def test_the_elbo_takes_a_part_of_a_row():
    assert math.isfinite(elbo.Trace_ELBO(2, plate="rows").loss(inner_part, inner_part_guide, X))


@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(2), elbo.Trace_ELBO(), elbo.Beta(elbo.Trace_ELBO())])
def test_rows_below_a_shared_enumerated_site_have_no_minibatches_and_no_weights(estimator):
    message = "the enumerated site 'c' lies outside the row plate"
    with pytest.raises(ValueError, match=message):
        evaluate(tied, local_guide, estimator, num_rows=12)
    with pytest.raises(ValueError, match=message):
        evaluate(tied, local_guide, estimator, torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 1.0]))
    assert torch.isfinite(evaluate(tied, local_guide, estimator))


THEIRS = {
    "RenyiELBO": lambda: RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=False),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(num_particles=3, vectorize_particles=False),
}


@pytest.mark.parametrize("name", THEIRS)
def test_bounds_of_pyro_take_all_rows_without_weights(name):
    options = {"num_steps": 2, "progress": False}
    with pytest.raises(ValueError, match=f"{name} takes the logarithm of an average.*TraceRenyi_ELBO or TraceWakePhi"):
        lvm.fit(local_model, local_guide, X, elbo=THEIRS[name](), batch_size=2, **options)
    with pytest.raises(ValueError, match=f"{name} would take the weights of rows as powers"):
        lvm.fit(local_model, local_guide, X, elbo=THEIRS[name](), sample_weight=torch.ones(len(X)), **options)
    assert torch.isfinite(lvm.fit(local_model, local_guide, X, elbo=THEIRS[name](), **options).losses).all()
    assert kept() == {"kept": 3.0}


WORKING = {
    "Trace": (local_model, local_guide, lambda: elbo.Trace_ELBO(2)),
    "Trace, scores": (discrete_model, discrete_guide, lambda: elbo.Trace_ELBO(3)),
    "Trace, enumerated": (mixture, no_guide, lambda: elbo.Trace_ELBO()),
    "TraceMeanField": (local_model, local_guide, lambda: elbo.TraceMeanField_ELBO(2)),
    "TraceSTL": (local_model, local_guide, lambda: elbo.TraceSTL_ELBO(2)),
    "TraceScore": (discrete_model, discrete_guide, lambda: elbo.TraceScore_ELBO(4)),
    "IWAE": (both_model, both_guide, lambda: elbo.TraceIWAE_ELBO(3)),
    "VIMCO": (discrete_model, discrete_guide, lambda: elbo.TraceVIMCO_ELBO(4)),
    "Renyi": (local_model, local_guide, lambda: elbo.TraceRenyi_ELBO(0.5, 3)),
    "CUBO": (local_model, local_guide, lambda: elbo.TraceCUBO(10, shift=-2.0)),
    "WakePhi": (local_model, local_guide, lambda: elbo.TraceWakePhi(10)),
    "Beta": (local_model, local_guide, lambda: elbo.Beta(elbo.Trace_ELBO(2), 0.5)),
    "FreeBits": (local_model, local_guide, lambda: elbo.FreeBits(elbo.Trace_ELBO(2), 0.1)),
    "Beta of Pyro's": (local_model, local_guide, lambda: elbo.Beta(PyroTrace_ELBO(2), 0.5)),
}
FAR = {"slope": 4.0, "loc": -1.0, "g_loc": 4.0, "locs": [3.0, 3.5], "logits": [2.0, -2.0]}


@pytest.mark.parametrize("name", WORKING)
def test_an_estimator_works_with_svi_and_by_itself(name):
    model, guide, make = WORKING[name]
    for parameter, value in FAR.items():
        pyro.param(parameter, torch.tensor(value))
    estimator = make()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), estimator)
    losses = [svi.step(X) for _ in range(200)]
    assert sorted(losses[-40:])[20] < sorted(losses[:40])[20]
    torch.manual_seed(0)
    value = svi.evaluate_loss(X)
    assert isinstance(value, float)
    torch.manual_seed(0)
    module_loss = make()(model, guide)(X)
    assert float(module_loss.detach()) == pytest.approx(value, rel=1e-5)
    assert module_loss.requires_grad


@pytest.mark.parametrize("name", WORKING)
def test_an_estimator_works_with_fit_and_leaves_its_object_alone(name):
    model, guide, make = WORKING[name]
    objective = lvm.Objective(model, guide, make())
    start = {n: torch.as_tensor(FAR[n]) for n in objective.init(X)}
    estimator = make()
    before = dict(vars(estimator))
    result = lvm.fit(model, guide, X, elbo=estimator, num_steps=100, optim=0.06, init=start, progress=False)
    # the median: estimates of CUBO have heavy tails
    assert result.losses[-20:].median() < result.losses[:20].median()
    assert dict(vars(estimator)) == before
    assert kept() == {"kept": 3.0}


def test_an_estimator_may_serve_one_model_after_another():
    estimator = elbo.TraceIWAE_ELBO(3)
    for model, guide in ((local_model, local_guide), (shared_model, shared_guide), (both_model, both_guide)) * 2:
        torch.manual_seed(0)
        value = estimator.loss(model, guide, X)
        torch.manual_seed(0)
        assert value == elbo.TraceIWAE_ELBO(3).loss(model, guide, X)


def test_a_warm_up_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path):
    def wrapped():
        return elbo.Beta(elbo.TraceIWAE_ELBO(3), 2.0, warm_up=30)

    options = {"num_steps": 40, "every": 10, "progress": False, "seed": 5, "batch_size": 2}
    whole = lvm.fit(local_model, local_guide, X, elbo=wrapped(), **options)

    def kill(state):
        if state.step == 20:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    options |= {"checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        lvm.fit(local_model, local_guide, X, elbo=wrapped(), callbacks=[kill], **options)
    resumed = lvm.fit(local_model, local_guide, X, elbo=wrapped(), **options)
    torch.testing.assert_close(resumed.losses, whole.losses, rtol=0, atol=0)
    for name, value in whole.params.items():
        torch.testing.assert_close(resumed.params[name], value, rtol=0, atol=0)


def test_a_checkpoint_knows_the_settings_of_its_estimator(tmp_path):
    options = {"num_steps": 4, "every": 2, "progress": False, "checkpoint": tmp_path / "checkpoint"}
    lvm.fit(local_model, local_guide, X, elbo=elbo.Beta(elbo.Trace_ELBO(2), 2.0, 3), **options)
    for other in (
        elbo.Beta(elbo.Trace_ELBO(2), 1.0, 3),
        elbo.Beta(elbo.Trace_ELBO(2), 2.0, 4),
        elbo.Beta(elbo.Trace_ELBO(3), 2.0, 3),
        elbo.Trace_ELBO(2),
    ):
        with pytest.raises(ValueError, match=r"belongs to another fit .*elbo was"):
            lvm.fit(local_model, local_guide, X, elbo=other, **options)
    again = lvm.fit(local_model, local_guide, X, elbo=elbo.Beta(elbo.Trace_ELBO(2), 2.0, 3), **options)
    assert len(again.losses) == 4
