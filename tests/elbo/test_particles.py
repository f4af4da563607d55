"""Particles drawn at a time, what one look tells of a model and a guide, and what stands around a bound."""

import logging
import math
from contextlib import suppress

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyro_lvm as lvm
from pyro_lvm import elbo
from pyro_lvm.elbo.detach import detached_parameters
from pyro_lvm.elbo.look import look

X = torch.tensor([0.3, -1.2, 0.8, 2.0, 1.1, -0.4])


class Fixed(dist.Normal):
    """A normal distribution without randomness: its draws are one standard deviation above its mean."""

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(Fixed, _instance))

    def rsample(self, sample_shape=()):
        return self.loc + self.scale


def local_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


def local_guide(x, kind=dist.Normal):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", kind(pyro.param("loc", torch.tensor(0.3)) * x, pyro.param("width", torch.tensor(0.8))))


def shared_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(slope * g, 1.0), obs=x)


def shared_guide(x, kind=dist.Normal):
    pyro.sample("g", kind(pyro.param("loc", torch.tensor(0.3)), pyro.param("width", torch.tensor(0.5))))


def both_model(x):
    slope = pyro.param("slope", torch.tensor(1.5))
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)


def both_guide(x, kind=dist.Normal):
    g = pyro.sample("g", kind(pyro.param("g_loc", torch.tensor(0.3)), 0.5))
    with pyro.plate("rows", len(x)):
        loc = pyro.param("loc", torch.tensor(0.3)) * x + 0.1 * g
        pyro.sample("z", kind(loc, pyro.param("width", torch.tensor(0.8))))


def mixed_model(x):
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z + locs[c], 1.0), obs=x)


PROGRAMS = {
    "local": (local_model, local_guide),
    "shared": (shared_model, shared_guide),
    "both": (both_model, both_guide),
    "enumerated": (mixed_model, local_guide),
}
ESTIMATORS = {
    "Trace": elbo.Trace_ELBO(4),
    "TraceMeanField": elbo.TraceMeanField_ELBO(4),
    "TraceSTL": elbo.TraceSTL_ELBO(4),
    "TraceScore": elbo.TraceScore_ELBO(4),
    "IWAE": elbo.TraceIWAE_ELBO(4),
    "IWAE, dreg": elbo.TraceIWAE_ELBO(4, "dreg"),
    "VIMCO": elbo.TraceVIMCO_ELBO(4),
    "Renyi": elbo.TraceRenyi_ELBO(0.5, 4),
    "CUBO": elbo.TraceCUBO(4, shift=-1.5),
    "WakePhi": elbo.TraceWakePhi(4),
}


def fits(estimator, programs):
    if estimator in ("CUBO", "WakePhi"):
        return programs != "both"
    return not (estimator == "TraceMeanField" and programs == "enumerated")


CASES = [(e, p) for e in ESTIMATORS for p in PROGRAMS if fits(e, p)]


def objective_of(model, guide, estimator, x=X, vectorizes=None):
    objective = lvm.Objective(model, guide, estimator)
    params = objective.init(x)
    objective.structure.vectorizes = vectorizes
    return objective, params


def flat(objective, params, *args, **options):
    loss = objective(params, *args, **options)
    found = torch.autograd.grad(loss, list(params.values()))
    return torch.cat([loss.reshape(1), *(g.reshape(-1) for g in found)]).detach()


@pytest.mark.parametrize(("estimator", "programs"), CASES)
def test_particles_at_a_time_are_those_of_a_loop(estimator, programs):
    """Without noise, in value and gradient: what vmap changes is nothing but random numbers."""
    model, guide = PROGRAMS[programs]

    def fixed(x):
        return guide(x, Fixed)

    at_once, params = objective_of(model, fixed, ESTIMATORS[estimator])
    in_turn, _ = objective_of(model, fixed, ESTIMATORS[estimator], vectorizes=False)
    torch.testing.assert_close(flat(at_once, params, X), flat(in_turn, params, X))
    assert at_once.structure.vectorizes is True
    assert in_turn.structure.vectorizes is False


