"""Components that mean the same in all draws: a likelihood does not know how they are numbered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_lvm.result import Draws

_NUM_STARTS = 5  # draws to begin at: the iteration ends in a local optimum
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Relabelled:
    """Draws whose components mean the same in all.

    Attributes:
        draws: ``[S, ...]`` by name, variables without components as they were.
        permutations: ``[S, K]``: component k of a draw is what was its component ``permutations[s, k]``.
        responsibilities: ``[S, ..., K]``, if they were given.
    """

    draws: Draws = field(repr=False, compare=False)
    permutations: Tensor = field(repr=False, compare=False)
    responsibilities: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def switched(self) -> float:
        """The share of draws whose components were numbered otherwise than in the most common way."""
        places = torch.arange(self.permutations.shape[1])
        return (self.permutations != places).any(1).double().mean().item()

    def __str__(self) -> str:
        S, K = self.permutations.shape
        return f"{S:,} draws of {K} components, {self.switched:.0%} of them relabelled"


def relabel(
    draws: Mapping[str, Any],
    components: Mapping[str, int | Sequence[int]],
    responsibilities: Any = None,
    labels: Sequence[str] = (),
) -> Relabelled:
    r"""Number the components of posterior draws so that they mean the same in all.

    A mixture's likelihood is the same under any numbering of its components. So chains of MCMC, and restarts of a fit,
    switch labels, and a mean over such draws is a mean over different components.

    With responsibilities, draws are relabelled so that these are alike: with :math:`p^{(s)}_{ik}` those of draw
    :math:`s` and :math:`q_{ik}` their mean after relabelling, this minimises

    .. math::

        \sum_s \sum_i \sum_k p^{(s)}_{i \nu_s(k)} \log \frac{p^{(s)}_{i \nu_s(k)}}{q_{ik}}

    over the permutations :math:`\nu_s`, each found by the Hungarian method, in turn with :math:`q` (Stephens 2000,
    Algorithm 2). Without, it minimises squared distances of the components' parameters from their means, in units of
    their spread over all draws and components, every variable with the same weight. Both end in a local optimum; the
    best of five starts is taken. The components of the result are numbered as in most of the draws.

    Args:
        draws: ``[S, ...]`` by name, tensors or arrays, such as ``result.sample()`` or MCMC give. Draws of several fits
            may be joined.
        components: For each variable that belongs to components, the dimension that counts them, or several, as
            ``(0, 1)`` of a transition matrix; counted after S, from the end if negative.
        responsibilities: The probability of each row's component in each draw, ``[S, N, K]``.
        labels: Variables whose values are components, from 0 to K - 1, such as ``("z",)``.

    Returns:
        The draws, and how they were permuted.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: for names that ``draws`` lacks, dimensions that do not count the same number of components, shapes
            that do not fit together, values that are not finite, responsibilities that are no probabilities, labels
            that are no components, and if there is nothing to tell components by.

    References:
        M. Stephens, "Dealing with label switching in mixture models", *JRSS B* 62 (2000), 795-809.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> locs = torch.tensor([-4.0, 4.0]) + torch.randn(1_000, 2, generator=torch.Generator().manual_seed(0))
        >>> locs[600:] = locs[600:].flip(1)
        >>> found = lvm.relabel({"locs": locs}, {"locs": 0})
        >>> print(found)
        1,000 draws of 2 components, 40% of them relabelled
        >>> [round(loc) for loc in found.draws["locs"].mean(0).tolist()]
        [-4, 4]
    """
    values, dims = _checked_draws(draws), _checked_components(components)
    labels = _checked_labels(labels)
    probs = None if responsibilities is None else _probabilities(responsibilities)
    if absent := [name for name in (*dims, *labels) if name not in values]:
        raise ValueError(f"draws have no variable {absent[0]!r}; they have {sorted(values)}")
    if both := set(dims) & set(labels):
        raise ValueError(f"{min(both)!r} is named both in components and in labels")
    if not dims and probs is None:
        raise ValueError(
            "there is nothing to tell components by: name variables in components, or give responsibilities"
        )
    axes = {name: _axes(name, values[name], found) for name, found in dims.items()}
    S, K = _sizes(values, axes, probs)
    for name in labels:
        _check_are_labels(name, values[name], K)
    if probs is None:
        order = _best_order(torch.cat([_standardised(name, values[name], found) for name, found in axes.items()], -1))
    else:
        order = _best_order(probs.double().reshape(S, -1, K).mT, score=lambda q: q.clamp(min=_TINY).log())
    order = order[:, _most_common(order).argsort()]
    place = order.argsort(1)  # where a component stands now
    found = dict(values)
    for name, along in axes.items():
        for dim in along:
            found[name] = _taken(found[name], dim, order)
    for name in labels:
        z = values[name]
        found[name] = place.to(z.device).gather(1, z.long().reshape(S, -1)).reshape(z.shape).to(z.dtype)
    return Relabelled(found, order, None if probs is None else _taken(probs, probs.dim() - 1, order))


def _best_order(parts: Tensor, score: Callable[[Tensor], Tensor] = lambda means: means) -> Tensor:
    """The permutation of each draw's components, ``[S, K]``, by the best of a few starts.

    Kullback-Leibler divergence and squared distance from the mean m are both, but for what no permutation changes,
    minus the product of the draw with a score of m: its logarithm, or m itself.

    Args:
        parts: What tells components apart, ``[S, K, F]``.
        score: See above.
    """
    starts = torch.linspace(0, len(parts) - 1, min(len(parts), _NUM_STARTS)).round().long()
    found = [_order_from(parts[start], parts, score) for start in starts]
    return min(found, key=lambda pair: pair[0])[1]


def _order_from(means: Tensor, parts: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    """The loss and the permutations in which the iteration ends that begins with some means, ``[K, F]``."""
    best = math.inf
    while True:
        gains = (score(means) @ parts.mT).numpy()
        order = torch.as_tensor(np.stack([linear_sum_assignment(gain, maximize=True)[1] for gain in gains]))
        means = _taken(parts, 1, order).mean(0)
        loss = -(score(means) * means).sum().item()
        if loss >= best - 1e-12 * abs(loss):
            return loss, order
        best = loss


def _standardised(name: str, value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The numbers of each component in units of their spread, ``[S, K, F]``; of a matrix of components the diagonal."""
    value = value.detach().cpu().double()
    if not value.isfinite().all():
        raise ValueError(f"draws[{name!r}]: expected finite numbers to tell components by")
    value = value.movedim(dims, tuple(range(1, 1 + len(dims))))
    for _ in dims[1:]:
        value = value.diagonal(dim1=1, dim2=2).movedim(-1, 1)
    value = value.reshape(*value.shape[:2], -1)
    centred = value - value.mean((0, 1))
    return centred / centred.square().mean((0, 1)).sqrt().clamp(min=_TINY) / math.sqrt(max(1, value.shape[2]))


