"""Latent Dirichlet allocation: brute force on single words, scikit-learn, and topics that made the data."""

import warnings
from pydoc_data.topics import topics as help_texts

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import sparse as scipy_sparse
from scipy.optimize import linear_sum_assignment
from scipy.special import digamma, gammaln
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm import sparse
from pyro_lvm.models import LDA
from pyro_lvm.models._shares import Shares
from pyro_lvm.models._words import Words

K, V, N = 4, 60, 300


@pytest.fixture(scope="module")
def corpus():
    """Documents of different lengths, one of them empty, and the topics that made them."""
    rng = np.random.default_rng(0)
    topics, shares = rng.dirichlet(np.full(V, 0.1), K), rng.dirichlet(np.full(K, 0.3), N)
    totals = rng.integers(20, 120, size=N)
    totals[7] = 0
    counts = np.stack([rng.multinomial(n, s @ topics) for n, s in zip(totals, shares, strict=True)])
    return scipy_sparse.csr_matrix(counts), topics


def distance(model, topics):
    """Mean total variation of matched topics."""
    gaps = 0.5 * np.abs(topics[:, None] - model.topics.numpy()).sum(-1)
    return gaps[linear_sum_assignment(gaps)].mean()


def fitted(counts, **options):
    model = LDA(K, V)
    return model, lvm.fit_em(model, counts, progress=False, **{"tol": 1e-4, "max_iter": 200, **options})


def as_ours(peer):
    """Scikit-learn's topics in a model of ours, so that the same bound judges them."""
    model = LDA(*peer.components_.shape).double()
    model.topic_concentration = torch.as_tensor(peer.components_)
    model.concentration = torch.full((model.num_topics,), peer.doc_topic_prior_)
    return model


# The E-step ---------------------------------------------------------------------------------------------------


def expected_weights(concentration):
    return np.exp(digamma(concentration) - digamma(concentration.sum(-1, keepdims=True)))


def by_hand(counts, weights, concentration, num_iter=2000):
    """Shares and the ELBO of each document, by the loop of Blei et al. (2003), in NumPy."""
    shares, bounds = [], []
    for row in counts:
        words = row.nonzero()[0]
        c, w = row[words], weights[:, words]
        gamma = concentration + c.sum() / len(concentration)
        for _ in range(num_iter):
            topic = np.exp(digamma(gamma) - digamma(gamma.sum()))
            gamma = concentration + topic * (w @ (c / (topic @ w)))
        logs = digamma(gamma) - digamma(gamma.sum())
        bound = (c * np.log(np.exp(logs) @ w)).sum()
        for sign, a in ((1, concentration), (-1, gamma)):
            bound += sign * (gammaln(a.sum()) - gammaln(a).sum() + ((a - 1) * logs).sum())
        shares.append(gamma), bounds.append(bound)
    return np.stack(shares), np.array(bounds)


def test_bounds_are_those_of_a_loop_by_hand(corpus):
    counts, _ = corpus
    model, _ = fitted(counts, max_iter=5)
    model = model.double()
    expected = by_hand(counts[:30].toarray(), model.topics.numpy(), model.concentration.detach().numpy())
    np.testing.assert_allclose(model.bound(counts[:30]), expected[1], atol=2e-4)  # the loop goes on for longer
    gamma = expected[0]
    np.testing.assert_allclose(model.shares(counts[:30]), gamma / gamma.sum(-1, keepdims=True), atol=2e-3)


def test_bound_is_below_the_evidence():
    """Of single words, whose probability is exactly the mean share of each topic times its word."""
    model = LDA(K, V).double()
    model.concentration = np.random.default_rng(0).gamma(2, size=K)
    model.topic_concentration = 1e6 * np.random.default_rng(1).dirichlet(np.ones(V), K)  # topics as good as known
    exact = np.log((model.concentration / model.concentration.sum()).detach().numpy() @ model.topics.numpy())
    bound = model.bound(scipy_sparse.eye(V, format="csr"))
    assert (bound.numpy() <= exact + 1e-6).all()
    assert (bound.numpy() >= exact - 0.5).all()


