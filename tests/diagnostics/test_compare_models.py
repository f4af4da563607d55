"""Comparisons of models, against scikit-learn, closed forms and exact posteriors."""

import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch.distributions import constraints
from torch.testing import assert_close

import pyro_lvm as lvm
from pyro_lvm.params import num_free

N = 25
PRIOR = 3.0


@pytest.fixture(scope="module")
def y():
    return torch.randn(N, generator=torch.Generator().manual_seed(0)) + 1.0


def conjugate(scale):
    """A normal mean under a normal prior, and the exact posterior as the guide."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, PRIOR))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    def guide(y):
        precision = PRIOR**-2 + len(y) / scale**2
        shift = pyro.param("shift", torch.tensor(0.2))  # off by a fifth of an sd
        loc = y.sum() / scale**2 / precision
        return pyro.sample("mu", dist.Normal(loc + shift * precision**-0.5, 1.2 * precision**-0.5))

    return model, guide


def fitted(model, guide, *data, num_steps=1, optim=1e-9):
    return lvm.fit(model, guide, *data, num_steps=num_steps, optim=optim, progress=False)


def exact_evidence(y, scale):
    covariance = PRIOR**2 * torch.ones(N, N) + scale**2 * torch.eye(N)
    return dist.MultivariateNormal(torch.zeros(N).double(), covariance.double()).log_prob(y.double()).item()


def exact_loo(y, scale):
    found = []
    for i in range(N):
        others = torch.cat([y[:i], y[i + 1 :]]).double()
        precision = PRIOR**-2 + len(others) / scale**2
        loc = others.sum() / scale**2 / precision
        found.append(dist.Normal(loc, (1 / precision + scale**2) ** 0.5).log_prob(y[i].double()))
    return torch.stack(found)


@pytest.fixture(scope="module")
def bayes(y):
    return {f"scale {scale}": fitted(*conjugate(scale), y) for scale in (1.0, 2.0)}


@pytest.fixture(scope="module")
def compared(bayes):
    return lvm.compare_models(bayes, num_draws=4_000)


def test_evidence_and_loo_are_those_of_conjugate_models(compared, y):
    for name, scale in (("scale 1.0", 1.0), ("scale 2.0", 2.0)):
        model, each = compared[name], exact_loo(y, scale)
        assert model.kind == "SVI"
        value, error = model.evidence
        assert abs(value - exact_evidence(y, scale)) < 4 * error + 1e-3
        assert abs(model.loo.elpd - each.sum()) < 0.05
        assert model.loo.num_unreliable == 0
        assert (model.log_likelihood, model.bic, model.icl) == (None, None, None)
        assert model.reasons == dict.fromkeys(
            ("log_likelihood", "bic", "icl"), "'mu' has a posterior and is at no point"
        )
        assert model.num_parameters == 0
        assert model.notes == ()
    assert compared.best() == compared.best("evidence") == "scale 1.0"


def test_differences_have_the_errors_of_paired_rows(compared, y):
    rows = exact_loo(y, 1.0) - exact_loo(y, 2.0)
    found = compared.differences()
    assert found["scale 1.0"] == (0.0, 0.0)
    assert abs(found["scale 2.0"].value - rows.sum()) < 0.1
    assert found["scale 2.0"].standard_error == pytest.approx((rows.var() * N).sqrt().item(), rel=0.02)
    value, error = compared.differences("evidence")["scale 2.0"]
    assert abs(value - (exact_evidence(y, 1.0) - exact_evidence(y, 2.0))) < 4 * error + 1e-3


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_bic_and_icl_of_gaussian_mixtures(covariance, clusters):
    """scikit-learn's count of parameters and its BIC, at the same parameters; ICL by hand."""
    results, others = {}, {}
    for K in (1, 2, 3):
        mixture = lvm.models.GaussianMixture(K, 2, covariance).initialize(clusters)
        results[K] = lvm.fit_em(mixture, clusters, max_iter=15, tol=1e-2, progress=False)
        held = {name: value.detach().double() for name, value in results[K].params.items()}
        other = others[K] = GaussianMixture(K, covariance_type=covariance)
        other.weights_, other.means_ = held["weights"].numpy(), held["locs"].numpy()
        if covariance in ("full", "tied"):
            tril = held["scale_tril"]
            other.covariances_ = (tril @ tril.mT).numpy()
            other.precisions_cholesky_ = torch.linalg.cholesky((tril @ tril.mT).inverse()).numpy()
        else:
            other.covariances_, other.precisions_cholesky_ = held["scale"].square().numpy(), (1 / held["scale"]).numpy()
    compared = lvm.compare_models({f"K={K}": result for K, result in results.items()})
    x = clusters.double().numpy()
    for K, other in others.items():
        model = compared[f"K={K}"]
        assert model.kind == "EM"
        assert model.num_parameters == other._n_parameters()
        assert model.log_likelihood == pytest.approx((other.score(x) * len(x), 0.0), abs=0.01)
        assert model.bic == pytest.approx(other.bic(x), abs=0.02)
        probs = torch.as_tensor(other.predict_proba(x))
        assert model.icl == pytest.approx(other.bic(x) - 2 * torch.xlogy(probs, probs).sum().item(), abs=0.03)
        assert model.evidence is None
        assert model.loo is None
        assert set(model.reasons) == {"evidence", "loo"}
    assert compared.best("bic") == min(compared, key=lambda name: compared[name].bic) == "K=2"


