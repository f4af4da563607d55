"""What a verdict rests on, of guides whose distance from the posterior is known."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.verdict.corrections import MOVES, WEIGHTS
from pyro_lvm.verdict.judge import grade_of, judge
from pyro_lvm.verdict.khat import KHat

N = 150
Y = torch.randn(N, generator=torch.Generator().manual_seed(0)) * 2**0.5 + 2.0


def fitted(model, guide, *data):
    return lvm.fit(model, guide, *data, num_steps=1, optim=1e-12, progress=False)


def judged(result, num_draws=1_000):
    return judge(result, num_draws, 0, False)


def nested(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def wide_rows(width):
    """Exact for what all rows share; rows given that have so wide a standard deviation."""

    def guide(y):
        precision = 0.01 + len(y) / 2
        shift = pyro.param("shift", torch.tensor(0.0))
        mu = pyro.sample("mu", dist.Normal(y.sum() / 2 / precision + shift, precision**-0.5))
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal((mu + y) / 2, width * 0.5**0.5))

    return guide


def test_the_evidence_is_that_of_the_weights_whose_khat_is_looked_at():
    found = lvm.diagnose(fitted(nested, wide_rows(0.8), Y), 4_000)
    exact = dist.MultivariateNormal(torch.zeros(N), 2 * torch.eye(N) + 100).log_prob(Y).item()
    assert found.khat.useful
    assert "can correct what all rows share" in str(found.khat)
    assert abs(found.evidence.value - exact) < 4 * found.evidence.standard_error
    assert found.elbo.value < exact - N * 0.02


def test_weights_correct_those_latents_alone_of_which_they_are():
    """A guide that is right for what all rows share and wrong for the rows."""
    marginals = judged(fitted(nested, wide_rows(1.3), Y), 10_000).marginals
    assert marginals.by_site() == {"mu": "good", "z": "bad"}
    known = ~np.isnan(marginals.corrected[WEIGHTS].means)
    assert [site for site, has in zip(marginals.sites, known, strict=True) if has] == ["mu"]


def test_rows_alone_are_graded_by_moves():
    def model(y):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal(y / 2 + pyro.param("zero", torch.tensor(0.0)), 0.95 * 0.5**0.5))

    found = judged(fitted(model, guide, torch.cat([Y, Y])), 10_000)
    assert found.khat.each == ()
    assert list(found.marginals.corrected) == [MOVES]
    assert found.grade == "good"


def test_heavy_tails_of_rows_do_not_make_good_marginals_bad():
    """A Gaussian guide with the means and standard deviations of rows that are Student's t, of which little is seen."""
    y, grid = Y * 4, torch.linspace(-60, 60, 20_001)

    def model(y):
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.StudentT(5.0, 0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 5.0), obs=y)

    shares = (dist.StudentT(5.0).log_prob(grid) + dist.Normal(grid, 5.0).log_prob(y[:, None])).softmax(-1)
    mean = shares @ grid
    sd = (shares @ grid**2 - mean**2).sqrt()

    def guide(y):
        with pyro.plate("rows", len(y)):
            pyro.sample("z", dist.Normal(mean + pyro.param("zero", torch.tensor(0.0)), sd))

    found = judged(fitted(model, guide, y), 10_000)
    assert found.khat.findings()[-1].grade != "good"
    assert found.grade != "bad"


def test_a_guide_at_a_point_is_bad():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        pyro.deterministic("twice", 2 * mean)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(2.0)), 1e-8))

    found = lvm.diagnose(fitted(model, guide, Y), 1_000)
    assert found.verdict == "bad"
    assert not found.khat.useful
    assert "mean: the guide has collapsed to a point" in str(found)
    assert "collapsed to a point" in found.not_available["LOO"]
    assert found.to_html()


def test_runs_are_of_other_draws_and_their_median_counts():
    found = judged(fitted(nested, wide_rows(0.9), Y[:20])).khat
    assert not found.shared_only
    assert len(set(found.each)) == 5
    assert len(set(judged(fitted(nested, wide_rows(0.9), Y)).khat.each)) == 5
    assert KHat((0.9, 0.1, 0.5, 0.3, 0.8), 1_000).value == 0.5
    assert KHat((0.6, 0.8, 0.9, 0.75, 0.65), 1_000).findings()[0].grade == "doubtful"


@pytest.mark.parametrize(("share", "grade"), [(0.0, "good"), (0.1, "doubtful"), (0.9, "doubtful")])
def test_rows_without_graded_marginals_can_raise_a_doubt(share, grade):
    rows = torch.where(torch.arange(100) < 100 * share, 0.9, 0.1)
    assert grade_of(KHat((0.1,) * 5, 1_000, True, rows), None) == grade


def test_why_there_are_no_marginals():
    def many(y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([1_001]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(b.sum(), 1.0), obs=y)

    found = lvm.diagnose(fitted(many, "mean_field", Y[:3]), 100)
    assert found.marginals is None
    assert "more than 1,000 numbers" in found.not_available["marginals"]
    found = lvm.diagnose(fitted(nested, wide_rows(1.0), Y[:3]), 1)
    assert found.marginals is None
    assert "take more" in found.not_available["marginals"]