@pytest.mark.parametrize(
    ("estimator", "programs"), [("Trace", "both"), ("IWAE", "both"), ("VIMCO", "local"), ("IWAE", "shared")]
)
def test_particles_at_a_time_have_noise_of_their_own(estimator, programs):
    """The mean loss and gradient, and the spread that K particles leave, are those of the loop."""
    model, guide = PROGRAMS[programs]
    runs = []
    for vectorizes in (None, False):
        objective, params = objective_of(model, guide, ESTIMATORS[estimator], vectorizes=vectorizes)
        runs.append(torch.stack([flat(objective, params, X) for _ in range(60)]))
    error = (runs[0].var(0) / 60 + runs[1].var(0) / 60).sqrt()
    assert ((runs[0].mean(0) - runs[1].mean(0)).abs() < 4 * error).all()
    ratio = runs[0].std(0) / runs[1].std(0)
    assert ((ratio > 0.5) & (ratio < 2.0)).all()


def reading(x):
    """A model that reads a value into Python."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z.item() + pyro.param("a", torch.tensor(0.5)), 1.0), obs=x)


def branching(x):
    """A model that takes a way by the sign of a latent."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    a = pyro.param("a", torch.tensor(0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(a if z > 0 else -a, 1.0), obs=x)


def single_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))


@pytest.mark.parametrize("model", [reading, branching])
@pytest.mark.parametrize("estimator", ["Trace", "TraceScore", "IWAE", "VIMCO", "WakePhi"])
def test_a_program_that_vmap_refuses_runs_in_a_loop(model, estimator, caplog):
    refused, params = objective_of(model, single_guide, ESTIMATORS[estimator])
    looped, _ = objective_of(model, single_guide, ESTIMATORS[estimator], vectorizes=False)
    with caplog.at_level(logging.INFO, "pyro_lvm"):
        torch.manual_seed(3)
        first = flat(refused, params, X)
        assert "vmap refused" in caplog.text
        caplog.clear()
        assert refused.structure.vectorizes is False
        for objective in (refused, looped):  # no other attempt, and the random state as if there had been none
            torch.manual_seed(3)
            torch.testing.assert_close(flat(objective, params, X), first, rtol=0, atol=0)
        assert not caplog.text


def test_one_particle_is_no_attempt():
    objective, params = objective_of(reading, single_guide, elbo.Trace_ELBO())
    flat(objective, params, X)
    assert objective.structure.vectorizes is None


def test_an_error_of_the_model_is_raised_as_it_is():
    def failing(x):
        shared_model(x)
        if calls:
            raise ArithmeticError("of the model")

    calls = []
    objective, params = objective_of(failing, shared_guide, elbo.Trace_ELBO(3))
    calls.append(1)
    with pytest.raises(ArithmeticError, match="of the model"):
        objective(params, X)


def subsampled(size, kind=dist.Normal, seen=None):
    """A model and a guide with latents in the rows, of which each run takes a part."""

    def model(x):
        slope = pyro.param("slope", torch.tensor(1.5))
        with pyro.plate("rows", len(x), subsample_size=size) as index:
            if seen is not None:
                seen.append(index.tolist())
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("rows", len(x), subsample_size=size) as index:
            loc = pyro.param("loc", torch.tensor(0.3)) * x[index]
            pyro.sample("z", kind(loc, pyro.param("width", torch.tensor(0.8))))

    return model, guide


def row_bounds(x, slope=1.5, loc=0.3, width=0.8):
    """log w of a row at the fixed draw."""
    q = dist.Normal(loc * x, width)
    z = loc * x + width
    return dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(slope * z, 1.0).log_prob(x) - q.log_prob(z)


