"""Which dimensions of a model's latents count the components of a mixture, found by permuting them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_lvm.elbo.contraction import log_density, responsibilities
from pyro_lvm.elbo.terms import by_row
from pyro_lvm.em.matching import Axes, permuted
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import held_at, prior_trace, sample_sites

_MOST_CANDIDATES = 8  # of which all subsets may be tried
_TOLERANCE = 1e-4  # what float32 leaves of sums in another order


def component_site(result: Result) -> str | None:
    """The enumerated site that gives each row its component; None if there is none, or it is not the only one."""
    sites = result._program.sites
    if sites.row_plate is None or sites.shared_enumerated or len(sites.enumerated) != 1:
        return None
    args, name = result._arguments(()), sites.enumerated[0]
    with result._quiet(None), torch.no_grad():
        site = prior_trace(result.model, *args, **result._program.model_kwargs).nodes[name]
    plates = [frame.name for frame in site["cond_indep_stack"] if frame.vectorized]
    return name if plates == [sites.row_plate.name] else None


def component_dims(result: Result, site: str, seed: int | None = None) -> Axes | None:
    """The dimensions of what all rows share that count the states of an enumerated site.

    The fewest are taken whose permutation permutes the rows' responsibilities and leaves the joint density alone, with
    the enumerated site summed out. That is tried at a draw of the guide.

    Args:
        result: The fit.
        site: The enumerated site.
        seed: Of the draw; the fit's, if None.

    Returns:
        Dimensions of a draw by the name of the latent, none of a single state; None where none are found, as in a model
        that tells the states apart, or where too many dimensions have the size.
    """
    args = result._arguments(())
    with result._quiet(seed), torch.no_grad(), pyro.validation_enabled(False):
        latents = {n: v for n, v in result._latents(args, {})[0].items() if n in result._program.sites.latent}
        before = _look(result, args, site, latents)
        sites = sample_sites(prior_trace(result.model, *args, **result._program.model_kwargs))
        support = {name: sites[name]["fn"].support for name in result._program.sites.shared_latent}
        K = before[-1].shape[-1]
        if K == 1:
            return {}
        shared = {name: latents[name] for name in result._program.sites.shared_latent}
        places = [(name, dim) for name, value in shared.items() for dim, size in enumerate(value.shape) if size == K]
        if len(places) > _MOST_CANDIDATES:
            return None
        swap = torch.tensor([1, 0, *range(2, K)])
        orders = [torch.arange(K).roll(1)] + ([swap] if K > 2 else [])  # which make all permutations
        for chosen in _subsets(places):
            dims = {name: tuple(dim for n, dim in chosen if n == name) for name in dict.fromkeys(n for n, _ in chosen)}
            for order in orders:
                moved = permuted(latents, dims, order)
                if not all(support[name].check(moved[name]).all() for name in dims):
                    break  # as of a covariance whose rows alone are permuted
                if not _agree(before, _look(result, args, site, moved), order):
                    break
            else:
                return dims
    return None


def _subsets(places: list[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], ...]]:
    return itertools.chain.from_iterable(itertools.combinations(places, n) for n in range(1, len(places) + 1))


def _look(result: Result, args: tuple[Any, ...], site: str, latents: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """The joint density outside the rows and in each, and responsibilities ``[N, K]``, at given latents."""
    plate = result._program.sites.row_plate
    assert plate is not None
    trace = result._enumerated_trace(args, held_at(latents))
    outside, rows = by_row(log_density(trace), (plate.name,))
    assert rows is not None
    return outside, rows, responsibilities(trace)[site].reshape(len(rows), -1)


def _agree(before: tuple[Tensor, ...], after: tuple[Tensor, ...], order: Tensor) -> bool:
    expected = (*before[:-1], before[-1][:, order.to(before[-1].device)])
    return all(torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE) for a, b in zip(after, expected, strict=True))