def test_a_prior_is_no_part_of_the_likelihood_at_a_point(y):
    """MAP by EM and by SVI: the log-likelihood alone, at the same point."""

    def model(y):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).to_event(1))
        share = pyro.param("share", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(locs[..., z], 1.0), obs=y)

    def by_hand(locs, share):
        logits = dist.Normal(locs.detach(), 1.0).log_prob(y[:, None]) + share.log()
        return logits.logsumexp(-1).double().sum().item()

    em = lvm.fit_em(model, y, progress=False)
    svi = fitted(model, "map", y, num_steps=50, optim=0.02)
    compared = lvm.compare_models({"em": em, "svi": svi})
    point = svi.sample(1)["locs"][0]
    assert compared["em"].log_likelihood.value == pytest.approx(
        by_hand(em.params["locs"], em.params["share"]), abs=1e-3
    )
    assert compared["svi"].log_likelihood.value == pytest.approx(by_hand(point, svi.params["share"]), abs=1e-3)
    assert compared["em"].num_parameters == compared["svi"].num_parameters == 3
    assert compared["em"].icl > compared["em"].bic


def test_parameters_that_a_prior_observes_are_no_data(y):
    """A penalty on a parameter, written as an observation of it."""

    def model(y, size):
        locs = pyro.param("locs", torch.linspace(-1, 1, size))
        pyro.sample("locs_prior", dist.Normal(0.0, 1.0).expand([size]).to_event(1), obs=locs)
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.full((size,), 1 / size)), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)

    results = {size: fitted(model, None, y, size, num_steps=20, optim=0.05) for size in (2, 3)}
    found = lvm.compare_models({str(size): result for size, result in results.items()})
    for size, result in results.items():
        by_hand = dist.Normal(result.params["locs"], 1.0).log_prob(y[:, None]).logsumexp(-1) - math.log(size)
        assert found[str(size)].log_likelihood.value == pytest.approx(by_hand.double().sum().item(), abs=1e-3)
        assert found[str(size)].num_parameters == size


def test_latents_of_rows_are_integrated_out(clusters):
    """Probabilistic PCA: the closed form of the likelihood, and what a guide's draws make of it."""
    ppca = lvm.models.PPCA(1, 2).initialize(clusters)
    em = lvm.fit_em(ppca, clusters, progress=False)
    em_expected = ppca.marginal().log_prob(clusters).double().sum().item()

    def wide(x):
        """A guide that is off by half."""
        with pyro.plate("rows", len(x)):
            loc = (x - ppca.loc) @ pyro.param("way", 0.2 * torch.ones(2, 1))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    svi = fitted(ppca, wide, clusters, num_steps=50, optim=0.02)
    compared = lvm.compare_models({"em": em, "svi": svi}, num_draws=2_000)
    assert compared["em"].log_likelihood.value == pytest.approx(em_expected, abs=1e-3)
    value, error = compared["svi"].log_likelihood
    assert 0 < error < 1
    assert abs(value - ppca.marginal().log_prob(clusters).double().sum().item()) < 4 * error
    assert compared["em"].num_parameters == compared["svi"].num_parameters == 2 + 2 + 1
    assert compared["em"].bic == pytest.approx(5 * math.log(50) - 2 * em_expected, abs=1e-2)
    assert "no single enumerated site" in compared["em"].reasons["icl"]


