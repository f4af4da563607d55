"""What a comparison of estimators says, against integrals of their formulas, and that it changes nothing."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import JitTrace_ELBO, TraceGraph_ELBO
from torch import nn

import pyro_lvm as lvm
from pyro_lvm import elbo

SGD = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731  a fit that stands still


# z ~ N(0, 1), x ~ N(z, 1), and a guide N(m, s^2), in plain torch

X, M, LOG_S = 1.5, 0.3, -0.5
S = math.exp(LOG_S)


ROWS = torch.tensor([0.4, -1.0, 2.2, 1.1])


def model():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(X))


def guide():
    loc, log_scale = pyro.param("loc", torch.tensor(M)), pyro.param("log_scale", torch.tensor(LOG_S))
    pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def noise_grid(num=241):
    """Two particles' standard normal noise ``[2, M]`` on a grid, and its probabilities."""
    line = torch.linspace(-7.5, 7.5, num, dtype=torch.float64)
    pairs = torch.cartesian_prod(line, line)
    return pairs.T, (-0.5 * pairs.square().sum(1)).softmax(0)


NOISE, MASS = noise_grid()
Z = M + S * NOISE
LOG_Q = -0.5 * NOISE**2 - LOG_S - 0.5 * math.log(2 * math.pi)
LOG_P = -0.5 * Z**2 - 0.5 * (X - Z) ** 2 - math.log(2 * math.pi)
LOG_W = LOG_P - LOG_Q
SLOPE = X - 2 * Z  # of log p in z
TOTAL = torch.stack([SLOPE, SLOPE * S * NOISE + 1])  # of log w in m and log s, through z too
THROUGH_DRAWS = (SLOPE + NOISE / S) * torch.stack([torch.ones_like(Z), S * NOISE])
SCORE = torch.stack([NOISE / S, NOISE**2 - 1])
W = LOG_W.softmax(0)
KL_SLOPE = torch.tensor([M, S**2 - 1], dtype=torch.float64)[:, None]
LIKELIHOOD = (X - Z) * torch.stack([torch.ones_like(Z), S * NOISE])
LOG_MEAN_W = LOG_W.logsumexp(0) - math.log(2)

# For each estimator of two particles: itself, its estimates on the grid, and the ascent directions in m and log s
FORMULAS = {
    "draws": (elbo.Trace_ELBO(2), LOG_W.mean(0), TOTAL.mean(1)),
    "closed": (elbo.TraceMeanField_ELBO(2), None, LIKELIHOOD.mean(1) - KL_SLOPE),
    "landing": (elbo.TraceSTL_ELBO(2), LOG_W.mean(0), THROUGH_DRAWS.mean(1)),
    "score": (elbo.TraceScore_ELBO(2), LOG_W.mean(0), (SCORE * (LOG_W - LOG_W.flip(0))).mean(1)),
    "scores alone": (elbo.TraceScore_ELBO(2, None), LOG_W.mean(0), (SCORE * LOG_W).mean(1)),
    "iwae": (elbo.TraceIWAE_ELBO(2), LOG_MEAN_W, (W * TOTAL).sum(1)),
    "iwae, dreg": (elbo.TraceIWAE_ELBO(2, "dreg"), LOG_MEAN_W, (W**2 * THROUGH_DRAWS).sum(1)),
    "iwae, stl": (elbo.TraceIWAE_ELBO(2, "stl"), LOG_MEAN_W, (W * THROUGH_DRAWS).sum(1)),
    "vimco": (elbo.TraceVIMCO_ELBO(2), LOG_MEAN_W, (W * TOTAL).sum(1)),
    "renyi": (
        elbo.TraceRenyi_ELBO(0.5, 2),
        2 * ((0.5 * LOG_W).logsumexp(0) - math.log(2)),
        ((0.5 * LOG_W).softmax(0) * TOTAL).sum(1),
    ),
}
REPEATS = 3_000


def mean(values):
    return (MASS * values).sum(-1)


@pytest.fixture(scope="module")
def measured():
    return lvm.compare_elbos(model, guide, elbos={name: e for name, (e, _, _) in FORMULAS.items()}, num_repeats=REPEATS)