@pytest.mark.parametrize("estimator", ["Trace", "TraceScore", "IWAE", "IWAE, dreg", "VIMCO", "Renyi", "WakePhi"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_particles_share_one_part_of_the_rows_in_each_estimate(estimator, size):
    seen = []
    model, guide = subsampled(size, Fixed, seen)
    with pyro.get_param_store().scope():
        for vectorizes in (None, False):
            found = copy_of(ESTIMATORS[estimator])
            found.loss(model, guide, X)
            found._seen[2].vectorizes = vectorizes
            parts = set()
            for seed in range(6):
                del seen[:]
                torch.manual_seed(seed)
                loss = found.loss(model, guide, X)
                assert len(set(map(tuple, seen))) == 1
                assert len(seen) >= 2
                expected = -len(X) / size * float(row_bounds(X[seen[0]]).sum())
                assert loss == pytest.approx(expected, rel=1e-5)
                parts.add(tuple(sorted(seen[0])))
            assert len(parts) > 1  # another part in another step


def copy_of(estimator):
    """An estimator that has seen nothing."""
    fresh = type(estimator).__new__(type(estimator))
    vars(fresh).update(vars(estimator) | {"_seen": None})
    return fresh


def log_evidence(x, slope=1.5):
    return dist.Normal(0.0, math.sqrt(1 + slope**2)).log_prob(x).sum()


def test_a_minibatch_of_pyro_bound_lies_above_the_evidence_and_ours_is_unbiased():
    """Pyro scales the log-weights by N / B, inside the logarithm, and sums all rows into one weight."""
    torch.manual_seed(2)
    x = 1.8 * torch.randn(64)
    model, guide = subsampled(8)
    full_model, full_guide = subsampled(64)
    exact = float(log_evidence(x))
    with pyro.get_param_store().scope():
        full = -torch.tensor([elbo.TraceIWAE_ELBO(50).loss(full_model, full_guide, x) for _ in range(20)])
        estimator = elbo.TraceIWAE_ELBO(50)
        ours = -torch.tensor([estimator.loss(model, guide, x) for _ in range(150)])
        theirs = RenyiELBO(alpha=0, num_particles=50, vectorize_particles=False)
        pyro_bound = -torch.tensor([theirs.loss(model, guide, x) for _ in range(20)])
    error = math.hypot(ours.std() / math.sqrt(len(ours)), full.std() / math.sqrt(len(full)))
    assert abs(ours.mean() - full.mean()) < 3 * error
    assert full.mean() < exact + 3 * full.std() / math.sqrt(len(full))
    assert pyro_bound.mean() > exact + 10 * pyro_bound.std() / math.sqrt(len(pyro_bound))


@pytest.mark.parametrize("estimator", ["Trace", "TraceMeanField", "TraceSTL", "IWAE", "IWAE, dreg", "Renyi", "CUBO"])
def test_disjoint_minibatches_average_to_all_rows(estimator):
    objective, params = objective_of(local_model, lambda x: local_guide(x, Fixed), ESTIMATORS[estimator])
    whole = flat(objective, params, X)
    parts = [flat(objective, params, part, num_rows=len(X)) for part in X.split(2)]
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


@pytest.mark.parametrize("estimator", ["IWAE", "VIMCO", "Renyi"])
def test_minibatches_have_the_mean_of_all_rows(estimator):
    """With noise, for rows that share a latent beside their own."""
    objective, params = objective_of(both_model, both_guide, ESTIMATORS[estimator])
    with torch.no_grad():
        whole = torch.stack([objective(params, X) for _ in range(60)])
        parts = torch.stack([objective(params, X[i::3], num_rows=6) for i in range(3) for _ in range(60)])
    error = math.hypot(whole.std() / math.sqrt(60), parts.std() / math.sqrt(180))
    assert abs(whole.mean() - parts.mean()) < 4 * error


MASK = torch.tensor([True, False, True, True, False, True])


def masked(program):
    def run(x):
        with poutine.mask(mask=MASK):
            return program(x)

    return run


@pytest.mark.parametrize("estimator", ["Trace", "TraceMeanField", "IWAE", "IWAE, dreg", "VIMCO", "Renyi", "WakePhi"])
def test_a_masked_row_has_no_part_in_a_bound(estimator):
    objective, params = objective_of(
        masked(local_model), masked(lambda x: local_guide(x, Fixed)), ESTIMATORS[estimator]
    )
    plain, _ = objective_of(local_model, lambda x: local_guide(x, Fixed), ESTIMATORS[estimator])
    torch.testing.assert_close(flat(objective, params, X), flat(plain, params, X[MASK]))


def test_masks_of_entries_stand_within_the_bound_of_their_row():
    """Against the formula, from draws that are made alike."""
    x, mask = torch.randn(4, 3), torch.rand(4, 3) < 0.6
    num = 5

    def model(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", 3, dim=-1), poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())) + x.mean(1, True), 0.8))

    objective, params = objective_of(model, guide, elbo.TraceIWAE_ELBO(num), x, vectorizes=False)
    torch.manual_seed(4)
    loss = objective(params, x)
    torch.manual_seed(4)
    q = dist.Normal(x.mean(1, True), 0.8)
    z = torch.stack([q.sample() for _ in range(num)])
    log_w = dist.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)
    log_w = log_w[..., 0] + (dist.Normal(z, 1.0).log_prob(x) * mask).sum(-1)
    torch.testing.assert_close(loss.detach(), -(log_w.logsumexp(0) - math.log(num)).sum())


@pytest.mark.parametrize(("estimator", "programs"), CASES)
def test_a_scale_around_everything_stands_around_the_bound(estimator, programs):
    model, guide = PROGRAMS[programs]
    plain, params = objective_of(model, guide, ESTIMATORS[estimator])
    times, _ = objective_of(poutine.scale(model, scale=0.25), poutine.scale(guide, scale=0.25), ESTIMATORS[estimator])
    torch.manual_seed(0)
    expected = flat(plain, params, X) / 4
    torch.manual_seed(0)
    torch.testing.assert_close(flat(times, params, X), expected, rtol=1e-4, atol=1e-5)


def test_a_scale_of_one_site_stands_within_the_bound():
    """A likelihood to the power 0.5, by the formula."""
    num = 5

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=x)

    objective, params = objective_of(model, local_guide, elbo.TraceIWAE_ELBO(num), vectorizes=False)
    for options, count in (({}, 1.0), ({"num_rows": 60}, 10.0)):
        torch.manual_seed(4)
        loss = objective(params, X, **options)
        torch.manual_seed(4)
        q = dist.Normal(0.3 * X, 0.8)
        z = torch.stack([q.sample() for _ in range(num)])
        log_w = dist.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z) + 0.5 * dist.Normal(1.5 * z, 1.0).log_prob(X)
        torch.testing.assert_close(loss.detach(), -count * (log_w.logsumexp(0) - math.log(num)).sum())


