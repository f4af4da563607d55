"""What estimators say of each other, and of values that are known exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import pyro_lvm as lvm
from pyro_lvm.elbo import (
    Trace_ELBO,
    TraceCUBO,
    TraceIWAE_ELBO,
    TraceMeanField_ELBO,
    TraceRenyi_ELBO,
    TraceScore_ELBO,
    TraceSTL_ELBO,
    TraceVIMCO_ELBO,
    TraceWakePhi,
)
from pyro_lvm.vectorize import repeat

X = torch.tensor([0.3, -1.2, 1.7, 0.8], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal_model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(pyro.param("p_loc", torch.tensor(0.3)), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def normal_guide(x):
    slope, scale = pyro.param("slope", torch.tensor(0.5)), pyro.param("scale", torch.tensor(-0.4))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(slope * x + pyro.param("loc", torch.tensor(0.1)), scale.exp()))


# x has precision 4 and z has 1, so that this is the posterior
POSTERIOR = {"p_loc": 0.3, "slope": 0.8, "loc": 0.06, "scale": -0.5 * math.log(5.0)}


def bit_model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("p_logit", torch.tensor(-0.4))))
        pyro.sample("x", dist.Normal(1.3 * z, 1.0), obs=x)


def bit_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.6)) * x))


def mixed_model(x):
    shared = pyro.sample("shared", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(shared, 1.0))
        b = pyro.sample("b", dist.Bernoulli(logits=z))
        pyro.sample("x", dist.Normal(z + b, pyro.param("p_scale", torch.tensor(1.1))), obs=x)


def mixed_guide(x):
    shared = pyro.sample("shared", dist.Normal(pyro.param("q_shared", torch.tensor(0.2)), 0.7))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.3)) * x + 0.3 * shared, 0.8))
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.6)) * z))


PAIRS = {
    "normal": (normal_model, normal_guide),
    "bits": (bit_model, bit_guide),
    "mixed": (mixed_model, mixed_guide),
}


def ready(pair, elbo):
    objective = lvm.Objective(*(PAIRS[pair] if isinstance(pair, str) else pair), elbo)
    return objective, {name: value.detach() for name, value in objective.init(X).items()}


def evaluate(objective, params, seed):
    """The value of the loss and its gradient."""
    torch.manual_seed(seed)
    gradient, value = torch.func.grad_and_value(lambda p: objective(p, X))(params)
    return {**gradient, "value": value}


def values(objective, params, count):
    return -repeat(lambda: objective(params, X), count)


# The same seed


@pytest.mark.parametrize("pair", ["normal", "bits"])
@pytest.mark.parametrize("make", [TraceIWAE_ELBO, lambda num: TraceRenyi_ELBO(0.5, num)])
def test_one_particle_of_a_bound_is_the_elbo(pair, make):
    objective, params = ready(pair, make(1))
    elbo, _ = ready(pair, Trace_ELBO(1))
    for seed in range(3):
        ours, theirs = evaluate(objective, params, seed), evaluate(elbo, params, seed)
        if pair == "bits":  # scores differ by the gradient of log q, whose mean is zero
            del ours["logit"], theirs["logit"]
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pair", PAIRS)
def test_alpha_zero_is_the_importance_weighted_bound(pair):
    renyi, params = ready(pair, TraceRenyi_ELBO(0.0, 5))
    iwae, _ = ready(pair, TraceIWAE_ELBO(5))
    for seed in range(3):
        torch.testing.assert_close(evaluate(renyi, params, seed), evaluate(iwae, params, seed))


@pytest.mark.parametrize("alpha", [1 - 1e-4, 1 + 1e-4])
def test_alpha_near_one_is_the_mean_of_the_log_weights(alpha):
    renyi, params = ready("normal", TraceRenyi_ELBO(alpha, 5))
    elbo, _ = ready("normal", Trace_ELBO(5))
    for seed in range(3):
        ours, theirs = evaluate(renyi, params, seed), evaluate(elbo, params, seed)
        torch.testing.assert_close(ours, theirs, rtol=3e-3, atol=3e-3)
        assert (ours["value"] < theirs["value"]) == (alpha < 1)  # the bound falls with alpha


def test_a_reparametrised_vimco_is_the_importance_weighted_bound():
    vimco, params = ready("normal", TraceVIMCO_ELBO(5))
    iwae, _ = ready("normal", TraceIWAE_ELBO(5))
    torch.testing.assert_close(evaluate(vimco, params, 0), evaluate(iwae, params, 0))


@pytest.mark.parametrize(
    "of_k", [TraceSTL_ELBO, TraceScore_ELBO, lambda num: TraceIWAE_ELBO(num, "dreg"), TraceWakePhi], ids=range(4)
)
def test_surrogates_do_not_change_values(of_k):
    plain = Trace_ELBO if of_k in (TraceSTL_ELBO, TraceScore_ELBO) else TraceIWAE_ELBO
    ours, params = ready("normal", of_k(4))
    theirs, _ = ready("normal", plain(4))
    torch.testing.assert_close(evaluate(ours, params, 0)["value"], evaluate(theirs, params, 0)["value"])


# At the posterior


@pytest.mark.parametrize(
    "make",
    [
        lambda: TraceSTL_ELBO(1),
        lambda: TraceSTL_ELBO(5),
        lambda: TraceIWAE_ELBO(1, "dreg"),
        lambda: TraceIWAE_ELBO(5, "dreg"),
        lambda: TraceIWAE_ELBO(5, "stl"),
        lambda: TraceScore_ELBO(5),
    ],
    ids=["STL-1", "STL-5", "dreg-1", "dreg-5", "IWAE-stl-5", "Score-5"],
)
def test_gradients_have_no_variance_at_the_posterior(make):
    """Through draws alone, or where particles that weigh the same are compared with each other."""
    objective, _ = ready("normal", make())
    params = {name: torch.tensor(value) for name, value in POSTERIOR.items()}
    evidence = dist.Normal(0.3, math.sqrt(1.25)).log_prob(X).sum()
    for seed in range(5):
        estimate = evaluate(objective, params, seed)
        assert max(estimate[name].abs() for name in ("slope", "loc", "scale")) < 1e-12
        torch.testing.assert_close(estimate["value"], -evidence)


@pytest.mark.parametrize("make", [Trace_ELBO, TraceIWAE_ELBO, lambda num: TraceScore_ELBO(num, None)])
def test_total_gradients_have_variance_at_the_posterior(make):
    objective, _ = ready("normal", make(5))
    params = {name: torch.tensor(value) for name, value in POSTERIOR.items()}
    assert min(evaluate(objective, params, seed)["scale"].abs() for seed in range(5)) > 1e-3


# Exact values


def binary(logit=0.6):
    """The log-weights of both values of each bit, and the probability of a one."""
    prior = torch.tensor(-0.4).sigmoid()
    q = (logit * X).sigmoid()
    zero = (1 - prior).log() + dist.Normal(0.0, 1.0).log_prob(X) - (1 - q).log()
    one = prior.log() + dist.Normal(1.3, 1.0).log_prob(X) - q.log()
    return zero, one, q


def exact_bound(num, alpha=0.0):
    """E log mean w^(1 - alpha) of ``num`` particles, which depends on the number of ones alone; summed over rows."""
    zero, one, q = binary()
    ones = torch.arange(num + 1.0)[:, None]
    chance = torch.as_tensor(scipy.stats.binom.pmf(ones.numpy(), num, q.numpy()))
    power = 1 - alpha
    mean = torch.logaddexp((ones / num).log() + power * one, (1 - ones / num).log() + power * zero)
    return (chance * mean / power).sum()


def exact_elbo():
    zero, one, q = binary()
    return (q * one + (1 - q) * zero).sum()


def evidence():
    zero, one, q = binary()
    return (q * one.exp() + (1 - q) * zero.exp()).log().sum()


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: Trace_ELBO(3), exact_elbo),
        (lambda: TraceScore_ELBO(3), exact_elbo),
        (lambda: TraceSTL_ELBO(3), exact_elbo),
        (lambda: TraceIWAE_ELBO(5), lambda: exact_bound(5)),
        (lambda: TraceIWAE_ELBO(50), lambda: exact_bound(50)),
        (lambda: TraceVIMCO_ELBO(5), lambda: exact_bound(5)),
        (lambda: TraceWakePhi(50), lambda: exact_bound(50)),
        (lambda: TraceRenyi_ELBO(0.5, 5), lambda: exact_bound(5, 0.5)),
        (lambda: TraceRenyi_ELBO(2.0, 5), lambda: exact_bound(5, 2.0)),
        (lambda: TraceRenyi_ELBO(-0.5, 5), lambda: exact_bound(5, -0.5)),
    ],
)
def test_mean_values_are_exact(make, expected):
    objective, params = ready("bits", make())
    torch.manual_seed(1)
    found = values(objective, params, 8_000)
    error = found.std() / 8_000**0.5
    assert error < 0.03
    assert (found.mean() - expected()).abs() < 4 * error


def test_bounds_lie_in_order():
    assert exact_bound(1) == pytest.approx(exact_elbo())
    assert exact_bound(5, 2.0) < exact_elbo() < exact_bound(5, 0.5) < exact_bound(5) < exact_bound(50) < evidence()
    assert exact_bound(5) < exact_bound(5, -0.5)
    assert evidence() - exact_bound(50) < 0.2 * (evidence() - exact_bound(5))


def test_half_the_logarithm_of_the_chi_square_loss_bounds_the_evidence_from_above():
    zero, one, q = binary()
    squares = q * (2 * one).exp() + (1 - q) * (2 * zero).exp()  # of each row
    assert (0.5 * squares.log()).sum() > evidence()
    objective, params = ready("bits", TraceCUBO(5, shift=-1.0))
    torch.manual_seed(1)
    found = -values(objective, params, 8_000)
    expected = math.exp(2.0) * squares.sum()
    error = found.std() / 8_000**0.5
    assert error < 0.02 * expected
    assert (found.mean() - expected).abs() < 4 * error


def test_at_the_posterior_the_chi_square_loss_is_the_squared_evidence():
    objective, _ = ready("normal", TraceCUBO(3))
    params = {name: torch.tensor(value) for name, value in POSTERIOR.items()}
    expected = (2 * dist.Normal(0.3, math.sqrt(1.25)).log_prob(X)).exp().sum()
    torch.testing.assert_close(evaluate(objective, params, 0)["value"], expected)


# One particle has no others


@pytest.mark.parametrize(
    "make, message",
    [
        (TraceScore_ELBO, "baseline='leave_one_out' compares particles .* num_particles of at least 2"),
        (TraceVIMCO_ELBO, "TraceVIMCO_ELBO compares particles .* num_particles of at least 2"),
    ],
)
def test_a_single_particle_cannot_be_compared_with_others(make, message):
    with pytest.raises(ValueError, match=message):
        make(1)


def test_a_single_particle_needs_no_baseline():
    objective, params = ready("bits", TraceScore_ELBO(1, None))
    zero, one, _ = binary()
    value = -evaluate(objective, params, 0)["value"]
    configurations = torch.cartesian_prod(*torch.stack([zero, one], 1)).sum(1)
    assert (value - configurations).abs().min() < 1e-12


# A parameter that model and guide share


def sharing_model(x):
    common = pyro.param("common", torch.tensor(0.4))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(common, 1.0))
        pyro.sample("x", dist.Normal(z + common, 1.0), obs=x)


def sharing_guide(x):
    common = pyro.param("common", torch.tensor(0.4))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.2)) * x + common**2, common.exp()))


class SharedModule(pyro.nn.PyroModule):
    """A model and a guide that hold the same linear map."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.linear(z[:, None])[:, 0], 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.linear(x[:, None])[:, 0], pyro.param("scale", torch.tensor(0.8))))