@pytest.fixture(scope="module")
def usual():
    """A comparison of the usual estimators on a small model."""
    return lvm.compare_elbos(model, guide, num_repeats=30)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_standard_deviation_is_that_of_the_formula(measured, name):
    gradient = FORMULAS[name][2]
    squares = (gradient - mean(gradient)[:, None]).square()
    found = measured[name].parameters
    for parts, sd in (
        (squares, measured[name].sd),
        (squares[:1], found["loc"][1]),
        (squares[1:], found["log_scale"][1]),
    ):
        distance = parts.sum(0)
        variance = mean(distance)
        error = ((mean(distance**2) - variance**2) / REPEATS).sqrt()
        assert abs(sd**2 - variance) < 4 * error


@pytest.mark.parametrize("name", FORMULAS)
def test_the_mean_gradient_is_that_of_the_formula(measured, name):
    gradient = mean(FORMULAS[name][2])
    found = measured[name].parameters
    for length, exact in ((found["loc"][0], gradient[0]), (found["log_scale"][0], gradient[1])):
        assert abs(length - abs(exact)) < 4 * measured[name].sd / math.sqrt(REPEATS)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_value_is_right_within_its_error(measured, name):
    _, values, _ = FORMULAS[name]
    exact = mean(LOG_W.mean(0) if values is None else values)
    assert abs(measured[name].value - exact) < 4 * measured[name].standard_error
    if values is not None:
        sd = (mean(values**2) - exact**2).sqrt()
        assert measured[name].standard_error == pytest.approx(sd.item() / math.sqrt(REPEATS), rel=0.15)


def test_the_elbo_of_the_grid_is_its_closed_form():
    posterior = dist.Normal(X / 2, math.sqrt(0.5))
    evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(X))
    exact = evidence - torch.distributions.kl_divergence(dist.Normal(M, S), posterior)
    assert mean(LOG_W.mean(0)).item() == pytest.approx(exact.item(), abs=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_bias_is_the_distance_from_the_right_gradient(measured, name):
    right = {"iwae, stl": "iwae"}.get(name, name)
    exact = (mean(FORMULAS[name][2]) - mean(FORMULAS[right][2])).norm().item()
    found = measured[name]
    assert abs(found.bias - exact) < 4 * found.bias_error
    assert measured.biased(name) == (name == "iwae, stl")


def test_estimators_of_one_target_share_a_reference(measured):
    exact = "exact, for a linear Gaussian model"
    assert {measured[n].reference for n in measured if measured[n].target == "ELBO"} == {exact}
    assert [n for n in measured if measured[n].target == "ELBO"] == list(FORMULAS)[:5]
    assert [n for n in measured if measured[n].target == "IWAE-2"] == list(FORMULAS)[5:9]
    assert (
        measured["iwae"].reference
        == measured["vimco"].reference
        == ("mean of 30,000 gradients of TraceIWAE_ELBO(num_particles=2, gradient='dreg')")
    )


@pytest.mark.parametrize("name", FORMULAS)
def test_parameters_add_up_to_the_whole(measured, name):
    found = measured[name]
    lengths, sds, ratios = zip(*found.parameters.values(), strict=True)
    assert list(found.parameters) == ["loc", "log_scale"]
    assert math.hypot(*sds) == pytest.approx(found.sd, rel=1e-9)
    assert math.hypot(*lengths) / found.sd == pytest.approx(found.signal_to_noise, rel=1e-9)
    assert ratios == pytest.approx([length / sd for length, sd in zip(lengths, sds, strict=True)])


def test_a_precision_costs_variance_times_seconds(measured):
    for found in measured.values():
        assert found.seconds > 0
        assert found.variance_time == found.sd**2 * found.seconds


def test_the_best_is_one_and_the_others_are_more(measured):
    for target in {c.target for c in measured.values()}:
        rivals = [n for n in measured if measured[n].target == target]
        ratios = {n: measured.relative(n) for n in rivals}
        unbiased = [ratios[n] for n in rivals if not measured.biased(n)]
        assert min(unbiased) == 1
        best = next(n for n in rivals if ratios[n] == 1)
        for n in rivals:
            assert ratios[n] == pytest.approx(measured[n].variance_time / measured[best].variance_time)


def test_a_biased_estimator_is_named_and_not_recommended(measured):
    line = next(line for line in measured.recommendation.splitlines() if "IWAE-2" in line)
    assert "iwae, stl is biased, visibly here" in line
    assert "use iwae, stl" not in line
    assert "For Renyi 0.5, K = 2 use renyi." in measured.recommendation


def test_the_wake_phase_of_two_particles_is_biased():
    elbos = {"two": elbo.TraceWakePhi(2), "many": elbo.TraceWakePhi(500)}
    comparison = lvm.compare_elbos(model, guide, elbos=elbos, num_repeats=200)
    assert comparison.biased("two")
    assert "use many" in comparison.recommendation
    assert "two is biased, visibly here" in comparison.recommendation
    # The gradient of the inclusive KL divergence from the posterior N(x / 2, 1 / 2)
    right = torch.tensor([(X / 2 - M) / S**2, ((X / 2 - M) ** 2 + 0.5) / S**2 - 1], dtype=torch.float64)
    exact = (mean((W * SCORE).sum(1)) - right).norm().item()
    found = comparison["two"]
    assert abs(found.bias - exact) < 3 * found.bias_error + 0.01 * exact  # a thousand particles are a little biased too


@pytest.mark.parametrize(
    ("elbos", "num_repeats"),
    [
        ({"near": elbo.TraceCUBO(5, shift=-2.0), "far": elbo.TraceCUBO(5, shift=-1.0)}, 300),
        ({"two": pyro.infer.RenyiELBO(0.5, num_particles=2), "ten": pyro.infer.RenyiELBO(0.5, num_particles=10)}, 10),
        ({"half": pyro.infer.RenyiELBO(0.5, num_particles=2), "minus": pyro.infer.RenyiELBO(-3.0)}, 10),
    ],
    ids=["shifts of chi-square", "Pyro's particles", "Pyro's alphas"],
)
def test_what_estimates_something_else_is_not_called_biased(elbos, num_repeats):
    comparison = lvm.compare_elbos(model, guide, elbos=elbos, num_repeats=num_repeats)
    assert len({c.target for c in comparison.values()}) == 2
    assert [name for name in comparison if comparison.biased(name)] == []


# What to use


def regression(X, y):
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(X @ weights, 1.0), obs=y)


