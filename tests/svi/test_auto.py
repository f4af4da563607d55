"""The guide that climbs: where it stops, what it tells, and that its draws are those of the posterior."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.data import Data
from pyro_lvm.guides import FlowGuide
from pyro_lvm.importance import Estimate
from pyro_lvm.svi.auto import _taken
from pyro_lvm.svi.climb import Step
from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.fit_rung import Reached, fit_rung
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.rung_start import Foothold, enough_particles, find_start, rung_loop
from pyro_lvm.svi.rungs import FullRank, LowRank, MeanField
from pyro_lvm.svi.task import Task
from pyro_lvm.verdict.marginals import MOST_MEAN_ERROR, MOST_SD_ERROR

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.0], [900.0, 300.0]])
Y = X @ torch.tensor([0.5, 0.01]) + torch.randn(60, generator=torch.Generator().manual_seed(1))


def regression(X, y=None):
    """Normal-normal, its predictors of very different sizes."""
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ b, 1.0), obs=y)


def exact(X, y):
    precision = X.double().T @ X.double() + torch.eye(2).double() / 100
    covariance = torch.linalg.inv(precision)
    return covariance @ (X.double().T @ y.double()), covariance


def auto(model, *data, **options):
    return lvm.fit(model, "auto", *data, progress=False, **options)


@pytest.fixture(scope="module")
def fit():
    return auto(regression, X, Y)


def test_a_conjugate_posterior_of_bad_scales_is_found_by_a_full_rank_guide(fit):
    mean, covariance = exact(X, Y)
    assert fit.climb.guide == "full_rank"
    posterior = fit.posterior()["b"]
    sds = covariance.diagonal().sqrt()
    assert ((posterior.mean.double() - mean) / sds).abs().max() < 0.05
    assert (posterior.stddev.double() / sds - 1).abs().max() < 0.05
    draws = fit.sample(4_000)["b"].double()
    assert ((draws.mean(0) - mean) / sds).abs().max() < 5 / 4_000**0.5
    assert (torch.cov(draws.T)[0, 1] / covariance[0, 1]).item() == pytest.approx(1, abs=0.1)


def test_the_way_is_told(fit):
    assert [step.guide for step in fit.climb.steps] == ["laplace", "mean_field", "full_rank"]
    laplace, mean_field, full_rank = fit.climb.steps
    assert "8 of 8 starts" in laplace.note
    assert mean_field.verdict == "skipped"
    assert "standard deviation would be" in mean_field.note
    assert full_rank.verdict == "good"
    assert full_rank.khat < 0.7
    assert full_rank.num_steps == len(fit.losses)
    rates = [epoch.learning_rate for epoch in full_rank.epochs]
    assert rates == sorted(rates, reverse=True)
    assert [line.strip() for line in str(fit).splitlines() if "mean_field" in line] == [str(mean_field)]
    ax = fit.climb.plot()
    assert ax.get_ylabel() == "below the largest ELBO (nats)"
    (line,) = ax.lines
    assert line.get_ydata().min() == 0.0
    assert line.get_xdata()[-1] == full_rank.num_steps


def test_the_same_seed_takes_the_same_way(fit):
    again = auto(regression, X, Y)
    assert again.climb.steps[-1].epochs == fit.climb.steps[-1].epochs
    assert all(torch.equal(again.params[name], value) for name, value in fit.params.items())


def test_what_is_saved_is_read(fit, tmp_path):
    fit.save(tmp_path / "fit.pt")
    read = lvm.load(tmp_path / "fit.pt", regression, "auto", X, Y)
    assert read.climb.guide == "full_rank"
    assert read.climb.steps[-1].epochs == fit.climb.steps[-1].epochs
    assert torch.equal(read.sample(10)["b"], fit.sample(10)["b"])


def test_predictions_and_arviz_take_the_resampled_draws(fit):
    assert fit.resamples
    drawn = lvm.to_arviz(fit, num_draws=50).posterior["b"].to_numpy()[0]
    assert torch.equal(torch.from_numpy(drawn), fit.sample(50)["b"])
    assert fit.predict(X[:3], num_draws=20)["y"].shape == (20, 3)


def test_independent_latents_end_at_the_mean_field():
    def model(y):
        with pyro.plate("rows", len(y)):
            m = pyro.sample("m", dist.Normal(0.0, 2.0))
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    y = torch.tensor([-1.0, 0.0, 3.0])
    result = auto(model, y)
    assert result.climb.guide == "mean_field"
    assert isinstance(result._program.guide, AutoNormal)
    torch.testing.assert_close(result.posterior()["m"].mean, 0.8 * y, atol=0.03, rtol=0)
    torch.testing.assert_close(result.posterior()["m"].stddev, torch.full((3,), 0.8**0.5), atol=0.03, rtol=0)


@pytest.mark.slow
def test_flat_priors_and_a_probability_at_its_edge():
    """Twenty successes of twenty are Beta(21, 1), whose mode is 1; a level with a flat prior is N(mean, 1 / n)."""

    def model(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("successes", dist.Binomial(20, p), obs=torch.tensor(20.0))
        level = pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    y = 1e4 + torch.arange(4.0)
    draws = auto(model, y).sample(10_000)
    for name, exact in (("p", dist.Beta(21.0, 1.0)), ("level", dist.Normal(y.mean(), 0.5))):
        assert ((draws[name].mean() - exact.mean) / exact.stddev).abs() < 0.1
        assert (draws[name].std() / exact.stddev - 1).abs() < 0.1


def banana():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.5))


@pytest.mark.slow
def test_a_banana_takes_a_flow():
    """E[y] = 1, Var[y] = 2.25, and a good verdict promises a quarter of an sd and a fifth of it."""
    result = auto(banana)
    assert result.climb.taken.verdict == "good"
    assert result.climb.guide == "flow"
    assert isinstance(result._program.guide, FlowGuide)
    y = result.sample(10_000)["y"]
    assert y.mean().item() == pytest.approx(1.0, abs=MOST_MEAN_ERROR * 1.5)
    assert y.std().item() == pytest.approx(1.5, rel=MOST_SD_ERROR)


@pytest.mark.slow
def test_a_second_mode_puts_a_fit_in_doubt():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(x**2, 0.5), obs=torch.tensor(9.0))

    result = auto(model)
    assert result.climb.other_modes == pytest.approx(0.5, abs=0.01)
    report = lvm.diagnose(result, num_draws=1_000)
    assert report.verdict == "doubtful"
    assert "modes that were not taken" in report.summary()


def test_parameters_of_the_model_move_along():
    """The maximum of the marginal likelihood y ~ Normal(mu, 2)."""

    def model(y):
        mu = pyro.param("mu", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = torch.tensor([1.0, 2.0, 3.0, 6.0])
    result = auto(model, y)
    assert result.params["mu"].item() == pytest.approx(3.0, abs=0.05)
    assert math.isnan(result.climb.other_modes)
    assert lvm.diagnose(result, num_draws=1_000).verdict == "good"


@pytest.mark.slow
def test_of_a_model_with_parameters_the_modes_at_the_start_decide_nothing():
    """x ~ N(0, 1) and y ~ N(x^2 w + x (1 - w), 1/4) of y = 1, where w begins at 1, with two modes, and ends at 0."""

    def model():
        w = pyro.param("w", torch.tensor(0.9), constraint=dist.constraints.unit_interval)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("less", -20 * w)
        pyro.sample("y", dist.Normal(2 * x.square() * w + x * (1 - w), 0.25), obs=torch.tensor(1.0))

    result = auto(model, compile=False)
    assert result.params["w"] < 0.1
    assert math.isnan(result.climb.other_modes)
    assert not result.climb.misses_modes


def test_enumerated_sites_are_summed_out():
    """The share of heads among two coins, by a grid."""

    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)

    y = torch.tensor([0.1, -0.3, 2.2, 1.9, 2.5, 1.0])
    grid = torch.linspace(0.0005, 0.9995, 1_000).double()
    of = [dist.Normal(loc, 1.0).log_prob(y.double()).exp() for loc in (0.0, 2.0)]
    density = (grid * (1 - grid)) * (grid[:, None] * of[1] + (1 - grid[:, None]) * of[0]).prod(-1)
    mean = (grid * density).sum() / density.sum()
    sd = (((grid - mean) ** 2 * density).sum() / density.sum()).sqrt()
    p = auto(model, y).sample(4_000)["p"].double()
    assert ((p.mean() - mean) / sd).abs() < 0.1
    assert (p.std() / sd - 1).abs() < 0.1


@pytest.mark.slow
def test_without_a_mode_the_climb_goes_on():
    def funnel():
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("many", 6):
            pyro.sample("x", dist.Normal(0.0, scale))

    result = auto(funnel)
    assert result.climb.steps[0].verdict == "failed"
    assert len(result.climb.steps) > 1
    assert result.sample(10)["x"].shape == (10, 6)


@pytest.mark.slow
def test_a_model_that_raises_at_some_draws_is_fitted_without_a_verdict():
    """A Gaussian process whose covariance has no Cholesky factor, in single precision, where its noise is small."""
    x = torch.linspace(0, 5, 40)
    y = torch.sin(2 * x) + 0.3 * torch.randn(40, generator=torch.Generator().manual_seed(0))

    def model(y):
        length, noise = (pyro.sample(name, dist.HalfNormal(1.0)) for name in ("length", "noise"))
        covariance = torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-5) * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)

    result = auto(model, y)
    assert result.climb.steps[0].verdict == "start"
    noise = result.sample(1_000)["noise"] if not result.resamples else result.posterior()["noise"].sample((1_000,))
    assert noise.mean().item() == pytest.approx(0.3, abs=0.1)


at_once = (lambda: True, lambda steps: None)  # interrupted before the first step


def task(model, *data):
    return Task(model, Data(data), None, None, False, 0)


def test_weighted_rows_are_neither_judged_nor_resampled():
    """Ten rows of weight 0.3 and a standard normal prior: a posterior of variance 1 / 4."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)), pyro.poutine.scale(scale=0.3):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    at = Coordinates(torch.tensor([0.3 * 45 / 4]), torch.tensor([0.5]), torch.eye(1))
    reached = fit_rung(task(model, torch.arange(10.0)), model, FullRank(), [Foothold(at, {})], *at_once)
    assert reached.step.verdict == "not available"
    assert "rows or sites are weighted" in reached.step.note
    assert not reached.resamples


