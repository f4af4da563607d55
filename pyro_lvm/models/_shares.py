"""Dirichlet distributions of shares, many of them tiny."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


class Shares(dist.Dirichlet):
    r"""A Dirichlet distribution whose draws have finite derivatives where concentrations are small.

    Gamma variables of a small concentration :math:`a` are drawn as :math:`G U^{1/a}`, with :math:`G` of concentration
    :math:`a + 1` and a uniform :math:`U` (Marsaglia and Tsang 2000), and kept as logarithms. No share is below the root
    of the smallest number of the type, for slopes of the log-density divide by shares.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Shares, `[*, K]`."""
        concentration = self.concentration.expand(self._extended_shape(sample_shape))
        tiny = torch.finfo(concentration.dtype).tiny
        uniform = torch.rand_like(concentration).clamp(min=tiny)
        logs = torch._standard_gamma(concentration + 1).clamp(min=tiny).log() + uniform.log() / concentration
        return logs.softmax(-1).clamp(min=tiny**0.5)