def test_draws_are_recommended_against_scores():
    X, y = torch.randn(100, 10), torch.randn(100)
    elbos = {"score": elbo.TraceScore_ELBO(5), "draws": elbo.Trace_ELBO(5)}
    comparison = lvm.compare_elbos(regression, "mean_field", X, y, elbos=elbos, num_repeats=40)
    assert comparison.recommendation.startswith("For ELBO use draws; ")
    assert comparison.relative("draws") == 1
    assert comparison.relative("score") > 10
    assert f"score {comparison.relative('score'):.3g} times as long" in comparison.recommendation
    assert not comparison.biased("draws")
    assert not comparison.biased("score")


def exact_guide():
    loc, log_scale = pyro.param("loc", torch.tensor(X / 2)), pyro.param("log_scale", torch.tensor(0.5).log() / 2)
    pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def test_sticking_the_landing_is_recommended_at_the_posterior():
    elbos = {"draws": elbo.Trace_ELBO(2), "landing": elbo.TraceSTL_ELBO(2)}
    comparison = lvm.compare_elbos(model, exact_guide, elbos=elbos)
    assert comparison["landing"].sd < 1e-5
    assert not comparison.biased("landing")  # all that is left are roundings
    assert comparison.recommendation.startswith("For ELBO use landing")


def mixture(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 2.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


@pytest.fixture(scope="module")
def noiseless():
    """All latents are summed out, so that the loss is exact."""
    return lvm.compare_elbos(mixture, None, ROWS, num_repeats=5)


def test_gradients_without_noise_have_none(noiseless):
    each = torch.tensor([0.3, 0.7]).log() + dist.Normal(torch.tensor([-1.0, 2.0]), 1.0).log_prob(ROWS[:, None])
    assert len(noiseless) == 7
    for found in noiseless.values():
        assert found.value == pytest.approx(each.logsumexp(1).sum().item(), abs=1e-5)
        assert found.sd < 1e-6
    assert str(noiseless)
    assert len(noiseless.to_dataframe()) == len(noiseless)


def test_roundings_are_no_bias(noiseless):
    assert [name for name in noiseless if noiseless.biased(name)] == []


def test_what_has_no_noise_is_recommended_without_ratios_that_are_no_numbers(noiseless):
    assert "nan" not in noiseless.recommendation


# What has no right form


def bits(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def bits_guide(x):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=slope * x))