@pytest.mark.parametrize(("precision", "particles"), [(0.75**0.5, 4), (3**0.5, 16), (12**0.5, 64)])
def test_particles_follow_the_noise_of_the_gradient(precision, particles):
    """A guide of variance 1: the gradient of a draw has a variance of precision^2, 0.75, 3 and 12, to become 1/4."""

    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("density", -0.5 * precision * x.square())

    rung, at = FullRank(), Coordinates(torch.zeros(1), torch.ones(1), torch.eye(1))
    guide = rung.guide(model)
    objective = task(model).objective(guide)
    start = find_start(task(model), objective, guide, rung, [Foothold(at, {})], lambda: False)
    assert enough_particles(objective, guide, rung, start) == particles


def started(rung, model, *places):
    """Where a rung starts, and the ELBO there."""
    guide = rung.guide(model)
    objective = task(model).objective(guide)
    footholds = [Foothold(at, {}) for at in places]
    start = find_start(task(model), objective, guide, rung, footholds, lambda: False)
    return start.coordinates, -objective.with_elbo(lvm.elbo.Trace_ELBO(2_000)).value(start.values, ())


def test_a_guide_starts_at_the_best_foothold():
    mean, covariance = exact(X, Y)
    best = Coordinates.of_covariance(mean.float(), covariance)
    worse = Coordinates(torch.zeros(2), torch.ones(2), torch.eye(2))
    for places in ((worse, best), (best, worse)):
        at, _ = started(FullRank(), lambda: regression(X, Y), *places)
        assert at.loc is best.loc


