"""Variational EM for latent Dirichlet allocation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_lvm import sparse
from pyro_lvm.models._documents import documents
from pyro_lvm.models._steps import Params, Steps, Sums
from pyro_lvm.newton import dirichlet_concentration

__all__ = ["LDASteps"]

_TOLERANCE = 1e-3  # words, by which the number that a topic has in a document still changes, on average
_MAX_ITER = 100
_TINY = torch.finfo(torch.float64).tiny
_NUM_ENTRIES = 2**17  # of words' weights: what the caches of a processor hold


class Inferred(NamedTuple):
    """The topics of documents.

    Attributes:
        shares: The concentrations of the shares, `[N, K]`.
        ratio: The count of each entry of the table over its expected weight, both in units in which the largest weight
            of a word, and of a topic in a document, is 1, `[E]`.
        log_words: The logarithms of the expected weights of all words of a document, `[N]`.
    """

    shares: Tensor
    ratio: Tensor
    log_words: Tensor

    def bounds(self, prior: Tensor) -> Tensor:
        """A lower bound of the log-density of each document's words, `[N]`."""
        return self.log_words - _kl(self.shares, prior, expected_log(self.shares))


class LDASteps(Steps):
    """Coordinate ascent on the ELBO of latent Dirichlet allocation.

    The E-step finds the topics of each document, the M-step those of the words, and the concentration of the documents'
    prior by Newton's method.

    Args:
        prior: The concentration of the topics' prior.
        learns_concentration: Whether that of the documents' prior moves.

    References:
        D. M. Blei, A. Y. Ng and M. I. Jordan, "Latent Dirichlet allocation" (2003): figure 6 and appendix A.
        M. D. Hoffman, D. M. Blei and F. Bach, "Online learning for latent Dirichlet allocation" (2010).
    """

    objective_name = "ELBO"
    monotone = False  # the E-step starts anew each time, lest early topics bind it, and may end at another maximum

    def __init__(self, prior: float, learns_concentration: bool = True) -> None:
        self.prior, self.learns_concentration = prior, learns_concentration

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """See `Steps.expect`."""
        (counts,) = args
        prior, logs = params["concentration"].double(), expected_log(params["topic_concentration"].double())
        found = infer(logs, prior, counts)
        each = torch.ones_like(found.log_words) if weight is None else weight.to(found.log_words)
        log_shares = expected_log(found.shares)
        owner = sparse.row_of_entries(counts)
        by_word = torch.zeros_like(params["topic_concentration"].mT, dtype=torch.float64)
        at_once = max(1, _NUM_ENTRIES // by_word.shape[1])
        for rows, words, ratio in zip(
            *(part.split(at_once) for part in (owner, counts.col_indices(), found.ratio * each[owner])), strict=True
        ):
            by_word.index_add_(0, words, _scaled(log_shares[rows]) * ratio.unsqueeze(-1))
        return {
            "log_p": each @ found.bounds(prior),
            "words": by_word.mT * _scaled(logs.mT).mT,
            "log_shares": each @ log_shares,
            "documents": each.sum(),
        }

    def maximize(self, sums: Sums, params: Params) -> Params:
        """See `Steps.maximize`."""
        old = params["concentration"].double()
        new = {"topic_concentration": self.prior + sums["words"]}
        if self.learns_concentration:
            new["concentration"] = dirichlet_concentration(old, sums["log_shares"] / sums["documents"])
        return {name: new.get(name, value).to(value.dtype) for name, value in params.items()}

    def component_axes(self, params: Params) -> dict[str, tuple[int, ...]]:
        """See `Steps.component_axes`."""
        return {"topic_concentration": (0,), "concentration": (0,)}

    def outside(self, params: Params) -> Tensor:
        """The negative Kullback-Leibler divergence of the posterior of the topics from their prior."""
        posterior = params["topic_concentration"].double()
        return -_kl(posterior, torch.full_like(posterior[0], self.prior), expected_log(posterior)).sum()


def infer(word_logs: Tensor, prior: Tensor, counts: Tensor) -> Inferred:
    """The E-step: the shares of the topics in each document.

    Args:
        word_logs: Logarithms of the words' probabilities in each topic, known or expected, `[K, V]`.
        prior: The concentration of the shares, `[K]`.
        counts: A sparse table, `[N, V]`.
    """
    logs = word_logs.mT.contiguous()
    weights, largest = _scaled(logs), logs.amax(-1)
    values = counts.values().double()
    shares = prior.repeat(len(counts), 1)
    ratio, log_words = torch.zeros_like(values), values.new_zeros(len(counts))
    for some in documents(counts, len(prior)):
        number = some.counts.double()
        found = prior + number.sum(-1, keepdim=True) / len(prior)
        found, expected = _settle(found, prior, weights[some.words], number)
        shares[some.rows] = found
        there = some.counts > 0
        ratio[some.entries[there]] = (number / expected)[there]
        log_words[some.rows] = (number * (expected.log() + largest[some.words])).sum(-1)
        log_words[some.rows] += number.sum(-1) * expected_log(found).amax(-1)
    return Inferred(shares, ratio, log_words)


def _settle(start: Tensor, prior: Tensor, weights: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Iterate to the shares of some documents, and the expected weights of their words.

    Args:
        start: Concentrations of the shares, `[B, K]`.
        prior: That of the prior, `[K]`.
        weights: Of the words in each topic, `[B, M, K]`.
        counts: Of the words, `[B, M]`.
    """
    shares, active = start, torch.arange(len(start), device=start.device)
    here, words, number = start, weights, counts
    moving = torch.ones_like(active, dtype=torch.bool)  # a document that has settled waits for the others
    for _ in range(_MAX_ITER):
        topic = _scaled(torch.digamma(here))  # up to a factor of each document, which cancels out
        ratio = number.unsqueeze(1) / torch.bmm(topic.unsqueeze(1), words.mT).clamp_(min=_TINY)
        found = torch.bmm(ratio, words).squeeze(1).mul_(topic)
        gap = (prior + found - here).abs().mean(-1)
        here = torch.where(moving.unsqueeze(-1), prior + _beyond(here - prior, found), here)
        moving = moving & (gap > _TOLERANCE)
        left = int(moving.sum())
        if left <= len(active) // 2:
            shares = shares.index_copy(0, active, here)
            if not left:
                break
            parts = (active, here, words, number, moving)
            active, here, words, number, moving = (part[moving] for part in parts)
    else:
        shares = shares.index_copy(0, active, here)
    expected = torch.bmm(_scaled(torch.digamma(shares)).unsqueeze(1), weights.mT).squeeze(1)
    return shares, expected.clamp_(min=_TINY)


def _beyond(old: Tensor, new: Tensor) -> Tensor:
    """Numbers of words in each topic that go on from the old to the new, and three quarters of the way farther.

    It is the over-relaxation of Salakhutdinov and Roweis, "Adaptive overrelaxed bound optimization methods" (2003), of
    logarithms; a third fewer iterations for the same maximum.
    """
    root = (new / old).nan_to_num(1.0).clamp(0.5, 2.0).sqrt()
    farther = new * root * root.sqrt()
    return farther * (new.sum(-1, keepdim=True) / farther.sum(-1, keepdim=True))


def _scaled(logs: Tensor) -> Tensor:
    """Exponentials of `[*, K]` over the largest of the last dimension; few, or none, underflow."""
    return (logs - logs.amax(-1, keepdim=True)).exp_()


def expected_log(concentration: Tensor) -> Tensor:
    """Of a variable with a Dirichlet distribution, `[*, K]`."""
    return torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))


def _kl(concentration: Tensor, prior: Tensor, expected: Tensor) -> Tensor:
    """The divergence of Dirichlet distributions `[*, K]` from a prior `[K]`, `[*]`."""
    constants = [a.sum(-1).lgamma() - a.lgamma().sum(-1) for a in (concentration, prior)]
    return constants[0] - constants[1] + ((concentration - prior) * expected).sum(-1)
