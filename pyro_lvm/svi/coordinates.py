"""Coordinates in which a posterior is near a standard normal one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Coordinates(NamedTuple):
    r"""An affine map :math:`z = \mu + S L u` from coordinates u to the latents in unconstrained space.

    Attributes:
        loc: :math:`\mu`, ``[D]``.
        scale: The diagonal of :math:`S`, ``[D]``.
        tril: :math:`L`, lower triangular with a unit diagonal, ``[D, D]``; None for none.
        wide: In place of it :math:`W` with orthogonal columns, of :math:`L = I + W W^\top`, ``[D, R]``; None for none.
    """

    loc: Tensor
    scale: Tensor
    tril: Tensor | None = None
    wide: Tensor | None = None

    @classmethod
    def of_covariance(cls, loc: Tensor, covariance: Tensor) -> Coordinates:
        """Those of a Gaussian, ``[D]`` and ``[D, D]``."""
        factor = torch.linalg.cholesky(0.5 * (covariance + covariance.T))
        scale = factor.diagonal()
        return cls(loc, scale.to(loc), (factor / scale.unsqueeze(-1)).to(loc))

    @property
    def root(self) -> Tensor:
        """The matrix of the map where there are no wide directions, ``[D, D]``, in double precision."""
        assert self.wide is None
        scale = self.scale.double()
        return torch.diag(scale) if self.tril is None else scale.unsqueeze(-1) * self.tril.double()

    @property
    def factor(self) -> Tensor:
        """:math:`F` of the covariance :math:`S (I + F F^T) S`, where there are wide directions, ``[D, R]``."""
        assert self.wide is not None
        return self.wide * (2 + self.wide.square().sum(0)).sqrt()

    def pulled(self, gradients: Tensor) -> Tensor:
        """Gradients by the latents as gradients by the coordinates, ``[..., D]``."""
        pulled = gradients * self.scale.to(gradients)
        if self.wide is not None:
            wide = self.wide.to(gradients)
            return pulled + pulled @ wide @ wide.T
        return pulled if self.tril is None else pulled @ self.tril.to(gradients)

    def independent(self) -> Coordinates:
        """Those of the independent normals nearest to the Gaussian, which have its conditional variances."""
        if self.tril is None:
            return Coordinates(self.loc, self.scale)
        precision = torch.cholesky_inverse(self.root)
        return Coordinates(self.loc, precision.diagonal().rsqrt().to(self.loc))

    def after(self, loc: Tensor, matrix: Tensor) -> Coordinates:
        """Those of a Gaussian that has this location and this root of a covariance in these coordinates."""
        root = self.root @ matrix.double()
        moved = self.loc + (self.root @ loc.double()).to(self.loc)
        return Coordinates.of_covariance(moved, root @ root.T)