def test_refused_estimators_are_listed_with_their_reason():
    comparison = lvm.compare_elbos(bits, bits_guide, ROWS, num_repeats=20)
    assert set(comparison.refused) == {"TraceMeanField_ELBO", "TraceIWAE_ELBO, dreg"}
    assert "needs reparametrised draws, and 'z' has none" in comparison.refused["TraceMeanField_ELBO"]
    assert "use TraceVIMCO_ELBO" in comparison.refused["TraceIWAE_ELBO, dreg"]
    assert not set(comparison.refused) & set(comparison)
    for name, reason in comparison.refused.items():
        assert f"left out: {name}, because {reason}" in str(comparison)
    assert {c.reference for n, c in comparison.items() if "Renyi" not in n} == {"exact, by enumeration"}


def test_a_discrete_latent_that_all_rows_share_is_compared():
    def shared(x):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def shared_guide(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.5))))

    comparison = lvm.compare_elbos(shared, shared_guide, ROWS, num_repeats=20)
    assert comparison["Trace_ELBO"].reference == "exact, by enumeration"


def test_if_all_are_refused_that_is_an_error():
    elbos = {"dreg": elbo.TraceIWAE_ELBO(3, "dreg"), "closed": elbo.TraceMeanField_ELBO(), "jit": JitTrace_ELBO()}
    with pytest.raises(ValueError, match="no estimator has a right form for this model and guide") as error:
        lvm.compare_elbos(bits, bits_guide, ROWS, elbos=elbos)
    assert all(name in str(error.value) for name in elbos)


# Where to compare


def conjugate(x):
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def conjugate_elbo(loc, scale):
    law = dist.Normal(loc, scale)
    likelihood = dist.Normal(loc, 1.0).log_prob(ROWS).sum() - 0.5 * len(ROWS) * scale**2
    return (likelihood - torch.distributions.kl_divergence(law, dist.Normal(0.0, 2.0))).item()


ONE = {"one": elbo.TraceMeanField_ELBO(5)}
TWO = {"draws": elbo.Trace_ELBO(2), "iwae": elbo.TraceIWAE_ELBO(2)}


def test_parameters_are_taken_from_a_dict():
    params = {"AutoNormal.locs.z": 1.2, "AutoNormal.scales.z": torch.tensor(0.4)}
    found = lvm.compare_elbos(conjugate, "mean_field", ROWS, params=params, elbos=ONE, num_repeats=200)["one"]
    assert abs(found.value - conjugate_elbo(torch.tensor(1.2), torch.tensor(0.4))) < 4 * found.standard_error


def test_parameters_are_taken_from_a_result():
    result = lvm.fit(conjugate, "mean_field", ROWS, num_steps=300, optim=0.05, progress=False)
    found = lvm.compare_elbos(conjugate, "mean_field", ROWS, params=result, elbos=ONE, num_repeats=200)["one"]
    loc, scale = result.params["AutoNormal.locs.z"], result.params["AutoNormal.scales.z"]
    assert abs(found.value - conjugate_elbo(loc, scale)) < 4 * found.standard_error
    elsewhere = lvm.compare_elbos(conjugate, "mean_field", ROWS, elbos=ONE, num_repeats=10)["one"]
    assert elsewhere.value < found.value - 1


def test_without_parameters_a_fit_would_start_there():
    start = lvm.fit(conjugate, "mean_field", ROWS, num_steps=1, optim=SGD, progress=False, seed=3).params
    found = lvm.compare_elbos(conjugate, "mean_field", ROWS, elbos=ONE, num_repeats=200, seed=3)["one"]
    exact = conjugate_elbo(start["AutoNormal.locs.z"], start["AutoNormal.scales.z"])
    assert abs(found.value - exact) < 4 * found.standard_error
    given = lvm.compare_elbos(conjugate, "mean_field", ROWS, elbos=ONE, num_repeats=200, seed=3, params=start)["one"]
    assert given.value == pytest.approx(found.value, abs=1e-4)