def sharing_bit_model(x):
    common = pyro.param("common", torch.tensor(0.4))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=common))
        pyro.sample("x", dist.Normal(1.3 * z - common, 1.0), obs=x)


def sharing_bit_guide(x):
    common = pyro.param("common", torch.tensor(0.4))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.2)) * x - common**2))


def shared_normal_loss(p, num):
    """The exact ELBO, or the importance-weighted bound of two particles, on a grid of noise."""
    line = torch.linspace(-7.0, 7.0, 120)
    mass = (-0.5 * line**2).log_softmax(0)
    q = dist.Normal((p["slope"] * X + p["common"] ** 2)[:, None], p["common"].exp())
    z = q.loc + q.scale * line
    log_w = dist.Normal(p["common"], 1.0).log_prob(z) + dist.Normal(z + p["common"], 1.0).log_prob(X[:, None])
    return of_pairs(log_w - q.log_prob(z), mass.expand(4, -1), num)


def shared_bit_loss(p, num):
    bit = torch.tensor([0.0, 1.0])
    mass = dist.Bernoulli(logits=(p["slope"] * X - p["common"] ** 2)[:, None]).log_prob(bit)
    log_p = dist.Bernoulli(logits=p["common"]).log_prob(bit)
    log_p = log_p + dist.Normal(1.3 * bit - p["common"], 1.0).log_prob(X[:, None])
    return of_pairs(log_p - mass, mass, num)


