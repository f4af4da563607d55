"""Layers that take the features in turns."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_lvm.checks import check_count
from pyro_lvm.transforms import Coupling, Layer, Univariate


def orders(count: int, num_features: int) -> list[range]:
    """For so many layers, the numbers of the features in their own order and in reverse in turn."""
    D = check_count("num_features", num_features)
    both = (range(D), range(D - 1, -1, -1))
    return [both[i % 2] for i in range(check_count("num_transforms", count))]


def couplings(
    num_features: int, count: int, univariate: Univariate | None, hidden: Sequence[int], context: int
) -> list[Layer]:
    """Couplings that keep the even and the odd features in turn."""
    if check_count("num_features", num_features) == 1:
        raise ValueError("num_features: couplings need at least two; MAF, IAF and NSF() take one")
    return [
        Coupling(num_features, range(i % 2, num_features, 2), univariate, hidden, context)
        for i in range(check_count("num_transforms", count))
    ]
