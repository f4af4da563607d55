"""Minibatch gradients, averaged over an epoch, are the gradient of the whole data, to rounding."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoIAFNormal, AutoNormal
from torch import nn

import pyro_lvm as lvm
from pyro_lvm.batches import ShuffledRows
from pyro_lvm.data import Data

N, D = 11, 3
EPS = torch.tensor(0.7, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Given(dist.Normal):
    """A Normal whose reparametrised draw uses noise that is given, so that a row's noise is the same in any batch."""

    def __init__(self, loc, scale, noise):
        self.noise = noise
        super().__init__(loc, scale)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape)
        return Given(self.loc.expand(shape), self.scale.expand(shape), self.noise.expand(shape))

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


def rows():
    return torch.randn(N, D), torch.randn(N)


def positive(name):
    return pyro.param(name, torch.tensor(0.8), constraint=constraints.positive)


def amortized():
    net = nn.Linear(D, 2)

    def model(x, noise):
        slope = pyro.param("slope", torch.ones(D))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * z[:, None], positive("scale")).to_event(1), obs=x)

    def guide(x, noise):
        loc, log_scale = net(x).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", Given(loc, log_scale.exp(), noise))

    return model, guide


def global_latents():
    def model(x, noise):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        pyro.factor("outside", -(mean**2) * pyro.param("weight", torch.tensor(0.3)))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mean, positive("scale")).expand([D]).to_event(1), obs=x)

    def guide(x, noise):
        pyro.sample("mean", Given(pyro.param("loc", torch.tensor(0.2)), positive("width"), EPS))

    return model, guide


def global_and_local():
    net = nn.Linear(D, 2)

    def model(x, noise):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(mean, positive("scale")))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), D]).to_event(1), obs=x)

    def guide(x, noise):
        mean = pyro.sample("mean", Given(pyro.param("loc", torch.tensor(0.2)), positive("width"), EPS))
        loc, log_scale = net(x).unbind(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", Given(loc + mean, log_scale.exp(), noise))

    return model, guide


def subsample_form():
    _, guide = global_latents()

    def model(x, noise):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", N, subsample=x):
            pyro.sample("x", dist.Normal(mean, positive("scale")).expand([D]).to_event(1), obs=x)

    return model, guide


def nested_inside():
    net = nn.Linear(D, 2)

    def model(x, noise):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, positive("prior")))
            with pyro.plate("features", D, dim=-1):
                u = pyro.sample("u", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(u, positive("scale")), obs=x)

    def guide(x, noise):
        loc, log_scale = (out[:, None] for out in net(x).unbind(-1))
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", Given(loc, log_scale.exp(), noise[:, None]))
            with pyro.plate("features", D, dim=-1):
                pyro.sample(
                    "u", Given(0.5 * (x + z), positive("width").expand(len(x), D), noise[:, None].expand(-1, D))
                )

    return model, guide


def nested_outside():
    def model(x, noise):
        with pyro.plate("features", D, dim=-2):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("rows", len(x), dim=-1):
                pyro.sample("x", dist.Normal(mean, positive("scale")), obs=x.T)

    def guide(x, noise):
        with pyro.plate("features", D, dim=-2):
            loc = pyro.param("loc", torch.arange(float(D))[:, None])
            pyro.sample("mean", Given(loc, positive("width").expand(D, 1), EPS.expand(D, 1)))

    return model, guide


def enumerated_mixture():
    def model(x, noise):
        weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor([[-1.0] * D, [1.0] * D]))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], positive("scale")).to_event(1), obs=x)

    return model, None


def mixture_with_global_prior():
    def model(x, noise):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([D]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], positive("scale")).to_event(1), obs=x)

    return model, AutoDelta(pyro.poutine.block(model, hide=["z"]))


CASES = [
    amortized,
    global_latents,
    global_and_local,
    subsample_form,
    nested_inside,
    nested_outside,
    enumerated_mixture,
    mixture_with_global_prior,
]


