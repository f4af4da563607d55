"""EM for mixtures of Gaussians, in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.models._gaussian_posterior import impute, observed_log_prob
from pyro_lvm.models._gaussian_runs import as_runs, colour, kind_of, log_constant, normalize, whiten, without_runs
from pyro_lvm.models._gaussian_runs import inverse as inverse_of
from pyro_lvm.models._steps import Params, Steps, Sums

__all__ = ["GaussianMixtureSteps"]

_TINY = torch.finfo(torch.float64).tiny
_ROUNDINGS = 10  # a variance of so few rounding errors is none
_NUM_ENTRIES = 2**20  # of a buffer: what the caches of a processor hold
_NUM_ENTRIES_OF_ACCELERATORS = 2**24
_MIN_ROWS, _MAX_ROWS = 64, 4096
_BYTES_OF_PRODUCTS, _MIN_ROWS_OF_PRODUCTS = 2**23, 512  # products of all features of some rows
_LOST = {torch.float64: 4e6, torch.float32: 2e3}  # squared distances that lose nine digits, or half of seven


class GaussianMixtureSteps(Steps):
    r"""EM for a mixture of Gaussians, `pyro_lvm.models.GaussianMixture`.

    The covariances are `scale_tril` of shape `[K, D, D]` (full) or `[D, D]` (tied), or the square of `scale` of shape
    `[K, D]` (diagonal) or `[K]` (spherical).

    Moments are taken about the old locs, in units of the old covariances. With :math:`\Sigma_k = L_k L_k^\top` and
    responsibilities :math:`r_{ik}`,

    .. math::

        y_{ik} = L_k^{-1} (x_i - \mu_k), \quad
        n_k = \sum_i r_{ik}, \quad
        f_k = \sum_i r_{ik} y_{ik}, \quad
        S_k = \sum_i r_{ik} y_{ik} y_{ik}^\top, \\
        \mu_k \leftarrow \mu_k + L_k f_k / n_k, \quad
        \Sigma_k \leftarrow L_k \left( S_k / n_k - f_k f_k^\top / n_k^2 \right) L_k^\top.

    So single precision loses nothing where the data are far from zero, or the components far from each other.

    A component without weight keeps its loc and its covariance. A covariance for which the rows leave only a singular
    matrix is kept too; the log-likelihood does not fall for it.

    Args:
        floor: The smallest variance in any direction. The M-step finds the maximum under this constraint.

    References:
        C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 9.2.
        J.-H. Won et al., "Condition-number-regularized covariance estimation" (2013), for the constraint.
    """

    takes_restarts = True

    def __init__(self, floor: float = 0.0) -> None:
        self.floor = floor

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """See `Steps.expect`. The sums are `counts` and the moments `first` and `second`, in the units above."""
        (x,) = args
        x = x if x.is_floating_point() else x.to(params["locs"].dtype)
        weights, locs, scale = as_runs(params)
        centre = locs.mean((0, 1)).to(x.dtype)
        locs = locs - centre
        moments = _moments(kind_of(params), locs, scale, x.dtype)
        constant = (weights.log() + log_constant(locs, scale)).unsqueeze(-1).to(x.dtype)
        log_p = locs.new_zeros(len(locs))
        counts, first = torch.zeros_like(weights), torch.zeros_like(locs)
        for start in range(0, len(x), moments.num_rows):
            chunk = slice(start, start + moments.num_rows)
            rows = x[chunk].to(centre.device) - centre
            logits = torch.sub(constant, moments.squared_distances(rows), alpha=0.5)
            row_log_p, posterior = normalize(logits)
            weighted = posterior
            if weight is not None:
                row_weight = weight[chunk].to(row_log_p)
                row_log_p, weighted = row_log_p * row_weight, posterior * row_weight
            log_p += row_log_p.sum(-1, dtype=torch.float64)
            counts += weighted.sum(-1, dtype=torch.float64)
            first += weighted @ rows
            moments.add(posterior, weighted)
        first = whiten(scale, first - counts.unsqueeze(-1) * locs)
        return without_runs({"log_p": log_p, "counts": counts, "first": first, "second": moments.total()}, params)

    def maximize(self, sums: Sums, params: Params) -> Params:
        """See `Steps.maximize`."""
        weights, locs, scale = as_runs(params)
        counts, first, second = (
            sums[name].reshape(old.shape) for name, old in (("counts", weights), ("first", locs), ("second", scale))
        )
        shift = first / counts.clamp_min(_TINY).unsqueeze(-1)
        full = scale.dim() == 4
        square = shift.unsqueeze(-1) * shift.unsqueeze(-2) if full else shift.square()
        count = (counts[..., None, None] if full else counts.unsqueeze(-1)).expand_as(square)
        total = count.sum_to_size(second.shape).clamp_min(_TINY)
        about_old = second / total
        moment = about_old - (count * square).sum_to_size(second.shape) / total
        noise = _ROUNDINGS * torch.finfo(params["locs"].dtype).eps * about_old
        new_scale, regular = (_scale_trils if full else _scales)(scale, moment, noise, self.floor)
        result = {
            "weights": counts / counts.sum(-1, keepdim=True),
            "locs": locs + colour(scale, shift),
            "scale_tril" if full else "scale": new_scale.where(regular & (total > _TINY), scale),
        }
        return {name: value.reshape(params[name].shape).to(params[name].dtype) for name, value in result.items()}

    def shares(self, sums: Sums, params: Params) -> Tensor:
        """See `Steps.shares`."""
        weights, _, _ = as_runs(params)
        return sums["counts"].reshape(weights.shape).where(weights > 0, torch.inf)

    def refill(self, params: Params, empty: Sequence[tuple[int, int]], args: tuple[Any, ...]) -> Params:
        """See `Steps.refill`.

        A component comes to a row with a lower density than nineteen in twenty, with the covariance that components
        have on average and half the weight that they have.
        """
        weights, locs, scale = (value.clone() for value in as_runs(params))
        x = args[0].to(locs)
        order = observed_log_prob(params, x).reshape(len(locs), -1).argsort(-1)
        spread = _average(weights, scale)
        for rank, (run, component) in enumerate(empty):
            row = order[run, max(0, order.shape[1] // 20 - rank)]
            locs[run, component] = impute(params, x[row].unsqueeze(0)).reshape(len(locs), -1)[run].to(locs)
            weights[run, component] = 0.5 / weights.shape[-1]
            if scale.shape[1] > 1:
                scale[run, component] = spread[run]
        weights /= weights.sum(-1, keepdim=True)
        found = {"weights": weights, "locs": locs, "scale_tril" if scale.dim() == 4 else "scale": scale}
        return {name: value.reshape(params[name].shape).to(params[name].dtype) for name, value in found.items()}

    def component_axes(self, params: Params) -> dict[str, tuple[int, ...]]:
        """See `Steps.component_axes`."""
        return {name: (0,) for name in params if name != "scale_tril" or kind_of(params) == "full"}


def _average(weights: Tensor, scale: Tensor) -> Tensor:
    """The scale of the average covariance of the components, of each run; see `as_runs`."""
    shape = (*weights.shape, *[1] * (scale.dim() - 2))
    if scale.dim() == 4:
        return torch.linalg.cholesky((weights.reshape(shape) * (scale @ scale.mT)).sum(1))
    return (weights.reshape(shape) * scale.square()).sum(1).sqrt()


def _scale_trils(scale: Tensor, moment: Tensor, noise: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Factors of the covariances, and whether these are regular; `moment` is in units of the old ones."""
    if floor > 0:
        variances, axes = torch.linalg.eigh(scale @ moment @ scale.mT)
        if (variances < floor).any():
            least = torch.linalg.svdvals(scale)[..., -1:].square().clamp_max(floor)  # a start may lie below
            variances = torch.maximum(variances, least)
        scale_tril, info = torch.linalg.cholesky_ex(axes * variances.unsqueeze(-2) @ axes.mT)
        return scale_tril, (info == 0)[..., None, None]
    factor, info = torch.linalg.cholesky_ex(moment)
    pivots, least = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (factor, noise))
    regular = (info == 0) & (pivots.square() > least).all(-1)
    return scale @ factor, regular[..., None, None]