def nested(x):
    with pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def nested_guide(x):
    with pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


def crossed(x):
    """Latents of rows and of columns."""
    rows, columns = pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1)
    with rows:
        r = pyro.sample("r", dist.Normal(0.0, 1.0))
    with columns:
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("x", dist.Normal(r + c, 1.0), obs=x)


def crossed_guide(x):
    with pyro.plate("rows", x.shape[0], dim=-2):
        pyro.sample("r", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
    with pyro.plate("columns", x.shape[1], dim=-1):
        pyro.sample("c", dist.Normal(0.0, 1.0))


def two_observed(x):
    """What all observed sites have in common is the outer plate."""
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("others", 3):
        pyro.sample("other", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", x.shape[0], dim=-2):
        pyro.sample("total", dist.Normal(g, 1.0), obs=x.sum(1, True))
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(g, 1.0), obs=x)


def two_observed_guide(x):
    pyro.sample("g", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
    with pyro.plate("others", 3):
        pyro.sample("other", dist.Normal(0.0, 1.0))


def part_of_columns(x):
    with pyro.plate("rows", x.shape[0], dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", x.shape[1], subsample_size=2, dim=-1) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])


def part_of_columns_guide(x):
    with pyro.plate("rows", x.shape[0], dim=-2):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


XX = torch.randn(4, 3)
ROWS = {
    "a plate": (local_model, local_guide, X, None, "rows", {"z"}, set(), True),
    "a part of the rows": (*subsampled(2), X, None, "rows", {"z"}, set(), True),
    "nested": (nested, nested_guide, XX, None, "rows", {"z"}, set(), True),
    "nested, named": (nested, nested_guide, XX, "columns", "columns", {"z"}, set(), True),
    "crossed": (crossed, crossed_guide, XX, None, "rows", {"r"}, {"c"}, True),
    "crossed, named": (crossed, crossed_guide, XX, "columns", "columns", {"c"}, {"r"}, True),
    "two observed": (two_observed, two_observed_guide, XX, None, "rows", set(), {"g", "other"}, False),
    "a part of the columns": (part_of_columns, part_of_columns_guide, XX, None, "columns", set(), {"z"}, False),
    "a part of the columns, named": (part_of_columns, part_of_columns_guide, XX, "rows", "rows", {"z"}, set(), True),
    "shared": (shared_model, shared_guide, X, None, "rows", set(), {"g"}, False),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_plate_of_the_rows_is_found_without_data(name):
    model, guide, x, plate, expected, local, shared, separate = ROWS[name]
    with pyro.get_param_store().scope():
        structure = look(model, guide, (x,), {}, None, plate)
    assert structure.row_plate.name == expected
    assert structure.local == local
    assert structure.shared == shared
    assert structure.separate is separate


def test_a_model_without_plates_has_no_rows():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pyro.get_param_store().scope():
        structure = look(model, single_guide, (X,), {})
    assert structure.row_plate is None
    assert structure.shared == {"z"}
    assert not structure.separate


@pytest.mark.parametrize("estimator", [elbo.Trace_ELBO(plate="nope"), elbo.Beta(elbo.TraceIWAE_ELBO(2, plate="nope"))])
def test_a_name_of_no_plate_is_refused(estimator):
    with (
        pyro.get_param_store().scope(),
        pytest.raises(ValueError, match=r"plate='nope' is no plate of the model; .*\['columns', 'rows'\]"),
    ):
        estimator.loss(nested, nested_guide, XX)


def test_a_named_plate_decides_what_is_averaged():
    """Latents inside two plates: the rows' bound is tighter with fewer entries in a cell."""

    def losses(plate):
        estimator = elbo.TraceIWAE_ELBO(5, plate=plate)
        estimator.loss(nested, nested_guide, XX)
        estimator._seen[2].vectorizes = False
        torch.manual_seed(0)
        return estimator.loss(nested, nested_guide, XX)

    torch.manual_seed(0)
    z = torch.stack([torch.randn(4, 3) for _ in range(5)])
    log_w = dist.Normal(z, 1.0).log_prob(XX)  # the guide is the prior
    with pyro.get_param_store().scope():
        for plate, dim in ((None, 2), ("rows", 2), ("columns", 1)):
            expected = -(log_w.sum(dim).logsumexp(0) - math.log(5)).sum()
            assert losses(plate) == pytest.approx(float(expected), rel=1e-5)


def other_name(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)) * x, 0.8))


def outside(x):
    """An observed site outside the plate that depends on the rows' latents."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.sample("sum", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))


def outside_alone(x):
    """An observed site outside the plate that does not."""
    local_model(x)
    pyro.sample("sum", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def tied(x):
    """An enumerated site above all rows."""
    c = pyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


KINDS = {
    "a guide with another name of the plate": (local_model, other_name, True),
    "AutoNormal": (local_model, AutoNormal, True),
    "AutoNormal with shared latents": (both_model, AutoNormal, True),
    "drawn jointly": (local_model, AutoMultivariateNormal, False),
    "drawn jointly, with shared latents": (both_model, AutoMultivariateNormal, False),
    "observed outside": (outside, local_guide, False),
    "observed outside alone": (outside_alone, local_guide, True),
    "an enumerated site above": (tied, local_guide, False),
    "an enumerated site inside": (mixed_model, local_guide, True),
}


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_told_apart_where_they_can_be(name):
    model, guide, separate = KINDS[name]
    guide = guide(model) if isinstance(guide, type) else guide
    with pyro.get_param_store().scope(), pyro.validation_enabled(guide is not other_name):  # Pyro would warn
        structure = look(model, guide, (X,), {}, plate="rows")
    assert structure.separate is separate
    assert "z" in structure.local
    assert structure.tied_by == ("c" if model is tied else "")


def test_a_guide_may_name_the_plate_of_the_rows_as_it_likes():
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):  # Pyro would warn
        torch.manual_seed(0)
        ours = elbo.TraceIWAE_ELBO(4).loss(local_model, other_name, X)
        torch.manual_seed(0)
        same = elbo.TraceIWAE_ELBO(4).loss(local_model, local_guide, X)
    assert ours == same


class Encoder(nn.Module):
    """A network with batch norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(1), nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(self.norm(x[:, None]))[:, 0]

    def guide(self, x):
        pyro.module("encoder", self)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self(x), 0.8))


