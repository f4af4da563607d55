"""The objective's loss and gradient are those of Pyro's own estimators, and nothing global changes."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.tracetmc_elbo import TraceTMC_ELBO
from torch import nn

import pyro_lvm as lvm

X = torch.tensor([0.3, -1.2, 0.8, 2.0, 1.1])
net = nn.Linear(1, 2)


def model(x):
    pyro.module("net", net)
    scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(net(z[..., None])[..., 0], 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.linspace(-1, 1, len(x)))
    width = pyro.param("width", torch.ones(len(x)), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, width))


def discrete_model(x):
    probs = pyro.param("probs", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(probs))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def discrete_guide(x):
    logits = pyro.param("logits", torch.zeros(len(x), 2))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))


def mixed_model(x):
    scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean + locs[z], scale), obs=x)


def mixed_guide(x):
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))


def enumerating_guide(x):
    logits = pyro.param("logits", torch.zeros(len(x), 2))
    pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


CASES = {
    "Trace": (model, guide, Trace_ELBO()),
    "Trace of 3": (model, guide, Trace_ELBO(num_particles=3)),
    "Trace of 3 at once": (model, guide, Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
    "Trace of 3 at once, nesting found": (model, guide, Trace_ELBO(num_particles=3, vectorize_particles=True)),
    "Trace, score function": (discrete_model, discrete_guide, Trace_ELBO(num_particles=2)),
    "MeanField": (model, guide, TraceMeanField_ELBO()),
    "Enum": (mixed_model, mixed_guide, TraceEnum_ELBO(max_plate_nesting=1)),
    "Enum, nesting found": (mixed_model, mixed_guide, TraceEnum_ELBO(num_particles=2)),
    "Enum in the guide": (mixed_model, enumerating_guide, TraceEnum_ELBO(max_plate_nesting=1)),
    "Graph": (model, guide, TraceGraph_ELBO()),
    "Graph, score function": (discrete_model, discrete_guide, TraceGraph_ELBO(num_particles=2)),
    "Renyi": (model, guide, RenyiELBO(alpha=0.5, num_particles=4)),
    "Renyi at once": (model, guide, RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True)),
    "WakeSleep": (model, guide, ReweightedWakeSleep(num_particles=3, insomnia=1.0, vectorize_particles=False)),
    "TMC": (mixed_model, mixed_guide, TraceTMC_ELBO(max_plate_nesting=1)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:TraceMeanField_ELBO is overridden")
def test_loss_and_gradient_equal_those_of_pyro_own_step(name):
    program, proposal, elbo = CASES[name]
    objective = lvm.Objective(program, proposal, elbo)
    params = objective.init(X)
    if isinstance(objective.elbo, lvm.elbo.Trace_ELBO) and not elbo.vectorize_particles:
        objective.structure.vectorizes = False  # for draws in the order of Pyro's loop
    torch.manual_seed(7)
    loss = objective(params, X)
    loss.backward()
    net.zero_grad(set_to_none=True)
    with pyro.get_param_store().scope():
        elbo = copy.copy(elbo)
        elbo.loss(program, proposal, X)  # makes the parameters, and finds the nesting once
        torch.manual_seed(7)
        plain = elbo.loss_and_grads(program, proposal, X)
        plain = plain[0] if isinstance(plain, tuple) else plain
        store = pyro.get_param_store()
        theirs = {n: store._params[n].grad for n in store.keys() if "$$$" not in n}  # noqa: SIM118
    theirs |= {f"net.{n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert float(loss.detach()) == pytest.approx(float(plain), rel=1e-5)
    ours = {n: p.grad for n, p in params.items() if p.grad is not None}
    assert set(ours) == {n for n, g in theirs.items() if g is not None}
    for parameter, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[parameter], rtol=1e-4, atol=1e-5, msg=parameter)
        assert gradient.abs().sum() > 0
    net.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", CASES)
def test_every_estimator_fits_and_validates_and_leaves_its_object_alone(name):
    program, proposal, elbo = CASES[name]
    before = dict(vars(elbo))
    held_out = X if proposal is mixed_guide else None
    result = lvm.fit(program, proposal, X, elbo=elbo, num_steps=2, every=1, validation=held_out, progress=False)
    assert torch.isfinite(result.losses).all()
    assert dict(vars(elbo)) == before
    assert list(result.validation) == ([1, 2] if held_out is not None else [])


@pytest.mark.parametrize(
    ("program", "proposal", "kind"),
    [
        (model, guide, lvm.elbo.Trace_ELBO),
        (mixed_model, mixed_guide, lvm.elbo.Trace_ELBO),
        (mixed_model, enumerating_guide, TraceEnum_ELBO),
    ],
)
def test_the_estimator_is_chosen_by_what_is_enumerated(program, proposal, kind):
    objective = lvm.Objective(program, proposal)
    objective.init(X)
    assert type(objective.elbo) is kind


def test_the_objective_is_a_pure_function():
    objective = lvm.Objective(model, guide)
    params = objective.init(X)
    module = {n: p.detach().clone() for n, p in net.named_parameters()}
    torch.manual_seed(0)
    first = objective(params, X)
    params = {n: v.detach().requires_grad_() for n, v in params.items()}
    other = {n: v + 1 for n, v in params.items()}
    torch.manual_seed(0)
    assert objective(other, X) != first
    torch.manual_seed(0)
    assert objective(params, X) == first
    assert all(torch.equal(p, module[n]) for n, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())
    assert objective.value(params, (X,)) != 0


def test_an_objective_can_be_differentiated_twice():
    objective = lvm.Objective(mixed_model, mixed_guide)
    params = objective.init(X)
    (gradient,) = torch.autograd.grad(objective(params, X), [params["scale"]], create_graph=True)
    (second,) = torch.autograd.grad(gradient, [params["scale"]])
    assert torch.isfinite(second)
    assert second != 0


def test_baselines_that_trace_graph_keeps_in_the_store_are_refused():
    def with_baseline(x):
        logits = pyro.param("logits", torch.zeros(len(x), 2))
        baseline = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits), infer=baseline)

    with pytest.raises(ValueError, match="__baseline_avg_downstream_cost_z"):
        lvm.fit(discrete_model, with_baseline, X, elbo=TraceGraph_ELBO(), num_steps=3, progress=False)
    assert len(pyro.get_param_store()) == 0


def everything():
    """All that a call must leave alone."""
    store = pyro.get_param_store().get_state()
    return {
        "store": [(n, id(v), v.detach().clone().tolist()) for n, v in store["params"].items()],
        "constraints": [(n, str(c)) for n, c in store["constraints"].items()],
        "settings": pyro.settings.get(),
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "gradients": torch.is_grad_enabled(),
        "module": [p.detach().clone().tolist() for p in net.parameters()],
        "module gradients": [p.grad for p in net.parameters()],
        "validation": torch.distributions.Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
    }


@pytest.fixture
def full_store():
    """A store that holds parameters of the same names."""
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(9.0), constraint=constraints.positive)
        pyro.param("loc", torch.zeros(2))
        pyro.param("net$$$weight", torch.zeros(3))
        yield


def stop(state):
    raise KeyboardInterrupt


def failing_at(step):
    calls = []

    def failing(x):
        calls.append(1)
        model(x)
        if len(calls) > step:
            raise ArithmeticError("fails")

    return failing


EXCEPTIONS = {
    "in a callback": (KeyboardInterrupt, lambda: lvm.fit(model, guide, X, num_steps=5, every=2, callbacks=[stop])),
    "in a late step": (ArithmeticError, lambda: lvm.fit(failing_at(8), guide, X, num_steps=50)),
    "at the first look": (ArithmeticError, lambda: lvm.fit(failing_at(0), guide, X)),
    "in the guide": (ArithmeticError, lambda: lvm.fit(model, failing_at(2), X)),
    "in the options": (ValueError, lambda: lvm.fit(model, guide, X, batch_size=2)),
    "in the optimizer": (ZeroDivisionError, lambda: lvm.fit(model, guide, X, optim=lambda p: 1 / 0)),
    "not finite": (lvm.NonFiniteError, lambda: lvm.fit(model, guide, X, optim=lambda p: torch.optim.SGD(p, 1e30))),
}


@pytest.mark.parametrize("where", EXCEPTIONS)
def test_an_exception_leaves_everything_as_before(full_store, where, capsys):
    before = everything()
    error, call = EXCEPTIONS[where]
    with pytest.raises(error):
        call()
    assert everything() == before


def test_a_call_leaves_everything_as_before_but_the_users_modules(full_store, tmp_path):
    before = everything()
    result = lvm.fit(model, guide, X, num_steps=3, progress=False, checkpoint=tmp_path / "c")
    after = everything()
    assert after.pop("module") != before.pop("module")
    assert after == before
    before = everything()
    result.sample(3), result.posterior(), result.predict(num_draws=3), result.evidence(5), str(result)
    result.evidence(5, proposal="prior"), result.score(num_draws=5)
    lvm.prior_predictive(model, X, num_draws=3)
    result.save(tmp_path / "r")
    lvm.load(tmp_path / "r", model, guide, X).sample(2)
    lvm.Objective(model, guide).init(X)
    assert everything() == before


def test_a_call_without_validation_stays_without():
    with pyro.validation_enabled(False):
        before = everything()
        lvm.fit(model, "mean_field", X, num_steps=1, progress=False).sample(2)
        after = everything()
    assert before | {"module": 0} == after | {"module": 0}


def wrong(*args, **kwargs):
    return lambda: lvm.Objective(*args, **kwargs)


def called(*args, proposal=guide, **kwargs):
    def call():
        objective = lvm.Objective(model, proposal)
        params = objective.init(X)
        objective(*(params if a == "params" else a for a in args), **kwargs)

    return call


def initialised(*data, seed=0, of=(model, guide), **kwargs):
    return lambda: lvm.Objective(*of, **kwargs).init(*data, seed=seed)


ERRORS = {
    "elbo as a class": (wrong(model, guide, Trace_ELBO), TypeError, r"elbo must be a pyro.infer.ELBO.*Trace_ELBO\(\)"),
    "elbo as a name": (wrong(model, guide, "Trace"), TypeError, "elbo must be a pyro.infer.ELBO; got 'Trace'"),
    "elbo jitted": (wrong(model, guide, JitTrace_ELBO()), ValueError, "JitTrace_ELBO .* without Jit"),
    "elbo jitted enum": (wrong(model, guide, JitTraceEnum_ELBO()), ValueError, "JitTraceEnum_ELBO .* without Jit"),
    "elbo jitted KL": (wrong(model, guide, JitTraceMeanField_ELBO()), ValueError, "without Jit"),
    "elbo without a loss": (
        wrong(model, guide, TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True)),
        ValueError,
        "TraceTailAdaptive_ELBO computes no loss",
    ),
    "elbo that does not enumerate": (
        initialised(X, of=(mixed_model, mixed_guide, Trace_ELBO())),
        ValueError,
        r"\['z'\] are marked for enumeration.*use TraceEnum_ELBO",
    ),
    "model as data": (initialised(X, of=(X, guide)), TypeError, "model must be a callable.*got Tensor"),
    "model as a name": (initialised(X, of=("model", guide)), TypeError, "model must be a callable.*got str"),
    "guide as data": (initialised(X, of=(model, X)), TypeError, "the second argument is the guide, and data came"),
    "guide unknown": (initialised(X, of=(model, "nope")), ValueError, "unknown guide 'nope'; known are"),
    "guide of a kind": (initialised(X, of=(model, 3)), TypeError, "guide must be a callable, one of"),
    "guide missing": (initialised(X, of=(model, None)), ValueError, r"\['z'\] are not enumerated and need a guide"),
    "guide without a site": (
        initialised(X, of=(model, lambda x: None)),
        ValueError,
        "the guide has no site 'z', which the model leaves latent",
    ),
    "guide with a foreign site": (
        initialised(X, of=(discrete_model, lambda x: (discrete_guide(x), mixed_guide(x)))),
        ValueError,
        "the guide samples 'mean', which the model does not have",
    ),
    "guide of a model without latents": (
        initialised(X, of=(lambda x: pyro.sample("x", dist.Normal(pyro.param("l", x[0]), 1), obs=x[0]), "mean_field")),
        ValueError,
        "has nothing to cover",
    ),
    "nothing to fit": (
        initialised(X, of=(lambda x: pyro.sample("x", dist.Normal(0, 1), obs=x[0]), None)),
        ValueError,
        "no trainable parameters",
    ),
    "plate unknown": (initialised(X, plate="nope"), ValueError, r"plate='nope' does not follow.*\['rows'\]"),
    "plate of a kind": (initialised(X, plate=3), TypeError, "plate must be the name of a plate; got 3"),
    "plate without rows": (initialised(plate="rows"), ValueError, "plate='rows' was given, but the data has no rows"),
    "model_kwargs unknown": (initialised(X, model_kwargs={"y": 1}), TypeError, "unexpected keyword argument 'y'"),
    "model_kwargs of a kind": (initialised(X, model_kwargs=[1]), TypeError, "model_kwargs must be a dict"),
    "data not finite": (initialised(torch.tensor([1.0, float("nan")])), ValueError, "data argument 0 .* nan in row 1"),
    "data too many": (initialised(X, X), TypeError, "positional argument"),
    "data of another dtype": (initialised(X.double()), ValueError, "dtype"),
    "seed of a kind": (initialised(X, seed="a"), TypeError, "seed must be a non-negative integer; got 'a'"),
    "seed negative": (initialised(X, seed=-1), ValueError, "seed must be a non-negative integer; got -1"),
    "params before init": (lambda: lvm.Objective(model, guide)({}, X), RuntimeError, r"call objective.init\(\*data\)"),
    "params without a name": (called({}, X), ValueError, r"params has no '\w+'; the objective expects \['"),
    "params of a kind": (called(None, X), TypeError, "params must be a dict"),
    "batch as a list": (called("params", [1.0, 2.0]), TypeError, "batch must be a tensor or a tuple"),
    "num_rows of a kind": (called("params", X, 5.5), TypeError, "num_rows must be a positive integer; got 5.5"),
    "num_rows negative": (called("params", X, -5), ValueError, "num_rows must be a positive integer; got -5"),
    "sample_weight of a shape": (called("params", X, 5, torch.ones(3)), ValueError, r"shape \[5\]; got \[3\]"),
    "sample_weight of a kind": (called("params", X, 5, "a"), ValueError, r"shape \[5\]; got a"),
    "a minibatch for a guide of these rows": (
        called("params", X, 10, proposal="mean_field"),
        ValueError,
        "'z' is latent in the row plate.*amortized guide",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_wrong_arguments_are_explained(what):
    call, error, message = ERRORS[what]
    before = everything()
    with pytest.raises(error, match=message):
        call()
    assert everything() == before