def of_a_common_number(scales):
    """Numbers z_i = s_i (u + e_i), u around 2: a Gaussian of which the largest ELBO is 0."""

    def model():
        u = pyro.sample("u", dist.Normal(2.0, 1.0))
        pyro.sample("z", dist.Normal(u * scales, scales).to_event(1))

    return model


def test_a_mean_field_starts_where_some_steps_come_to_the_best():
    """Ten groups, whose density grows without end where their spread goes to zero."""
    y = torch.linspace(-6, 6, 10)

    def model():
        log_spread = pyro.sample("log_spread", dist.Normal(0.0, 30.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(10), log_spread.exp()).to_event(1))
        pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    collapsed = Coordinates(torch.tensor([-9.0, *[0.0] * 10]), torch.tensor([0.1, *[1e-4] * 10]))
    apart = Coordinates(torch.zeros(11), torch.full((11,), 0.1))
    infinite = Coordinates(torch.tensor([200.0, *[0.0] * 10]), torch.ones(11))
    rung = MeanField()
    rung.trial = 100
    assert started(rung, model, infinite, collapsed, apart)[0].loc[0] > -2
    rung.trial = 0
    assert started(rung, model, infinite, collapsed, apart)[0].loc[0] == -9


def test_steps_that_lead_away_are_not_taken():
    """The best independent normals have the conditional scales, and log 10 less than the evidence."""
    scales = torch.logspace(-2, 2, 99)
    rung = MeanField()
    rung.trial = 100
    best = Coordinates(torch.cat([torch.tensor([2.0]), 2 * scales]), torch.cat([torch.tensor([0.1]), scales]))
    far = Coordinates(torch.zeros(100), torch.full((100,), 0.1))
    at, elbo = started(rung, of_a_common_number(scales), far, best)
    assert at.loc[0] == 2
    assert elbo == pytest.approx(-math.log(10), abs=0.15)  # 4 standard errors


