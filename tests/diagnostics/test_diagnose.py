"""``diagnose`` as a whole: what it says of fits whose quality is known."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.stats import kstest

import pyro_lvm as lvm
from pyro_lvm.diagnostics.replications import examine_predictions
from pyro_lvm.verdict.unconstrained import Unconstrained
from pyro_lvm.verdict.weights import draw_weighted

N = 60
Y = torch.randn(N, generator=torch.Generator().manual_seed(0)) + 2.0
FEW = 1_000  # draws


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    pyro.deterministic("twice", 2 * mean)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def off(shift, width):
    """The posterior, so many standard deviations away and so many times as wide."""

    def guide(y):
        precision = 0.01 + len(y)
        shifted = pyro.param("shift", torch.tensor(float(shift)))
        pyro.sample("mean", dist.Normal(y.sum() / precision + shifted * precision**-0.5, width * precision**-0.5))

    return guide


def fitted(guide, *data, of=model, **options):
    return lvm.fit(of, guide, *(data or (Y,)), num_steps=1, optim=1e-12, progress=False, **options)


def grades(diagnosis, about):
    return [finding.grade for finding in diagnosis.findings() if finding.about == about]


@pytest.mark.parametrize(
    ("shift", "width", "verdict"),
    [
        (0.1, 1.1, "good"),
        (0.5, 1, "bad"),
        (0, 0.7, "bad"),
        (0.25, 1, "doubtful"),
        pytest.param(0, 1, "good", marks=pytest.mark.slow),
        pytest.param(0, 1.4, "bad", marks=pytest.mark.slow),
    ],
)
def test_the_verdict_is_that_of_the_exact_posterior(shift, width, verdict):
    found = lvm.diagnose(fitted(off(shift, width)))
    assert found.verdict == verdict
    assert found.marginals.names == ("mean", "twice")
    assert "Hamiltonian moves" in found.marginals.corrected
    assert ("importance weights" in found.marginals.corrected) == (found.khat.value < 0.7)
    precision = 0.01 + N
    exact, sd = (Y.sum() / precision).item(), precision**-0.5
    for moments in found.marginals.corrected.values():
        assert abs(moments.means[0] - exact) < 4 * moments.mean_errors[0]
        assert abs(moments.sds[0] - sd) < 4 * moments.sd_errors[0]
    log_evidence = dist.MultivariateNormal(torch.zeros(N), torch.eye(N) + 100).log_prob(Y).item()
    assert abs(found.evidence.value - log_evidence) < 4 * found.evidence.standard_error + 1e-3
    assert found.elbo.value <= found.evidence.value + 1e-3
    assert abs(found.loo.elpd - -1.5 * N) < 15
    if found.loo.grade != "bad":
        assert len(found.pit[0].values) == N
    assert {check.statistic for check in found.checks.each} == {"mean", "sd", "min", "max"}


def test_a_hopeless_guide_is_bad_by_moves_alone():
    found = lvm.diagnose(fitted(off(6, 0.3)), FEW)
    assert found.khat.value > 0.7
    assert list(found.marginals.corrected) == ["Hamiltonian moves"]
    assert found.verdict == "bad"
    assert grades(found, "evidence") == ["doubtful"]
    advice = found.summary().partition("to try next:\n  ")[2]
    assert advice.startswith("more steps, if the loss was still falling; a richer guide")


def test_words_picture_and_page(tmp_path):
    found = lvm.diagnose(fitted(off(0, 1)), FEW)
    text = str(found)
    assert text == found.summary() == repr(found)
    assert "verdict: good" in text
    assert "can be trusted" in text
    figure = found.plot()
    assert len(figure.axes) == 6
    plt.close(figure)
    html = found.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert html.count("data:image/png;base64,") == 1
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "LOO-PIT of &#x27;y&#x27;" in html
    assert "<iframe srcdoc=" in found._repr_html_()


@pytest.mark.slow
def test_the_same_seed_says_the_same():
    result = fitted(off(0.1, 1))
    assert str(lvm.diagnose(result, FEW, seed=3)) == str(lvm.diagnose(result, FEW, seed=3))
    assert str(lvm.diagnose(result, FEW, seed=3)) != str(lvm.diagnose(result, FEW, seed=4))


@pytest.mark.slow
def test_enumerated_sites_are_summed_out(clusters, fit):
    def mixture(x):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[z], 1.0).to_event(1), obs=x)

    start = {"AutoNormal.locs.locs": torch.tensor([[-2.0, -2.0], [2.0, 2.0]])}
    result = fit(mixture, "mean_field", clusters, num_steps=600, optim=0.05, init=start)
    found = lvm.diagnose(result, FEW)
    assert found.khat.value < 0.7
    assert set(found.marginals.by_site()) == {"locs"}
    assert "Hamiltonian moves" in found.marginals.corrected


@pytest.mark.slow
def test_latents_of_rows_are_judged_row_by_row(fit):
    def nested(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 1.0).expand([2]).to_event(1))
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    found = lvm.diagnose(fit(nested, "mean_field", torch.cat([Y, Y]), num_steps=400), FEW)
    assert found.khat.shared_only
    assert found.khat.num_draws == FEW // 10
    assert found.khat.rows.shape == (2 * N,)
    assert len(grades(found, "k-hat of rows")) == 1
    assert found.loo is not None


def test_a_vae_has_rows_and_no_shared_posterior(fit):
    x = torch.bernoulli(torch.full((150, 6), 0.4), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = lvm.diagnose(fit(lvm.models.VAE(6, 2, hidden=(8,)), None, x, num_steps=50), FEW)
    assert found.khat.each == ()
    assert found.khat.rows.shape == (150,)
    assert found.verdict in ("good", "doubtful", "bad")
    assert found.not_available["LOO"] == (
        "rows share no latent; parameters, if there are any, are at a point and have seen every row"
    )
    assert not any(check.calibrated for check in found.checks.each)


def test_rows_that_cannot_be_left_out_have_no_place_among_the_others(fit):
    """Each row has a number and a latent of its own, and nothing that is drawn is shared."""

    def local(y):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    found = lvm.diagnose(fit(local, "mean_field", torch.cat([Y, Y]), num_steps=50), FEW)
    assert "LOO" in found.not_available
    assert found.pit == ()


def test_fits_to_points_have_no_posterior(fit):
    found = lvm.diagnose(fit(model, "map", Y, num_steps=300), FEW)
    assert found.verdict == "not available"
    assert (found.khat, found.evidence, found.marginals, found.loo) == (None,) * 4
    assert "as a MAP fit does" in found.not_available["posterior"]
    assert "not available: " in str(found)
    found.to_html()


def test_em_is_told_by_its_iterations(clusters):
    found = lvm.diagnose(lvm.fit_em(lvm.models.GaussianMixture(2, 2), clusters), FEW)
    assert found.verdict == "not available"
    assert grades(found, "optimisation") == ["good"]
    assert found.to_html()


def test_a_model_without_a_row_plate_has_no_loo(schools):
    found = lvm.diagnose(schools, FEW)
    assert "no plate that follows the rows" in found.not_available["LOO"]
    assert found.pit == ()
    assert all(check.calibrated for check in found.checks.each)


def test_discrete_latents_cannot_be_moved(fit):
    def counted(y):
        n = pyro.sample("n", dist.Poisson(3.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(n, 1.0), obs=y)

    def guide(y):
        rate = pyro.param("rate", torch.tensor(2.0))
        pyro.sample("n", dist.Poisson(rate), infer={"is_auxiliary": False})

    found = lvm.diagnose(fitted(guide, Y[:3], of=counted), FEW)
    assert "Hamiltonian moves" not in found.marginals.corrected


def test_a_model_that_observes_by_factors_has_no_predictions():
    def factors():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("seen", dist.Normal(x, 1.0).log_prob(torch.tensor(1.0)))

    def guide():
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.5**0.5))

    found = lvm.diagnose(lvm.fit(factors, guide, num_steps=1, optim=1e-12, progress=False), FEW)
    assert found.verdict == "good"
    assert found.checks.each == ()
    assert found.to_html()


def test_nothing_global_changes():
    result, state = fitted(off(0.1, 1)), torch.get_rng_state()
    lvm.diagnose(result, FEW)
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_that_never_vary_are_passed_over(fit):
    """A reference level that is pinned at zero, and the corner of a correlation's root that is one."""

    def pinned(y):
        pyro.sample("root", dist.LKJCholesky(2, 2.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        pyro.deterministic("levels", torch.stack([torch.zeros(()), b]))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    found = lvm.diagnose(fit(pinned, "full_rank", Y, num_steps=200), FEW)
    assert set(found.marginals.names) == {"root[1, 0]", "root[1, 1]", "b", "levels[1]"}
    assert "nan" not in str(found)


def test_supports_that_depend_on_other_latents_are_not_moved_in(fit):
    def bounded(y):
        b = pyro.sample("b", dist.Gamma(5.0, 1.0))
        u = pyro.sample("u", dist.Uniform(0.0, b))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(u, 1.0), obs=y)

    def guide(y):
        b = pyro.sample("b", dist.Gamma(pyro.param("shape", torch.tensor(5.0)), 1.0))
        pyro.sample("u", dist.Uniform(0.0, b))

    found = lvm.diagnose(fitted(guide, of=bounded), FEW)
    assert found.marginals is None or "Hamiltonian moves" not in found.marginals.corrected


def test_chains_that_do_not_move_prove_nothing(monkeypatch):
    def stuck(self, points):
        return lambda x: (torch.zeros(len(x)), torch.full_like(x, torch.nan))

    monkeypatch.setattr(Unconstrained, "traced", stuck)
    found = lvm.diagnose(fitted(off(6, 0.3)), FEW)
    assert found.marginals.corrected == {}
    assert found.verdict == "unknown"


def test_weighted_rows_have_another_posterior(tmp_path):
    result = fitted(off(0, 1), sample_weight=torch.full((N,), 9.0))
    found = lvm.diagnose(result, FEW)
    assert found.verdict == "not available"
    assert "weighted" in found.not_available["posterior"]
    result.save(tmp_path / "fit.pt")
    assert lvm.diagnose(lvm.load(tmp_path / "fit.pt", model, off(0, 1), Y), FEW).verdict == "not available"
    scaled = fitted(off(0, 1), of=pyro.poutine.scale(model, 4.0))
    assert lvm.diagnose(scaled, FEW).verdict == "not available"


@pytest.mark.slow
def test_a_variational_fit_by_em(clusters):
    mixture = lvm.models.BayesianGaussianMixture(2, 2).initialize(clusters)
    found = lvm.diagnose(lvm.fit_em(mixture, clusters), 50)
    assert found.verdict in ("good", "doubtful", "bad", "unknown")
    assert found.components is not None
    assert found.to_html()


def test_one_row():
    found = lvm.diagnose(fitted(off(0, 1), Y[:1]), FEW)
    assert found.verdict == "good"
    assert found.to_html()


@pytest.mark.slow
def test_p_values_are_of_a_draw_of_the_posterior_and_not_of_the_guide():
    """A guide half an sd off has a good k-hat; over datasets, ranks by its own draws would not be uniform."""
    below = []
    for seed in range(60):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            y = 10 * torch.randn(()) + torch.randn(8)
        result = fitted(off(1.2, 1.5), y)
        weights = draw_weighted(result, 300, seed)
        _, checks = examine_predictions(result, weights, True, {"mean": torch.mean}, seed)
        below.append(checks.each[0].below)
    assert kstest(below, "uniform").pvalue > 0.01


def test_own_test_quantities():
    found = lvm.diagnose(fitted(off(0, 1)), FEW, statistics={"range": lambda y: y.max() - y.min()})
    assert [check.statistic for check in found.checks.each] == ["range"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"statistics": [torch.mean]}, TypeError, "expected a dict of functions"),
        ({"statistics": {"mean": 3}}, TypeError, "'mean' must be a function"),
        ({"statistics": {"all": lambda y: y}}, ValueError, "'all' must return a number"),
        ({"num_draws": 0}, ValueError, "num_draws"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        lvm.diagnose(fitted(off(0, 1)), **{"num_draws": FEW, **arguments})


def test_what_is_no_result():
    with pytest.raises(TypeError, match="takes the result of a fit; got dict"):
        lvm.diagnose({})


def test_a_fit_without_its_rows():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(Y), batch_size=N)
    result = lvm.fit(model, off(0, 1), loader, num_steps=1, progress=False)
    with pytest.raises(ValueError, match="kept none of them"):
        lvm.diagnose(result)


def test_a_page_that_cannot_be_written():
    with pytest.raises(ValueError, match="does not exist"):
        lvm.diagnose(fitted(off(0, 1)), FEW).to_html("/no/such/folder/report.html")


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(handle):
        raise OSError("no space left")

    path, found = tmp_path / "report.html", lvm.diagnose(fitted(off(0, 1)), FEW)
    path.write_text("the old page")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        found.to_html(path)
    assert path.read_text() == "the old page"
    assert list(tmp_path.iterdir()) == [path]
