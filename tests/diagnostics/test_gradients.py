"""Draws of gradients, against a plain loop, closed forms and sums by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, TraceGraph_ELBO

import pyro_lvm as lvm
from pyro_lvm import elbo
from pyro_lvm.diagnostics.gradients import GradientDraws, _kept_bytes, costs, draw_gradients, parameters_of_sites

X = torch.tensor([0.5, -1.0, 2.0])


def model(x):
    shift = pyro.param("shift", torch.tensor([0.2, -0.1]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.StudentT(5.0, z + shift.sum(), 1.0), obs=x)


def guide(x):
    loc, log_scale = pyro.param("loc", torch.zeros(3)), pyro.param("log_scale", torch.tensor(-0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def prepared(estimator, model=model, guide=guide, data=(X,)):
    objective = lvm.Objective(model, guide, estimator)
    return objective, {name: v.detach() for name, v in objective.init(*data).items()}, data


def cost(objective, values, args):
    """Seconds and bytes of one objective."""
    return costs({"it": objective}, values, args)["it"]


def loop(objective, values, args, num_draws):
    """Gradients by autograd, one after the other."""
    losses, gradients = [], []
    for _ in range(num_draws):
        leaves = {name: v.clone().requires_grad_() for name, v in values.items()}
        loss = objective(leaves, args)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([v.grad.flatten() for v in leaves.values()]))
    return torch.stack(losses), torch.stack(gradients)


def same_moments(a, b, errors=4.0):
    """Whether two samples ``[R, P]`` have the same means and variances, as far as their sizes can tell."""
    for x, y in ((a, b), ((a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2)):
        error = (x.var(0) / len(x) + y.var(0) / len(y)).sqrt()
        if not ((x.mean(0) - y.mean(0)).abs() <= errors * error + 1e-6).all():
            return False
    return True


@pytest.mark.parametrize(
    "estimator",
    [
        elbo.Trace_ELBO(),
        elbo.TraceScore_ELBO(3),
        elbo.TraceIWAE_ELBO(3),
        elbo.TraceIWAE_ELBO(3, "dreg"),
        elbo.TraceWakePhi(4),
    ],
    ids=lambda e: type(e).__name__,
)
def test_mapped_draws_are_those_of_a_loop(estimator):
    objective, values, args = prepared(estimator)
    draws = draw_gradients(objective, values, args, 4_000)
    losses, gradients = loop(objective, values, args, 120)
    assert same_moments(draws.flat().float(), gradients)
    assert same_moments(draws.losses[:, None], losses[:, None])


@pytest.mark.parametrize("estimator", [TraceGraph_ELBO(), RenyiELBO(0.5, num_particles=2)])
def test_estimators_of_pyro_are_drawn_too(estimator):
    objective, values, args = prepared(estimator)
    draws = draw_gradients(objective, values, args, 100)
    losses, gradients = loop(objective, values, args, 100)
    assert same_moments(draws.flat().float(), gradients)
    assert same_moments(draws.losses[:, None], losses[:, None])


def test_a_discrete_latent_is_drawn_anew_each_time():
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    objective, values, args = prepared(elbo.Trace_ELBO(), model, guide, (torch.tensor(1.0),))
    draws = draw_gradients(objective, values, args, 2_000)
    assert same_moments(draws.flat().float(), loop(objective, values, args, 200)[1])
    low, high = draws.losses.unique()
    share = (draws.losses == low).double().mean()
    p = torch.tensor(0.4).sigmoid().item()
    assert min(abs(share - p), abs(share - (1 - p))) < 4 * math.sqrt(p * (1 - p) / 2_000)
    assert low < high


@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(), elbo.TraceIWAE_ELBO(5), elbo.TraceScore_ELBO(2)])
def test_draws_do_not_depend_on_each_other(estimator):
    num = 4_000
    draws = draw_gradients(*prepared(estimator), num).flat()
    centred = (draws - draws.mean(0))[:, draws.var(0) > 1e-8]
    for lag in (1, 2, 7):
        products = centred[lag:] * centred[:-lag] / centred.var(0)
        assert (products.mean(0).abs() < 4.5 * products.std(0) / math.sqrt(num)).all()


def test_no_two_draws_are_the_same():
    draws = draw_gradients(*prepared(elbo.Trace_ELBO()), 500)
    assert len(draws.losses.unique()) > 490


def test_a_reparametrised_gradient_has_the_variance_of_its_formula():
    """z = m + s e: the loss of a row has the derivative z in m, and s e z - 1 in log s, where only the prior counts."""

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        loc, log_scale = pyro.param("loc", torch.tensor(0.7)), pyro.param("log_scale", torch.tensor(-0.4))
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    num, m, s = 20_000, 0.7, math.exp(-0.4)
    draws = draw_gradients(*prepared(elbo.Trace_ELBO(), model, guide, ()), num)
    loc, log_scale = draws.flat().T
    assert abs(loc.mean() - m) < 4 * loc.std() / math.sqrt(num)
    assert abs(log_scale.mean() - (s**2 - 1)) < 4 * log_scale.std() / math.sqrt(num)
    for draw, mean, variance in ((loc, m, s**2), (log_scale, s**2 - 1, m**2 * s**2 + 2 * s**4)):
        squares = (draw - mean).square()
        assert abs(squares.mean() - variance) < 4 * squares.std() / math.sqrt(num)


@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(2), TraceGraph_ELBO()])
def test_gradients_have_the_names_and_shapes_of_the_parameters(estimator):
    objective, values, args = prepared(estimator)
    draws = draw_gradients(objective, values, args, 6)
    assert draws.losses.shape == (6,)
    assert {name: g.shape for name, g in draws.gradients.items()} == {n: (6, *v.shape) for n, v in values.items()}
    assert draws.flat().shape == (6, 6)
    assert draws.flat().dtype == torch.float64
    assert draws.places() == {"loc": slice(0, 3), "log_scale": slice(3, 4), "shift": slice(4, 6)}


def test_gradients_lie_side_by_side():
    draws = GradientDraws(torch.zeros(2), {"a": torch.arange(8.0).reshape(2, 2, 2), "b": torch.tensor([10.0, 20.0])})
    assert draws.flat().tolist() == [[0, 1, 2, 3, 10], [4, 5, 6, 7, 20]]
    assert draws.flat()[:, draws.places()["b"]].tolist() == [[10], [20]]


@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(2), TraceGraph_ELBO()])
def test_the_parameters_stay_as_they_are(estimator):
    objective, values, args = prepared(estimator)
    before = {name: v.clone() for name, v in values.items()}
    leaves = {name: v.requires_grad_() for name, v in values.items()}
    draw_gradients(objective, leaves, args, 5)
    cost(objective, leaves, args)
    for name, v in leaves.items():
        assert torch.equal(v, before[name])
        assert v.grad is None


@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(2), TraceGraph_ELBO()])
def test_a_seed_repeats_the_draws(estimator):
    prepare = prepared(estimator)
    torch.manual_seed(5)
    first = draw_gradients(*prepare, 7)
    torch.manual_seed(5)
    second = draw_gradients(*prepare, 7)
    assert torch.equal(first.losses, second.losses)
    assert torch.equal(first.flat(), second.flat())


def test_a_parameter_without_influence_has_a_gradient_of_zero():
    def idle(x):
        pyro.param("idle", torch.ones(2))
        guide(x)

    for estimator in (elbo.Trace_ELBO(), TraceGraph_ELBO()):
        draws = draw_gradients(*prepared(estimator, guide=idle), 3)
        if "idle" in draws.gradients:
            assert torch.equal(draws.gradients["idle"], torch.zeros(3, 2))


def test_what_is_wrong_with_a_model_is_said():
    works = [True]

    def broken(x):
        if not works:
            raise ValueError("this model is broken")
        model(x)

    prepare = prepared(elbo.Trace_ELBO(), broken)
    works.clear()
    with pytest.raises(ValueError, match="this model is broken"):
        draw_gradients(*prepare, 3)


# Cost


def test_the_bytes_of_a_product_are_those_of_its_factors():
    a, b = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    assert _kept_bytes((a * b).sum()) == 2 * 10 * 4
    assert _kept_bytes((a * a).sum()) == 10 * 4
    assert _kept_bytes((a.double() * b.double()).sum()) == 2 * 10 * 8


def test_the_bytes_of_a_chain_are_those_of_what_each_step_keeps():
    a = torch.ones(7, requires_grad=True)
    assert _kept_bytes(a.exp().sum()) == 7 * 4  # its result
    assert _kept_bytes(a.exp().sin().sum()) == 7 * 4  # the result of one is the argument of the other
    assert _kept_bytes(a.sin().cos().sum()) == 2 * 7 * 4
    assert _kept_bytes(a.exp().exp().sum()) == 2 * 7 * 4
    assert _kept_bytes((a + 1).sum()) == 0


def test_a_tensor_that_is_used_often_counts_once():
    a, data = torch.ones(5, requires_grad=True), torch.ones(5)
    assert _kept_bytes((a * data).sum() + (a * data).sum() + (a * data.view(5, 1).squeeze()).sum()) == 5 * 4


def test_all_tensors_of_a_stack_count():
    a, b, c = (torch.ones(4, requires_grad=True) for _ in range(3))
    assert _kept_bytes(torch.stack([a.exp(), b.exp(), c.exp()]).sum()) == 3 * 4 * 4


def test_a_gradient_takes_time():
    seconds, kept = cost(*prepared(elbo.Trace_ELBO()))
    assert 0 < seconds < 10
    assert kept > 0


def test_each_objective_has_its_own_cost():
    few, values, args = prepared(elbo.Trace_ELBO(2))
    many = few.with_elbo(elbo.Trace_ELBO(500))
    found = costs({"few": few, "many": many, "again": few}, values, args)
    assert list(found) == ["few", "many", "again"]
    assert found["few"][1] == found["again"][1] == cost(few, values, args)[1]
    assert found["many"][1] > 50 * found["few"][1]
    assert all(seconds > 0 for seconds, _ in found.values())


def test_bytes_grow_with_the_particles_and_the_rows():
    def kept(num_particles, num_rows, estimator=elbo.TraceIWAE_ELBO):
        def shared_guide(x):
            loc, log_scale = pyro.param("loc", torch.tensor(0.0)), pyro.param("log_scale", torch.tensor(-0.5))
            with pyro.plate("rows", len(x)):
                pyro.sample("z", dist.Normal(loc * x, log_scale.exp()))

        return cost(*prepared(estimator(num_particles), guide=shared_guide, data=(torch.randn(num_rows),)))[1]

    by_particles = [kept(num, 100) for num in (2, 4, 8)]
    assert by_particles[0] < by_particles[1] < by_particles[2]
    # Beside what does not depend on the particles, each of them takes as much as another.
    assert by_particles[2] - by_particles[1] == pytest.approx(2 * (by_particles[1] - by_particles[0]), rel=0.01)
    by_rows = [kept(3, num) for num in (50, 100, 200)]
    assert by_rows[2] - by_rows[1] == pytest.approx(2 * (by_rows[1] - by_rows[0]), rel=0.01)
    assert by_rows[2] > 3 * by_rows[0]


def test_the_bytes_of_a_model_are_counted_by_hand():
    """Of a prior and a fixed normal draw: what the loss keeps are tensors of the size of the draw."""
    size = 1_000

    def model():
        with pyro.plate("rows", size):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        loc = pyro.param("loc", torch.zeros(size))
        with pyro.plate("rows", size):
            pyro.sample("z", dist.Normal(loc, 1.0))

    _, kept = cost(*prepared(elbo.TraceSTL_ELBO(), model, guide, ()))
    tensors = kept / (4 * size)
    # z itself, whose square is taken in log p, and z - loc in log q; no more than some copies of these
    assert 2 <= tensors <= 6


def test_sites_know_the_parameters_on_which_they_depend_directly():
    def program():
        slope = pyro.param("slope", torch.tensor(2.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=torch.tensor(1.0))

    def proposal():
        u = pyro.sample("u", dist.Normal(pyro.param("a", torch.tensor(0.0)), 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(u, pyro.param("b", torch.tensor(1.0))))

    objective = lvm.Objective(program, proposal)
    params = objective.init()
    assert parameters_of_sites(objective, params) == {"x": ["slope"], "u": ["a"], "z": ["b"]}