def of_pairs(log_w, mass, num):
    if num == 1:
        return -(mass.exp() * log_w).sum()
    mean = torch.logaddexp(log_w[:, :, None], log_w[:, None, :]) - math.log(2.0)
    return -((mass[:, :, None] + mass[:, None, :]).exp() * mean).sum()


@pytest.mark.parametrize(
    "make, num", [(Trace_ELBO, 1), (TraceMeanField_ELBO, 1), (TraceScore_ELBO, 1), (TraceIWAE_ELBO, 2)]
)
@pytest.mark.parametrize("bits", [False, True])
def test_total_gradients_are_right_for_a_parameter_that_model_and_guide_share(make, num, bits):
    if bits and make is TraceMeanField_ELBO:
        make = TraceVIMCO_ELBO  # which needs what the other refuses
        num = 2
    pair = (sharing_bit_model, sharing_bit_guide) if bits else (sharing_model, sharing_guide)
    objective, params = ready(pair, make(2))
    exact = torch.func.grad(lambda p: (shared_bit_loss if bits else shared_normal_loss)(p, num))(params)
    torch.manual_seed(1)
    found = repeat(lambda: torch.func.grad(lambda p: objective(p, X))(params), 8_000)
    norm = torch.stack(list(exact.values())).norm()
    for name, draws in found.items():
        error = draws.std() / 8_000**0.5
        assert error < 0.1 * norm
        assert (draws.mean() - exact[name]).abs() < 4 * error


