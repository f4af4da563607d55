"""What mixtures share: clusters to start from, and what a fitted mixture says about rows and about itself."""

import inspect
import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor

from pyro_lvm.data import MOST_ROWS
from pyro_lvm.models._base import AssignableModule
from pyro_lvm.params import num_free

_NUM_KMEANS = 5  # a single run splits the wrong cluster of iris about one time in ten
_RNG = "rng" if "rng" in inspect.signature(kmeans2).parameters else "seed"  # SciPy renamed it in 1.15


def clusters(data: NDArray, num_clusters: int, seed: int = 0) -> NDArray:
    """The number of each row's cluster, by the tightest of five runs of k-means, started by k-means++.

    Of more than 20,000 rows a random part makes the clusters, and the others join the nearest.

    Args:
        data: `[N, D]`, at least as many rows as clusters.
        num_clusters: K.
        seed: Fixes the random choices.

    Returns:
        Numbers from 0 to K - 1, `[N]`. A cluster may be empty.

    References:
        D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding" (2007).
    """
    rng = np.random.default_rng(seed)
    part = data if len(data) <= MOST_ROWS else data[np.sort(rng.choice(len(data), MOST_ROWS, replace=False))]
    part = part.astype(np.float64, copy=False)
    # k-means++ cannot choose K centres among fewer distinct rows
    method = "++" if len(np.unique(part, axis=0)) >= num_clusters else "points"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        runs = [kmeans2(part, num_clusters, minit=method, **{_RNG: rng}) for _ in range(_NUM_KMEANS)]
    centres, labels = min(runs, key=lambda run: np.square(part - run[0][run[1]]).sum())
    return labels if len(part) == len(data) else vq(data, centres.astype(data.dtype))[0]


class MixtureModule(AssignableModule):
    """A mixture with a parameter `weights` `[K]` and the log-densities of its components."""

    num_components: int
    weights: Tensor

    def _log_densities(self, *data: Any) -> Tensor:
        """Log-density of each row in each component, `[N, K]`. Checks the data."""
        raise NotImplementedError

    def _log_joint(self, *data: Any) -> Tensor:
        return self._log_densities(*data) + self.weights.log()

    @torch.no_grad()
    def log_prob(self, *data: Any) -> Tensor:
        """Log-density of each row, its component summed out.

        Args:
            data: The arguments of the model: tensors, arrays or data frames.

        Returns:
            Nats, `[N]`.
        """
        return self._log_joint(*data).logsumexp(-1)

    @torch.no_grad()
    def responsibilities(self, *data: Any) -> Tensor:
        """Posterior probabilities of the components.

        Args:
            data: The arguments of the model.

        Returns:
            Probabilities, `[N, K]`.
        """
        return self._log_joint(*data).softmax(-1)

    def labels(self, *data: Any) -> Tensor:
        """The most probable component of each row.

        Args:
            data: The arguments of the model.

        Returns:
            Numbers from 0 to K - 1, `[N]`.
        """
        return self.responsibilities(*data).argmax(-1)

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters hold that are free to vary: K - 1 for the weights, and so on."""
        return sum(num_free(getattr(self, name), constraint) for name, (constraint, _) in self._pyro_params.items())

    def aic(self, *data: Any) -> float:
        r"""Akaike's information criterion, :math:`2 p - 2 \log L` with :math:`p` parameters. Lower is better.

        Args:
            data: The arguments of the model.
        """
        return 2 * self.num_parameters - 2 * self.log_prob(*data).double().sum().item()

    def bic(self, *data: Any) -> float:
        r"""The Bayesian information criterion, :math:`p \log N - 2 \log L` with :math:`p` parameters. Lower is better.

        Args:
            data: The arguments of the model.
        """
        log_prob = self.log_prob(*data).double()
        return self.num_parameters * math.log(len(log_prob)) - 2 * log_prob.sum().item()

    def icl(self, *data: Any) -> float:
        r"""The integrated completed likelihood, BIC plus twice the entropy of the responsibilities. Lower is better.

        It prefers components that lie apart: those that share their rows cost entropy.

        Args:
            data: The arguments of the model.

        References:
            C. Biernacki, G. Celeux and G. Govaert, "Assessing a mixture model for clustering with the integrated
            completed likelihood" (2000). In the form of G. McLachlan and D. Peel, *Finite Mixture Models* (2000),
            section 6.10, with the entropy in place of the log-probability of the most probable components.
        """
        entropy = torch.special.entr(self.responsibilities(*data).double()).sum().item()
        return self.bic(*data) + 2 * entropy