def test_some_parameters_may_be_left_where_they_start():
    given = {"loc": M + 1.0}
    found = lvm.compare_elbos(model, guide, params=given, elbos={"one": elbo.Trace_ELBO(5)}, num_repeats=200)["one"]
    law = dist.Normal(M + 1.0, S)
    evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(X))
    exact = evidence - torch.distributions.kl_divergence(law, dist.Normal(X / 2, math.sqrt(0.5)))
    assert abs(found.value - exact.item()) < 4 * found.standard_error


# Nothing changes


class Breaks(elbo.Trace_ELBO):
    """Fails in the midst of the work, after some estimates or in a fit."""

    def __init__(self, after):
        super().__init__(2)
        self.left = [after]

    def estimate(self, run):
        self.left[0] -= 1
        if self.left[0] < 0 or (self.left[0] == math.inf and run.step is not None and run.step > 3):
            raise RuntimeError("midway")
        return super().estimate(run)


class Network(nn.Module):
    """A layer that trains, one that is frozen, and a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.frozen = nn.Linear(1, 2), nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x):
        return (self.factor * self.frozen(self.layer(x))).unbind(-1)


class Normalised(nn.Module):
    """A layer and batch norm, which counts its runs and averages what it has seen."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(1, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.layer(x)).unbind(-1)


def rows_model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("train", "after"), [(False, None), (True, None), (False, 0), (False, 12), (True, 12), (True, math.inf)]
)
def test_nothing_of_the_users_changes(train, after):
    network = Network()

    def amortized(x):
        loc, log_scale = network(x[:, None])
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc + pyro.param("shift", torch.tensor(0.0)), log_scale.exp()))

    pyro.param("shift", torch.tensor(7.0))
    network.train()
    state = {name: v.clone() for name, v in network.state_dict().items()}
    tensors = {name: id(v) for name, v in [*network.named_parameters(), *network.named_buffers()]}
    random = torch.get_rng_state()
    settings = pyro.settings.get()
    elbos = {"draws": elbo.Trace_ELBO(2)} | ({} if after is None else {"breaks": Breaks(after)})

    def compare():
        return lvm.compare_elbos(rows_model, amortized, ROWS, elbos=elbos, num_repeats=5, train=train, num_steps=10)

    try:
        if after is None:
            compare()
        else:
            with pytest.raises(RuntimeError, match="midway"):
                compare()
        assert network.training
        assert {name: id(v) for name, v in [*network.named_parameters(), *network.named_buffers()]} == tensors
        for name, v in network.state_dict().items():
            assert torch.equal(v, state[name]), name
        assert all(v.grad is None for v in network.parameters())
        assert [v.requires_grad for v in network.parameters()] == [True, True, False, False]
        assert torch.equal(torch.get_rng_state(), random)
        assert pyro.settings.get() == settings
        assert {name: v.item() for name, v in pyro.get_param_store().items()} == {"shift": 7.0}
    finally:
        pyro.clear_param_store()


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_has_seen_nothing(train):
    network = Normalised()

    def amortized(x):
        loc, log_scale = network(x[:, None])
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    state = {name: v.clone() for name, v in network.state_dict().items()}
    lvm.compare_elbos(rows_model, amortized, ROWS, elbos=TWO, num_repeats=5, train=train, num_steps=3)
    assert network.training
    for name, v in network.state_dict().items():
        assert torch.equal(v, state[name]), name


def test_modules_may_be_registered_with_pyro():
    layer = nn.Linear(1, 1)

    def amortized(x):
        pyro.module("layer", layer)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(layer(x[:, None]).squeeze(-1), 0.7))

    comparison = lvm.compare_elbos(rows_model, amortized, ROWS, elbos=TWO, num_repeats=5, train=True, num_steps=3)
    assert {"layer.weight", "layer.bias"} == set(comparison["draws"].parameters)


def test_the_estimators_stay_as_they_are():
    ours, theirs = elbo.Beta(elbo.TraceIWAE_ELBO(3), 2.0, warm_up=5), TraceGraph_ELBO()
    before = vars(ours).copy(), vars(theirs).copy()
    lvm.compare_elbos(model, guide, elbos={"ours": ours, "theirs": theirs}, num_repeats=5, train=True, num_steps=3)
    assert (vars(ours), vars(theirs)) == before


