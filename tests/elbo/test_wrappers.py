"""Beta and free bits, against closed forms of conjugate models."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.infer import TraceMeanField_ELBO as PyroTraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyro_lvm as lvm
from pyro_lvm import elbo

X = torch.tensor([0.3, -1.2, 0.8, 2.0, 1.1, -0.4])


class Fixed(dist.Normal):
    """A normal distribution without randomness: its draws are one standard deviation above its mean."""

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(Fixed, _instance))

    def rsample(self, sample_shape=()):
        return self.loc + self.scale


def model(x):
    """A shared latent that no row depends on but through its mean, and one for each row."""
    slope = pyro.param("slope", torch.tensor(1.5))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z + shift, 1.0), obs=x)


def guide(x, kind=Fixed):
    pyro.sample("shift", kind(pyro.param("shift_loc", torch.tensor(0.4)), pyro.param("shift_width", torch.tensor(0.6))))
    with pyro.plate("rows", len(x)):
        loc = pyro.param("loc", torch.tensor(0.3)) * x
        pyro.sample("z", kind(loc, pyro.param("width", torch.tensor(0.8))))


START = {"slope": 1.5, "shift_loc": 0.4, "shift_width": 0.6, "loc": 0.3, "width": 0.8}


def start():
    return {name: torch.tensor(value, requires_grad=True) for name, value in START.items()}


def by_hand(p, x, weight=None, ratio=1.0):
    """E log p(x | z) at the guide's draws, the divergence of the shared latent, and that of each row."""
    shift, z = p["shift_loc"] + p["shift_width"], p["loc"] * x + p["width"]
    weight = torch.ones(len(x)) if weight is None else weight
    likelihood = (weight * dist.Normal(p["slope"] * z + shift, 1.0).log_prob(x)).sum() * ratio
    unit = dist.Normal(0.0, 1.0)
    shared = kl_divergence(dist.Normal(p["shift_loc"], p["shift_width"]), unit)
    rows = kl_divergence(dist.Normal(p["loc"] * x, p["width"]), unit)
    return likelihood, shared, rows, weight * ratio


def gradients(loss, values):
    found = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    return {n: torch.zeros(()) if g is None else g for n, g in zip(values, found, strict=True)}


def evaluated(estimator, *programs, x=X, seed=0, one_by_one=False, **options):
    """Loss and gradients of an objective."""
    objective = lvm.Objective(*(programs or (model, guide)), estimator)
    params = objective.init(x)
    if one_by_one:  # draws in the order of a loop
        objective.structure.vectorizes = False
    torch.manual_seed(seed)
    loss = objective(params, x, **options)
    return loss.detach(), gradients(loss, params)


def assert_same(ours, expected, **tolerance):
    torch.testing.assert_close(ours[0], expected[0].detach(), **tolerance)
    assert ours[1].keys() <= expected[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, expected[1][name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def closed_form(formula, **options):
    p = start()
    loss = formula(*by_hand(p, X, **options))
    return loss, gradients(loss, p)


WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.0, 3.0])
OPTIONS = {
    "all rows": ({}, {}),
    "a minibatch": ({"num_rows": 60}, {"ratio": 10.0}),
    "weights": ({"sample_weight": WEIGHT}, {"weight": WEIGHT}),
    "both": ({"num_rows": 60, "sample_weight": WEIGHT}, {"ratio": 10.0, "weight": WEIGHT}),
}


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("how", OPTIONS)
def test_beta_weighs_the_divergence(beta, how):
    given, counts = OPTIONS[how]
    expected = closed_form(lambda p, s, rows, count: -p + beta * (s + (count * rows).sum()), **counts)
    assert_same(evaluated(elbo.Beta(elbo.TraceMeanField_ELBO(), beta), **given), expected)