def test_where_a_step_fails_those_before_it_count(monkeypatch):
    """Steps from 0.5 towards 0, the 21st of which fails."""
    run = EagerLoop.run

    def failing(loop, *args):
        run(loop, 0, 20, lambda: False)
        raise RuntimeError("the solver failed")

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    monkeypatch.setattr(EagerLoop, "run", failing)
    near, far = (Coordinates(torch.full((3,), place), torch.ones(3)) for place in (0.5, 9.0))
    for places in ((near, far), (far, near)):
        at, _ = started(MeanField(), model, *places)
        assert at.loc.abs().max() < 0.4


def test_a_guide_starts_where_it_can():
    finite = Coordinates(torch.zeros(3), torch.ones(3))
    nowhere = Coordinates(torch.full((3,), torch.nan), torch.ones(3))
    for rung in (MeanField(), LowRank()):
        rung.trial = 0
        at, _ = started(rung, of_a_common_number(torch.ones(2)), nowhere, finite)
        assert at.loc.eq(0).all()
        with pytest.raises(ValueError, match="not finite"):
            started(rung, of_a_common_number(torch.ones(2)), nowhere, nowhere)


def test_a_low_rank_guide_starts_with_the_wide_directions():
    scales = torch.logspace(-2, 2, 99)
    at = Coordinates(torch.cat([torch.tensor([2.0]), 2 * scales]), torch.cat([torch.tensor([0.1]), scales]))
    _, elbo = started(LowRank(), of_a_common_number(scales), at)
    assert elbo == pytest.approx(-0.15, abs=0.05)  # u has twice the variance given all z: 0.5 (1 - log 2)