def test_estimators_of_pyro_are_compared():
    elbos = {"ours": elbo.Trace_ELBO(), "pyro's": pyro.infer.Trace_ELBO(), "graph": TraceGraph_ELBO()}
    comparison = lvm.compare_elbos(model, guide, elbos=elbos, num_repeats=200)
    assert comparison["pyro's"].target == "ELBO"
    for found in comparison.values():
        assert abs(found.value - mean(LOG_W.mean(0))) < 4 * found.standard_error
        gradient = mean(FORMULAS["draws"][2])
        assert abs(found.parameters["loc"][0] - abs(gradient[0])) < 4 * found.sd / math.sqrt(200)


# Fits


@pytest.fixture(scope="module")
def trained():
    elbos = {"draws": elbo.Trace_ELBO(5), "iwae": elbo.TraceIWAE_ELBO(5)}
    return lvm.compare_elbos(
        conjugate, "mean_field", ROWS, elbos=elbos, num_repeats=5, train=True, num_steps=155, optim=0.05
    )


def test_fits_are_watched_from_the_start_to_the_end(trained):
    for fit in trained.training.values():
        assert fit.steps[0] == 0
        assert fit.steps[-1] == 155
        assert fit.steps == sorted(set(fit.steps))
        assert len(fit.steps) == len(fit.seconds) == len(fit.elbo) > 20
        assert fit.seconds == sorted(fit.seconds)
        assert fit.seconds[0] >= 0


def test_fits_start_from_the_same_place(trained):
    first, second = (fit.elbo[0] for fit in trained.training.values())
    assert first == second


def test_fits_come_near_the_evidence(trained):
    covariance = torch.eye(4) + 4.0
    evidence = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(ROWS).item()
    for fit in trained.training.values():
        assert fit.elbo[-1] > fit.elbo[0] + 1
        assert fit.elbo[-1] == pytest.approx(evidence, abs=0.25)


def test_there_is_no_training_unless_asked_for(usual):
    assert usual.training == {}


@pytest.mark.parametrize("num_steps", [1, 3])
def test_short_fits_are_watched_at_each_step(num_steps):
    comparison = lvm.compare_elbos(model, guide, elbos=ONE, num_repeats=2, train=True, num_steps=num_steps)
    assert comparison.training["one"].steps == list(range(num_steps + 1))


# The report


def test_it_is_a_mapping(usual):
    assert len(usual) == len(list(usual)) == 8
    assert usual["Trace_ELBO"] is dict(usual)["Trace_ELBO"]
    assert "nothing" not in usual
    with pytest.raises(KeyError):
        usual["nothing"]


def test_the_table_has_a_row_for_each_estimator(usual):
    table = usual.to_dataframe()
    assert list(table.index) == list(usual)
    assert table.index.name == "estimator"
    assert set(table.columns) == {
        *("target", "value", "standard_error", "bias", "bias_error", "reference", "sd", "signal_to_noise"),
        *("unbiased", "variance_error", "seconds", "bytes", "variance_time", "relative", "as_good", "biased"),
    }
    for name, found in usual.items():
        row = table.loc[name]
        assert row["value"] == found.value
        assert row["sd"] == found.sd
        assert row["target"] == found.target
        assert row["variance_time"] == found.variance_time
        assert row["relative"] == usual.relative(name)
        assert bool(row["biased"]) == usual.biased(name)


def test_the_table_of_parameters_has_a_row_for_each_of_them(usual):
    table = usual.parameters_dataframe()
    assert table.index.names == ["estimator", "parameter"]
    assert list(table.columns) == ["length", "sd", "signal_to_noise"]
    assert list(table.index) == [(name, p) for name in usual for p in ("loc", "log_scale")]
    for name, found in usual.items():
        for parameter, numbers in found.parameters.items():
            assert tuple(table.loc[(name, parameter)]) == numbers


def test_the_text_names_each_estimator_and_reference(usual):
    text = str(usual)
    assert repr(usual) == text
    for name, found in usual.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name}  "))
        assert f"{found.value:.2f}" in line
        assert f"reference of {found.target}: {found.reference}" in text
    assert usual.recommendation in text


