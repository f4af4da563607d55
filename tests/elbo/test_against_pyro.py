"""The engine against Pyro's estimators: the same loss and gradients from the same draws."""

from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.infer import Trace_ELBO as PyroTrace_ELBO
from pyro.infer import TraceEnum_ELBO as PyroTraceEnum_ELBO
from pyro.infer import TraceMeanField_ELBO as PyroTraceMeanField_ELBO

from pyro_lvm.elbo import Trace_ELBO, TraceMeanField_ELBO
from pyro_lvm.svi.objective import Objective

ENUM = {"infer": {"enumerate": "parallel"}}


def evaluated(elbo, model, guide, *args, seed=7):
    """The loss and the gradient of every parameter, in a store of its own."""
    with pyro.get_param_store().scope():
        torch.manual_seed(1)
        elbo.loss(model, guide, *args)  # which makes the parameters
        torch.manual_seed(seed)
        loss = elbo.loss_and_grads(model, guide, *args)
        store = pyro.get_param_store()
        return loss, {name: store._params[name].grad for name in list(store.keys())}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_equal(theirs, ours, rtol=1e-5, atol=1e-5):
    assert ours[0] == pytest.approx(theirs[0], rel=rtol)
    assert ours[1].keys() == theirs[1].keys()
    assert ours[1], "a case without parameters compares no gradients"
    for name, gradient in theirs[1].items():
        assert (gradient is None) == (ours[1][name] is None)
        if gradient is not None:
            torch.testing.assert_close(ours[1][name], gradient, rtol=10 * rtol, atol=atol, msg=name)


def no_guide(*args):
    pass


def params(num=2):
    """A scale, and weights and locations of components."""
    return (
        pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive),
        pyro.param("weights", torch.arange(1.0, num + 1) / sum(range(1, num + 1)), constraint=constraints.simplex),
        pyro.param("locs", torch.linspace(-1.0, 1.5, num)),
    )


def mixture(x):
    scale, weights, locs = params(3)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), **ENUM)
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def one_component(x):
    scale, weights, locs = params(1)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), **ENUM)
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def nested(x):
    """A component for each row, and one for each entry that depends on it."""
    scale, weights, locs = params(3)
    table = pyro.param("table", torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]), constraint=constraints.simplex)
    with pyro.plate("rows", x.shape[0], dim=-2):
        z = pyro.sample("z", dist.Categorical(weights), **ENUM)
        with pyro.plate("columns", x.shape[1], dim=-1):
            y = pyro.sample("y", dist.Categorical(table[z]), **ENUM)
            pyro.sample("x", dist.Normal(locs[z] + 2.0 * y, scale), obs=x)


def shared_component(x):
    """One enumerated site above all rows."""
    scale, weights, locs = params(3)
    z = pyro.sample("z", dist.Categorical(weights), **ENUM)
    with pyro.plate("rows", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.1 + 0.2 * z), **ENUM)
        pyro.sample("x", dist.Normal(locs[z] + y, scale), obs=x)


def bernoulli(x):
    scale, _, _ = params()
    prob = pyro.param("prob", torch.tensor(0.3), constraint=constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(prob), **ENUM)
        pyro.sample("x", dist.Normal(2.0 * z - 1.0, scale), obs=x)


TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]])


def transition():
    return pyro.param("transition", TRANSITION, constraint=constraints.simplex)


def chain(x):
    """One sequence."""
    scale, weights, locs = params()
    table = transition()
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(weights if z is None else table[z]), **ENUM)
        pyro.sample(f"x{t}", dist.Normal(locs[z], scale), obs=x[t])


def chains(x):
    """A plate of sequences."""
    scale, weights, locs = params()
    table = transition()
    with pyro.plate("rows", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(weights if z is None else table[z]), **ENUM)
            pyro.sample(f"x{t}", dist.Normal(locs[z], scale), obs=x[:, t])


