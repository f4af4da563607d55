"""Sums over rows against the same written as one product of all."""

import pytest
import torch

from pyro_lvm.em.sums import histograms, scatters, weighted_sums

SHAPES = [  # of weights, of observations, of places
    ((5,), (5,), (1,)),
    ((3, 5), (5,), (3, 1)),
    ((3, 5), (5,), (1, 1)),
    ((3, 5), (3, 5), (3, 5)),
    ((3, 5), (1, 5), (3, 5)),
    ((4, 3, 5), (3, 1), (4, 3, 1)),
    ((4, 1, 5), (4, 3, 1), (4, 3, 1)),
    ((4, 3, 5), (1, 1, 5), (1, 3, 1)),
    ((4, 3, 5), (4, 1, 5), (1, 3, 5)),
    ((2, 4, 3, 5), (4, 1, 5), (2, 1, 3, 1)),
    ((1,), (5,), (1,)),
    ((3, 1), (1,), (3, 1)),
]
each_shape = pytest.mark.parametrize(("weights", "observed", "places"), SHAPES)


def summed(product, places):
    """Over the dimensions in which places are 1."""
    rank = len(places)
    extra = product.dim() - rank
    dims = [d for d in range(rank) if places[d] == 1]
    assert extra >= 0
    return product.sum(dims, keepdim=True).expand((*places, *product.shape[rank:])) if dims else product


def full(weights, observed, places):
    return torch.broadcast_shapes(weights, observed, places)


@each_shape
def test_weighted_sums(weights, observed, places):
    w, x = torch.rand(weights), torch.randn((*observed, 2))
    product = w.expand(torch.broadcast_shapes(weights, observed)).unsqueeze(-1) * x
    product = product.expand((*full(weights, observed, places), 2))
    torch.testing.assert_close(weighted_sums(w, x, torch.Size(places), item_dim=1), summed(product, places))


@each_shape
def test_scatters(weights, observed, places):
    w, x = torch.rand(weights), torch.randn((*observed, 2))
    outer = x.unsqueeze(-1) * x.unsqueeze(-2)
    product = (w[..., None, None] * outer).expand((*full(weights, observed, places), 2, 2))
    torch.testing.assert_close(scatters(w, x, torch.Size(places)), summed(product, places))


@each_shape
def test_histograms(weights, observed, places):
    w, index = torch.rand(weights), torch.randint(4, observed)
    product = w.unsqueeze(-1) * torch.nn.functional.one_hot(index, 4).double()
    product = product.expand((*full(weights, observed, places), 4))
    torch.testing.assert_close(histograms(w, index, torch.Size(places), 4), summed(product, places))


def test_scatters_of_many_rows_are_those_of_all_at_once():
    w, x = torch.rand(3, 40_000), torch.randn(40_000, 6)
    found = scatters(w, x, torch.Size([3, 1]))
    torch.testing.assert_close(found.squeeze(1), torch.einsum("kn,ni,nj->kij", w, x, x))
