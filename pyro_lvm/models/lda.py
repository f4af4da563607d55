"""Latent Dirichlet allocation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_lvm import sparse
from pyro_lvm.checks import check_count, check_positive, check_seed
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import AssignableModule
from pyro_lvm.models._shares import Shares
from pyro_lvm.models._steps import Params
from pyro_lvm.models._words import Words
from pyro_lvm.models.lda_em import Inferred, LDASteps, infer
from pyro_lvm.nn import MLP

__all__ = ["LDA"]

_START_PASSES = 10  # of coordinate ascent before an encoder is trained, which finds no topics among equal ones
_START_SHAPE = 100.0  # of the noise in the topics at the start


class LDA(AssignableModule):
    r"""Latent Dirichlet allocation: documents are mixtures of :math:`K` topics, topics distributions of words.

    .. math::

        \beta_k &\sim \mathrm{Dirichlet}(\eta, \dots, \eta), \qquad k = 1, \dots, K \\
        \theta_n &\sim \mathrm{Dirichlet}(\alpha) \\
        w_{ni} \mid \theta_n &\sim \mathrm{Categorical}\Big(\sum_k \theta_{nk} \beta_k\Big),
            \qquad n = 1, \dots, N, \quad i = 1, \dots, I_n

    The topic of each word is summed out. Documents are word counts, a sparse matrix `[N, V]` of SciPy or torch (or a
    dense one, which is made sparse), or a list of documents, each a list of word numbers from 0 to V - 1.

    :func:`pyro_lvm.fit_em` takes coordinate ascent on the ELBO of

    .. math::

        q(\beta, \theta) = \prod_k \mathrm{Dirichlet}(\beta_k \mid \lambda_k)
            \prod_n \mathrm{Dirichlet}(\theta_n \mid \gamma_n),

    with Newton's method for :math:`\alpha`; with `online=` the natural gradients of Hoffman et al.

    :func:`pyro_lvm.fit` holds the topics at the posterior's mean, which is the mode under a prior of
    :math:`1 + \eta`, for topics with small concentrations cannot be drawn in floating point. With `hidden=` its guide
    is amortized: :math:`\gamma_n` comes from a network, the `encoder`, that sees the word frequencies of the document.
    Else it is that of coordinate ascent.

    Sites: `topics` `[K, V]` and `words` `[N, V]`, observed; `shares` `[N, K]`, latent. Parameters: `concentration`
    `[K]`, :math:`\alpha`; `topic_concentration` `[K, V]`, :math:`\lambda`; and those of the encoder. A new model has
    topics near the uniform distribution; :meth:`initialize` gives it a start from data.

    Args:
        num_topics: Number of topics, :math:`K`.
        vocabulary_size: Number of words, :math:`V`.
        topic_prior: :math:`\eta`. None takes :math:`1 / K`.
        share_prior: Each :math:`\alpha_k`, held there by EM. None starts at :math:`1 / K` and learns them, which may be
            too sure of the topics of documents with few words.
        hidden: Widths of the encoder's hidden layers, at least one; no encoder, if None.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is not positive.

    References:
        D. M. Blei, A. Y. Ng and M. I. Jordan, "Latent Dirichlet allocation" (2003).
        M. D. Hoffman, D. M. Blei and F. Bach, "Online learning for latent Dirichlet allocation" (2010).
        A. Srivastava and C. Sutton, "Autoencoding variational inference for topic models" (2017).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> documents = 20 * [[0, 1, 1, 2], [0, 0, 2], [3, 4, 4], [5, 4, 3, 3]]
        >>> lda = lvm.models.LDA(num_topics=2, vocabulary_size=6)
        >>> em = lvm.fit_em(lda, documents, progress=False)
        >>> sorted(sorted(row[:3]) for row in lda.topics.argsort(descending=True).tolist())
        [[0, 1, 2], [3, 4, 5]]
    """

    concentration: Tensor
    topic_concentration: Tensor
    em_online = True  # sums of words mean the same whatever the parameters

    def __init__(
        self,
        num_topics: int,
        vocabulary_size: int,
        topic_prior: float | None = None,
        share_prior: float | None = None,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.num_topics = K = check_count("num_topics", num_topics)
        self.vocabulary_size = V = check_count("vocabulary_size", vocabulary_size)
        self.topic_prior = 1 / K if topic_prior is None else check_positive("topic_prior", topic_prior)
        self.share_prior = None if share_prior is None else check_positive("share_prior", share_prior)
        self._add_param("concentration", torch.full((K,), self.share_prior or 1 / K), constraints.positive)
        self._add_param("topic_concentration", 1 + 0.1 * torch.rand(K, V), constraints.positive)
        self.encoder = None if hidden is None else MLP(V, hidden, K)
        if hidden is not None and not hidden:
            raise ValueError("hidden: expected the width of at least one layer")

    def as_data(self, *data: Any) -> tuple[Any, ...]:
        """Word counts as a sparse table.

        Args:
            data: One argument: a sparse or dense matrix `[N, V]`, or a list of documents, each a list of word numbers.

        Raises:
            TypeError: If there are more arguments, or word numbers that are not whole.
            ValueError: If a matrix has another shape, or a word number is not from 0 to V - 1.
        """
        if len(data) != 1:
            raise TypeError(f"data: expected one argument, word counts or documents, got {len(data)}")
        (given,) = data
        if isinstance(given, list | tuple):
            return (word_counts(given, self.vocabulary_size, self.concentration.dtype),)
        counts = as_tensor(given)
        if not isinstance(counts, Tensor):
            return data
        if counts.dim() == 2:
            counts = sparse.from_torch(counts)
        return (counts.to(self.concentration.dtype),)

    def forward(self, counts: Tensor) -> None:
        """The model.

        Args:
            counts: Word counts, a sparse table `[N, V]`.

        Raises:
            TypeError: If `counts` is not a sparse tensor.
            ValueError: If it has another shape, or entries that are no counts.
        """
        self._check(counts)
        topics = _normalized(self.topic_concentration)
        prior = dist.Dirichlet(1 + self.topic_prior * torch.ones_like(topics)).to_event(1)
        pyro.sample("topics", prior, obs=topics)
        with pyro.plate("rows", len(counts)):
            shares = pyro.sample("shares", dist.Dirichlet(self.concentration))
            pyro.sample("words", Words(shares, topics, totals(counts)), obs=counts)

    @pyro_method
    def guide(self, counts: Tensor) -> None:
        """The guide: Dirichlet distributions of the shares, by the encoder or by coordinate ascent.

        Args:
            counts: Word counts, a sparse table `[N, V]`.
        """
        self._check(counts)
        if self.encoder is not None:
            shares = self.encode(counts)
        else:
            shares = self._infer(counts).shares.to(self.concentration.dtype)
        with pyro.plate("rows", len(counts)):
            pyro.sample("shares", Shares(shares))

    def encode(self, counts: Tensor) -> Tensor:
        r"""Concentrations of the guide's shares: :math:`\alpha`, and the document's words shared out by the encoder.

        Args:
            counts: Word counts, a sparse table `[N, V]`.

        Returns:
            Positive numbers, `[N, K]`.

        Raises:
            ValueError: If there is no encoder.
        """
        if self.encoder is None:
            raise ValueError("this model has no encoder: make it with hidden=, the widths of its layers")
        total = totals(counts).unsqueeze(-1)
        first, *others = cast("list[nn.Linear]", list(self.encoder))
        hidden = (counts @ first.weight.mT) / total.clamp(min=1) * self.vocabulary_size**0.5 + first.bias
        for layer in others:
            hidden = layer(hidden)
        return self.concentration + total * hidden.softmax(-1)

    def em_steps(self, counts: Tensor) -> LDASteps:
        """The E-step and M-step of variational EM.

        Args:
            counts: Word counts, a sparse table `[N, V]`.

        Raises:
            ValueError: If there is an encoder, which EM would leave as it is.
        """
        if self.encoder is not None:
            raise ValueError("EM has no use for an encoder: make the model without hidden=, or take lvm.fit")
        return LDASteps(self.topic_prior, self.share_prior is None)

    @property
    def topics(self) -> Tensor:
        """The probabilities of the words in each topic, the posterior's mean, `[K, V]`."""
        return _normalized(self.topic_concentration.detach())

    def shares(self, documents: Any) -> Tensor:
        """The posterior means of the shares of the topics in each document, given the topics, `[N, K]`.

        Args:
            documents: What :meth:`as_data` takes.
        """
        return _normalized(self._infer(self._counts(documents)).shares).to(self.concentration.dtype)

    def bound(self, documents: Any) -> Tensor:
        """A lower bound of the log-density of each document's words, given the topics.

        Args:
            documents: What :meth:`as_data` takes.

        Returns:
            Nats, `[N]`.
        """
        found = self._infer(self._counts(documents))
        return found.bounds(self.concentration.detach().double()).to(self.concentration.dtype)

    def perplexity(self, documents: Any) -> float:
        """The exponential of minus the bound of :meth:`bound` per word; the lower, the better.

        Scikit-learn's has the topics' expected logarithms instead, and their divergence from the prior too, over
        however few words: it is larger.

        Args:
            documents: What :meth:`as_data` takes.

        Raises:
            ValueError: If they have no words.
        """
        counts = self._counts(documents)
        if not counts.values().any():
            raise ValueError("documents: expected at least one word")
        return math.exp(-float(self.bound(counts).double().sum() / counts.values().double().sum()))

    def initialize(self, documents: Any, seed: int = 0) -> LDA:
        r"""Start from topics near the uniform distribution.

        Each :math:`\lambda_{kv}` is drawn from a gamma distribution of mean 1 and standard deviation 0.1. A model with
        an encoder then takes ten passes of coordinate ascent, for an encoder learns little from topics that are alike.

        Args:
            documents: What :meth:`as_data` takes.
            seed: Fixes the random choices. Other seeds give other starts.

        Returns:
            The model itself.
        """
        counts = self._counts(documents)
        rng = np.random.default_rng(check_seed(seed))
        noise = rng.gamma(_START_SHAPE, 1 / _START_SHAPE, size=(self.num_topics, self.vocabulary_size))
        self.topic_concentration = torch.as_tensor(noise)
        self.concentration = torch.full((self.num_topics,), self.share_prior or 1 / self.num_topics)
        if self.encoder is not None:
            steps, params = LDASteps(self.topic_prior, self.share_prior is None), self._values()
            for _ in range(_START_PASSES):
                params = steps.maximize(steps.expect(params, (counts,), None), params)
            for name, value in params.items():
                setattr(self, name, value)
        return self

    def _counts(self, documents: Any) -> Tensor:
        (counts,) = self.as_data(documents)
        self._check(counts)
        return counts

    @torch.no_grad()
    def _infer(self, counts: Tensor) -> Inferred:
        topics = _normalized(self.topic_concentration.double())
        return infer(topics.clamp(min=torch.finfo(topics.dtype).tiny).log(), self.concentration.double(), counts)

    def _values(self) -> Params:
        return {name: getattr(self, name).detach() for name in ("concentration", "topic_concentration")}

    def _check(self, counts: Tensor) -> None:
        V = self.vocabulary_size
        if not sparse.is_sparse(counts):
            raise TypeError(f"counts: expected a sparse table of shape [N, {V}], got {type(counts).__name__}")
        if counts.shape[1] != V:
            raise ValueError(f"counts: expected shape [N, {V}], got {list(counts.shape)}")
        values = counts.values()
        if not ((values >= 0) & (values < torch.inf)).all():
            raise ValueError("counts: expected finite numbers that are not negative")


