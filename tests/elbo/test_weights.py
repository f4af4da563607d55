"""Weighted rows count as rows that are repeated, in enumerated models and in bounds from several particles."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO

import pyro_lvm as lvm
from pyro_lvm import elbo

X = torch.tensor([0.3, -1.0, 2.5])
LOCS = torch.tensor([-1.0, 2.0])
ENUM = {"infer": {"enumerate": "parallel"}}


def model(x):
    with poutine.scale(scale=0.1):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        with poutine.scale(scale=0.5):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
        pyro.sample("x", dist.Normal(LOCS[z] + shift + noise, 1.0), obs=x)


def guide(x):
    """Its draws have no spread to speak of, so that rows may be repeated without repeating noise."""
    with poutine.scale(scale=0.1):
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 1e-4))
    with pyro.plate("rows", len(x)), poutine.scale(scale=0.5):
        pyro.sample("noise", dist.Delta(pyro.param("slope", torch.tensor(0.1)) * x))


def evaluated(objective, params, batch, seed=0, **options):
    """Loss and gradients in one tensor."""
    torch.manual_seed(seed)
    loss = objective(params, batch, **options)
    gradients = torch.autograd.grad(loss, list(params.values()))
    return torch.cat([loss.reshape(1), *(g.reshape(-1) for g in gradients)]).detach()


@pytest.mark.parametrize("weight", [[1, 1, 1], [0, 2, 1], [3, 0, 0]])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_weights_are_repetitions_and_other_scales_count(weight, num_particles):
    objective = lvm.Objective(model, guide, TraceEnum_ELBO(num_particles))
    params = objective.init(X)
    repeated = X.repeat_interleave(torch.tensor(weight))
    weighted = evaluated(objective, params, X, sample_weight=torch.tensor(weight, dtype=torch.float32))
    torch.testing.assert_close(weighted, evaluated(objective, params, repeated), rtol=1e-3, atol=1e-3)


def test_sites_summed_out_together_need_one_scale():
    def uneven(x):
        base = pyro.param("base", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(LOCS[z] + base, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"must share one poutine.scale"):
        lvm.fit(uneven, None, X, sample_weight=torch.ones(3), num_steps=1, progress=False)


def mixture(x):
    """No latents but those that are summed out: the loss is log p itself, and every statement about it exact."""
    weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    locs = pyro.param("locs", LOCS)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), **ENUM)
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def chains(x):
    """A sequence in each row."""
    locs = pyro.param("locs", LOCS)
    with pyro.plate("rows", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            probs = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
            z = pyro.sample(f"z{t}", dist.Categorical(probs[0] if z is None else probs[z]), **ENUM)
            pyro.sample(f"x{t}", dist.Normal(locs[z], 1.0), obs=x[:, t])


def nested(x):
    """The plate of the rows is not the innermost."""
    locs = pyro.param("locs", LOCS)
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), **ENUM)
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


ROWS = torch.tensor([[0.3, 1.0], [-1.0, 0.4], [2.5, 2.0], [0.0, -0.7]])
EXACT = {"mixture": (mixture, ROWS[:, 0]), "chains": (chains, ROWS), "nested": (nested, ROWS)}
WEIGHTS = [[1, 1, 1, 1], [0, 2, 1, 3], [4, 0, 0, 0]]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(), elbo.Trace_ELBO(3)])
def test_a_weight_repeats_a_row_of_an_enumerated_model(name, weight, estimator):
    program, x = EXACT[name]
    objective = lvm.Objective(program, None, estimator)
    params = objective.init(x)
    weighted = evaluated(objective, params, x, sample_weight=torch.tensor(weight, dtype=torch.float32))
    repeated = evaluated(objective, params, x.repeat_interleave(torch.tensor(weight), 0))
    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("name", EXACT)
def test_minibatches_of_weighted_rows_average_to_all_of_them(name):
    program, x = EXACT[name]
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])
    objective = lvm.Objective(program, None)
    params = objective.init(x)
    whole = evaluated(objective, params, x, sample_weight=weight)
    parts = [evaluated(objective, params, x[i], num_rows=4, sample_weight=weight[i]) for i in ([0, 3], [1, 2])]
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


def encoded(x):
    """A latent in each row."""
    slope = pyro.param("slope", torch.tensor(1.5))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


class FromRow(dist.Normal):
    """A normal distribution without randomness: its draws follow from its mean."""

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(FromRow, _instance))

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * (37.0 * self.loc.detach()).sin()


def encoder(x, kind=FromRow):
    with pyro.plate("rows", len(x)):
        loc = pyro.param("loc", torch.tensor(0.3)) * x
        pyro.sample("z", kind(loc, pyro.param("width", torch.tensor(0.8))))


BOUNDS = {
    "Trace": elbo.Trace_ELBO(3),
    "TraceMeanField": elbo.TraceMeanField_ELBO(2),
    "TraceSTL": elbo.TraceSTL_ELBO(2),
    "IWAE": elbo.TraceIWAE_ELBO(3),
    "IWAE, dreg": elbo.TraceIWAE_ELBO(3, "dreg"),
    "IWAE, stl": elbo.TraceIWAE_ELBO(3, "stl"),
    "VIMCO": elbo.TraceVIMCO_ELBO(3),
    "Renyi": elbo.TraceRenyi_ELBO(0.5, 3),
    "Renyi, negative": elbo.TraceRenyi_ELBO(-0.5, 3),
    "CUBO": elbo.TraceCUBO(3, shift=-2.0),
    "WakePhi": elbo.TraceWakePhi(3),
    "Beta": elbo.Beta(elbo.TraceIWAE_ELBO(3), 0.5),
    "FreeBits": elbo.FreeBits(elbo.TraceIWAE_ELBO(3), 0.7),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_weight_repeats_a_row_with_its_latents(name, weight):
    objective = lvm.Objective(encoded, encoder, BOUNDS[name])
    x = ROWS[:, 0]
    params = objective.init(x)
    weighted = evaluated(objective, params, x, sample_weight=torch.tensor(weight, dtype=torch.float32))
    repeated = evaluated(objective, params, x.repeat_interleave(torch.tensor(weight), 0))
    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_weight_of_two_counts_the_bound_of_a_row_twice(name):
    """With noise, and the same noise in both: rows are told apart by weights of 0 and 1."""
    objective = lvm.Objective(encoded, lambda x: encoder(x, dist.Normal), BOUNDS[name])
    x = ROWS[:, 0]
    params = objective.init(x)

    def loss(*weight):
        return evaluated(objective, params, x, sample_weight=torch.tensor(weight))

    alone = [loss(*row) for row in torch.eye(4).tolist()]
    if name == "FreeBits":  # whose threshold is that of the average row
        objective.elbo.nats = 0.0
        alone = [loss(*row) for row in torch.eye(4).tolist()]
    torch.testing.assert_close(loss(1.0, 2.0, 0.0, 0.5), alone[0] + 2 * alone[1] + 0.5 * alone[3])


@pytest.mark.parametrize("name", [n for n in BOUNDS if n != "FreeBits"])
def test_minibatches_and_weights_multiply_what_stands_around_a_bound(name):
    """N / B times the sum of weighted bounds, the average of which over all minibatches is the whole."""
    objective = lvm.Objective(encoded, encoder, BOUNDS[name])
    x, weight = ROWS[:, 0], torch.tensor([0.5, 2.0, 0.0, 1.0])
    params = objective.init(x)
    whole = evaluated(objective, params, x, sample_weight=weight)
    parts = [evaluated(objective, params, x[i], num_rows=4, sample_weight=weight[i]) for i in ([0, 3], [1, 2])]
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_row_of_weight_zero_has_no_part_in_loss_and_gradient(name):
    objective = lvm.Objective(encoded, encoder, BOUNDS[name])
    params = objective.init(ROWS[:, 0])
    x = torch.tensor([0.3, -1.0, 100.0])
    weighted = evaluated(objective, params, x, sample_weight=torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(weighted, evaluated(objective, params, x[:2]))


@pytest.mark.parametrize("name", [n for n in BOUNDS if n != "FreeBits"])
def test_rows_that_all_weigh_nothing_have_a_loss_of_zero(name):
    objective = lvm.Objective(encoded, encoder, BOUNDS[name])
    params = objective.init(X)
    loss = evaluated(objective, params, X, sample_weight=torch.zeros(3))
    torch.testing.assert_close(loss, torch.zeros(len(loss)))


def regression(x, y):
    """Latents that all rows share, and no others."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.param("noise", torch.tensor(0.7), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def regression_guide(x, y):
    pyro.sample("slope", dist.Normal(pyro.param("loc", torch.tensor(0.2)), pyro.param("width", torch.tensor(0.4))))