def _scales(scale: Tensor, moment: Tensor, noise: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Standard deviations, and whether they are regular; `moment` is in units of the old variances."""
    old = scale.square()
    variance = torch.maximum(old * moment, old.clamp_max(floor))  # a start may lie below the floor
    return variance.sqrt(), (variance > 0) if floor > 0 else (moment > noise)


class _Moments(ABC):
    """Squared distances of rows from the locs and sums of squares and products, in units of the covariances."""

    def __init__(self, locs: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        self.locs = locs.to(dtype)
        self.second = torch.zeros_like(scale)
        R, K, D = locs.shape
        on_cpu = locs.device.type == "cpu"
        num_rows = (_NUM_ENTRIES if on_cpu else _NUM_ENTRIES_OF_ACCELERATORS) // (R * K * D)
        self.num_rows = max(num_rows, _MIN_ROWS)
        if on_cpu:
            self.num_rows = min(self.num_rows, _MAX_ROWS)

    @abstractmethod
    def squared_distances(self, rows: Tensor) -> Tensor:
        """Of the next rows, `[R, K, n]`."""

    @abstractmethod
    def add(self, posterior: Tensor, weighted: Tensor) -> None:
        """Add the squares and products of these rows; `posterior` and `weighted`, by the rows, are `[R, K, n]`."""

    def total(self) -> Tensor:
        """The sums, in the shape of the scale."""
        return self.second


class _Full(_Moments):
    def __init__(self, locs: Tensor, scale: Tensor, dtype: torch.dtype, num_rows: int | None = None) -> None:
        super().__init__(locs, scale, dtype)
        self.num_rows = num_rows or self.num_rows
        D = locs.shape[-1]
        self.inverse = inverse_of(scale).to(dtype).reshape(-1, D)
        self.shift = whiten(scale, -locs).to(dtype).reshape(-1, 1)
        self.buffers = self.inverse.new_empty(2, len(self.inverse) * self.num_rows)

    def squared_distances(self, rows: Tensor) -> Tensor:
        R, K, D = self.locs.shape
        y, squares = self.buffers[:, : len(self.inverse) * len(rows)].view(2, R * K * D, -1)
        torch.addmm(self.shift, self.inverse, rows.T, out=y)
        self.y = y.view(R, K, D, -1)
        return torch.mul(y, y, out=squares).view(R, K, D, -1).sum(2)

    def add(self, posterior: Tensor, weighted: Tensor) -> None:
        y = self.y.mul_(weighted.sqrt().unsqueeze(2)).flatten(0, 1)
        self.second += torch.bmm(y, y.mT).view_as(self.second)


class _FullByProducts(_Moments):
    """Distances and moments from the products of features, in half the operations of :class:`_Full`.

    Feature `i` is multiplied by features `i` to `i + D // 2`, counted round: all pairs in one operation.

    Each loses digits where rows are far from the centre in units of the smallest covariance; such rows are left to
    :class:`_Full`.
    """

    def __init__(self, locs: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__(locs, scale, dtype)
        R, K, D = locs.shape
        inverse = inverse_of(scale)
        precision = inverse.mT @ inverse
        self.mean, self.scale, self.inverse = locs, scale, inverse
        self.num_gaps = D // 2 + 1
        gap, self.first = torch.cartesian_prod(torch.arange(self.num_gaps), torch.arange(D)).unbind(-1)
        self.later = (self.first + gap) % D
        self.times = torch.where((gap == 0) | (2 * gap == D), 1.0, 2.0)  # of a pair that is there twice, once
        linear = (precision @ locs.unsqueeze(-1)).squeeze(-1)
        constant = (linear * locs).sum(-1, keepdim=True)
        parts = [precision[..., self.first, self.later] * self.times, -2 * linear, constant]
        self.coefficients = torch.cat(parts, -1).to(dtype).reshape(R * K, -1)
        self.sums = torch.zeros_like(self.coefficients, dtype=torch.float64)
        num_products = self.coefficients.shape[1]
        num_rows = _BYTES_OF_PRODUCTS // (max(num_products, R * K) * self.coefficients.element_size())
        self.num_rows = max(num_rows, _MIN_ROWS_OF_PRODUCTS)
        self.products = self.coefficients.new_ones(num_products, self.num_rows)
        self.reach = _LOST[dtype] / float(torch.linalg.matrix_norm(precision, ord=torch.inf).max())
        self.exact: _Full | None = None
        self.is_far = False

    def squared_distances(self, rows: Tensor) -> Tensor:
        R, K, D = self.locs.shape
        self.is_far = not float(rows.square().sum(1).max()) <= self.reach
        if self.is_far:
            self.exact = self.exact or _Full(self.mean, self.scale, rows.dtype, self.num_rows)
            return self.exact.squared_distances(rows)
        self.filled = self.products[:, : len(rows)]
        pairs, singles, _ = self.filled.split([self.num_gaps * D, D, 1])
        singles.copy_(rows.T)
        later = torch.cat([singles, singles]).unfold(0, D, 1).mT[: self.num_gaps]
        torch.mul(singles, later, out=pairs.view_as(later))
        return (self.coefficients @ self.filled).view(R, K, -1)

    def add(self, posterior: Tensor, weighted: Tensor) -> None:
        if self.is_far:
            self.exact.add(posterior, weighted)  # type: ignore[union-attr]
        else:
            self.sums += weighted.flatten(0, 1) @ self.filled.T

    def total(self) -> Tensor:
        R, K, D = self.locs.shape
        products, total, count = self.sums.view(R, K, -1).split([len(self.first), D, 1], -1)
        half = products.new_zeros(R, K, D, D)
        half[..., self.first, self.later] = products * self.times / 2
        square = half + half.mT
        cross = total.unsqueeze(-1) * self.mean.unsqueeze(-2)
        about = square - cross - cross.mT + count.unsqueeze(-1) * self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)
        second = self.inverse @ about @ self.inverse.mT
        return second if self.exact is None else second + self.exact.total()


class _Tied(_Moments):
    def __init__(self, locs: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__(locs, scale, dtype)
        self.inverse = inverse_of(scale).to(dtype).squeeze(1)
        self.whitened_locs = whiten(scale, locs).to(dtype)
        self.overlap = locs.new_zeros(*locs.shape[:2], locs.shape[1])

    def squared_distances(self, rows: Tensor) -> Tensor:
        self.y = rows @ self.inverse.mT
        return _cdist(self.whitened_locs, self.y).square_()

    def add(self, posterior: Tensor, weighted: Tensor) -> None:
        residual = self.y - posterior.mT @ self.whitened_locs
        self.second += ((residual.mT * weighted.sum(1, keepdim=True)) @ residual).unsqueeze(1)
        self.overlap += weighted @ posterior.mT

    def total(self) -> Tensor:
        # The spread of a row's locs is half the mean of (a_k - a_l)(a_k - a_l)^T: no difference of large sums.
        locs = self.whitened_locs.double()
        gaps = locs.unsqueeze(1) - locs.unsqueeze(2)
        spread = 0.5 * (self.overlap.unsqueeze(-1) * gaps).flatten(1, 2).mT @ gaps.flatten(1, 2)
        return self.second + spread.unsqueeze(1)


class _Diagonal(_Moments):
    def __init__(self, locs: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__(locs, scale, dtype)
        self.precision = scale.reciprocal().to(dtype).unsqueeze(-1)
        self.buffer = self.locs.new_empty(locs.numel() * self.num_rows)

    def squared_distances(self, rows: Tensor) -> Tensor:
        self.squares = self.buffer[: self.locs.numel() * len(rows)].view(*self.locs.shape, -1)
        torch.sub(rows.T.contiguous(), self.locs.unsqueeze(-1), out=self.squares).mul_(self.precision).square_()
        return self.squares.sum(2)

    def add(self, posterior: Tensor, weighted: Tensor) -> None:
        self.second += (weighted.unsqueeze(2) @ self.squares.mT).squeeze(2)


class _Spherical(_Moments):
    def __init__(self, locs: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__(locs, scale, dtype)
        self.precision = scale.reciprocal().to(dtype)

    def squared_distances(self, rows: Tensor) -> Tensor:
        distances = _cdist(self.locs.flatten(0, 1), rows).view(*self.locs.shape[:2], -1)
        self.squares = distances.mul_(self.precision).square_()
        return self.squares

    def add(self, posterior: Tensor, weighted: Tensor) -> None:
        self.second += (weighted * self.squares).sum(2, keepdim=True)


def _moments(kind: str, locs: Tensor, scale: Tensor, dtype: torch.dtype) -> _Moments:
    full = _FullByProducts if locs.device.type == "cpu" else _Full
    kinds: dict[str, type] = {"full": full, "tied": _Tied, "diag": _Diagonal, "spherical": _Spherical}
    return kinds[kind](locs, scale, dtype)


def _cdist(locs: Tensor, rows: Tensor) -> Tensor:
    return torch.cdist(locs, rows, compute_mode="donot_use_mm_for_euclid_dist")  # the other way is inexact