def _normalized(concentration: Tensor) -> Tensor:
    return concentration / concentration.sum(-1, keepdim=True)


def totals(counts: Tensor) -> Tensor:
    """How many words each document has, `[N]`."""
    values = counts.values()
    return values.new_zeros(len(counts)).index_add_(0, sparse.row_of_entries(counts), values)


def word_counts(documents: Sequence[Sequence[int]], vocabulary_size: int, dtype: torch.dtype) -> Tensor:
    """Lists of word numbers as a sparse table of counts, `[N, V]`."""
    numbers = [np.asarray(document) for document in documents]
    for i, document in enumerate(numbers):
        if document.ndim != 1 or (document.size and document.dtype.kind not in "iu"):
            raise TypeError(f"documents: expected lists of word numbers, document {i} has others")
        if document.size and not (document.min() >= 0 and document.max() < vocabulary_size):
            raise ValueError(
                f"documents: expected word numbers from 0 to {vocabulary_size - 1}, document {i} has others"
            )
    rows = np.repeat(np.arange(len(numbers)), [document.size for document in numbers])
    words = np.concatenate([*numbers, []]).astype(np.int64)
    shape = (len(numbers), vocabulary_size)
    return sparse.from_scipy(csr_matrix((np.ones(len(words)), (rows, words)), shape)).to(dtype)