@pytest.mark.parametrize("beta", [0.3, 4.0])
@pytest.mark.parametrize("how", OPTIONS)
def test_beta_weighs_both_log_densities_of_a_latent(beta, how):
    """The same without closed forms: at one standard deviation above the mean, a formula as well."""
    given, counts = OPTIONS[how]
    p = start()
    likelihood, _, _, count = by_hand(p, X, **counts)
    unit = dist.Normal(0.0, 1.0)
    shift, z = p["shift_loc"] + p["shift_width"], p["loc"] * X + p["width"]
    of_shift = unit.log_prob(shift) + p["shift_width"].log() + 0.5 * (1 + math.log(2 * math.pi))
    of_z = unit.log_prob(z) + p["width"].log() + 0.5 * (1 + math.log(2 * math.pi))
    loss = -likelihood - beta * (of_shift + (count * of_z).sum())
    expected = loss, gradients(loss, p)
    assert_same(evaluated(elbo.Beta(elbo.Trace_ELBO(), beta), **given), expected, rtol=1e-4, atol=1e-4)
    assert_same(evaluated(elbo.Beta(elbo.TraceIWAE_ELBO(3), beta), **given), expected, rtol=1e-4, atol=1e-4)


def noisy(x):
    guide(x, dist.Normal)


def local_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("rows", len(x)):
        loc = pyro.param("loc", torch.tensor(0.3)) * x
        pyro.sample("z", dist.Normal(loc, pyro.param("width", torch.tensor(0.8))))


ESTIMATORS = {
    "Trace": elbo.Trace_ELBO(3),
    "TraceMeanField": elbo.TraceMeanField_ELBO(2),
    "TraceSTL": elbo.TraceSTL_ELBO(2),
    "TraceScore": elbo.TraceScore_ELBO(3),
    "TraceScore without a baseline": elbo.TraceScore_ELBO(2, None),
    "IWAE": elbo.TraceIWAE_ELBO(3),
    "IWAE, dreg": elbo.TraceIWAE_ELBO(3, "dreg"),
    "IWAE, stl": elbo.TraceIWAE_ELBO(3, "stl"),
    "VIMCO": elbo.TraceVIMCO_ELBO(3),
    "Renyi": elbo.TraceRenyi_ELBO(0.5, 3),
    "Renyi, negative": elbo.TraceRenyi_ELBO(-0.5, 3),
    "CUBO": elbo.TraceCUBO(3, shift=-2.0),
    "WakePhi": elbo.TraceWakePhi(3),
    "Pyro's TraceMeanField": PyroTraceMeanField_ELBO(2),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("wrap", [elbo.Beta, lambda e: elbo.FreeBits(e, 0.0)], ids=["beta of 1", "no free bits"])
@pytest.mark.parametrize("options", [{}, {"num_rows": 60, "sample_weight": WEIGHT}], ids=["plain", "weighted"])
def test_a_wrapper_that_changes_nothing_changes_nothing(name, wrap, options):
    inner = ESTIMATORS[name]
    if wrap is not elbo.Beta and name == "CUBO":
        return  # refused
    expected = evaluated(inner, local_model, local_guide, **options)
    assert_same(evaluated(wrap(inner), local_model, local_guide, **options), expected)


def test_beta_weighs_the_latents_in_every_particle_of_a_bound():
    """IWAE by hand, from draws that are made alike."""
    num, beta = 4, 0.3
    ours = evaluated(elbo.Beta(elbo.TraceIWAE_ELBO(num), beta), local_model, local_guide, seed=5, one_by_one=True)
    p = {n: v for n, v in start().items() if n in ("slope", "loc", "width")}
    torch.manual_seed(5)
    q = dist.Normal(p["loc"] * X, p["width"])
    z = torch.stack([q.rsample() for _ in range(num)])
    rest = beta * (dist.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z))
    log_w = dist.Normal(p["slope"] * z, 1.0).log_prob(X) + rest
    loss = -(log_w.logsumexp(0) - math.log(num)).sum()
    assert_same(ours, (loss, gradients(loss, p)), rtol=1e-4, atol=1e-5)


def beta_at(step, beta=4.0, warm_up=5):
    return beta * min(1.0, step / warm_up)


def test_the_weight_rises_by_the_steps_of_a_fit_and_validation_has_all_of_it():
    wrapped = elbo.Beta(elbo.TraceMeanField_ELBO(), 4.0, warm_up=5)
    seen = []

    def keep(state):
        seen.append({n: float(v.detach()) for n, v in state.params.items()})

    result = lvm.fit(
        model, guide, X, elbo=wrapped, num_steps=9, every=1, callbacks=[keep], validation=X[:3], progress=False
    )
    points = [START, *seen]
    for step in range(9):
        p = {n: torch.tensor(v) for n, v in points[step].items()}
        likelihood, shared, rows, _ = by_hand(p, X)
        assert result.losses[step].item() == pytest.approx(
            float(-likelihood + beta_at(step) * (shared + rows.sum())), rel=1e-4
        )
        p = {n: torch.tensor(v) for n, v in points[step + 1].items()}
        likelihood, shared, rows, _ = by_hand(p, X[:3])
        expected = float(-likelihood + 4.0 * (shared + rows.sum()))
        assert result.validation[step + 1] == pytest.approx(expected, rel=1e-4)