PARTIAL = [
    (lambda: TraceSTL_ELBO(), "TraceSTL_ELBO"),
    (lambda: TraceIWAE_ELBO(2, "stl"), "TraceIWAE_ELBO(gradient='stl')"),
    (lambda: TraceIWAE_ELBO(2, "dreg"), "TraceIWAE_ELBO(gradient='dreg')"),
    (lambda: TraceWakePhi(2), "TraceWakePhi"),
]


@pytest.mark.parametrize("make, name", PARTIAL)
def test_partial_gradients_refuse_a_statement_that_model_and_guide_share(make, name):
    with pytest.raises(ValueError, match=r"'common' belongs to (both|the model too)") as error:
        lvm.Objective(sharing_model, sharing_guide, make()).init(X)
    assert str(error.value).startswith(name)


@pytest.mark.parametrize("make, name", PARTIAL)
def test_partial_gradients_refuse_a_module_that_model_and_guide_share(make, name):
    module = SharedModule()
    with pytest.raises(ValueError, match=r"'linear\.(weight|bias)' belongs to (both|the model too)") as error:
        lvm.Objective(module.model, module.guide, make()).init(X)
    assert str(error.value).startswith(name)


@pytest.mark.parametrize("make, name", PARTIAL)
def test_partial_gradients_take_parameters_that_either_has_to_itself(make, name):
    objective, params = ready("normal", make())
    assert set(evaluate(objective, params, 0)) == {*params, "value"}


def test_what_lies_outside_the_rows_keeps_its_gradient_in_the_wake_phase():
    def apart(x):
        loc = pyro.param("outside", torch.tensor(0.5))
        pyro.sample("t", dist.Normal(loc, 1.0), obs=torch.tensor(2.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def proposal(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.3)) * x, 1.0))

    x = torch.tensor([0.5, -1.0, 2.0])
    objective = lvm.Objective(apart, proposal, TraceWakePhi(5))
    params = objective.init(x)
    objective(params, x).backward()
    assert params["outside"].grad.item() == pytest.approx(0.5 - 2.0)