def test_html_shows_names_as_they_are_written():
    name = '<b>bold</b> & "more"'
    comparison = lvm.compare_elbos(
        bits, bits_guide, ROWS, elbos={name: elbo.Trace_ELBO(), "<i>": elbo.TraceMeanField_ELBO()}, num_repeats=3
    )
    page = comparison._repr_html_()
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp;" in page
    assert "left out: &lt;i&gt;" in page
    assert page.count("<tr>") == page.count("</tr>") == 2
    assert name in str(comparison)


@pytest.mark.parametrize("train", [False, True])
def test_the_picture_has_a_dot_and_a_curve_for_each_estimator(train, usual, trained):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    comparison = trained if train else usual
    figure = comparison.plot()
    assert isinstance(figure, Figure)
    assert len(figure.axes) == (4 if train else 2)
    dots = figure.axes[:2]
    places = [[line.get_xdata()[0] for line in ax.lines] for ax in dots]
    assert places[0] == pytest.approx([c.sd for c in comparison.values()])
    assert places[1] == pytest.approx([comparison.relative(n) for n in comparison])
    labels = [label.get_text() for label in dots[0].get_yticklabels()]
    assert labels == [f"{name}  ({c.target})" for name, c in comparison.items()]
    for ax, what in zip(figure.axes[2:], ("steps", "seconds"), strict=False):
        for line, fit in zip(ax.lines, comparison.training.values(), strict=True):
            assert list(line.get_xdata()) == getattr(fit, what)
            assert list(line.get_ydata()) == fit.elbo
    figure.canvas.draw()
    plt.close(figure)
    assert plt.get_fignums() == []


def test_a_seed_repeats_all_but_the_times(usual):
    def numbers(comparison):
        return {name: {k: v for k, v in vars(c).items() if k != "seconds"} for name, c in comparison.items()}

    again = lvm.compare_elbos(model, guide, num_repeats=30)
    other = lvm.compare_elbos(model, guide, num_repeats=30, seed=1)
    assert numbers(again) == numbers(usual)
    assert all(other[name].value != usual[name].value for name in usual)


# Wrong arguments

TRACE = {"a": elbo.Trace_ELBO()}
OTHER = {"nothing": 1.0}

WRONG = {
    "num_repeats: none": ({"num_repeats": 0}, ValueError, "num_repeats must be a positive integer; got 0"),
    "num_repeats: one": ({"num_repeats": 1}, ValueError, "num_repeats must be at least 2"),
    "num_repeats: a part": ({"num_repeats": 1.5}, TypeError, "num_repeats must be a positive integer; got 1.5"),
    "num_repeats: a flag": ({"num_repeats": True}, TypeError, "num_repeats must be"),
    "num_steps": ({"num_steps": 0}, ValueError, "num_steps must be a positive integer; got 0"),
    "seed: its sign": ({"seed": -1}, ValueError, "seed must be a non-negative integer; got -1"),
    "seed: its kind": ({"seed": "a"}, TypeError, "seed must be a non-negative integer; got 'a'"),
    "elbos: a list": ({"elbos": [elbo.Trace_ELBO()]}, TypeError, "elbos must be a dict of estimators by name; got ["),
    "elbos: one": ({"elbos": elbo.Trace_ELBO()}, TypeError, "elbos must be a dict of estimators by name"),
    "elbos: none": ({"elbos": {}}, TypeError, "elbos must be a dict of estimators by name; got {}"),
    "elbos: a class": (
        {"elbos": {"a": elbo.Trace_ELBO}},
        TypeError,
        "elbos['a'] must be a pyro.infer.ELBO; got <class",
    ),
    "elbos: a name": ({"elbos": {1: elbo.Trace_ELBO()}}, TypeError, "elbos must be a dict of estimators by name"),
    "params: a name": ({"params": OTHER}, ValueError, "params names 'nothing', which is no parameter"),
    "params: their kind": (
        {"params": [1.0]},
        TypeError,
        "params must be a result or a dict of values by name; got list",
    ),
    "params: a shape": ({"params": {"loc": torch.zeros(2)}}, ValueError, "params['loc'] has shape [2], expected []"),
    "params: a kind": ({"params": {"loc": "a"}}, TypeError, "params['loc'] must be a number or a tensor; got 'a'"),
    "params: finite": ({"params": {"loc": math.nan}}, ValueError, "params['loc'] is not finite"),
    "plate: unknown": ({"plate": "rows"}, ValueError, "rows"),
    "plate: its kind": ({"plate": 1}, TypeError, "plate must be the name of a plate; got 1"),
    "model_kwargs": ({"model_kwargs": 1}, TypeError, "model_kwargs must be a dict"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_explained(what):
    options, error, message = WRONG[what]
    random = torch.get_rng_state()
    with pytest.raises(error, match=re.escape(message)):
        lvm.compare_elbos(model, guide, **({"elbos": TRACE, "num_repeats": 2} | options))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_result_of_another_model_is_refused():
    result = lvm.fit(bits, bits_guide, ROWS, num_steps=1, optim=SGD, progress=False)
    with pytest.raises(ValueError, match=re.escape("params shares no parameter with this fit: it has ['slope']")):
        lvm.compare_elbos(model, guide, params=result, elbos=TRACE)


def test_a_model_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="model must be a callable"):
        lvm.compare_elbos(None, guide)


# Models of the package and others, with the usual estimators


def rows_of(count, features):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0))