def test_the_weight_rises_by_the_steps_of_svi():
    wrapped = elbo.Beta(elbo.TraceMeanField_ELBO(), 4.0, warm_up=5)
    losses = []
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), wrapped)
        for _ in range(8):
            losses.append(svi.step(X))
            whole = svi.evaluate_loss(X)
    likelihood, shared, rows, _ = by_hand({n: torch.tensor(v) for n, v in START.items()}, X)
    expected = [float(-likelihood + beta_at(step) * (shared + rows.sum())) for step in range(8)]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert whole == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.parametrize("step", [0, 1, 4, 5, 100])
@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_a_step_may_be_a_number_or_a_tensor(step, kind):
    wrapped = elbo.Beta(elbo.TraceMeanField_ELBO(), 4.0, warm_up=5)
    expected = closed_form(lambda p, s, rows, count: -p + beta_at(step) * (s + rows.sum()))
    assert_same(evaluated(wrapped, step=kind(step)), expected)


def test_enumerated_sites_keep_their_weight():
    def mixture(x):
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z] + shift, 1.0), obs=x)

    def of_shift(x):
        pyro.sample("shift", Fixed(pyro.param("loc", torch.tensor(0.4)), 0.6))

    loss, _ = evaluated(elbo.Beta(elbo.Trace_ELBO(2), 0.3), mixture, of_shift)
    logs = torch.tensor([0.3, 0.7]).log() + dist.Normal(torch.tensor([-1.0, 1.0]) + 1.0, 1.0).log_prob(X[:, None])
    rest = dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)) - dist.Normal(0.4, 0.6).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(loss, -(logs.logsumexp(-1).sum() + 0.3 * rest))


def free(nats):
    """The loss by its formula."""

    def loss(likelihood, shared, rows, count):
        mean = (count * rows).sum() / count.sum()
        plain = -likelihood + shared + (count * rows).sum()
        return plain + (nats - shared).clamp(min=0) + count.sum() * (nats - mean).clamp(min=0)

    return loss


@pytest.mark.parametrize("nats", [0.0, 0.05, 0.2, 0.5, 3.0])
@pytest.mark.parametrize("how", OPTIONS)
def test_free_bits_are_the_formula(nats, how):
    given, counts = OPTIONS[how]
    expected = closed_form(free(nats), **counts)
    assert_same(evaluated(elbo.FreeBits(elbo.TraceMeanField_ELBO(), nats), **given), expected, rtol=1e-4, atol=1e-4)


def test_the_thresholds_of_these_tests_lie_on_both_sides_of_both_divergences():
    _, shared, rows, _ = by_hand({n: torch.tensor(v) for n, v in START.items()}, X)
    assert 0.05 < rows.mean() < 0.2
    assert 0.2 < shared < 0.5


def test_below_the_threshold_only_the_likelihood_has_a_gradient():
    loss, found = evaluated(elbo.FreeBits(elbo.TraceMeanField_ELBO(), 3.0))
    _, expected = closed_form(lambda likelihood, shared, rows, count: -likelihood)
    assert_same((loss, found), (loss, expected))


@pytest.mark.parametrize("how", OPTIONS)
def test_above_the_threshold_nothing_changes(how):
    options = OPTIONS[how][0]
    expected = evaluated(elbo.TraceMeanField_ELBO(3), model, noisy, **options)
    assert_same(evaluated(elbo.FreeBits(elbo.TraceMeanField_ELBO(3), 0.05), model, noisy, **options), expected)


@pytest.mark.parametrize("inner", ["Trace", "TraceSTL", "IWAE", "IWAE, dreg", "Renyi"])
def test_free_bits_add_to_any_bound_what_the_divergences_lack(inner):
    """The second estimate of the divergences is exact: it takes nothing but random numbers that come after."""
    plain = evaluated(ESTIMATORS[inner], local_model, local_guide)[0]
    bits = evaluated(elbo.FreeBits(ESTIMATORS[inner], 0.5), local_model, local_guide)[0]
    rows = by_hand({n: torch.tensor(v) for n, v in START.items()}, X)[2]
    torch.testing.assert_close(bits - plain, len(X) * (0.5 - rows.mean()), rtol=1e-4, atol=1e-4)