def test_m_step_of_the_topics_is_that_of_scikit_learn(corpus):
    counts, _ = corpus
    model = fitted(counts, max_iter=10)[0].double()
    model.concentration = torch.full((K,), 1 / K)
    start = model.topic_concentration.detach().numpy()
    theirs = LatentDirichletAllocation(
        K, doc_topic_prior=1 / K, topic_word_prior=1 / K, mean_change_tol=1e-6, max_doc_update_iter=2000
    ).fit(counts[:1].astype(np.float64))
    theirs.components_ = start.copy()
    theirs.exp_dirichlet_component_ = expected_weights(start)
    theirs._em_step(counts.astype(np.float64), N, batch_update=True)
    lvm.fit_em(model, counts, max_iter=1, tol=0, progress=False)
    np.testing.assert_allclose(model.topic_concentration.detach(), theirs.components_, rtol=2e-2, atol=2e-2)


# EM -----------------------------------------------------------------------------------------------------------


def test_topics_are_recovered(corpus):
    counts, topics = corpus
    model, em = fitted(counts)
    assert em.converged
    assert em.objective_name == "ELBO"
    assert distance(model, topics) < 0.1


@pytest.mark.slow
def test_objective_is_the_elbo(corpus):
    """That of the documents, and the divergence of the topics from their prior."""
    counts, _ = corpus
    model, em = fitted(counts, max_iter=10)
    posterior = torch.distributions.Dirichlet(model.topic_concentration.detach().double())
    prior = torch.distributions.Dirichlet(torch.full((K, V), model.topic_prior).double())
    divergence = torch.distributions.kl_divergence(posterior, prior).sum().item()
    weights = expected_weights(posterior.concentration.numpy())
    _, bounds = by_hand(counts.toarray(), weights, model.concentration.detach().double().numpy())
    assert em.objective[-1].item() == pytest.approx(bounds.sum() - divergence, rel=1e-5)


def test_perplexity_is_no_worse_than_scikit_learns(corpus):
    counts, _ = corpus
    model, em = fitted(counts[:200])
    theirs = LatentDirichletAllocation(K, max_iter=em.num_iter, random_state=0).fit(counts[:200])
    assert model.perplexity(counts[200:]) <= as_ours(theirs).perplexity(counts[200:])


def test_perplexity_is_scikit_learns_but_for_the_topics(corpus):
    """Theirs has the divergence of the topics from their prior in it, too; both are the same for topics known well."""
    counts, _ = corpus
    peer = LatentDirichletAllocation(K, max_iter=5, random_state=0).fit(counts[:200].astype(float))
    peer.components_ *= 1e6
    peer.exp_dirichlet_component_ = expected_weights(peer.components_)
    posterior, prior = (
        torch.distributions.Dirichlet(torch.as_tensor(a)) for a in (peer.components_, np.full((K, V), 1 / K))
    )
    divergence = torch.distributions.kl_divergence(posterior, prior).sum().item()
    expected = np.log(peer.perplexity(counts[200:])) - divergence / counts[200:].sum()
    assert np.log(as_ours(peer).perplexity(counts[200:])) == pytest.approx(expected, abs=1e-4)


def test_concentration_is_that_of_newtons_method(corpus):
    counts, _ = corpus
    model, _ = fitted(counts, tol=1e-7, max_iter=500)
    model = model.double()
    a, weights = model.concentration.detach().numpy(), expected_weights(model.topic_concentration.detach().numpy())
    gamma, _ = by_hand(counts.toarray(), weights, a, 300)
    logs = (digamma(gamma) - digamma(gamma.sum(-1, keepdims=True))).mean(0)
    np.testing.assert_allclose(digamma(a) - digamma(a.sum()), logs, atol=1e-2)


def test_online_em_recovers_the_topics(corpus):
    counts, topics = corpus
    model, em = fitted(counts, online=0.7, batch_size=50, max_iter=20, tol=1e-6)
    assert em.num_iter == 20
    assert distance(model, topics) < 0.1