def test_directions_that_mislead_are_not_taken():
    """A density that is flat but for walls at -1 and 1, by draws that do not reach them."""

    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (9,)))
        pyro.factor("density", -(x.abs() - 1).relu().pow(4).sum() * 100 - 0.005 * x.square().sum())

    at, elbo = started(LowRank(), model, Coordinates(torch.zeros(9), torch.full((9,), 0.1)))
    assert at.wide is None
    assert elbo == pytest.approx(9 * math.log(0.1 * (2 * math.pi * math.e) ** 0.5), abs=0.2)


def test_a_low_rank_guide_is_what_it_becomes():
    generator = torch.Generator().manual_seed(0)
    origin, unit, loc, scale = (torch.rand(9, generator=generator) + 0.5 for _ in range(4))
    wide, factor = (torch.randn(9, 3, generator=generator) for _ in range(2))
    model = of_a_common_number(torch.ones(8))
    guide = LowRank().guide(model)
    task(model).objective(guide)
    params = {"origin": origin, "unit": unit, "loc": loc, "scale": scale, "wide": wide, "cov_factor": factor}
    for name, value in params.items():
        setattr(guide, name, value if name == "scale" else torch.nn.Parameter(value))
    root = torch.diag(unit * scale)
    moved, becomes = guide.get_posterior(), LowRank().finish(guide, params)
    covariance = root @ (torch.eye(9) + factor @ factor.T) @ root
    torch.testing.assert_close(moved.loc, origin + unit * ((torch.eye(9) + wide @ wide.T) @ loc))
    torch.testing.assert_close(moved.covariance_matrix, covariance)
    torch.testing.assert_close(becomes["loc"], moved.loc)
    by_name = becomes["scale"].unsqueeze(-1) * becomes["cov_factor"]  # as Pyro's guide has its factor
    torch.testing.assert_close(by_name @ by_name.T + torch.diag(becomes["scale"].square()), covariance)


@pytest.mark.parametrize("rung", [MeanField(), LowRank()])
def test_at_the_posterior_gradients_have_no_noise(rung):
    scales = torch.tensor([0.1, 1.0, 10.0])

    def model():
        pyro.sample("x", dist.Normal(scales, scales).to_event(1))

    guide = rung.guide(model)
    objective = task(model).objective(guide).with_elbo(rung.elbo())
    at = Coordinates(scales, scales, wide=None if isinstance(rung, MeanField) else torch.zeros(3, 2))
    start = find_start(task(model), objective, guide, rung, [Foothold(at, {})], lambda: True)
    values = {name: value.detach().requires_grad_() for name, value in start.values.items()}
    gradients = torch.autograd.grad(objective(values, ()), list(values.values()), allow_unused=True)
    assert all(gradient.abs().max() < 1e-4 for gradient in gradients if gradient is not None)


def test_what_a_low_rank_guide_holds_does_not_move():
    model, rung = of_a_common_number(torch.ones(8)), LowRank()
    guide = rung.guide(model)
    objective = task(model).objective(guide)
    start = {name: value.detach().clone() for name, value in objective.program.parameters.start().items()}
    loop = rung_loop(task(model), objective, guide, rung, start, 4)
    before = {name: value.detach().clone() for name, value in start.items()}
    loop.run(0, 2, lambda: False)
    same = {name.rpartition(".")[2] for name in before if torch.equal(before[name], loop.params[name])}
    assert same == {"origin", "unit", "wide"}


