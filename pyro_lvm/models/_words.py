"""The distribution of the words of documents, given how likely each word is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm import sparse


class Words(TorchDistribution):
    r"""Word counts of documents whose words are drawn from a mixture of topics, `[N, V]`.

    The density is that of the words in their order, :math:`\prod_v p_v^{c_v}`, without the multinomial coefficient.

    Args:
        shares: Of the topics in each document, `[*, N, K]`.
        topics: Probabilities of the words in each topic, `[*, K, V]`.
        totals: Number of words to draw for each document, `[N]`.
    """

    arg_constraints: Mapping[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.nonnegative, 1)

    def __init__(self, shares: Tensor, topics: Tensor, totals: Tensor) -> None:
        self.shares, self.topics, self.totals = shares, topics, totals
        super().__init__(shares.shape[:-1], topics.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each document, `[*, N]`.

        Args:
            value: A sparse table, `[N, V]`, or counts that were drawn, `[*, N, V]`.
        """
        if not sparse.is_sparse(value):
            return torch.xlogy(value, self.shares @ self.topics).sum(-1)
        _, words, counts = sparse.parts(value)
        rows = sparse.row_of_entries(value)
        probabilities = (self.shares[..., rows, :] * self.topics.mT[..., words, :]).sum(-1)
        found = counts * probabilities.log()
        return found.new_zeros(*found.shape[:-1], len(value)).index_add(-1, rows, found)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Word counts, `[*, N, V]`."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        probabilities = (self.shares @ self.topics).expand(*shape, -1).flatten(0, -2)
        totals = self.totals.expand(shape).flatten()
        most = int(totals.max())
        if not most:
            return torch.zeros_like(probabilities).reshape(*shape, -1)
        words = torch.multinomial(probabilities, most, replacement=True)
        there = (torch.arange(most, device=words.device) < totals.unsqueeze(-1)).to(probabilities)
        return torch.zeros_like(probabilities).scatter_add_(-1, words, there).reshape(*shape, -1)