def test_weights_are_repeated_documents_and_batches_change_nothing(corpus):
    counts, _ = corpus
    some = counts[:40]
    weight = torch.arange(40) % 3
    repeated = some[np.repeat(np.arange(40), weight.numpy())]
    start = LDA(K, V).double().initialize(counts)
    found = []
    for data, options in (
        (repeated, {}),
        (some, {"sample_weight": weight}),
        (some, {"sample_weight": weight, "batch_size": 7}),
    ):
        model = LDA(K, V).double()
        model.topic_concentration = start.topic_concentration.detach()
        em = lvm.fit_em(model, data, max_iter=3, tol=0, progress=False, **options)
        found.append((em.objective, model.topic_concentration.detach(), model.concentration.detach()))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_documents_are_counts_whatever_holds_them(corpus):
    counts, _ = corpus
    some = counts[:5]
    dense = some.toarray()
    words = [np.repeat(np.arange(V), row).tolist() for row in dense]
    model = LDA(K, V).initialize(counts)
    expected = model.bound(some)
    for same in (scipy_sparse.coo_array(some), dense, torch.as_tensor(dense), words, [np.array(w, int) for w in words]):
        torch.testing.assert_close(model.bound(same), expected)
    (table,) = model.as_data(words)
    assert sparse.is_sparse(table)
    assert table.values().numel() == some.nnz


def test_result_is_saved(corpus, tmp_path):
    counts, _ = corpus
    _, em = fitted(counts, max_iter=2)
    em.save(tmp_path / "lda.pt")
    again = lvm.load(tmp_path / "lda.pt", LDA(K, V), None, counts)
    for name, value in em.params.items():
        torch.testing.assert_close(again.params[name], value)


# fit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [pytest.param(None, marks=pytest.mark.slow), (32,)])
def test_fit_keeps_the_topics_of_em(corpus, hidden):
    counts, topics = corpus
    model = LDA(K, V, hidden=hidden)
    lvm.fit(model, None, counts, num_steps=300, batch_size=100, optim=0.05, progress=False)
    assert distance(model, topics) < 0.12
    em, _ = fitted(counts)
    order = linear_sum_assignment(np.abs(model.topics.numpy()[:, None] - em.topics.numpy()).sum(-1))[1]
    assert (model.shares(counts) - em.shares(counts)[:, order]).abs().mean() < 0.02
    if hidden:
        guided = model.encode(model.as_data(counts)[0]).detach()
        guided = guided / guided.sum(-1, keepdim=True)
        assert (guided - model.shares(counts)).abs().mean() < 0.05


def test_words_are_those_of_the_mixed_topics(corpus):
    counts, _ = corpus
    model = LDA(K, V).double().initialize(counts)
    (table,) = model.as_data(counts[:6])
    trace = poutine.trace(model).get_trace(table)
    probabilities = trace.nodes["shares"]["value"] @ model.topics
    expected = (torch.as_tensor(counts[:6].toarray()) * probabilities.log()).sum(-1)
    words = trace.nodes["words"]["fn"].base_dist
    torch.testing.assert_close(words.log_prob(table), expected)
    drawn = Words(words.shares, words.topics, torch.full((6,), 50_000)).sample()
    assert (drawn.sum(-1) == 50_000).all()
    error = (probabilities * (1 - probabilities) / 50_000).sqrt()
    assert ((drawn / 50_000 - probabilities).abs() < 5 * error + 1e-9).all()


def test_shares_have_the_moments_of_a_dirichlet():
    concentration = torch.tensor([0.02, 0.5, 3.0]).double()
    draws = Shares(concentration).sample((20_000,))
    exact = torch.distributions.Dirichlet(concentration)
    for found, expected in ((draws, exact.mean), ((draws - exact.mean).square(), exact.variance)):
        assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / 20_000**0.5).all()