def test_a_low_rank_guide_starts_without_them_where_a_model_has_no_second_derivative():
    class Half(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return -0.5 * x.square()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return -gradient * ctx.saved_tensors[0]

    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (9,)))
        pyro.factor("density", Half.apply(x).sum())

    at = Coordinates(torch.zeros(9), torch.ones(9))
    exact = 4.5 * math.log(2 * math.pi)
    assert started(LowRank(), model, at)[1] == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize(
    ("verdicts", "elbos", "taken"),
    [
        (("bad", "good"), (-1.0, -2.0), 1),
        (("bad", "doubtful"), (-1.0, -2.0), 0),
        (("bad", "unknown"), (math.nan, -2.0), 1),
    ],
)
def test_the_last_is_taken_if_it_is_good_else_the_largest_elbo(verdicts, elbos, taken):
    fits = [lvm.fit(regression, "mean_field", X, Y, num_steps=1, progress=False) for _ in verdicts]
    steps = [
        Step(str(i), verdict, elbo=Estimate(elbo, 0.1))
        for i, (verdict, elbo) in enumerate(zip(verdicts, elbos, strict=True))
    ]
    reached = [Reached(step, result, False, None) for step, result in zip(steps, fits, strict=True)]
    assert _taken(reached, steps, 0.0) is fits[taken]
    assert fits[taken].climb.guide == str(taken)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_steps", 100),
        ("optim", 0.1),
        ("batch_size", 5),
        ("sample_weight", torch.ones(60)),
        ("init", {}),
        ("num_restarts", 2),
        ("elbo", lvm.elbo.Trace_ELBO(2)),
        ("callbacks", [print]),
    ],
)
def test_what_it_chooses_cannot_be_given(option, value):
    with pytest.raises(ValueError, match=f"leave out {option}="):
        auto(regression, X, Y, **{option: value})


def test_models_without_continuous_latents_are_refused():
    with pytest.raises(ValueError, match="has nothing to cover"):
        auto(lambda: pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0)))


def test_minibatches_are_refused():
    def own_rows(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])

    with pytest.raises(ValueError, match="takes 2 of its 4 elements"):
        auto(own_rows, torch.zeros(4))
    with pytest.raises(TypeError, match="no DataLoader"):
        auto(regression, DataLoader(TensorDataset(X, Y)))


def test_it_is_no_guide_elsewhere():
    with pytest.raises(ValueError, match=r"pass it to pyro_lvm\.fit"):
        lvm.Objective(regression, "auto").init(X, Y)


def test_every_guide_that_fails_is_told():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("never", x * torch.inf)

    with pytest.raises(ValueError, match="no guide could be fitted"):
        auto(model, compile=False)


def test_what_a_model_raises_is_told_of_each_guide():
    runs = itertools.count()

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if next(runs) > 40:
            raise RuntimeError("the solver failed")
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(
        ValueError, match=r"mean_field: failed.*the solver.*full_rank: failed.*the solver.*flow: failed"
    ):
        auto(model, compile=False)


@pytest.mark.slow
def test_many_latents_take_a_low_rank_guide():
    scales = torch.logspace(-2, 2, 1_100)
    result = auto(of_a_common_number(scales))
    assert result.climb.guide == "low_rank"
    z = result.sample(2_000)["z"] / scales
    assert (z.mean(0) - 2).abs().max() < 0.2
    assert (z.std(0) / 2**0.5 - 1).abs().mean() < 0.03


@pytest.mark.slow
def test_many_groups_do_not_collapse():
    """1,200 groups of spread 0.5, some three rows each: the density grows without end as the spread goes to zero."""
    generator = torch.Generator().manual_seed(1)
    group = torch.randint(1_200, (4_000,), generator=generator)
    y = (1 + 0.5 * torch.randn(1_200, generator=generator))[group] + torch.randn(4_000, generator=generator)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        spread = pyro.sample("spread", dist.HalfNormal(2.0))
        of_group = pyro.sample("of_group", dist.Normal(mean, spread).expand([1_200]).to_event(1))
        pyro.sample("y", dist.Normal(of_group[group], 1.0).to_event(1), obs=y)

    result = auto(model, y)
    _, mean_field, low_rank = result.climb.steps
    assert 0 < low_rank.elbo.value - mean_field.elbo.value < 5
    assert result.sample(2_000)["spread"].mean().item() == pytest.approx(0.5, abs=0.06)


def test_a_full_rank_guide_comes_of_it(fit):
    assert isinstance(fit._program.guide, AutoMultivariateNormal)