def gradient(objective, params, batch, num_rows, weight=None):
    loss = objective(params, batch, num_rows, weight)
    grads = torch.autograd.grad(loss, list(params.values()))
    return torch.cat([loss.detach().reshape(1), *(g.flatten() for g in grads)])


def epoch_mean(objective, params, data, batch_size, weight=None):
    """Losses and gradients of one epoch of the loop's own batches, each with the share of rows that it holds."""
    batches = ShuffledRows(Data(data), weight, batch_size, seed=3)
    total, seen = 0, 0
    for step in range(math.ceil(N / batch_size)):
        args, w = batches.get(step)
        seen += len(args[0])
        total = total + len(args[0]) / N * gradient(objective, params, args, N, w)
    assert seen == N
    return total


@pytest.mark.parametrize("batch_size", [1, 4, 10], ids="batch{}".format)
@pytest.mark.parametrize("case", CASES)
def test_an_epoch_averages_to_the_full_gradient(case, batch_size):
    model, guide = case()
    data = rows()
    objective = lvm.Objective(model, guide)
    params = objective.init(*data)
    full = gradient(objective, params, data, None)
    assert full[1:].abs().min() > 1e-6
    torch.testing.assert_close(epoch_mean(objective, params, data, batch_size), full, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_one_batch_alone_is_not_the_full_gradient(case):
    model, guide = case()
    data = rows()
    objective = lvm.Objective(model, guide)
    params = objective.init(*data)
    full, part = gradient(objective, params, data, None), gradient(objective, params, (data[0][:4], data[1][:4]), N)
    # without global latents, whose own terms are not scaled, every entry differs
    assert ((full - part).abs() > 1e-3).double().mean() >= 0.8


@pytest.mark.parametrize("batch_size", [3, 10])
@pytest.mark.parametrize(
    "case", [amortized, global_latents, nested_inside, nested_outside, enumerated_mixture, mixture_with_global_prior]
)
def test_weighted_minibatches_average_to_the_weighted_full_gradient(case, batch_size):
    model, guide = case()
    data, weight = rows(), torch.rand(N) * 3
    objective = lvm.Objective(model, guide)
    objective.prepare(Data(data), weighted=True)
    params = {name: v.requires_grad_() for name, v in objective.program.parameters.start().items()}
    full = gradient(objective, params, data, None, weight)
    torch.testing.assert_close(epoch_mean(objective, params, data, batch_size, weight), full, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "elbo", [Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO()], ids=lambda e: type(e).__name__
)
def test_every_elbo_scales_the_rows_alone(elbo):
    model, guide = global_and_local()
    data = rows()
    objective = lvm.Objective(model, guide, elbo)
    params = objective.init(*data)
    full = gradient(objective, params, data, None)
    torch.testing.assert_close(epoch_mean(objective, params, data, 4), full, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [amortized, global_latents, enumerated_mixture, subsample_form])
def test_fit_takes_the_same_steps_as_a_loop_over_its_batches(case):
    """The first epoch's losses of a fit that stands still are those of its shuffled batches."""
    model, guide = case()
    data = rows()
    still = lvm.fit(
        model,
        guide,
        *data,
        num_steps=6,
        batch_size=4,
        seed=5,
        progress=False,
        optim=lambda p: torch.optim.SGD(p, lr=0.0),
    )
    objective = lvm.Objective(model, guide)
    params = objective.init(*data)
    batches = ShuffledRows(Data(data), None, 4, seed=5)
    by_hand = [objective(params, batches.get(step)[0], N).item() for step in range(6)]
    torch.testing.assert_close(still.losses, torch.tensor(by_hand), rtol=1e-12, atol=0)
    share = torch.tensor([4, 4, 3]) / N
    full = objective(params, data).item()
    assert (still.losses[:3] * share).sum().item() == pytest.approx(full, rel=1e-12)
    assert (still.losses[3:] * share).sum().item() == pytest.approx(full, rel=1e-12)
    assert not torch.equal(still.losses[:3], still.losses[3:])


def test_epochs_are_shuffled_anew_without_replacement():
    batches = ShuffledRows(Data((torch.arange(10),)), None, 4, seed=0)
    epochs = [torch.cat([batches.get(3 * e + i)[0][0] for i in range(3)]) for e in range(20)]
    assert all(sorted(e.tolist()) == list(range(10)) for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) == 20
    # any step can be asked for at any time
    again = ShuffledRows(Data((torch.arange(10),)), None, 4, seed=0)
    assert torch.equal(again.get(7)[0][0], batches.get(7)[0][0])


def local_model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def grown_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("locs", lambda: torch.zeros(len(x))), 1.0))


