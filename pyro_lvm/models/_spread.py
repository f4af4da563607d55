"""How much features vary, which says how small a variance may become."""

import torch
from torch import Tensor

_FLOOR = 1e-6  # of the variance of the least varying feature
ROUNDING = 1e-14  # of the square of the mean: a variance that a constant may seem to have


def variances(x: Tensor) -> Tensor:
    """Of each feature, `[D]`, in double precision; the smallest of the others where one does not vary, 1 if none does.

    Args:
        x: Data, `[N, D]`; entries that are NaN are left out.
    """
    found = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for d, column in enumerate(x.detach().T):
        there = column[~column.isnan()].double()
        if len(there):
            mean, variance = there.mean(), there.var(correction=0)
            found[d] = torch.where(variance > ROUNDING * mean.square(), variance, 0.0)
    least = found[found > 0].min() if found.any() else torch.ones((), dtype=torch.float64, device=x.device)
    return torch.where(found > 0, found, least)


def variance_floor(x: Tensor) -> float:
    """The smallest variance that a Gaussian may have in any direction, lest it shrinks onto a row.

    Args:
        x: Data, `[N, D]`.
    """
    return _FLOOR * float(variances(x).min())