def test_slopes_of_tiny_shares_are_finite():
    concentration = torch.full((1000, 5), 0.02, requires_grad=True, dtype=torch.float32)
    guide = Shares(concentration)
    shares = guide.rsample()
    value = torch.distributions.Dirichlet(torch.full((5,), 0.02), validate_args=False).log_prob(
        shares
    ) - guide.log_prob(shares)
    value.sum().backward()
    assert concentration.grad.isfinite().all()


# Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "documents, error, message",
    [
        ([[0, V]], ValueError, f"word numbers from 0 to {V - 1}, document 0 has others"),
        ([[0], [-1]], ValueError, "document 1 has others"),
        ([[0.5]], TypeError, "lists of word numbers, document 0 has others"),
        ([[[0]]], TypeError, "lists of word numbers, document 0 has others"),
        (np.ones((2, V + 1)), ValueError, rf"counts: expected shape \[N, {V}\], got \[2, {V + 1}\]"),
        (-np.ones((2, V)), ValueError, "counts: expected finite numbers that are not negative"),
        (np.full((2, V), np.nan), ValueError, "counts: expected finite numbers that are not negative"),
        (torch.ones(V), TypeError, r"counts: expected a sparse table of shape \[N, 60\], got Tensor"),
        ("words", TypeError, "counts: expected a sparse table"),
    ],
)
def test_wrong_documents_are_refused(documents, error, message):
    with pytest.raises(error, match=message):
        LDA(K, V).bound(documents)