@pytest.mark.parametrize("estimator", ["Trace", "TraceSTL", "IWAE, dreg", "VIMCO"])
def test_a_look_leaves_no_trace(estimator):
    encoder = Encoder()
    with pyro.get_param_store().scope():
        pyro.param("slope", torch.tensor(1.2))
        encoder.guide(X)  # makes the parameters
        tensors = {n: (t, t.detach().clone()) for n, t in encoder.state_dict(keep_vars=True).items()}
        store = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
        state = torch.get_rng_state()
        ESTIMATORS[estimator].look(local_model, encoder.guide, (X,), {})
        assert torch.equal(torch.get_rng_state(), state)
        assert {n: v.detach() for n, v in pyro.get_param_store().items()} == store
        for name, tensor in encoder.state_dict(keep_vars=True).items():
            assert tensor is tensors[name][0]
            assert torch.equal(tensor, tensors[name][1])
        assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_batch_norm_follows_the_steps_and_not_the_looks():
    encoder = Encoder()
    estimator = elbo.Trace_ELBO()
    with pyro.get_param_store().scope():
        estimator.loss(local_model, encoder.guide, X)
        assert encoder.norm.num_batches_tracked == 1
        estimator.loss(local_model, encoder.guide, X)
        assert encoder.norm.num_batches_tracked == 2