def _most_common(order: Tensor) -> Tensor:
    kinds, counts = order.unique(dim=0, return_counts=True)
    return kinds[counts.argmax()]


def _taken(value: Tensor, dim: int, order: Tensor) -> Tensor:
    """Each draw with the entries of a dimension in its order."""
    shape = [1] * value.dim()
    shape[0], shape[dim] = order.shape
    return value.gather(dim, order.to(value.device).reshape(shape).expand_as(value))


def _checked_draws(draws: Any) -> Draws:
    if not isinstance(draws, Mapping) or not draws:
        raise TypeError(f"draws must be a dict of tensors by name; got {draws!r}")
    found = {}
    for name, value in draws.items():
        if not isinstance(value, Tensor | np.ndarray):
            raise TypeError(f"draws[{name!r}] must be a tensor or array; got {type(value).__name__}")
        found[name] = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
    return found


def _checked_components(components: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(components, Mapping):
        raise TypeError(f"components must be a dict of dimensions by name; got {components!r}")
    found = {}
    for name, dims in components.items():
        several = tuple(dims) if isinstance(dims, Sequence) and not isinstance(dims, str) else (dims,)
        if not several or not all(type(dim) is int for dim in several):
            raise TypeError(f"components[{name!r}] must be a dimension, or several, such as 0 or (0, 1); got {dims!r}")
        found[name] = several
    return found


def _checked_labels(labels: Any) -> tuple[str, ...]:
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not all(isinstance(n, str) for n in labels):
        raise TypeError(f"labels must be a list of names, such as ('z',); got {labels!r}")
    return tuple(labels)


def _probabilities(responsibilities: Any) -> Tensor:
    if not isinstance(responsibilities, Tensor | np.ndarray):
        raise TypeError(f"responsibilities must be a tensor or array; got {type(responsibilities).__name__}")
    probs = responsibilities.detach().cpu() if isinstance(responsibilities, Tensor) else torch.tensor(responsibilities)
    if probs.dim() < 3 or not probs.is_floating_point():
        raise ValueError(f"responsibilities must be probabilities [S, N, K]; got {list(probs.shape)}, {probs.dtype}")
    if not ((probs >= 0).all() and ((probs.sum(-1) - 1).abs() < 1e-3).all()):
        raise ValueError("responsibilities must be non-negative and sum to 1 over the last dimension")
    return probs


def _axes(name: str, value: Tensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions counted from the first one, that of the draws."""
    most = value.dim() - 1
    if not all(-most <= dim < most for dim in dims):
        raise ValueError(f"components[{name!r}] is {dims}, but a draw of it has shape {list(value.shape[1:])}")
    found = tuple(1 + dim % most for dim in dims)
    if len(set(found)) < len(found):
        raise ValueError(f"components[{name!r}] names a dimension twice: {dims}")
    return found


def _sizes(values: Draws, axes: Mapping[str, tuple[int, ...]], probs: Tensor | None) -> tuple[int, int]:
    """S and K, in which all must agree."""
    draws = {name: len(value) if value.dim() else 0 for name, value in values.items()}
    sizes = {f"{name}, dimension {dim - 1}": values[name].shape[dim] for name, dims in axes.items() for dim in dims}
    if probs is not None:
        draws["responsibilities"], sizes["responsibilities"] = len(probs), probs.shape[-1]
    if len(set(draws.values())) > 1 or 0 in draws.values():
        raise ValueError(f"all must hold the same number of draws in their first dimension; got {draws}")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all must count the same number of components; got {sizes}")
    return next(iter(draws.values())), next(iter(sizes.values()))


def _check_are_labels(name: str, value: Tensor, size: int) -> None:
    if not ((value == value.round()) & (value >= 0) & (value < size)).all():
        raise ValueError(f"draws[{name!r}]: expected components from 0 to {size - 1}, as named in labels")
