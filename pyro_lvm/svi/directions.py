"""The directions in which a posterior is wider than independent normals know."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

_FLATTEST = 1e-6  # curvature of a direction, in the units of the scale: below it there may be no scale
_MOST_RESTARTS, _TOLERANCE = 30, 0.1  # of Lanczos's iteration


def wide_directions(slope: Tensor, leaf: Tensor, scale: Tensor, seed: int) -> Tensor:
    """The flattest directions of a loss, by Lanczos's iteration, in the units of a scale.

    Args:
        slope: The gradient of the loss, with its graph, ``[D]``.
        leaf: Where it was taken, ``[D]``.
        scale: ``[D]``.
        seed: Of the first vector.

    Returns:
        :math:`W` of :class:`~pyro_lvm.svi.coordinates.Coordinates` in which the loss curves alike in all directions but
        those steeper than the scale says, ``[D, R]``. Directions that curve the other way are zero.
    """
    size = len(leaf)
    rank = round(size**0.5)  # as Pyro's guide has

    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(vector.reshape(-1)).to(scale) * scale
        (found,) = torch.autograd.grad(slope, leaf, direction, retain_graph=True)
        return (found * scale).double().cpu().numpy()

    first = np.random.default_rng(seed).standard_normal(size)
    hessian = LinearOperator((size, size), matvec=product, dtype=float)
    try:
        values, vectors = eigsh(hessian, rank, which="SA", v0=first, maxiter=_MOST_RESTARTS, tol=_TOLERANCE)
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    values, directions = torch.tensor(values), torch.tensor(vectors)
    flat = (values > _FLATTEST) & (values < 1)
    longer = torch.where(flat, values.clamp(min=_FLATTEST).rsqrt() - 1, 0.0)
    return torch.nn.functional.pad(directions * longer.sqrt(), (0, rank - len(values))).to(scale)
