"""The directions in which a posterior is wider than independent normals know."""

from __future__ import annotations

import torch
from torch import Tensor

_PRODUCTS = 4  # with the Hessian, for each direction
_FLATTEST = 1e-6  # curvature of a direction, in the units of the scale, that is told from none
_NOTHING = 1e-6  # of a product: what rounding leaves of it


def wide_directions(slope: Tensor, leaf: Tensor, scale: Tensor, seed: int) -> Tensor:
    """The flattest directions of a loss in the units of a scale, by Lanczos's iteration.

    They are the Ritz vectors of some hundreds of products with the Hessian. A direction that these do not resolve comes
    out steeper than it is, and flatter by rounding errors alone.

    Args:
        slope: The gradient of the loss, with its graph, ``[D]``.
        leaf: Where it was taken, ``[D]``.
        scale: ``[D]``.
        seed: Of the first vector, and of those that go on where products lead nowhere new.

    Returns:
        :math:`W` of :class:`~pyro_lvm.svi.coordinates.Coordinates` in which the loss curves alike in all directions but
        those steeper than the scale says, ``[D, R]``. Of directions that curve the other way, or by no more than
        rounding errors, it is zero.
    """
    size = len(leaf)
    rank = round(size**0.5)  # as Pyro's guide has
    num_products = min(size, _PRODUCTS * rank)
    basis = torch.empty(num_products, size, dtype=torch.float64, device=scale.device)
    inner = torch.zeros(num_products, num_products).to(basis)
    generator = torch.Generator().manual_seed(seed)

    def anew() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(basis)

    def beside(known: Tensor, vector: Tensor) -> Tensor:
        for _ in range(2):  # once leaves rounding errors
            vector = vector - known.T @ (known @ vector)
        return vector

    rest = anew()
    for k in range(num_products):
        basis[k] = rest / rest.norm()
        known = basis[: k + 1]
        (found,) = torch.autograd.grad(slope, leaf, basis[k].to(scale) * scale, retain_graph=True)
        product = (found * scale).double()
        inner[: k + 1, k] = known @ product
        rest = beside(known, product)
        if rest.norm() <= _NOTHING * product.norm():
            rest = beside(known, anew())
    values, vectors = torch.linalg.eigh(inner, UPLO="U")
    told = max(_FLATTEST, torch.finfo(scale.dtype).eps * values[-1].item())
    values, directions = values[:rank], basis.T @ vectors[:, :rank]
    longer = values.clamp(min=told, max=1).rsqrt() - 1
    return (directions * torch.where(values > told, longer, 0.0).sqrt()).to(scale)
