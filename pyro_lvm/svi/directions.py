"""The directions in which a posterior is wider than independent normals know."""

from __future__ import annotations

import torch
from torch import Tensor

_PRODUCTS = 4  # with the Hessian, for each direction
_FLATTEST = 1e-6  # curvature of a direction in the units of the scale, below which its width is not believed
_NOTHING = 1e-6  # of a product: what rounding leaves of it


def wide_directions(slope: Tensor, leaf: Tensor, scale: Tensor, seed: int) -> Tensor:
    """The flattest directions of a loss in the units of a scale, by Lanczos's iteration.

    They are the Ritz vectors of some hundreds of products with the Hessian. A direction that these do not resolve comes
    out steeper than it is, never flatter.

    Args:
        slope: The gradient of the loss, with its graph, ``[D]``.
        leaf: Where it was taken, ``[D]``.
        scale: ``[D]``.
        seed: Of the first vector.

    Returns:
        :math:`W` of :class:`~pyro_lvm.svi.coordinates.Coordinates` in which the loss curves alike in all directions but
        those steeper than the scale says, ``[D, R]``. Of directions that curve the other way it is zero.
    """
    size = len(leaf)
    rank = round(size**0.5)  # as Pyro's guide has
    basis = torch.empty(min(size, _PRODUCTS * rank), size, dtype=torch.float64, device=scale.device)
    products = torch.empty_like(basis)
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(basis)
    for k in range(len(basis)):
        basis[k] = rest / rest.norm()
        (product,) = torch.autograd.grad(slope, leaf, basis[k].to(scale) * scale, retain_graph=True)
        products[k] = rest = (product * scale).double()
        for _ in range(2):  # once leaves rounding errors
            rest = rest - basis[: k + 1].T @ (basis[: k + 1] @ rest)
        if rest.norm() <= _NOTHING * products[k].norm():
            break
    basis, products = basis[: k + 1], products[: k + 1]
    inner = basis @ products.T
    values, vectors = torch.linalg.eigh(0.5 * (inner + inner.T))
    values, directions = values[:rank], basis.T @ vectors[:, :rank]
    longer = values.clamp(min=_FLATTEST, max=1).rsqrt() - 1
    wide = directions * torch.where(values > 0, longer, 0.0).sqrt()
    return torch.nn.functional.pad(wide, (0, rank - len(values))).to(scale)