class Regression(PyroModule):
    """Parameters of every kind that a PyroModule knows."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Parameter(torch.tensor(0.5))
        self.positive = PyroParam(torch.tensor(1.0), dist.constraints.positive)
        self.layer = PyroModule[nn.Linear](1, 1)
        self.drawn = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x):
        return self.plain + self.positive * self.layer(x[:, None])[:, 0] + self.drawn.detach()


@pytest.mark.parametrize("fails", [False, True])
def test_parameters_are_constants_inside_and_as_before_outside(fails):
    module, network = Regression(), nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))

    def program(x):
        pyro.module("network", network)
        return module(x).sum() + network(x[:, None]).sum() + pyro.param("alone", torch.tensor(1.0))

    with pyro.get_param_store().scope():
        assert program(X).requires_grad
        before = {id(m): dict(m._parameters) for part in (module, network) for m in part.modules()}
        held = [m._parameters for part in (module, network) for m in part.modules()]
        try:
            with detached_parameters([(tensors, name) for tensors in held for name in tensors]):
                inside = program(X)
                if fails:
                    raise ArithmeticError
        except ArithmeticError:
            assert fails
        assert not inside.requires_grad
        after = {id(m): dict(m._parameters) for part in (module, network) for m in part.modules()}
        for key, parameters in before.items():
            assert parameters.keys() == after[key].keys()
            assert all(after[key][name] is value for name, value in parameters.items())
        assert program(X).requires_grad
        program(X).backward()
        assert all(p.grad is not None for p in [*module.parameters(), *network.parameters()])


STICKING = ["TraceSTL", "IWAE, dreg", "WakePhi"]


@pytest.mark.parametrize("estimator", STICKING)
def test_gradients_that_take_parameters_as_constants_reach_modules_in_the_store(estimator):
    """The same gradients through pyro.module under SVI and through an objective."""
    encoder = Encoder().eval()
    objective, params = objective_of(local_model, encoder.guide, ESTIMATORS[estimator])
    torch.manual_seed(0)
    loss = objective(params, X)
    found = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    with pyro.get_param_store().scope():
        copy_of(ESTIMATORS[estimator]).loss(local_model, encoder.guide, X)
        torch.manual_seed(0)
        plain = copy_of(ESTIMATORS[estimator]).loss_and_grads(local_model, encoder.guide, X)
        theirs = {n.removeprefix("encoder$$$"): v.grad for n, v in pyro.get_param_store()._params.items()}
    assert plain == pytest.approx(float(loss.detach()), rel=1e-6)
    assert found.keys() == theirs.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, theirs[name])
    encoder.zero_grad()


@pytest.mark.parametrize("estimator", STICKING)
@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("model", [local_model, shared_model])
def test_svi_with_an_autoguide_and_constants_takes_steps(estimator, kind, model):
    guide = kind(model)
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), copy_of(ESTIMATORS[estimator]))
        losses = [svi.step(X) for _ in range(60)]
        assert all(isinstance(p, nn.Parameter) for p in guide.parameters())
    assert sum(losses[-20:]) < sum(losses[:20])


def test_an_exception_in_the_middle_of_an_estimate_leaves_modules_as_they_were():
    encoder = Encoder().eval()
    last = runs = 0

    def guide(x):
        nonlocal runs
        runs += 1
        encoder.guide(x)
        if runs == last:
            raise ArithmeticError

    before = {n: id(p) for n, p in encoder.named_parameters()}
    with pyro.get_param_store().scope():
        while runs == last:  # the next run fails, until there is none
            last, runs = last + 1, 0
            with suppress(ArithmeticError):
                elbo.TraceIWAE_ELBO(1, "dreg").loss(local_model, guide, X)
            assert {n: id(p) for n, p in encoder.named_parameters()} == before
            assert not pyro.poutine.runtime._PYRO_STACK
    assert last > 3