def two_latents(x):
    with pyro.plate("rows", len(x)):
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(a.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def two_latents_guide(x):
    loc = pyro.param("loc", torch.tensor(0.3)) * x
    with pyro.plate("rows", len(x)):
        a = pyro.sample("a", Fixed(torch.stack([loc, -2 * loc], -1), 0.8).to_event(1))
        pyro.sample("b", Fixed(a.sum(-1) + pyro.param("up", torch.tensor(1.0)), 0.7))


def test_each_latent_of_a_row_has_its_own_threshold():
    plain, _ = evaluated(elbo.TraceMeanField_ELBO(), two_latents, two_latents_guide)
    bits, _ = evaluated(elbo.FreeBits(elbo.TraceMeanField_ELBO(), 0.6), two_latents, two_latents_guide)
    unit, loc = dist.Normal(0.0, 1.0), 0.3 * X
    kl_a = kl_divergence(dist.Normal(loc, 0.8), unit) + kl_divergence(dist.Normal(-2 * loc, 0.8), unit)
    kl_b = kl_divergence(dist.Normal(torch.tensor(1.0), 0.7), unit)  # of the same mean but for 1
    assert kl_a.mean() < 0.6 < kl_b
    torch.testing.assert_close(bits - plain, len(X) * (0.6 - kl_a.mean()), rtol=1e-4, atol=1e-4)


def test_latents_of_a_guide_with_auxiliary_sites_count_together():
    """AutoNormal draws unconstrained values: their divergence is estimated from one draw, that of each row and that
    of the shared latent."""

    def rates(x):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * rate, 1.0), obs=x)

    nats = 50.0
    objective = lvm.Objective(rates, "mean_field", elbo.FreeBits(elbo.Trace_ELBO(), nats))
    params = objective.init(X)
    samples = torch.stack([objective(params, X).detach() for _ in range(150)])
    plain = lvm.Objective(rates, "mean_field", elbo.Trace_ELBO(150))
    plain.init(X)
    with torch.no_grad():
        expected = plain(params, X) + nats * (1 + len(X))
    for latent in ("rate", "z"):
        loc, width = params[f"AutoNormal.locs.{latent}"], params[f"AutoNormal.scales.{latent}"]
        q = dist.Normal(loc.detach(), torch.nn.functional.softplus(width.detach()))
        expected = expected - kl_divergence(q, dist.Normal(0.0, 1.0)).sum()
    error = samples.std() / math.sqrt(len(samples)) * math.sqrt(2)
    assert abs(samples.mean() - expected) < 4 * error
    assert error < 1


def discrete(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(1.0 * z, pyro.param("noise", torch.tensor(1.0))), obs=x)


def discrete_guide(x):
    logits = pyro.param("logits", torch.linspace(-1, 1, 3 * len(X)).reshape(len(X), 3))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits))


@pytest.mark.parametrize("inner", [elbo.Trace_ELBO(), elbo.TraceScore_ELBO(3), elbo.TraceVIMCO_ELBO(3)])
def test_a_discrete_latent_has_its_divergence_in_closed_form(inner):
    plain = evaluated(inner, discrete, discrete_guide)
    bits = evaluated(elbo.FreeBits(inner, 0.5), discrete, discrete_guide)
    logits = torch.linspace(-1, 1, 3 * len(X)).reshape(len(X), 3).requires_grad_()
    q = logits.log_softmax(-1)
    kl = (q.exp() * (q - torch.tensor([0.2, 0.5, 0.3]).log())).sum(-1)
    lacks = len(X) * (0.5 - kl.mean()).clamp(min=0)
    assert lacks > 0
    expected = plain[0] + lacks, {**plain[1], "logits": plain[1]["logits"] + torch.autograd.grad(lacks, logits)[0]}
    assert_same(bits, expected)


