"""Layers that take the features in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyro_lvm.checks import check_count
from pyro_lvm.transforms import Coupling, Layer, Permutation, Univariate


def alternating(make: Callable[[], Layer], count: int, num_features: int) -> list[Layer]:
    """New layers, with the features in reverse order between them."""
    return reversing([make() for _ in range(check_count("num_transforms", count))], num_features)


def reversing(layers: Sequence[Layer], num_features: int) -> list[Layer]:
    """Layers, with the features in reverse order between them."""
    first, *others = layers
    reverse = range(num_features - 1, -1, -1)
    return [first, *(part for layer in others for part in (Permutation(reverse), layer))]


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