@pytest.mark.parametrize(
    "arguments, options, error",
    [
        ((0, V), {}, ValueError),
        ((K, 2.5), {}, TypeError),
        ((K, V), {"topic_prior": 0.0}, ValueError),
        ((K, V), {"topic_prior": "a"}, TypeError),
        ((K, V), {"share_prior": -1.0}, ValueError),
        ((K, V), {"hidden": ()}, ValueError),
        ((K, V), {"hidden": 5}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, error):
    with pytest.raises(error):
        LDA(*arguments, **options)


def test_documents_without_words():
    model = LDA(2, 5).double()
    em = lvm.fit_em(model, [[], []], max_iter=2, progress=False)
    torch.testing.assert_close(model.topics, torch.full((2, 5), 0.2).double())
    assert em.objective.isfinite().all()
    assert model.bound([[]]).tolist() == [0.0]
    with pytest.raises(ValueError, match="at least one word"):
        model.perplexity([[], []])


@pytest.mark.parametrize("hidden", [None, (4,)])
def test_batches_of_a_loader_are_counts(corpus, hidden):
    counts, _ = corpus
    loader = DataLoader(TensorDataset(torch.tensor(counts.toarray()).float()), batch_size=75)
    if hidden is None:
        found, expected = (lvm.fit_em(LDA(K, V), data, max_iter=3, seed=1, progress=False) for data in (loader, counts))
        torch.testing.assert_close(found.objective, expected.objective)
    else:
        assert lvm.fit(LDA(K, V, hidden=hidden), None, loader, num_steps=9, progress=False).losses.isfinite().all()


@pytest.mark.parametrize("hidden", [None, (4,)])
def test_arviz_has_the_shares_and_the_log_likelihood_of_documents(hidden):
    documents = 10 * [[0, 1, 1], [2, 3], [4, 4, 4, 0]]
    model = LDA(2, 5, hidden=hidden)
    result = lvm.fit(model, None, documents, num_steps=5, progress=False)
    data = lvm.to_arviz(result, num_draws=7)
    assert dict(data["posterior"]["shares"].sizes) == {"chain": 1, "draw": 7, "rows": 30, "shares_dim_0": 2}
    probabilities = data["posterior"]["shares"].values[0] @ model.topics.numpy()
    expected = np.log(probabilities[:, 0, [0, 1, 1]]).sum(-1)
    np.testing.assert_allclose(data["log_likelihood"]["words"].values[0, :, 0], expected, rtol=1e-5)
    assert set(data.groups() if callable(data.groups) else data.groups) >= {"posterior", "log_likelihood"}


def test_em_refuses_an_encoder_and_encoding_needs_one(corpus):
    counts, _ = corpus
    with pytest.raises(ValueError, match="EM has no use for an encoder"):
        lvm.fit_em(LDA(K, V, hidden=(8,)), counts, progress=False)
    with pytest.raises(ValueError, match="has no encoder"):
        LDA(K, V).encode(LDA(K, V).as_data(counts)[0])
    with pytest.raises(TypeError, match="expected one argument"):
        lvm.fit_em(LDA(K, V), counts, counts, progress=False)


def test_a_model_finds_its_store_clean(corpus):
    counts, _ = corpus
    fitted(counts, max_iter=1)
    assert not list(pyro.get_param_store())


# A real corpus ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_held_out_perplexity_of_pythons_own_help_is_no_worse_than_scikit_learns():
    """Under the same prior of the shares, within two standard errors over starts."""
    texts = [part for text in help_texts.values() for part in text.split("\n\n")]
    counts = CountVectorizer(min_df=5, max_df=0.2, token_pattern="[a-z]{3,}").fit_transform(texts)
    counts = counts[np.asarray(counts.sum(1)).ravel() >= 10]
    train, held_out = counts[np.arange(counts.shape[0]) % 5 > 0], counts[::5]
    ours, theirs = [], []
    for seed in range(3):
        model = LDA(8, counts.shape[1], share_prior=1 / 8).initialize(train, seed=seed)
        em = lvm.fit_em(model, train, tol=1e-3, max_iter=60, progress=False)
        peer = LatentDirichletAllocation(8, max_iter=em.num_iter, random_state=seed).fit(train)
        ours.append(model.perplexity(held_out))
        theirs.append(as_ours(peer).perplexity(held_out))
    standard_error = (np.var(ours, ddof=1) / 3 + np.var(theirs, ddof=1) / 3) ** 0.5
    assert np.mean(ours) <= np.mean(theirs) + 2 * standard_error, (ours, theirs)


@pytest.mark.parametrize("layout", ["coo", "csc", "csr", "dense"])
def test_any_matrix_of_torchs_will_do(corpus, layout):
    counts, _ = corpus
    dense = torch.tensor(counts[:20].toarray())
    given = {"coo": dense.to_sparse, "csc": dense.to_sparse_csc, "csr": dense.to_sparse_csr, "dense": lambda: dense}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CS[RC] tensor support", UserWarning)
        matrix = given[layout]()
    model = LDA(K, V).initialize(counts)
    torch.testing.assert_close(model.shares(matrix), model.shares(counts[:20]))


def test_results_take_what_models_take(corpus):
    counts, _ = corpus
    _, em = fitted(counts, max_iter=2)
    lists = [np.repeat(np.arange(V), row).tolist() for row in counts[:5].toarray().astype(int)]
    expected = em.score(counts[:5]).value
    torch.testing.assert_close(em.score(lists).value, expected)
    torch.testing.assert_close(em.score(torch.tensor(counts[:5].toarray()).float()).value, expected)


@pytest.mark.parametrize("topic_prior", [1e-3, 1e-5])
def test_unseen_words_under_small_priors_have_tiny_finite_probabilities(topic_prior):
    """About what the prior leaves to words that no document has."""
    model = LDA(2, 4, topic_prior=topic_prior, share_prior=0.5).double()
    lvm.fit_em(model, 20 * [[0, 1], [2, 2]], progress=False, max_iter=5)
    seen, unseen = model.bound([[0]]).item(), model.bound([[3]]).item()
    assert unseen - seen == pytest.approx(np.log(topic_prior / 20), abs=0.5)


def test_many_topics_and_documents_of_one_word():
    model = LDA(1500, 3)
    em = lvm.fit_em(model, 5 * [[0], [1], [2]], max_iter=2, progress=False)
    assert em.objective.isfinite().all()


def test_a_users_matrix_is_left_alone():
    matrix = scipy_sparse.csr_matrix((np.ones(3), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 3))
    LDA(2, 3).shares(matrix)
    assert matrix.nnz == 3