def ragged_chains(x, lengths):
    scale, weights, locs = params()
    table = transition()
    with pyro.plate("rows", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z{t}", dist.Categorical(weights if z is None else table[z]), **ENUM)
            with poutine.mask(mask=t < lengths):
                pyro.sample(f"x{t}", dist.Normal(locs[z], scale), obs=x[:, t])


def mixed(x):
    """A continuous latent that all rows share, and enumerated ones of their own."""
    scale, weights, locs = params(3)
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), **ENUM)
        noise = pyro.sample("noise", dist.Normal(locs[z], 1.0))
        pyro.sample("x", dist.Normal(noise + shift, scale), obs=x)


def mixed_guide(x):
    width = pyro.param("width", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.3)), width))
    with pyro.plate("rows", len(x)):
        pyro.sample("noise", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * x, width))


def scored_guide(x):
    """As ``mixed_guide`` for a model with a discrete latent in place of the shift."""
    pyro.sample("count", dist.Poisson(pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)))
    mixed_noise_guide(x)


def mixed_noise_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("noise", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * x, 0.5))


def scored(x):
    scale, weights, locs = params(3)
    count = pyro.sample("count", dist.Poisson(1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), **ENUM)
        noise = pyro.sample("noise", dist.Normal(locs[z], 1.0))
        pyro.sample("x", dist.Normal(noise + 0.3 * count, scale), obs=x)


def scaled(program, by=0.3):
    return poutine.scale(program, scale=by)


X = torch.tensor([0.3, -1.2, 0.8, 2.0, 1.1])
XX = torch.tensor([[0.3, -1.2, 0.8], [2.0, 1.1, -0.4], [0.1, 0.2, 0.9], [1.5, -0.7, 0.6]])
LENGTHS = torch.tensor([3, 1, 2, 3])

ENUMERATED = {
    "mixture": (mixture, no_guide, X),
    "mixture of one row": (mixture, no_guide, X[:1]),
    "mixture of one component": (one_component, no_guide, X),
    "one row, one component": (one_component, no_guide, X[:1]),
    "mixture in float64": (mixture, no_guide, X.double()),
    "mixture times a scale": (scaled(mixture), no_guide, X),
    "nested": (nested, no_guide, XX),
    "nested, one row": (nested, no_guide, XX[:1]),
    "nested, one column": (nested, no_guide, XX[:, :1]),
    "nested, one entry": (nested, no_guide, XX[:1, :1]),
    "shared component": (shared_component, no_guide, X),
    "shared component, one row": (shared_component, no_guide, X[:1]),
    "bernoulli": (bernoulli, no_guide, X),
    "chain": (chain, no_guide, X),
    "chain of one": (chain, no_guide, X[:1]),
    "chains": (chains, no_guide, XX),
    "one of the chains": (chains, no_guide, XX[:1]),
    "chains times a scale": (scaled(chains), no_guide, XX),
    "ragged chains": (ragged_chains, no_guide, XX, LENGTHS),
    "ragged chains times a scale": (scaled(ragged_chains), no_guide, XX, LENGTHS),
    "mixed": (mixed, mixed_guide, X),
    "mixed, one row": (mixed, mixed_guide, X[:1]),
    "mixed times a scale": (scaled(mixed), scaled(mixed_guide), X),
    "mixed in float64": (mixed, mixed_guide, X.double()),
    "scored, and enumerated": (scored, scored_guide, X),
}


@pytest.mark.parametrize("name", ENUMERATED)
def test_enumerated_models_have_the_loss_and_gradients_of_trace_enum(name):
    model, guide, *args = ENUMERATED[name]
    tight = args[0].dtype == torch.float64
    with default_dtype(args[0].dtype):
        theirs = evaluated(PyroTraceEnum_ELBO(max_plate_nesting=2), model, guide, *args)
        ours = evaluated(Trace_ELBO(), model, guide, *args)
    if name == "scored, and enumerated":
        # Pyro keeps the score itself in the gradient, whose expectation is 0
        torch.manual_seed(7)
        score = dist.Poisson(2.0).sample() - 2.0
        theirs[1]["rate"] -= score
    assert_equal(theirs, ours, *((1e-12, 1e-12) if tight else ()))


class Fixed(dist.Normal):
    """A normal distribution whose draws are one standard deviation above its mean."""

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(Fixed, _instance))

    def rsample(self, sample_shape=()):
        return self.loc + self.scale


