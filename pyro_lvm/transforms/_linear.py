"""Linear maps of vectors, or of the channels of images, by a matrix in factors."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from pyro_lvm.transforms._base import Transform


class LinearTransform(Transform):
    r"""The map :math:`y = W x + b`, of vectors or of the channels of each pixel.

    Args:
        log_diagonal: Its sum is :math:`\log |\det W|`, `[*, D]`.
        loc: :math:`b`, `[*, D]`.
        images: Whether it is of channels.
    """

    def __init__(self, log_diagonal: Tensor, loc: Tensor, images: bool = False) -> None:
        super().__init__(3 if images else 1)
        self.log_diagonal, self.loc, self.images = log_diagonal, loc.unsqueeze(-2), images

    @abstractmethod
    def multiply(self, rows: Tensor) -> Tensor:
        """The product of the matrix with each row of `[*, N, D]`."""

    @abstractmethod
    def solve(self, rows: Tensor) -> Tensor:
        """The product of the inverse with each row of `[*, N, D]`."""

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        y = self._back(self.multiply(self._rows(x)) + self.loc, x)
        return y, self._log_det(y)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        x = self._back(self.solve(self._rows(y) - self.loc), y)
        return x, -self._log_det(x)

    def _rows(self, x: Tensor) -> Tensor:
        return x.flatten(-2).mT if self.images else x.unsqueeze(-2)

    def _back(self, rows: Tensor, x: Tensor) -> Tensor:
        return rows.mT.unflatten(-1, x.shape[-2:]) if self.images else rows.squeeze(-2)

    def _log_det(self, x: Tensor) -> Tensor:
        return diagonal_log_det(self.log_diagonal, x, self.images)


def diagonal_log_det(log_diagonal: Tensor, x: Tensor, images: bool) -> Tensor:
    """The log-determinant of a map, `[*]`.

    Args:
        log_diagonal: Of the matrix that acts on a vector, or on each pixel, `[*, D]`.
        x: What is mapped, for its shape.
        images: Whether it is images.
    """
    num_pixels = x.shape[-2] * x.shape[-1] if images else 1
    return (num_pixels * log_diagonal.sum(-1)).expand(x.shape[: -3 if images else -1])
