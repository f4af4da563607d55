"""The options of a fit: weights, batches, optimizers, schedules, callbacks, stopping, and how wrong ones are told."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.svi.stopping import improvement

X = torch.tensor([0.5, -1.0, 2.0, 0.1, 3.0])
QUIET = {"progress": False, "num_steps": 6}


def SGD(params):
    return torch.optim.SGD(params, lr=0.01)


def model(x, shift=0.0):
    mean = pyro.sample("mean", dist.Normal(shift, 10.0))
    scale = pyro.param("scale", torch.tensor(1.2), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def mixture(x):
    weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def density(x):
    """No latent at all, so that losses have no noise."""
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("rows", len(x)):
        pyro.sample(
            "x", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)), obs=x
        )


def equal(one, other, rtol=1e-5):
    torch.testing.assert_close(one.losses, other.losses, rtol=rtol, atol=1e-5)
    assert list(one.params) == list(other.params)
    torch.testing.assert_close(one.params, other.params, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(
    ("program", "guide"), [(model, "mean_field"), (model, "map"), (mixture, None), (density, None)]
)
def test_weights_are_repeated_rows(program, guide):
    counts = [2, 1, 0, 3, 1]
    weighted = lvm.fit(program, guide, X, sample_weight=counts, optim=SGD, **QUIET)
    repeated = lvm.fit(program, guide, X.repeat_interleave(torch.tensor(counts)), optim=SGD, **QUIET)
    equal(weighted, repeated)
    plain = lvm.fit(program, guide, X, optim=SGD, **QUIET)
    assert (weighted.losses - plain.losses).abs().min() > 0.1


@pytest.mark.parametrize(
    "weight", [[1.0] * 5, np.ones(5, int), torch.ones(5), pd.Series(np.ones(5))], ids=lambda w: type(w).__name__
)
def test_weights_of_one_change_nothing(weight):
    equal(lvm.fit(mixture, None, X, sample_weight=weight, **QUIET), lvm.fit(mixture, None, X, **QUIET))


def test_a_loader_equals_its_batches_by_hand():
    loader = DataLoader(TensorDataset(X), batch_size=2)
    result = lvm.fit(density, None, loader, optim=SGD, **QUIET)
    objective = lvm.Objective(density)
    params = objective.init(X[:2])
    optimizer = torch.optim.SGD(params.values(), lr=0.01)
    losses = []
    for batch in [X[:2], X[2:4], X[4:]] * 2:
        optimizer.zero_grad()
        loss = objective(params, batch, num_rows=5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(result.losses, torch.tensor(losses, dtype=torch.float64))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


def test_a_loader_without_a_length_takes_num_rows():
    given = lvm.fit(density, None, DataLoader(Stream(), batch_size=2), num_rows=5, optim=SGD, **QUIET)
    equal(given, lvm.fit(density, None, DataLoader(TensorDataset(X), batch_size=2), optim=SGD, **QUIET))


def regression(x, y, common):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(len(common)), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slope + common.sum(), 1.0), obs=y)


def test_arguments_with_rows_are_found_or_named():
    x, common = torch.randn(6, 2), torch.ones(2)
    y = x.sum(1)
    whole = lvm.fit(regression, "mean_field", x, y, common, batch_size=4, **QUIET)
    equal(whole, lvm.fit(regression, "mean_field", x, y, common, batch_size=4, rows=[0, 1], **QUIET))
    # by size alone, an argument of two rows would count as one with rows
    x, y = torch.randn(2, 2), torch.randn(2)
    result = lvm.fit(regression, "mean_field", x, y, common, batch_size=1, rows=(0, 1), **QUIET)
    assert result.params["AutoNormal.locs.slope"].shape == (2,)


def test_frames_and_arrays_equal_tensors():
    expected = lvm.fit(density, None, X, **QUIET)
    array = X.double().numpy()
    nullable = pd.Series(array, dtype="Float64")
    for data in (array, pd.Series(array), nullable, array.tolist(), array.astype(">f8"), array.astype(np.float32)):
        equal(lvm.fit(density, None, data, **QUIET), expected)
    frame = pd.DataFrame({"a": array, "b": array})

    def wide(x):
        density(x[:, 0] if len(x.shape) > 1 else x)

    equal(lvm.fit(wide, None, frame, **QUIET), expected)


def test_model_kwargs_reach_model_and_guide():
    moved = lvm.fit(model, "map", X, model_kwargs={"shift": 4.0}, **QUIET)
    assert (moved.losses - lvm.fit(model, "map", X, **QUIET).losses).abs().min() > 1e-3


def two_plates(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("first", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
    with pyro.plate("second", len(x)):
        pyro.sample("y", dist.Normal(mean, 2.0), obs=x)


def test_the_row_plate_can_be_named():
    with pytest.raises(ValueError, match=r"several plates follow the rows.*\['first', 'second'\]; name one"):
        lvm.fit(two_plates, "map", X, **QUIET)
    result = lvm.fit(two_plates, "map", X, plate="second", **QUIET)
    loc = result.params["AutoDelta.mean"]
    torch.testing.assert_close(result.score().value.float(), dist.Normal(loc, 2.0).log_prob(X))


# Optimizers.


def losses_by_torch(make, num_steps=6, schedule=None, clip=None):
    """The same fit written as a loop over a closed form."""
    loc, log_scale = torch.tensor(0.3, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    optimizer = make([loc, log_scale])
    scheduler = schedule and schedule(optimizer)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = -dist.Normal(loc, log_scale.exp()).log_prob(X).sum()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([loc, log_scale], clip)
        return loss

    for _ in range(num_steps):
        losses.append(optimizer.step(closure).item())
        if scheduler:
            scheduler.step()
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(
    "make",
    [
        SGD,
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9)),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=3),
    ],
    ids=["SGD", "Adam", "RMSprop", "LBFGS"],
)
def test_any_torch_optimizer(make):
    result = lvm.fit(density, None, X, optim=make, **QUIET)
    torch.testing.assert_close(result.losses, losses_by_torch(make), rtol=1e-5, atol=1e-5)


def test_a_number_is_adams_learning_rate():
    result = lvm.fit(density, None, X, optim=0.05, **QUIET)
    torch.testing.assert_close(
        result.losses, losses_by_torch(lambda p: torch.optim.Adam(p, lr=0.05)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("clip", [0.5, 3])
def test_gradients_are_clipped_by_their_norm(clip):
    result = lvm.fit(density, None, X, optim=SGD, clip=clip, **QUIET)
    torch.testing.assert_close(result.losses, losses_by_torch(SGD, clip=clip), rtol=1e-5, atol=1e-5)
    assert (result.losses[1:] - losses_by_torch(SGD)[1:]).abs().min() > 1e-3


def test_a_schedule_steps_once_a_step():
    def schedule(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)

    result = lvm.fit(density, None, X, optim=SGD, scheduler=schedule, **QUIET)
    torch.testing.assert_close(result.losses, losses_by_torch(SGD, schedule=schedule), rtol=1e-5, atol=1e-5)
    assert (result.losses[3:] - losses_by_torch(SGD)[3:]).abs().min() > 1e-3


def by_pyro(optimizer, num_steps=6):
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(density, lambda x: None, optimizer, pyro.infer.Trace_ELBO())
        losses = [svi.step(X) for _ in range(num_steps)]
        return torch.tensor(losses, dtype=torch.float64)


def per_name(name):
    return {"lr": 0.3 if name == "scale" else 0.001}


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.Adam({"lr": 0.1}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.8, "clip_norm": 0.5}),
        lambda: pyro.optim.SGD({"lr": 0.02}, {"clip_norm": 0.3}),
        lambda: pyro.optim.SGD({"lr": 0.02}, {"clip_value": 0.2}),
        lambda: pyro.optim.Adam(per_name),
    ],
    ids=["Adam", "ClippedAdam", "clip_norm", "clip_value", "per parameter"],
)
def test_pyros_optimizers_take_the_steps_that_pyro_takes(make):
    result = lvm.fit(density, None, X, optim=make(), **QUIET)
    torch.testing.assert_close(result.losses, by_pyro(make()), rtol=1e-5, atol=1e-5)


# Starts.


def test_a_start_is_a_dict_or_a_result():
    start = {"scale": 2.5, "loc": torch.tensor(-1.0)}
    result = lvm.fit(density, None, X, init=start, **QUIET)
    assert result.losses[0].item() == pytest.approx(-dist.Normal(-1.0, 2.5).log_prob(X).sum().item(), rel=1e-6)
    on = lvm.fit(density, None, X, init=result, **QUIET)
    assert on.losses[0] < result.losses[-1]
    assert lvm.fit(density, None, X, init={"scale": 2.5}, **QUIET).losses[0] != on.losses[0]
    # parameters that both have
    other = lvm.fit(model, "map", X, init=result, num_steps=1, optim=lambda p: torch.optim.SGD(p, 0.0), progress=False)
    assert other.params["scale"].item() == pytest.approx(result.params["scale"].item())


# Callbacks, validation, stopping.


def test_callbacks_see_the_fit_and_stop_it():
    seen = []

    def callback(state):
        seen.append(state)
        torch.rand(100)  # whose noise is its own
        return state.step >= 9

    result = lvm.fit(
        model, "mean_field", X, num_steps=50, every=3, callbacks=[callback], validation=X[:2], progress=False
    )
    free = lvm.fit(model, "mean_field", X, num_steps=50, every=3, progress=False)
    assert [s.step for s in seen] == [3, 6, 9]
    assert result.num_steps == len(result.losses) == 9
    assert torch.equal(result.losses, free.losses[:9])
    assert torch.equal(seen[1].losses, free.losses[:6])
    assert seen[2].params.keys() == result.params.keys()
    assert all(torch.equal(v, result.params[n]) for n, v in seen[2].params.items())
    assert list(seen[2].validation) == [3, 6, 9] == list(result.validation)
    assert seen[0].every == 3


def test_all_callbacks_run_even_if_the_first_stops():
    seen = []
    lvm.fit(density, None, X, num_steps=9, every=3, callbacks=[lambda s: True, seen.append], progress=False)
    assert len(seen) == 1


def test_validation_is_the_loss_of_the_held_out_rows():
    held_out = torch.tensor([9.0, 8.0])
    result = lvm.fit(density, None, X, num_steps=4, every=2, validation=held_out, progress=False)
    options = {"num_steps": 4, "every": 2, "progress": False}
    for same in ([held_out], (held_out,), held_out.tolist()):
        assert lvm.fit(density, None, X, validation=same, **options).validation == result.validation
    loc, scale = result.params["loc"], result.params["scale"]
    assert result.validation[4] == pytest.approx(-dist.Normal(loc, scale).log_prob(held_out).sum().item(), rel=1e-5)


def state_of(losses, every=100):
    return lvm.FitState(len(losses), losses, {}, {}, every)


def test_stop_when_flat_sees_a_slow_descent_under_noise():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stop = lvm.StopWhenFlat()
    steps = range(400, 20_001, 100)
    slow = noise - 0.002 * torch.arange(20_000)
    assert not any(stop(state_of(slow[:n])) for n in steps if n >= 3000)
    assert any(stop(state_of(noise[:n])) for n in steps)
    gain, error = improvement(slow)
    assert gain == pytest.approx(0.002 * 5000, abs=4 * error)


def test_flat_noise_gains_nothing_within_its_error():
    generator = torch.Generator().manual_seed(1)
    ratios = []
    for _ in range(300):
        gain, error = improvement(torch.randn(1000, generator=generator, dtype=torch.float64))
        ratios.append(gain / error)
    ratios = torch.tensor(ratios)
    assert abs(ratios.mean()) < 4 / 300**0.5
    assert ratios.std().item() == pytest.approx(1, abs=4 / 600**0.5)


def test_a_stop_is_decided_alike_after_a_resume(tmp_path):
    options = {"num_steps": 3000, "every": 50, "progress": False, "optim": 0.05}
    straight = lvm.fit(model, "map", X, callbacks=[lvm.StopWhenFlat()], **options)
    assert 400 <= straight.num_steps < 3000

    def crash(state):
        if state.step == 450:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lvm.fit(model, "map", X, callbacks=[lvm.StopWhenFlat(), crash], checkpoint=tmp_path / "c", **options)
    resumed = lvm.fit(model, "map", X, callbacks=[lvm.StopWhenFlat()], checkpoint=tmp_path / "c", **options)
    assert torch.equal(resumed.losses, straight.losses)
    assert resumed.converged


@pytest.mark.parametrize(
    ("optim", "num_steps", "converged", "told"),
    [
        (torch.optim.LBFGS, 39, False, "too few steps to tell"),
        (torch.optim.LBFGS, 40, True, "steps), levelled off"),
        (lambda p: torch.optim.SGD(p, 1e-4), 40, False, "still falling"),
        (lambda p: torch.optim.SGD(p, 1e-4), 300, False, "still falling"),
    ],
)
def test_short_fits_tell_whether_they_have_levelled_off_if_they_can(optim, num_steps, converged, told):
    result = lvm.fit(density, None, X, optim=optim, num_steps=num_steps, progress=False)
    assert result.converged is converged
    assert told in str(result)


@pytest.mark.parametrize("wrong", [0, -1, "a", True, math.nan])
@pytest.mark.parametrize("name", ["patience", "num_errors", "min_steps"])
def test_wrong_arguments_of_stop_when_flat_are_explained(name, wrong):
    counts_a_kind = name != "num_errors" and type(wrong) is not int
    with pytest.raises(TypeError if counts_a_kind else ValueError, match=f"{name} must be .*positive.*; got {wrong!r}"):
        lvm.StopWhenFlat(**{name: wrong})


@pytest.mark.parametrize("name", ["patience", "min_steps"])
def test_counts_of_stop_when_flat_are_whole(name):
    with pytest.raises(TypeError, match=f"{name} must be a positive integer; got 2.5"):
        lvm.StopWhenFlat(**{name: 2.5})


def test_the_seed_fixes_everything_and_nothing_else_does():
    first = lvm.fit(model, "mean_field", X, batch_size=2, seed=3, **QUIET)
    torch.manual_seed(99)
    again = lvm.fit(model, "mean_field", X, batch_size=2, seed=3, **QUIET)
    assert torch.equal(first.losses, again.losses)
    assert not torch.equal(first.losses, lvm.fit(model, "mean_field", X, batch_size=2, seed=4, **QUIET).losses)


def with_generator(generator):
    return DataLoader(TensorDataset(X), batch_size=2, shuffle=True, generator=generator)


def with_sampler(generator):
    return DataLoader(TensorDataset(X), batch_size=2, sampler=RandomSampler(X, generator=generator))


def with_batch_sampler(generator):
    batches = BatchSampler(RandomSampler(X, generator=generator), 2, False)
    return DataLoader(TensorDataset(X), batch_sampler=batches)


@pytest.mark.parametrize("make", [with_generator, with_sampler, with_batch_sampler])
def test_the_seed_fixes_a_loader_with_a_generator_of_its_own(make):
    generator = torch.Generator().manual_seed(8)
    loader, state = make(generator), generator.get_state()
    first = lvm.fit(density, None, loader, seed=3, **QUIET)
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(ZeroDivisionError):
        lvm.fit(density, None, loader, callbacks=[lambda s: 1 / 0], every=2, **QUIET)
    assert torch.equal(generator.get_state(), state)
    generator.manual_seed(9)
    assert torch.equal(first.losses, lvm.fit(density, None, loader, seed=3, **QUIET).losses)
    assert not torch.equal(first.losses, lvm.fit(density, None, loader, seed=4, **QUIET).losses)


def wrong(*data, **options):
    programs = options.pop("model", model), options.pop("guide", "mean_field")
    return lambda: lvm.fit(*programs, *(data or (X,)), **({"progress": False} | options))


ERRORS = {
    "model: a kind": (wrong(model=3), TypeError, "model must be a callable .* got int"),
    "model: data": (wrong(model=X), TypeError, "model must be a callable .* got Tensor"),
    "guide: data": (wrong(guide=X.numpy()), TypeError, "the second argument is the guide, and data came"),
    "guide: unknown": (wrong(guide="normal"), ValueError, "unknown guide 'normal'"),
    "data: none": (lambda: lvm.fit(model, "map", progress=False), TypeError, "missing 1 required positional argument"),
    "data: no rows": (wrong(X[:0]), ValueError, "the data has no rows"),
    "data: NaN": (wrong(X * math.nan), ValueError, "data argument 0 is not finite: nan in row 0"),
    "data: text": (wrong(np.array(["a"])), TypeError, "encode text and categories"),
    "data: dtype": (wrong(X.double(), model=mixture, guide=None), ValueError, "float64.*float32.*convert"),
    "num_steps: none": (wrong(num_steps=0), ValueError, "num_steps must be a positive integer; got 0"),
    "num_steps: a fraction": (wrong(num_steps=10.0), TypeError, "num_steps must be a positive integer; got 10.0"),
    "elbo: a class": (wrong(elbo=pyro.infer.Trace_ELBO), TypeError, r"write Trace_ELBO\(\)"),
    "elbo: a name": (wrong(elbo="Trace"), TypeError, "elbo must be a pyro.infer.ELBO; got 'Trace'"),
    "optim: a kind": (wrong(optim="adam"), TypeError, "optim must be a learning rate, .* got str"),
    "optim: not positive": (wrong(optim=0.0), ValueError, "learning rate and must be positive and finite; got 0.0"),
    "optim: NaN": (wrong(optim=math.nan), ValueError, "must be positive and finite; got nan"),
    "optim: infinity": (wrong(optim=math.inf), ValueError, "must be positive and finite; got inf"),
    "optim: returns nothing": (wrong(optim=lambda p: None), TypeError, "must return a torch optimizer; .* NoneType"),
    "optim: scheduled by Pyro": (
        wrong(optim=pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, "gamma": 0.1})),
        ValueError,
        "the schedule as scheduler=",
    ),
    "scheduler: a kind": (wrong(scheduler=0.9), TypeError, "scheduler must be a function .* got float"),
    "scheduler: returns nothing": (
        wrong(scheduler=lambda o: o),
        TypeError,
        "must return a torch LR scheduler; .* Adam",
    ),
    "scheduler: plateau": (
        wrong(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau),
        ValueError,
        "reads single losses",
    ),
    "clip: not positive": (wrong(clip=0), ValueError, "clip must be a positive gradient norm; got 0"),
    "clip: a kind": (wrong(clip="1"), ValueError, "clip must be a positive gradient norm; got '1'"),
    "batch_size: none": (wrong(batch_size=0), ValueError, "batch_size must be a positive integer; got 0"),
    "batch_size: too large": (wrong(batch_size=6), ValueError, "batch_size=6 exceeds the number of rows, 5"),
    "batch_size: without rows": (
        wrong({"x": 1.0}, model=lambda x: density(X), guide=None, batch_size=1),
        ValueError,
        "has no rows",
    ),
    "plate: unknown": (wrong(plate="cols"), ValueError, r"plate='cols' does not follow the rows .* \['rows'\]"),
    "plate: a kind": (wrong(plate=-1), TypeError, "plate must be the name of a plate; got -1"),
    "rows: a kind": (wrong(rows=0), TypeError, r"rows must list the positions .* such as \[0, 1\]; got 0"),
    "rows: outside": (wrong(rows=[1]), ValueError, "rows names position 1, but there are 1 data arguments"),
    "num_rows: none": (wrong(num_rows=0), ValueError, "num_rows must be a positive integer; got 0"),
    "num_rows: too few": (wrong(num_rows=4), ValueError, "num_rows=4 is the number of rows in all, but 5 rows are"),
    "num_rows: a kind": (wrong(num_rows="5"), TypeError, "num_rows must be a positive integer; got '5'"),
    "num_rows: missing": (wrong(DataLoader(Stream(), batch_size=2)), ValueError, "no length: pass num_rows="),
    "sample_weight: a shape": (
        wrong(sample_weight=[1.0, 2.0]),
        ValueError,
        r"one entry per row, shape \[5\]; got \[2\]",
    ),
    "sample_weight: negative": (wrong(sample_weight=[1, 1, 1, 1, -1]), ValueError, "must be non-negative"),
    "sample_weight: nothing": (wrong(sample_weight=torch.zeros(5)), ValueError, "at least one positive entry"),
    "sample_weight: NaN": (wrong(sample_weight=X * math.nan), ValueError, "sample_weight is not finite"),
    "model_kwargs: a kind": (wrong(model_kwargs=["shift"]), TypeError, "model_kwargs must be a dict .* got list"),
    "model_kwargs: unknown": (wrong(model_kwargs={"y": 1}), TypeError, "unexpected keyword argument 'y'"),
    "compile: a kind": (wrong(compile="yes"), ValueError, "compile must be 'auto', True or False; got 'yes'"),
    "callbacks: one alone": (wrong(callbacks=print), TypeError, "callbacks must be a list of functions"),
    "callbacks: None": (wrong(callbacks=None), TypeError, "callbacks must be a list of functions"),
    "callbacks: a kind": (wrong(callbacks=[1]), TypeError, "callbacks must be a list of functions"),
    "every: none": (wrong(every=0), ValueError, "every must be a positive integer; got 0"),
    "every: a kind": (wrong(every=True), TypeError, "every must be a positive integer; got True"),
    "validation: too many": (wrong(validation=(X, X)), ValueError, "validation has 2 arguments, but .* given 1"),
    "data: missing": (
        wrong(pd.Series([1, None, 3], dtype="Int64")),
        ValueError,
        "data argument 0 is not finite: nan in row 1",
    ),
    "elbo: Renyi in minibatches": (
        wrong(elbo=pyro.infer.RenyiELBO(num_particles=2), batch_size=2),
        ValueError,
        "RenyiELBO takes the logarithm of an average .* the scale of a minibatch",
    ),
    "elbo: Renyi in a loader's batches": (
        wrong(DataLoader(TensorDataset(X), batch_size=2), elbo=pyro.infer.RenyiELBO(num_particles=2)),
        ValueError,
        "RenyiELBO takes the logarithm of an average .* the scale of a minibatch",
    ),
    "elbo: wake-sleep in minibatches": (
        wrong(elbo=pyro.infer.ReweightedWakeSleep(num_particles=2, vectorize_particles=False), batch_size=2),
        ValueError,
        "ReweightedWakeSleep takes the logarithm of an average",
    ),
    "validation: NaN": (
        wrong(validation=X * math.nan),
        ValueError,
        "validation argument 0 is not finite: nan in row 0",
    ),
    "validation: dtype": (wrong(validation=X.double()), ValueError, "float64.*float32"),
    "validation: a shape": (
        wrong(validation=torch.ones(3, 2)),
        ValueError,
        r"validation argument 0 has shape \[3, 2\]",
    ),
    "checkpoint: a folder": (
        wrong(checkpoint="/tmp"),
        ValueError,
        "checkpoint='/tmp' cannot be written: it is a folder",
    ),
    "checkpoint: nowhere": (wrong(checkpoint="/no/c"), ValueError, "the folder /no does not exist"),
    "checkpoint: a kind": (wrong(checkpoint=True), TypeError, "checkpoint must be a path; got True"),
    "init: a kind": (wrong(init=[1.0]), TypeError, "init must be a result or a dict of values by name; got list"),
    "init: unknown": (wrong(init={"a": 1.0}), ValueError, "init names 'a', which is no parameter; the parameters are"),
    "init: a shape": (wrong(init={"scale": [1.0, 2.0]}), ValueError, r"init\['scale'\] has shape \[2\], expected \[\]"),
    "init: outside": (wrong(init={"scale": -1.0}), ValueError, r"init\['scale'\] is outside its constraint"),
    "init: on the boundary": (
        wrong(model=mixture, guide=None, init={"weights": [1.0, 0.0]}),
        ValueError,
        r"init\['weights'\] is on the boundary of its constraint .*: start inside",
    ),
    "init: NaN": (wrong(init={"scale": math.nan}), ValueError, r"init\['scale'\] is"),
    "init: infinity": (
        wrong(init={"AutoNormal.locs.mean": math.inf}),
        ValueError,
        r"init\['AutoNormal.locs.mean'\] is",
    ),
    "init: text": (wrong(init={"scale": "big"}), TypeError, r"init\['scale'\] must be a number or a tensor; got 'big'"),
    "seed: a kind": (wrong(seed=1.0), TypeError, "seed must be a non-negative integer; got 1.0"),
    "seed: negative": (wrong(seed=-3), ValueError, "seed must be a non-negative integer; got -3"),
    "seed: too large": (wrong(seed=2**70), ValueError, "seed must be"),
    "device: unknown": (wrong(device="gpu"), ValueError, "device='gpu' is no device"),
    "device: a kind": (wrong(device=1.5), ValueError, "device=1.5 is no device"),
    "progress: a kind": (wrong(progress="no"), TypeError, "progress must be True or False; got 'no'"),
    "progress: None": (wrong(progress=None), TypeError, "progress must be True or False; got None"),
    "an unknown option": (wrong(steps=3), TypeError, "unexpected keyword argument 'steps'"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_wrong_arguments_of_fit_are_explained_before_a_step(what):
    call, error, message = ERRORS[what]
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("option", [{"batch_size": 2}, {"rows": [0]}, {"sample_weight": [1.0] * 5}])
def test_options_that_a_loader_decides_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} cannot be given with a DataLoader"):
        lvm.fit(density, None, DataLoader(TensorDataset(X), batch_size=2), **option, **QUIET)


def test_numpy_integers_count(tmp_path):
    counts = {"num_steps": np.int64(4), "every": np.int32(2), "batch_size": np.int64(2), "seed": np.int64(3)}
    result = lvm.fit(model, "mean_field", X, checkpoint=tmp_path / "c", progress=False, **counts)
    plain = lvm.fit(model, "mean_field", X, progress=False, **{name: int(n) for name, n in counts.items()})
    assert torch.equal(result.losses, plain.losses)
    result.save(tmp_path / "r")
    assert lvm.load(tmp_path / "r", model, "mean_field", X).seed == 3


@pytest.mark.parametrize("elbo", [None, Trace_ELBO(), TraceMeanField_ELBO()])
@pytest.mark.parametrize("kind", ["a column for a vector", "no plate", "no plate in the guide"])
def test_shapes_that_pyro_refuses_are_refused(kind, elbo):
    def regression(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        if kind == "no plate":
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)
        else:
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(w * x + z, 1.0), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.arange(5.0)
    y = x[:, None] if kind == "a column for a vector" else x
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        lvm.fit(regression, guide if kind.endswith("guide") else "mean_field", x, y, elbo=elbo, progress=False)


def test_a_forgotten_guide_and_a_class_are_explained():
    def model(X, y):
        pyro.sample("y", dist.Normal(pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1)).sum(), 1.0), obs=y)

    with pytest.raises(TypeError, match="the second argument is the guide, and data came in its place"):
        lvm.fit(model, torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(TypeError, match=r"guide is the class AutoNormal: pass an object, such as AutoNormal\(model\)"):
        lvm.fit(model, AutoNormal, torch.zeros(5, 3), torch.zeros(5))
