"""Log-densities over their plates, and the sums that estimators take of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_lvm.densities import log_prob as log_prob_of
from pyro_lvm.sites import Site


class Term(NamedTuple):
    """A log-density in nats.

    Attributes:
        plates: The names of its plates, from left to right.
        value: ``[*plates]``; the particles, if there are several, stand to the left: ``[K, *plates]``.
        site: The site that it belongs to; empty for what is left of sites that were summed out.
    """

    plates: tuple[str, ...]
    value: Tensor
    site: str = ""


def frames(site: Site) -> list[Any]:
    """The vectorised plates around a site, from left to right."""
    return sorted((f for f in site["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)


def unscaled_log_prob(site: Site) -> Any:
    """The log-density of a site's value, without scales and masks.

    Raises:
        ValueError: what the distribution says of a value that it does not take, with the name of the site.
    """
    if "unscaled_log_prob" in site:
        return site["unscaled_log_prob"]
    try:
        return log_prob_of(site["fn"], site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"the log-density of {site['name']!r} failed: {error}") from error


def masked(site: Site, log_prob: Any, scale: Any = 1.0) -> Any:
    """A log-density where the mask of its site is true, times a scale."""
    return scale_and_mask(log_prob, scale, site["mask"])


def equal_numbers(a: Any, b: Any) -> bool:
    """Whether two scales are plain numbers and equal; of tensors, one cannot know without looking at their values."""
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def over_plates(site: Site, log_prob: Any) -> Term:
    """A log-density as Pyro computes it, with a dimension for each plate and no other."""
    around = frames(site)
    log_prob = torch.as_tensor(log_prob)
    dims = [f.dim for f in around]
    if dims and log_prob.dim() < -dims[0]:
        log_prob = log_prob.reshape([1] * (-dims[0] - log_prob.dim()) + list(log_prob.shape))
    others = [d for d in range(-log_prob.dim(), 0) if d not in dims]
    return Term(tuple(f.name for f in around), log_prob.sum(others) if others else log_prob, site["name"])


def sum_to(term: Term, plates: tuple[str, ...]) -> Tensor:
    """A term summed over all plates but these, ``[..., *plates]``, of size 1 where it has no such plate."""
    own, value = term.plates, term.value
    others = [i - len(own) for i, plate in enumerate(own) if plate not in plates]
    value = value.sum(others) if others else value
    kept = [plate for plate in own if plate in plates]
    if kept == list(plates):
        return value
    particles = value.dim() - len(kept)
    order = sorted(range(len(kept)), key=lambda i: plates.index(kept[i]))
    value = value.permute([*range(particles), *(particles + i for i in order)])
    sizes = iter(value.shape[particles:])
    return value.reshape([*value.shape[:particles], *(next(sizes) if plate in kept else 1 for plate in plates)])


def by_row(terms: Iterable[Term], rows: Collection[str]) -> tuple[Tensor, Tensor | None]:
    """The sum of what lies outside the rows, ``[...]``, and each row's share, ``[..., N]`` (None if there is none).

    Args:
        terms: To be summed.
        rows: The names of the plate of the rows.
    """
    terms = list(terms)
    outside, inside = terms[0].value.new_zeros(()) if terms else torch.zeros(()), None
    for term in terms:
        row = tuple(plate for plate in term.plates if plate in rows)
        share = sum_to(term, row)
        if row:
            inside = share if inside is None else inside + share
        else:
            outside = outside + share
    return outside, inside
