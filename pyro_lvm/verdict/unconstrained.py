"""The joint density of a fitted model over its latents in unconstrained space, many points at a time."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_lvm import tracing
from pyro_lvm.elbo.contraction import log_density
from pyro_lvm.elbo.terms import by_row
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import Site, held_at, prior_trace, sample_sites
from pyro_lvm.vectorize import LargestTensor


class Unconstrained:
    """The latents of a fit as points ``[C, D]``, and the density of the model at them, enumerated sites summed out.

    Raises:
        ValueError: if a latent is discrete, has a support without a way to unconstrained space, or one that depends on
            other latents.
    """

    def __init__(self, result: Result) -> None:
        program = result._program
        self._result, self._args = result, result._arguments(())
        sites, others = (self._prior_sites() for _ in range(2))
        discrete = [name for name in program.sites.latent if sites[name]["fn"].support.is_discrete]
        if discrete:
            raise ValueError(f"{discrete[0]!r} is discrete")
        try:
            self._transforms, again = (
                {name: biject_to(found[name]["fn"].support) for name in program.sites.latent}
                for found in (sites, others)
            )
        except NotImplementedError as error:
            raise ValueError(str(error)) from error
        self._shapes = {n: t.inverse_shape(sites[n]["value"].shape) for n, t in self._transforms.items()}
        for name, transform in self._transforms.items():
            middle = torch.zeros(self._shapes[name])
            if not torch.equal(transform(middle), again[name](middle)):
                raise ValueError(f"the support of {name!r} depends on other latents")

    def _prior_sites(self) -> dict[str, Site]:
        return sample_sites(prior_trace(self._result.model, *self._args, **self._result._program.model_kwargs))

    def points(self, draws: Draws) -> Tensor:
        """Draws of the latents, ``[C, ...]`` each, as points."""
        return torch.cat([t.inv(draws[n]).reshape(len(draws[n]), -1) for n, t in self._transforms.items()], -1)

    def draws(self, points: Tensor) -> Draws:
        """Points ``[..., D]`` as values of the latents, ``[..., ...]``."""
        return {name: self._transforms[name](value) for name, value in self._split(points).items()}

    def log_density(self, point: Tensor) -> Tensor:
        """log p(x, z) and the log-determinant of the way from unconstrained space, of one point ``[D]``, in nats."""
        values, jacobian = dict[str, Tensor](), point.new_zeros(())
        for name, value in self._split(point).items():
            transform = self._transforms[name]
            values[name] = transform(value)
            jacobian = jacobian + transform.log_abs_det_jacobian(value, values[name]).sum()
        trace = self._result._enumerated_trace(self._args, held_at(values))
        return by_row(log_density(trace), ())[0] + jacobian

    def value_and_gradient(self, points: Tensor) -> list[Tensor]:
        """Log-densities ``[C]`` and their gradients, of points ``[C, D]``."""
        with pyro.validation_enabled(False):
            gradient, value = torch.func.vmap(torch.func.grad_and_value(self.log_density))(points)
        return [value, gradient]

    def traced(self, points: Tensor) -> Any:
        """``value_and_gradient`` as a graph for as many points, which runs without the model's Python.

        Raises:
            NotCompilable: if the model cannot be written down.
        """
        return tracing.trace(self.value_and_gradient, [points])

    def numbers(self, point: Tensor) -> int:
        """The size of the largest tensor that the density of a point needs."""
        with torch.no_grad(), LargestTensor() as largest:
            self.log_density(point)
        return largest.numbers

    def _split(self, points: Tensor) -> Draws:
        parts = points.split([shape.numel() for shape in self._shapes.values()], -1)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) if shape else part.squeeze(-1) for (name, shape), part in named}
