"""Latents that are Gaussian given the rows: their moments, read off the gradient and the Hessian of the log-density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.data import Data
from pyro_lvm.elbo.contraction import enumerate_model
from pyro_lvm.elbo.terms import masked, unscaled_log_prob
from pyro_lvm.em.use import depends_on
from pyro_lvm.params import is_real
from pyro_lvm.sites import RowPlate, Site, held_at, plate_nesting, prior_trace, sample_sites

_ROUNDINGS = {torch.float64: 1e4, torch.float32: 1e2}  # by which numbers differ that are alike
_PROBES = 2


class Moments(NamedTuple):
    """The posterior of the latents of each row, as one vector of n numbers, for all states of the discrete latents.

    Attributes:
        mean: ``[*states, B, n]``.
        root: A lower triangular root of the covariance, ``[*states, B, n, n]``; ``[*states, 1, n, n]`` where all rows
            have the same.
        log_volume: The logarithm of the integral over the latents, in units of its integrand at the mean, ``[*states,
            B]`` or ``[*states, 1]``.
    """

    mean: Tensor
    root: Tensor
    log_volume: Tensor


class GaussianLatents:
    r"""Latents in which the log-density of a row is quadratic.

    With the gradient :math:`g` and the Hessian :math:`-A` of :math:`\log p(x_i, z_i)` at zero, the posterior of
    :math:`z_i` is normal with mean :math:`A^{-1} g` and precision :math:`A`. Where discrete latents stand beside it,
    so it is for each of their states.

    Args:
        model: The model, its discrete latents marked for enumeration.
        names: The latents.
        row_plate: The plate of the rows, in which they lie.
        data: The rows.

    Attributes:
        events: The shape of each latent, by site.
        states: The numbers of states of the discrete latents, in the dimensions to the left of the plates.
        dependents: The sites whose log-density depends on the latents.
    """

    events: dict[str, torch.Size]
    states: tuple[int, ...] = ()
    dependents: tuple[str, ...] = ()

    def __init__(self, model: Callable, names: Sequence[str], row_plate: RowPlate, data: Data) -> None:
        self.model, self.names, self.row_plate, self.data = model, tuple(names), row_plate, data
        self._words = " and ".join(map(repr, self.names))

    def look(self, *args: Any, **kwargs: Any) -> None:
        """See what depends on the latents, and how.

        Raises:
            ValueError: for latents that are not Gaussian given the rows, or not in each row by itself.
        """
        with poutine.block(hide_types=["sample", "observe"]):
            prior = prior_trace(self.model, *args, **kwargs)
        sites = sample_sites(prior)
        for name in self.names:
            self._check_latent(sites[name])
        self.events = {name: sites[name]["fn"].event_shape for name in self.names}
        self._nesting = plate_nesting(prior)
        self._like = sites[self.names[0]]["value"].detach()
        leaf = self.zeros(args).requires_grad_()
        with torch.enable_grad():
            run = sample_sites(self.trace(leaf, args, kwargs))
            self.dependents = tuple(
                name for name, site in run.items() if depends_on(unscaled_log_prob(site), {"latents": leaf})
            )
        for name in self.dependents:
            if not any(f.name == self.row_plate.name for f in run[name]["cond_indep_stack"]):
                raise ValueError(
                    f"the site {name!r}, outside the plate of the rows, depends on their latent {self._words}"
                )
            if torch.as_tensor(run[name]["scale"] != run[self.names[0]]["scale"]).any():
                raise ValueError(
                    f"the site {name!r} and the latent {self._words} must share one poutine.scale: {_ASK_GUIDE}"
                )
            shape = unscaled_log_prob(run[name]).shape
            self.states = tuple(torch.broadcast_shapes(self.states, shape[: max(0, len(shape) - self._nesting)]))
        self._check_discrete(run)
        self._check_quadratic(args, kwargs)

    @property
    def size(self) -> int:
        """Numbers in the vector of a row, n."""
        return sum(event.numel() for event in self.events.values())

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents."""
        return self._like.dtype

    def moments(self, *args: Any, **kwargs: Any) -> Moments:
        """The posterior in these rows, at the parameters of the handlers around.

        Raises:
            ValueError: if the log-density has no maximum in the latents.
        """
        gradient, curvature = self._derivatives(args, kwargs)
        generator, first = torch.Generator().manual_seed(0), gradient
        probes = torch.randn(_PROBES, gradient.shape[-1], generator=generator).to(gradient)
        along = [curvature(probe.expand_as(gradient)) for probe in probes]
        if gradient.shape[-2] > 1 and all(_alike(a, a[..., :1, :], a) for a in along):  # rows have one Hessian
            head = tuple(a[:1] if has else a for a, has in zip(args, self.data.has_rows, strict=True))
            first, curvature = self._derivatives(head, kwargs)
        units = torch.eye(first.shape[-1]).to(first)
        precision = -torch.stack([curvature(unit.expand_as(first)) for unit in units], -1).double()
        # with its rows and columns reversed, its factor is the inverse of a lower triangular root of the covariance
        factor, info = torch.linalg.cholesky_ex(((precision + precision.mT) / 2).flip(-2, -1))
        if info.any():
            raise ValueError(f"the log-density has no maximum in {self._words}, so that it has no Gaussian posterior")
        root = torch.linalg.solve_triangular(factor.flip(-2, -1).mT, units.double(), upper=False)
        mean = (root @ (root.mT @ gradient.double().unsqueeze(-1))).squeeze(-1)
        log_volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * math.log(2 * math.pi) * len(units)
        return Moments(mean.to(gradient), root.to(gradient), log_volume.to(gradient))

    def values(self, vectors: Tensor) -> dict[str, Tensor]:
        """The value of each site, ``[*states, *plates, *event]``, for vectors ``[*states, B, n]``."""
        *states, count, _ = vectors.shape
        parts = vectors.split([event.numel() for event in self.events.values()], -1)
        shape = (*states, *self._plates(count))
        return {name: part.reshape(*shape, *self.events[name]) for name, part in zip(self.names, parts, strict=True)}

    def integrate(self, trace: poutine.Trace, moments: Moments) -> None:
        """Turn a trace with the latents at their means into one from which they are integrated out."""
        site = trace.nodes[self.names[0]]
        *states, count = moments.log_volume.shape
        volume = moments.log_volume.reshape(*states, *self._plates(count))
        site["unscaled_log_prob"] = unscaled_log_prob(site) + volume
        if "packed" in site:
            trace.pack_tensors()

    def _plates(self, count: int) -> list[int]:
        plates = [1] * self._nesting
        plates[self.row_plate.dim] = count
        return plates

    def zeros(self, args: tuple[Any, ...]) -> Tensor:
        """A vector for each row and state, ``[*states, B, n]``."""
        return self._like.new_zeros(*self.states, self.data.count(args) or 1, self.size)

    def trace(self, vectors: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
        """The model with its latents at these vectors, hidden from the handlers around."""
        held = held_at(self.values(vectors))
        with poutine.block(hide_types=["sample", "observe"]):
            return enumerate_model(self.model, args, kwargs, self._nesting, held)

    def _density(self, vectors: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The log-density of what depends on the latents, summed over states and rows, each of which has its own."""
        sites = sample_sites(self.trace(vectors, args, kwargs))
        return torch.stack([masked(sites[n], unscaled_log_prob(sites[n])).sum() for n in self.dependents]).sum()

    def _derivatives(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], at: Tensor | float = 0.0
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The gradient of each row's log-density, ``[*states, B, n]``, and the product of its Hessian with a vector."""
        gradient = torch.func.grad(lambda vectors: self._density(vectors, args, kwargs))
        value, pull, *_ = torch.func.vjp(gradient, self.zeros(args) + at)
        return value, lambda vector: pull(vector)[0]

    def _check_latent(self, site: Site) -> None:
        name, plates = site["name"], [f.name for f in site["cond_indep_stack"] if f.vectorized]
        if not is_real(site["fn"].support):
            raise ValueError(
                f"the latent {name!r} can neither be summed out, for it has no finite support, nor integrated out as a "
                f"Gaussian, for it is no real number: {_ASK_GUIDE}"
            )
        if plates != [self.row_plate.name] or len(site["fn"].event_shape) > 1:
            raise ValueError(
                f"the latent {name!r} must be a number or a vector in the plate of the rows alone to be integrated out "
                f"(to_event makes a vector of what is in another plate): {_ASK_GUIDE}"
            )

    def _check_discrete(self, run: dict[str, Site]) -> None:
        """Refuse discrete latents of which a row has many that meet in its Gaussian ones."""
        for name, site in run.items():
            dim = site["infer"].get("_enumerate_dim")
            plates = {f.name for f in site["cond_indep_stack"] if f.vectorized}
            if dim is not None and -dim <= self._nesting + len(self.states) and plates - {self.row_plate.name}:
                raise ValueError(
                    f"each row has many of the discrete latent {name!r}, so that the posterior of {self._words} has "
                    f"too many components: {_ASK_GUIDE}"
                )

    def _check_quadratic(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        gradient, curvature = self._derivatives(args, kwargs)
        generator = torch.Generator().manual_seed(0)
        for size in (0.5, 3.0):
            away = size * torch.randn(gradient.shape[-1], generator=generator).to(gradient)
            there, _ = self._derivatives(args, kwargs, away)
            straight = gradient + curvature(away.expand_as(gradient))
            if not _alike(there, straight, gradient.abs() + straight.abs()):
                raise ValueError(
                    f"the latent {self._words} can neither be summed out, for it has no finite support, nor integrated "
                    f"out as a Gaussian, for the log-density is not quadratic in it: {_ASK_GUIDE}"
                )


_ASK_GUIDE = "pass guide=, such as 'mean_field', for variational EM"


def _alike(a: Tensor, b: Tensor, size: Tensor) -> bool:
    """Whether vectors ``[*, n]`` differ by rounding alone; each latent has its own size, the largest of all rows."""
    largest = size.abs().flatten(0, -2).amax(0)
    return bool(((a - b).abs() <= _ROUNDINGS[a.dtype] * torch.finfo(a.dtype).eps * largest).all())
