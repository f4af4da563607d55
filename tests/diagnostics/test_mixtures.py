"""Components of fitted mixtures, against scikit-learn, formulas at the draws, and guides whose labels switch."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.indexing import Vindex
from sklearn.mixture import GaussianMixture
from torch.testing import assert_close

import pyro_lvm as lvm
from pyro_lvm.diagnostics.exchangeable import component_dims, component_site
from pyro_lvm.diagnostics.mixtures import examine_mixture

SHARE = 0.3  # of draws under the other labels


def two_locs(x):
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(share), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(Vindex(locs)[..., z], 1.0), obs=x)


def switching(x):
    """Both labellings, one of them in three of ten draws."""
    modes = dist.Normal(torch.tensor([[-2.0, 2.0], [2.0, -2.0]]), 0.2).to_event(1)
    pyro.sample(
        "locs", dist.MixtureSameFamily(torch.distributions.Categorical(torch.tensor([1 - SHARE, SHARE])), modes)
    )
    pyro.sample("share", dist.Dirichlet(pyro.param("concentration", torch.tensor([20.0, 20.0]))))


def fitted(model, guide, *data):
    """A fit that stays where it begins."""
    return lvm.fit(model, guide, *data, num_steps=1, optim=1e-9, progress=False)


@pytest.fixture(scope="module")
def rows():
    x = torch.randn(30, generator=torch.Generator().manual_seed(0))
    return x + torch.where(torch.arange(30) < 12, -2.0, 2.0)


@pytest.fixture(scope="module")
def result(rows):
    return fitted(two_locs, switching, rows)


@pytest.mark.slow
def test_labels_that_switch_are_found_and_put_right(result, rows):
    S = 1_000
    found = examine_mixture(result, S)
    assert found.site == "z"
    assert found.dims == {"locs": (0,), "share": (0,)}
    assert abs(found.switched - SHARE) < 4 * math.sqrt(SHARE * (1 - SHARE) / S)
    locs = found.relabelled.draws["locs"]
    assert (locs[:, 0] * locs[0, 0] > 0).all()
    labels, components = found.findings()
    assert (labels.grade, components.grade) == ("doubtful", "good")
    assert f"labels switched in {found.switched:.0%} of the draws" in labels.text
    assert "lvm.relabel" in labels.advice
    assert found.one_numbering == ""
    assert labels.text in str(found)


def test_responsibilities_are_those_of_the_draws(result, rows):
    found = examine_mixture(result, 50)
    draws, probs = found.relabelled.draws, found.relabelled.responsibilities
    logits = dist.Normal(draws["locs"][:, None], 1.0).log_prob(rows[:, None]) + draws["share"].log()[:, None]
    expected = logits.softmax(-1)
    assert_close(probs, expected, rtol=0, atol=1e-5)
    assert_close(found.responsibilities, expected.mean(0), rtol=0, atol=1e-5)
    shares = expected.mean(1)
    assert found.num_effective == pytest.approx((-(shares * shares.log()).sum(1)).exp().mean().item(), rel=1e-4)
    together = torch.einsum("sik,sjk->ij", expected, expected) / 50
    assert_close(found.similarity, together.fill_diagonal_(1.0), rtol=0, atol=1e-5)
    assert_close(lvm.posterior_similarity(result, 50), found.similarity, rtol=0, atol=1e-5)
    assert torch.equal(lvm.posterior_similarity(result, 50, seed=3), lvm.posterior_similarity(result, 50, seed=3))


def test_similarity_of_a_point_is_that_of_scikit_learn(clusters):
    mixture = lvm.models.GaussianMixture(2, 2, covariance="full").initialize(clusters)
    result = lvm.fit_em(mixture, clusters, progress=False)
    other = GaussianMixture(2)
    other.weights_, other.means_ = (v.detach().double().numpy() for v in (mixture.weights, mixture.locs))
    covariances = mixture.covariances.detach().double()
    other.precisions_cholesky_ = torch.linalg.cholesky(covariances.inverse()).numpy()
    probs = torch.as_tensor(other.predict_proba(clusters.double().numpy()))
    expected = (probs @ probs.mT).fill_diagonal_(1.0)
    assert_close(lvm.posterior_similarity(result).double(), expected, rtol=0, atol=1e-4)
    found = examine_mixture(result)
    assert found.switched == 0.0
    assert found.relabelled.draws == {}
    assert [finding.grade for finding in found.findings()] == ["good", "good"]
    assert_close(found.responsibilities.double(), probs, rtol=0, atol=1e-4)


def test_a_single_component_holds_all_rows(clusters):
    result = lvm.fit_em(lvm.models.BayesianGaussianMixture(1, 2).initialize(clusters), clusters, progress=False)
    found = examine_mixture(result, 20)
    assert (found.dims, found.switched, found.one_numbering) == ({}, 0.0, "")
    assert found.num_effective == pytest.approx(1.0)
    assert_close(found.similarity, torch.ones(50, 50))


@pytest.mark.slow
def test_evidence_lacks_the_other_numberings(rows):
    """By log 2 of two components, of which the guide is exact but for knowing one numbering."""

    def known_shares(x):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(Vindex(locs)[..., z], 1.0), obs=x)

    def one(x):
        at = pyro.param("at", torch.stack([x[:12].mean(), x[12:].mean()]))
        pyro.sample("locs", dist.Normal(at, torch.tensor([12.0, 18.0]) ** -0.5).to_event(1))

    x = 3 * rows
    grid = torch.linspace(-15.0, 15.0, 301).double()
    each = dist.Normal(grid[:, None], 1.0).log_prob(x.double())  # [301, N]
    pairs = torch.logaddexp(each[:, None], each).sub(math.log(2)).sum(-1)  # of all pairs of locs
    prior = dist.Normal(0.0, 5.0).log_prob(grid)
    exact = (pairs + prior[:, None] + prior).flatten().logsumexp(0).item() + 2 * math.log(30 / 300)
    found = lvm.diagnose(fitted(known_shares, one, x), 1_000)
    evidence = next(finding for finding in found.findings() if finding.about == "evidence")
    assert abs(found.evidence.value + math.log(2) - exact) < 4 * found.evidence.standard_error + 1e-3
    assert "one numbering of 2 components: log p(x) may be up to log 2! = 0.7 higher" in evidence.text


def test_many_rows_are_looked_at_in_part():
    x = torch.randn(6_001, generator=torch.Generator().manual_seed(0))
    result = fitted(two_locs, switching, x)
    with pytest.raises(ValueError, match="6,001 rows, and a matrix of all pairs is made of at most 5,000"):
        lvm.posterior_similarity(result, 2)
    found = examine_mixture(result, 2)
    assert found.responsibilities.shape == (5_000, 2)
    assert (found.rows[0], found.rows[-1]) == (0, 6_000)


@pytest.mark.parametrize("size", [2, 3])
def test_dims_are_found_where_others_have_the_same_size(size):
    """As many features as components, so that means and precisions have several dimensions of that size."""
    x = torch.randn(40, size, generator=torch.Generator().manual_seed(0))
    x[:15] += 4
    result = lvm.fit_em(lvm.models.BayesianGaussianMixture(size, size).initialize(x), x, max_iter=3, progress=False)
    assert component_dims(result, "z") == {"weights": (0,), "precisions": (0,), "means": (0,)}


def test_dims_at_the_end_and_latents_of_no_component():
    """Two regressions on two covariates: slopes by covariate and component, and an offset of each covariate."""

    def model(X, y):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2, 2), 3.0).to_event(2))
        offset = pyro.sample("offset", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(X)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            loc = torch.where(z == 1, (X - offset) @ slopes[:, 1], (X - offset) @ slopes[:, 0])
            pyro.sample("y", dist.Normal(loc, noise), obs=y)

    noise = torch.Generator().manual_seed(0)
    result = fitted(model, "mean_field", torch.randn(20, 2, generator=noise), torch.randn(20, generator=noise))
    assert component_dims(result, "z") == {"slopes": (1,)}
    assert examine_mixture(result, 20).dims == {"slopes": (1,)}


@pytest.mark.parametrize("prior", ["share", "locs"])
def test_components_that_the_model_tells_apart_have_no_dims(prior, rows):
    def model(x):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([0.0, 1.0 * (prior == "locs")]), 5.0).to_event(1))
        share = torch.tensor([0.5, 0.5]) if prior == "locs" else torch.tensor([0.7, 0.3])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(Vindex(locs)[..., z], 1.0), obs=x)

    result = fitted(model, "mean_field", rows)
    found = examine_mixture(result, 20)
    assert found.dims is None
    assert found.switched == 0.0
    assert found.findings()[0].grade == "unknown"
    assert "no dimension of the latents" in str(found)


def no_components(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def components_of_two_kinds(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        b = pyro.sample("b", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc + a + 2 * b, 1.0), obs=x)


def one_component_for_all(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    a = pyro.sample("a", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc + a, 1.0), obs=x)


@pytest.mark.parametrize("model", [no_components, components_of_two_kinds, one_component_for_all])
def test_other_models_have_no_components(model, rows):
    result = fitted(model, "mean_field", rows)
    assert component_site(result) is None
    assert examine_mixture(result) is None
    with pytest.raises(ValueError, match="no single enumerated site inside the row plate"):
        lvm.posterior_similarity(result)


def test_wrong_arguments_are_refused(result):
    with pytest.raises(TypeError, match="takes the result of a fit; got dict"):
        lvm.posterior_similarity({})
    with pytest.raises(ValueError, match="num_draws"):
        lvm.posterior_similarity(result, 0)
    with pytest.raises(ValueError, match="seed"):
        lvm.posterior_similarity(result, 10, seed=-1)