@pytest.mark.parametrize("beta", [0.25, 2.0])
def test_beta_around_free_bits_weighs_what_is_charged(beta):
    """E log p(x | z) - beta sum_j max(nats, KL_j)."""
    nats = 0.5

    def charged(likelihood, shared, rows, count):
        return beta * (free(nats)(likelihood, shared, rows, count) + likelihood) - likelihood

    assert_same(
        evaluated(elbo.Beta(elbo.FreeBits(elbo.TraceMeanField_ELBO(), nats), beta)),
        closed_form(charged),
        rtol=1e-4,
        atol=1e-4,
    )


def test_free_bits_around_beta_and_of_squared_weights_are_refused():
    with pytest.raises(ValueError, match=r"use Beta\(FreeBits"):
        elbo.FreeBits(elbo.Beta(elbo.Trace_ELBO()), 0.5)
    with pytest.raises(ValueError, match="TraceCUBO has no divergence in nats"):
        elbo.FreeBits(elbo.TraceCUBO(2), 0.5)


@pytest.mark.parametrize("wrap", [elbo.Beta, lambda e: elbo.FreeBits(e, 0.5)])
def test_a_prior_that_depends_on_a_summed_out_site_has_no_divergence_to_weigh(wrap):
    def components(x):
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.tensor([-3.0, 3.0])[k], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="the prior of 'z' depends on an enumerated site"):
        lvm.Objective(components, local_guide, wrap(elbo.Trace_ELBO())).init(X)


def test_weights_of_beta_multiply():
    twice = elbo.Beta(elbo.Beta(elbo.TraceMeanField_ELBO(), 0.5), 0.4)
    assert_same(evaluated(twice), closed_form(lambda p, s, rows, count: -p + 0.2 * (s + rows.sum())))


def test_particles_and_plate_are_those_of_the_wrapped_estimator():
    inner = elbo.TraceIWAE_ELBO(7, plate="rows")
    for wrapped in (elbo.Beta(inner, 0.5), elbo.FreeBits(inner, 0.5), elbo.Beta(elbo.FreeBits(inner, 0.1))):
        assert wrapped.num_particles == 7
        assert wrapped.plate == "rows"
        assert wrapped.vectorize_particles


def test_a_scale_around_all_rows_multiplies_free_bits_as_well():
    plain = evaluated(elbo.FreeBits(elbo.TraceMeanField_ELBO(), 0.5), local_model, local_guide)
    scaled = [poutine.scale(program, scale=0.25) for program in (local_model, local_guide)]
    times = evaluated(elbo.FreeBits(elbo.TraceMeanField_ELBO(), 0.5), *scaled)
    assert_same(times, (plain[0] / 4, {n: g / 4 for n, g in plain[1].items()}))


def test_constrained_parameters_follow_the_wrapped_loss():
    """Half a divergence has its minimum elsewhere: a Gaussian of more precision 1 / beta."""

    def located(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def location(x):
        width = pyro.param("width", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.0)), width))

    wrapped = elbo.Beta(elbo.TraceSTL_ELBO(4), 2.0)
    result = lvm.fit(located, location, X, elbo=wrapped, num_steps=300, optim=0.03, progress=False)
    # E log p(x | z) - beta KL is an ELBO of a likelihood to the power 1 / beta
    precision = 1 + len(X) / 2
    assert result.params["loc"].item() == pytest.approx(float(X.sum()) / 2 / precision, abs=0.02)
    assert result.params["width"].item() == pytest.approx(precision**-0.5, abs=0.02)


@pytest.mark.parametrize("kind", ["mean_field", "full_rank", "low_rank"])
def test_beta_weighs_auxiliary_draws_and_jacobians(kind):
    """Without weight nothing but the likelihood is left, and the loss is linear in it."""

    def positive(x):
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z, width), obs=x)

    none, half, full = (evaluated(elbo.Beta(elbo.Trace_ELBO(), b), positive, kind)[0] for b in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (none + full) / 2)
    torch.testing.assert_close(full, evaluated(elbo.Trace_ELBO(), positive, kind)[0])
    objective = lvm.Objective(positive, kind)
    params = objective.init(X)
    torch.manual_seed(0)
    drawn = objective.program.call(params, poutine.trace(objective.program.guide).get_trace, X)
    plain = poutine.trace(poutine.replay(positive, trace=drawn)).get_trace(X)
    torch.testing.assert_close(none, -plain.log_prob_sum(lambda name, site: name == "x").detach())