def summed_out(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 2.0]))
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z] + shift, 1.0), obs=x)


def test_sites_that_are_summed_out():
    comparison = lvm.compare_elbos(summed_out, "mean_field", ROWS, num_repeats=10)
    assert set(comparison.refused) == {"TraceMeanField_ELBO"}
    assert len(comparison) == 7


def test_ppca_with_its_exact_guide():
    """Model and guide share parameters, so that only the total gradient is right; every particle weighs the same."""
    x = rows_of(20, 4)
    ppca = lvm.models.PPCA(2, 4).initialize(x)
    comparison = lvm.compare_elbos(ppca, ppca.guide, x, num_repeats=50)
    exact = ppca.marginal().log_prob(x).sum().item()
    assert set(comparison.refused) == {"TraceSTL_ELBO", "TraceIWAE_ELBO, dreg", "TraceIWAE_ELBO, stl"}
    assert all("belongs to the model too" in reason for reason in comparison.refused.values())
    for name, found in comparison.items():
        assert found.value == pytest.approx(exact, abs=1e-3 + 4 * found.standard_error)
        assert not comparison.biased(name)


def test_a_linear_gaussian_model_is_one_at_its_posterior_too():
    """Where the log-weight is constant."""
    comparison = lvm.compare_elbos(model, exact_guide, elbos={"draws": elbo.Trace_ELBO()}, num_repeats=5)
    assert comparison["draws"].reference == "exact, for a linear Gaussian model"
    x = rows_of(20, 4)
    ppca = lvm.models.PPCA(2, 4).initialize(x)
    comparison = lvm.compare_elbos(ppca, ppca.guide, x, elbos={"draws": elbo.Trace_ELBO()}, num_repeats=5)
    assert comparison["draws"].reference == "exact, for a linear Gaussian model"


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_a_vae(likelihood):
    x = (rows_of(12, 6) > 0).float()
    vae = lvm.models.VAE(6, 2, hidden=(8,), likelihood=likelihood)
    comparison = lvm.compare_elbos(vae, vae.guide, x, num_repeats=20)
    assert comparison.refused == {}
    assert comparison["Trace_ELBO"].reference.startswith("mean of 200 gradients")
    assert not any(comparison.biased(name) for name, c in comparison.items() if c.unbiased)
    assert {n.partition(".")[0] for n in comparison["Trace_ELBO"].parameters} >= {"encoder", "decoder"}


def test_logistic_regression_with_a_full_rank_guide():
    X = rows_of(40, 3)
    y = (X[:, 0] > 0).float()
    regression = lvm.models.BayesianLogisticRegression(3)
    comparison = lvm.compare_elbos(regression, "full_rank", X, y, num_repeats=30)
    assert len(comparison) + len(comparison.refused) == 8
    assert {"Trace_ELBO", "TraceSTL_ELBO", "TraceScore_ELBO", "TraceIWAE_ELBO, dreg"} <= set(comparison)
    assert comparison["TraceSTL_ELBO"].sd < comparison["TraceScore_ELBO"].sd
    assert not any(comparison.biased(name) for name in comparison)