def test_parameters_of_a_guide_are_not_counted(clusters):
    """An encoder is no part of the model."""
    vae = lvm.models.VAE(2, 1, hidden=(4,), likelihood="normal")
    result = fitted(vae, None, clusters, num_steps=5)
    (model, _) = lvm.compare_models({"vae": result, "again": result}, num_draws=50).values()
    decoder = sum(p.numel() for name, p in vae.named_parameters() if "encoder" not in name)
    assert 0 < model.num_parameters == decoder < sum(p.numel() for p in vae.parameters())


def test_fitted_hyperparameters_and_one_numbering_are_noted(clusters):
    def model(x):
        spread = pyro.param("spread", torch.tensor(2.0), constraint=constraints.positive)
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), spread).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(torch.where(z == 1, locs[1], locs[0]), 1.0), obs=x[:, 0])

    result = fitted(model, "mean_field", clusters, num_steps=300, optim=0.05)
    (found, _) = lvm.compare_models({"a": result, "b": result}).values()
    assert found.num_parameters == 1
    assert "with 1 more parameters at a point, which have seen all rows" in found.notes
    assert any("one numbering of 2 components" in note and "log 2! = 0.7" in note for note in found.notes)


def test_what_cannot_be_had_says_why(y):
    """A guide with a point and a posterior; a model whose data is in its closure."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, noise), obs=y)

    def mixed(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.2))
        pyro.sample("noise", dist.Delta(pyro.param("noise_at", torch.tensor(1.0), constraint=constraints.positive)))

    found = lvm.compare_models({"mixed": fitted(model, mixed, y), "map": fitted(model, "map", y)})
    assert "'noise' at a point" in found["mixed"].reasons["evidence"]
    assert "'noise' at a point" in found["mixed"].reasons["loo"]
    assert found["map"].num_parameters == 2
    assert "no single enumerated site" in found["map"].reasons["icl"]
    assert found.reasons["map"] is found["map"].reasons
    with pytest.raises(ValueError, match=r"no model has 'loo': .* at a point"):
        found.best()
    with pytest.raises(ValueError, match="no two models have a criterion in common"):
        found.plot()

    def closed():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("points", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    found = lvm.compare_models({"draws": fitted(closed, "mean_field"), "map": fitted(closed, "map")})
    assert "no plate that follows the rows" in found["draws"].reasons["loo"]
    assert found["draws"].evidence is not None
    assert found["map"].reasons["bic"] == "its data has no rows"
    mu = fitted(closed, "map").sample(1)["mu"]
    assert found["map"].log_likelihood.value == pytest.approx(dist.Normal(mu, 1.0).log_prob(y).sum().item(), abs=1e-3)


def test_weights_that_fail_are_noted(y):
    """A guide much too narrow."""
    model, _ = conjugate(1.0)

    def narrow(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", y.mean() + 0.3), 0.02))

    found = lvm.compare_models({"narrow": fitted(model, narrow, y), "good": fitted(*conjugate(1.0), y)})
    assert any("log p(x) is not to be trusted" in note for note in found["narrow"].notes)
    assert any("elpd_loo is not to be trusted for 25 of 25 rows" in note for note in found["narrow"].notes)
    assert "narrow: log p(x) is not to be trusted" in str(found)
    assert (found["narrow"].doubtful, found["good"].doubtful) == (("evidence", "loo"), ())
    assert f"best by log p(x): {found.best('evidence')} (not to be trusted)" in str(found)


def test_the_report(compared, bayes, y):
    with_point = lvm.compare_models({**bayes, "point": fitted(conjugate(1.0)[0], "map", y)}, num_draws=200)
    text = str(with_point)
    assert text.splitlines()[0].split()[:2] == ["model", "kind"]
    assert "ICL" not in text.splitlines()[0]  # no model has it
    assert "point: no log p(x): its parameters are at a point" in text
    assert "best by elpd_loo: scale 1.0; best by log p(x): scale 1.0" in text
    assert with_point.best("bic") == "point"
    frame = with_point.to_dataframe()
    assert frame.index.tolist() == ["scale 1.0", "scale 2.0", "point"]
    assert frame["bic"].isna().tolist() == [True, True, False]
    assert frame["elpd_loo"].isna().tolist() == [False, False, True]
    assert "<table>" in with_point._repr_html_()
    figure = compared.plot()
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "elpd_loo, below the best (nats)",
        "log p(x), below the best (nats)",
    ]
    plt.close(figure)


def test_the_same_seed_gives_the_same_numbers(bayes):
    one, same, other = (lvm.compare_models(bayes, num_draws=50, seed=seed) for seed in (1, 1, 2))
    assert str(one) == str(same) != str(other)


def test_other_covariates_of_the_same_observations_are_comparable(y):
    X = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    labels = (y > 1).float()
    results = {}
    for D in (2, 3):
        model = lvm.models.BayesianLogisticRegression(D)
        results[f"{D} covariates"] = fitted(model, "mean_field", X[:, :D], labels)
    assert len(lvm.compare_models(results, num_draws=20)) == 2


def test_numbers_given_beside_the_rows_may_differ(y):
    def model(y, scale):
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale), obs=y)

    found = lvm.compare_models({"narrow": fitted(model, None, y, 1.0), "wide": fitted(model, None, y, 5.0)})
    assert found.best("bic") == "narrow"


def test_wrong_arguments_are_refused(bayes, y):
    one = bayes["scale 1.0"]
    with pytest.raises(TypeError, match="must be a dict of results by name; got list"):
        lvm.compare_models([one, one])
    with pytest.raises(TypeError, match="must be the result of a fit under a name; got int"):
        lvm.compare_models({"a": one, "b": 3})
    with pytest.raises(TypeError, match="under a name"):
        lvm.compare_models({1: one, 2: one})
    with pytest.raises(ValueError, match="at least two results; got 1"):
        lvm.compare_models({"a": one})
    with pytest.raises(ValueError, match="'b' and 'a' are fits of different data"):
        lvm.compare_models({"a": one, "b": fitted(*conjugate(1.0), y + 1)})
    with pytest.raises(ValueError, match="different data"):
        lvm.compare_models({"a": one, "b": fitted(*conjugate(1.0), y[:-1])})
    with pytest.raises(ValueError, match="num_draws"):
        lvm.compare_models(bayes, num_draws=0)
    with pytest.raises(ValueError, match="seed"):
        lvm.compare_models(bayes, seed=-1)
    with pytest.raises(ValueError, match="criterion: expected one of 'loo', 'evidence', 'bic', 'icl'"):
        lvm.compare_models(bayes, num_draws=10).best("aic")


def test_another_part_of_the_same_rows_is_other_data(clusters):
    def model(x, both):
        with pyro.plate("rows", len(x)):
            pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x[:, 0])
            if both:
                pyro.sample("b", dist.Normal(0.0, 1.0), obs=x[:, 1])

    with pytest.raises(ValueError, match="different data"):
        lvm.compare_models({"a": fitted(model, None, clusters, False), "b": fitted(model, None, clusters, True)})


@pytest.mark.parametrize(
    ("shape", "constraint", "expected"),
    [
        ((4,), constraints.real, 4),
        ((5, 4), constraints.positive, 20),
        ((4,), constraints.simplex, 3),
        ((5, 4), constraints.independent(constraints.simplex, 1), 15),
        ((3, 3), constraints.lower_cholesky, 6),
        ((2, 3, 3), constraints.positive_definite, 12),
        ((3, 3), constraints.corr_cholesky, 3),
        ((3,), constraints.unit_interval, 3),
        ((), constraints.greater_than(1.0), 1),
        ((3,), constraints.nonnegative, 3),
        ((3,), constraints.nonnegative_integer, 3),
    ],
)
def test_numbers_that_are_free(shape, constraint, expected):
    assert num_free(torch.ones(shape), constraint) == expected


def test_errors_are_drawn_as_lines():
    ax = lvm.plots.dots({"a": 1.0, "b": 2.0}, "nats", log=False, errors={"b": 0.5})
    (line,) = ax.collections
    assert_close(torch.tensor(line.get_segments()[0][:, 0]), torch.tensor([1.5, 2.5]).double())
    assert math.isclose(ax.lines[1].get_xdata()[0], 2.0)
    plt.close(ax.figure)
