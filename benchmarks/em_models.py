"""Data and fits of the models beside mixtures, by `lvm` and by their peers, for `em.py`."""

import time
import warnings

import hmmlearn.hmm
import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import PCA, FactorAnalysis, LatentDirichletAllocation

import pyro_lvm as lvm
from pyro_lvm.models.mixture import Gaussian

NUM_SEQUENCES, LENGTH, STATES, FEATURES = 200, 500, 8, 4
ROWS, COLUMNS, LATENTS = 100_000, 200, 20
DOCUMENTS, VOCABULARY, TOPICS = 5_000, 5_000, 50


# Hidden Markov models -------------------------------------------------------------------------------------------------


def sequences():
    """Sequences of diagonal Gaussians, and a start beside the truth."""
    torch.manual_seed(0)
    hmm = lvm.models.HMM(STATES, Gaussian(FEATURES, "diag")).double()
    hmm.transition = 0.1 / STATES + 0.9 * torch.eye(STATES)
    hmm.locs = 2 * torch.randn(STATES, FEATURES)
    x, _ = hmm.sample(NUM_SEQUENCES, LENGTH)
    hmm.locs = hmm.locs + 0.3 * torch.randn(STATES, FEATURES)
    return hmm, x


def our_hmm(hmm, x, num_iter):
    start = {name: value.detach().clone() for name, value in hmm.named_parameters()}
    begin = time.perf_counter()
    em = lvm.fit_em(hmm, x, max_iter=num_iter, tol=0, progress=False)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        for name, value in hmm.named_parameters():
            value.copy_(start[name])
    return seconds, float(em.objective[-1])


def hmmlearns(implementation):
    def fit(hmm, x, num_iter):
        peer = hmmlearn.hmm.GaussianHMM(
            STATES,
            "diag",
            covars_prior=0,
            covars_weight=0,
            min_covar=0,
            init_params="",
            implementation=implementation,
            n_iter=num_iter,
            tol=-np.inf,
        )
        peer.startprob_, peer.transmat_ = hmm.initial.detach().numpy(), hmm.transition.detach().numpy()
        peer.means_, peer.covars_ = hmm.locs.detach().numpy(), hmm.scale.detach().square().numpy()
        rows, lengths = x.flatten(0, 1).numpy(), [LENGTH] * NUM_SEQUENCES
        begin = time.perf_counter()
        peer.fit(rows, lengths)
        seconds = time.perf_counter() - begin
        return seconds, peer.score(rows, lengths)

    return fit


HMMS = {"ours": our_hmm, "hmmlearn log": hmmlearns("log"), "hmmlearn scaling": hmmlearns("scaling")}


# Factor models --------------------------------------------------------------------------------------------------------


def factors():
    """Rows with noise of its own in each column."""
    generator = torch.Generator().manual_seed(0)
    loading = torch.randn(LATENTS, COLUMNS, generator=generator).double()
    scale = 0.5 + torch.rand(COLUMNS, generator=generator).double()
    x = torch.empty(ROWS, COLUMNS).double()
    for rows in x.split(10_000):
        rows.normal_(generator=generator).mul_(scale)
        rows += torch.randn(len(rows), LATENTS, generator=generator).double() @ loading
    return x


def our_factors(model):
    def fit(x):
        torch.set_default_dtype(torch.float64)
        begin = time.perf_counter()
        em = lvm.fit_em(model(LATENTS, COLUMNS), x, tol=1e-10, max_iter=5000, progress=False)
        return time.perf_counter() - begin, float(em.objective[-1]) / ROWS

    return fit


def sklearn_factors(svd_method):
    def fit(x):
        rows = x.numpy()
        begin = time.perf_counter()
        peer = FactorAnalysis(LATENTS, svd_method=svd_method, tol=1e-6, max_iter=2000).fit(rows)
        return time.perf_counter() - begin, peer.score(rows)

    return fit


def sklearn_pca(x):
    rows = x.numpy()
    begin = time.perf_counter()
    peer = PCA(LATENTS, svd_solver="covariance_eigh").fit(rows)
    return time.perf_counter() - begin, peer.score(rows)


FACTORS = {
    "PPCA": our_factors(lvm.models.PPCA),
    "FactorAnalysis": our_factors(lvm.models.FactorAnalysis),
    "sklearn FactorAnalysis": sklearn_factors("randomized"),
    "sklearn FA, lapack": sklearn_factors("lapack"),
    "sklearn PCA": sklearn_pca,
}


# Topics ---------------------------------------------------------------------------------------------------------------


def corpus():
    """Documents of 50 to 250 words, as a sparse matrix."""
    rng = np.random.default_rng(0)
    topics, shares = rng.dirichlet(np.full(VOCABULARY, 0.02), TOPICS), rng.dirichlet(np.full(TOPICS, 0.1), DOCUMENTS)
    totals = rng.integers(50, 250, size=DOCUMENTS)
    return sparse.csr_matrix(
        np.stack([rng.multinomial(n, share @ topics) for n, share in zip(totals, shares, strict=True)]).astype(float)
    )


def our_topics(counts, num_iter):
    torch.set_default_dtype(torch.float64)
    lda = lvm.models.LDA(TOPICS, VOCABULARY)
    begin = time.perf_counter()
    lvm.fit_em(lda, counts, tol=0, max_iter=num_iter, progress=False)
    return time.perf_counter() - begin, lda.perplexity(counts)


def sklearn_topics(counts, num_iter):
    peer = LatentDirichletAllocation(TOPICS, max_iter=num_iter, learning_method="batch", random_state=0)
    warnings.filterwarnings("ignore")
    begin = time.perf_counter()
    peer.fit(counts)
    seconds = time.perf_counter() - begin
    lda = lvm.models.LDA(TOPICS, VOCABULARY).double()
    lda.topic_concentration = torch.as_tensor(peer.components_)
    return seconds, lda.perplexity(counts)


LDAS = {"ours": our_topics, "sklearn": sklearn_topics}
