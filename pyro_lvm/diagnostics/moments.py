"""What the posterior of each latent is by itself: probabilities of states, means and covariances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.diagnostics.dims import Axis, axes
from pyro_lvm.em.result import EMResult
from pyro_lvm.result import Result
from pyro_lvm.sites import Site

Moments = dict[str, tuple[list[Axis], Tensor]]


def moments(result: Result, sites: Mapping[str, Site], num_draws: int) -> Moments:
    """The moments that a fit by EM knows of its latents, as ``result.posterior()`` has them; none of other fits.

    Args:
        result: The fit.
        sites: The model's, their values in full shape.
        num_draws: Over how many draws of a guide probabilities of states are averaged, where they are not exact.

    Returns:
        For each latent ``<site>_probs``, ``[..., K]``, the probability of each state in the order of the support; or
        ``<site>_mean`` and ``<site>_sd``, ``[..., *event]``, and ``<site>_covariance``, ``[..., L, L]``, where it is a
        normal vector. Each with the plates along its dimensions.
    """
    if not isinstance(result, EMResult):
        return {}
    found: Moments = {}
    for name, posterior in result.posterior(num_draws=num_draws).items():
        along, shape = axes(sites[name]), sites[name]["value"].shape
        plates = len(along) - sites[name]["fn"].event_dim
        for moment, value, event in _of(posterior):
            full = value.expand(*shape[:plates], *value.shape[value.dim() - event :])
            found[f"{name}_{moment}"] = [*along[:plates], *[None] * event], full
    return found


def _of(posterior: dist.Distribution) -> Iterator[tuple[str, Tensor, int]]:
    """The moments of a distribution: name, value, and how many dimensions are none of its batch."""
    if isinstance(posterior, dist.Bernoulli):
        yield "probs", torch.stack([1 - posterior.probs, posterior.probs], -1), 1
    elif isinstance(posterior, dist.Categorical | dist.OneHotCategorical):
        yield "probs", posterior.probs, 1
    else:
        try:
            mean, variance = posterior.mean, posterior.variance
        except NotImplementedError:  # of a transformed distribution
            return
        yield "mean", mean, posterior.event_dim
        yield "sd", variance.sqrt(), posterior.event_dim
        if isinstance(posterior, dist.MultivariateNormal):
            yield "covariance", posterior.covariance_matrix, 2
