"""Locs and covariances of clusters, for Gaussians to start from."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_lvm.models._spread import variances


def cluster_moments(x: Tensor, labels: NDArray, num_clusters: int, covariance: str) -> tuple[NDArray, NDArray]:
    r"""Means and covariances of clusters, each with one pseudo-row.

    A covariance is mixed with the diagonal of the data's covariance, shrunk by :math:`K^{2/D}` (Fraley and Raftery
    2007). So clusters of one row, or of none, have a usable start too. A feature that does not vary has the variance of
    the least varying one there.

    Args:
        x: Data, `[N, D]`.
        labels: The cluster of each row, `[N]`.
        num_clusters: K.
        covariance: One of "full", "tied", "diag", "spherical".

    Returns:
        Locs `[K, D]` and covariances, in the shapes of scikit-learn.
    """
    data = x.detach().cpu().numpy()
    (N, D), K = data.shape, num_clusters
    counts = np.bincount(labels, minlength=K)
    locs, scatters = np.empty((K, D)), np.empty((K, D, D))
    for k in range(K):
        rows = data[labels == k].astype(np.float64)
        locs[k] = rows.mean(0) if counts[k] else data.mean(0, dtype=np.float64)
        scatters[k] = (rows - locs[k]).T @ (rows - locs[k])
    pseudo = np.diag(variances(x).cpu().numpy()) / K ** (2 / D)
    if covariance == "tied":
        return locs, (scatters.sum(0) + pseudo) / (N + 1)
    covariances = (scatters + pseudo) / (counts + 1)[:, None, None]
    if covariance in ("diag", "spherical"):
        covariances = np.diagonal(covariances, axis1=-2, axis2=-1).copy()
    return locs, covariances.mean(-1) if covariance == "spherical" else covariances