def fixed_guide(x):
    loc = pyro.param("locs", torch.zeros(8))
    with pyro.plate("rows", 8):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize(
    "guide",
    [
        "mean_field",
        "full_rank",
        "low_rank",
        "map",
        AutoNormal(local_model),
        AutoIAFNormal(local_model, [8]),
        grown_guide,
    ],
    ids=lambda g: g if isinstance(g, str) else getattr(g, "__name__", type(g).__name__),
)
@pytest.mark.parametrize("batch_size", [4, 1])
def test_a_guide_with_parameters_of_each_row_is_refused(guide, batch_size):
    with pytest.raises(ValueError, match=r"the site 'z' is latent in the row plate 'rows'.*amortized guide"):
        lvm.fit(local_model, guide, torch.randn(8), batch_size=batch_size, progress=False)


def wrapped(x):
    return GUIDE(x)


GUIDE = AutoNormal(local_model)


def part_of_a_list():
    guide = AutoGuideList(mean_and_rows)
    guide.append(AutoNormal(poutine.block(mean_and_rows, expose=["mean"])))
    guide.append(AutoNormal(poutine.block(mean_and_rows, expose=["z"])))
    return guide


def mean_and_rows(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide"),
    [(local_model, wrapped), (local_model, lambda x: GUIDE(x)), (mean_and_rows, part_of_a_list())],
    ids=["by a global", "by a function", "in a list"],
)
def test_an_autoguide_inside_the_guide_is_refused(model, guide):
    with pytest.raises(ValueError, match=r"the site 'z' is latent in the row plate 'rows'.*amortized guide"):
        lvm.fit(model, guide, torch.randn(8), batch_size=4, progress=False)


def test_an_autoguide_over_the_global_part_serves_minibatches():
    part = AutoNormal(poutine.block(mean_and_rows, expose=["mean"]))

    def guide(x):
        part(x)
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

    result = lvm.fit(mean_and_rows, guide, torch.randn(8), num_steps=3, batch_size=4, progress=False)
    assert result.predict(torch.randn(5), num_draws=2)["x"].shape == (2, 5)


def test_a_guide_whose_rows_do_not_shrink_is_refused():
    with pytest.raises(ValueError, match="does not run on a batch of the rows alone"):
        lvm.fit(local_model, fixed_guide, torch.randn(8), batch_size=4, progress=False)


@pytest.mark.parametrize("guide", ["mean_field", grown_guide], ids=["auto", "own"])
def test_the_same_guides_serve_the_whole_data(guide):
    x = torch.randn(8)
    result = lvm.fit(local_model, guide, x, num_steps=3, progress=False)
    assert result.sample(2)["z"].shape == (2, 8)


def no_plate(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0).expand(x.shape).to_event(1), obs=x)


def fixed_plate(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 8):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [(no_plate, "no plate of the model follows the rows"), (fixed_plate, "does not run on a batch of the rows alone")],
)
def test_minibatches_without_a_row_plate_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(model, "mean_field", torch.randn(8), batch_size=4, progress=False)


def test_global_latents_may_have_any_guide():
    model, _ = global_latents()
    result = lvm.fit(model, "full_rank", *rows(), num_steps=5, batch_size=4, progress=False)
    assert result.num_steps == 5