@pytest.mark.parametrize("name", BOUNDS)
def test_rows_that_share_all_latents_are_repeated_by_their_weights(name):
    """With the noise of the shared latents alone, the same whatever the number of rows."""
    objective = lvm.Objective(regression, regression_guide, BOUNDS[name])
    x, y = ROWS.unbind(1)
    params = objective.init(x, y)
    weight = torch.tensor([0, 2, 1, 3])
    index = torch.arange(4).repeat_interleave(weight)
    weighted = evaluated(objective, params, (x, y), sample_weight=weight.float())
    torch.testing.assert_close(weighted, evaluated(objective, params, (x[index], y[index])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BOUNDS)
def test_weights_of_a_subsampled_plate_stand_around_the_bound_as_well(name):
    def part(x):
        slope = pyro.param("slope", torch.tensor(1.5))
        with pyro.plate("rows", 8, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)

    def part_encoder(x):
        with pyro.plate("rows", 8, subsample=x):
            loc = pyro.param("loc", torch.tensor(0.3)) * x
            pyro.sample("z", FromRow(loc, pyro.param("width", torch.tensor(0.8))))

    x, weight = ROWS[:, 0], torch.tensor([0.0, 2.0, 1.0, 3.0])
    whole = lvm.Objective(encoded, encoder, BOUNDS[name])
    params = whole.init(x)
    subsampled = lvm.Objective(part, part_encoder, BOUNDS[name])
    subsampled.init(x)
    expected = evaluated(whole, params, x, num_rows=8, sample_weight=weight)
    torch.testing.assert_close(evaluated(subsampled, params, x, sample_weight=weight), expected)