def part_of_rows(x, take, num):
    """A model and a guide that take a part of their rows, and a guide without noise."""

    def model(x):
        scale, weights, locs = params(3)
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", num, **take) as index:
            z = pyro.sample("z", dist.Categorical(weights), **ENUM)
            noise = pyro.sample("noise", dist.Normal(locs[z], 1.0))
            pyro.sample("x", dist.Normal(noise + shift, scale), obs=x[index])

    def guide(x):
        width = pyro.param("width", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("shift", Fixed(pyro.param("loc", torch.tensor(0.3)), width))
        with pyro.plate("rows", num, **take) as index:
            pyro.sample("noise", Fixed(pyro.param("slope", torch.tensor(0.4)) * x[index], width))

    return model, guide


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_subsampled_rows_have_the_loss_and_gradients_of_trace_enum(size, seed):
    model, guide = part_of_rows(X, {"subsample_size": size}, len(X))
    theirs = evaluated(PyroTraceEnum_ELBO(max_plate_nesting=1), model, guide, X, seed=seed)
    for num_particles in (1, 3):
        assert_equal(theirs, evaluated(Trace_ELBO(num_particles), model, guide, X, seed=seed))


def test_a_given_subsample_has_the_loss_and_gradients_of_trace_enum():
    model, guide = part_of_rows(X, {"subsample": torch.tensor([0, 3])}, len(X))
    theirs = evaluated(PyroTraceEnum_ELBO(max_plate_nesting=1), model, guide, X)
    assert_equal(theirs, evaluated(Trace_ELBO(), model, guide, X))


def test_svi_takes_the_steps_that_it_takes_with_trace_enum():
    model, guide = part_of_rows(X, {"subsample_size": 2}, len(X))

    def steps(elbo):
        with pyro.get_param_store().scope():
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
            losses = []
            for seed in range(15):
                torch.manual_seed(seed)
                losses.append(svi.step(X))
            torch.manual_seed(100)
            losses.append(svi.evaluate_loss(X))
            return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    losses, values = steps(PyroTraceEnum_ELBO(max_plate_nesting=1))
    ours, our_values = steps(Trace_ELBO())
    assert ours == pytest.approx(losses, rel=1e-4)
    for name, value in values.items():
        torch.testing.assert_close(our_values[name], value, rtol=1e-4, atol=1e-5)


def closed_form_model(x, mask=True, by=1.0):
    scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    laplace = pyro.sample("laplace", dist.Laplace(0.0, 1.0))
    with pyro.plate("rows", len(x)), poutine.scale(scale=by), poutine.mask(mask=mask):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), rate).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) + laplace, scale), obs=x)


def closed_form_guide(x, mask=True, by=1.0):
    shape = pyro.param("shape", torch.tensor(1.5), constraint=constraints.positive)
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("rate", dist.Gamma(shape, 1.0))
    pyro.sample("laplace", dist.Normal(loc, 0.5))  # of which no closed form is known
    with pyro.plate("rows", len(x)), poutine.scale(scale=by), poutine.mask(mask=mask):
        pyro.sample("z", dist.Normal(torch.stack([loc * x, -x], -1), 0.7).to_event(1))


MASK = torch.tensor([True, False, True, True, False])


@pytest.mark.parametrize("mask", [True, False, MASK], ids=["true", "false", "rows"])
@pytest.mark.parametrize("by", [1.0, 0.25, torch.tensor([1.0, 2.0, 0.1, 0.5, 3.0])], ids=["1", "0.25", "rows"])
@pytest.mark.parametrize("ours", [TraceMeanField_ELBO, Trace_ELBO])
def test_masks_and_scales_count_as_pyro_counts_them(ours, mask, by):
    theirs = PyroTraceMeanField_ELBO if ours is TraceMeanField_ELBO else PyroTrace_ELBO
    args = (closed_form_model, closed_form_guide, X, mask, by)
    assert_equal(evaluated(theirs(), *args), evaluated(ours(), *args))


