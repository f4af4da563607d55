"""Rotations of a loading that are easy to read."""

import torch
from torch import Tensor

__all__ = ["varimax"]

_MAX_ITER, _TOLERANCE = 1_000, 1e-14
_ASIDE = 1e-2


def varimax(loading: Tensor) -> Tensor:
    r"""Rotate a loading so that each latent has few large entries.

    The rotation maximises the variance of the squared entries of the columns, in sum,

    .. math::

        \sum_l \left( \tfrac1D \sum_d w_{dl}^4 - \left( \tfrac1D \sum_d w_{dl}^2 \right)^2 \right).

    Args:
        loading: `[D, L]`.

    Returns:
        `[D, L]`, the loading times an orthogonal matrix.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no matrix, or has entries that are not finite.

    References:
        H. F. Kaiser, "The varimax criterion for analytic rotation in factor analysis" (1958).

    Example:
        >>> import math, torch
        >>> turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)
        >>> simple = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 4.0]])
        >>> rotated = varimax(simple @ turn)
        >>> sorted(rotated.abs().argmax(1).tolist())
        [0, 0, 1, 1]
    """
    if not isinstance(loading, Tensor):
        raise TypeError(f"loading: expected a tensor, got {type(loading).__name__}")
    if loading.dim() != 2:
        raise ValueError(f"loading: expected shape [D, L], got {list(loading.shape)}")
    if not loading.isfinite().all():
        raise ValueError("loading: expected finite numbers")
    start = loading.double()
    # A little aside of where it is, which may be where the variance is smallest and has no slope
    turn = _ASIDE * torch.ones_like(start.mT @ start).triu(1)
    rotation, reached = torch.linalg.matrix_exp(turn - turn.mT), 0.0
    for _ in range(_MAX_ITER):
        rotated = start @ rotation
        slope = start.mT @ (rotated**3 - rotated * rotated.square().mean(0))
        u, s, v = torch.linalg.svd(slope)
        rotation = u @ v
        if s.sum() <= reached * (1 + _TOLERANCE):
            break
        reached = float(s.sum())
    return (start @ rotation).to(loading.dtype if loading.is_floating_point() else torch.get_default_dtype())