@pytest.mark.parametrize("by", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("ours", [TraceMeanField_ELBO, Trace_ELBO])
def test_a_scale_around_everything_multiplies_the_loss(ours, by, num_particles):
    plain = evaluated(ours(num_particles), closed_form_model, closed_form_guide, X)
    times = evaluated(ours(num_particles), scaled(closed_form_model, by), scaled(closed_form_guide, by), X)
    assert_equal((plain[0] / 4, {n: g / 4 for n, g in plain[1].items()}), times)


def nested_scores(x):
    scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
    locs = pyro.param("locs", torch.tensor([-1.0, 0.5]))
    a = pyro.sample("a", dist.Bernoulli(0.4))
    with pyro.plate("rows", x.shape[0], dim=-2):
        b = pyro.sample("b", dist.Poisson(1.0 + a))
        with pyro.plate("columns", x.shape[1], dim=-1), poutine.scale(scale=0.5):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])))
            e = pyro.sample("e", dist.Normal(locs[c], 1.0))
            pyro.sample("x", dist.Normal(e + 0.2 * b, scale), obs=x)
    with pyro.plate("columns_too", x.shape[1], dim=-1):
        pyro.sample("sums", dist.Normal(a, 1.0), obs=x.sum(0))


def nested_score_guide(x):
    pyro.sample("a", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))
    with pyro.plate("rows", x.shape[0], dim=-2):
        pyro.sample("b", dist.Poisson(pyro.param("rates", x.exp().mean(1, True), constraint=constraints.positive)))
        with pyro.plate("columns", x.shape[1], dim=-1), poutine.scale(scale=0.5):
            logits = pyro.param("logits", torch.linspace(-1, 1, 2 * x.numel()).reshape(*x.shape, 2))
            c = pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("e", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x + 0.1 * c, 0.6))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (4, 1), (1, 1)])
def test_scores_in_nested_plates_have_the_gradients_of_pyro(seed, shape):
    x = XX[: shape[0], : shape[1]]
    theirs = evaluated(PyroTrace_ELBO(), nested_scores, nested_score_guide, x, seed=seed)
    ours = evaluated(Trace_ELBO(), nested_scores, nested_score_guide, x, seed=seed)
    assert_equal(theirs, ours)


def test_a_loop_over_plates_has_the_gradients_of_pyro():
    def model(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 0.5]))
        for i in pyro.plate("rows", len(x)):
            z = pyro.sample(f"z{i}", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample(f"x{i}", dist.Normal(locs[z], 1.0), obs=x[i])

    def guide(x):
        logits = pyro.param("logits", torch.zeros(len(x), 2))
        for i in pyro.plate("rows", len(x)):
            pyro.sample(f"z{i}", dist.Categorical(logits=logits[i]))

    assert evaluated(Trace_ELBO(), model, guide, X)[0] == pytest.approx(
        evaluated(PyroTrace_ELBO(), model, guide, X)[0], rel=1e-5
    )


def test_the_mean_over_particles_is_that_of_the_same_draws_one_by_one():
    """A guide whose draws follow from data has one loss, whatever the number of particles."""
    model, guide = part_of_rows(X, {}, len(X))
    one = evaluated(Trace_ELBO(1), model, guide, X)
    assert_equal(one, evaluated(Trace_ELBO(7), model, guide, X))


@pytest.mark.parametrize(
    "theirs", [PyroTraceEnum_ELBO(max_plate_nesting=1), PyroTrace_ELBO(), PyroTraceMeanField_ELBO()]
)
def test_the_objective_translates_pyro_own_estimators(theirs):
    """With one particle the draws are the same, and so are loss and gradients."""
    enumerates = isinstance(theirs, PyroTraceEnum_ELBO)
    model, guide = (mixed, mixed_guide) if enumerates else (closed_form_model, closed_form_guide)
    objective = Objective(model, guide, theirs)
    values = objective.init(X)
    torch.manual_seed(7)
    loss = objective(values, X)
    gradients = torch.autograd.grad(loss, list(values.values()))
    assert_equal(evaluated(theirs, model, guide, X), (float(loss.detach()), dict(zip(values, gradients, strict=True))))
