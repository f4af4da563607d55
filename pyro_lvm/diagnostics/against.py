"""``against``: a fit beside draws of the same posterior by another way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pyro_lvm.checks import check_count
from pyro_lvm.diagnostics.agreement import Agreement, compare
from pyro_lvm.diagnostics.exchangeable import component_dims, component_site
from pyro_lvm.diagnostics.reference_draws import draws_by_name
from pyro_lvm.draws import posterior_draws, posterior_draws_at
from pyro_lvm.em.matching import order_of, permuted
from pyro_lvm.result import Draws, Result


def against(result: Result, reference_draws: Any, num_draws: int = 10_000, seed: int | None = None) -> Agreement:
    """The errors of a fit's marginals, where draws of the same posterior are to be had from elsewhere.

    The components of a mixture, whose numbers mean nothing, are numbered as those of the reference, by the means of
    latents that both have. Where labels switch between draws, in a run of MCMC or a guide with several modes, these
    means are those of different components: put such draws in order first, by :func:`pyro_lvm.relabel`.

    Args:
        result: What ``fit`` returned.
        reference_draws: Draws of the posterior, such as those of a long run of MCMC: a dict of arrays or tensors
            ``[S, ...]`` by the names of the sites, a run of Pyro's or NumPyro's ``MCMC``, or an object of ArviZ.
            Variables that only one of the two has are passed over.
        num_draws: Of the fit.
        seed: Of the draws; the fit's, if None.

    Returns:
        Errors of means and standard deviations, and Wasserstein-1 distances, in units of the reference's standard
        deviations.

    Raises:
        TypeError: if ``result`` is no result, or the reference holds no draws.
        ValueError: if no variable is in both, or one has another shape.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> result = lvm.fit(model, "mean_field", y, num_steps=2_000, optim=0.02, progress=False)
        >>> exact = torch.distributions.Normal(10 / 4.01, 4.01**-0.5).sample((10_000,))
        >>> lvm.against(result, {"mean": exact}).largest_mean_error < 0.2
        True
    """
    if not isinstance(result, Result):
        raise TypeError(f"against takes the result of a fit; got {type(result).__name__}")
    reference = draws_by_name(reference_draws)
    drawn = posterior_draws(result, check_count("num_draws", num_draws), seed)
    return compare(draws_by_name(_numbered_as(reference, result, drawn, seed), "the fit"), reference)


def _numbered_as(reference: Mapping[str, np.ndarray], result: Result, drawn: Draws, seed: int | None) -> Draws:
    """The fit's draws, their components in the order in which their means are most like the reference's.

    The fit's are put in order, and not the reference's, since what follows from them, as labels of rows do, can be
    computed anew.
    """
    site = component_site(result)
    if site is None or not result._program.sites.shared_latent:
        return drawn
    dims = component_dims(result, site, seed) or {}
    known = {n: d for n, d in dims.items() if n in reference and reference[n].shape[1:] == drawn[n].shape[1:]}
    theirs, ours = ({name: torch.as_tensor(draws[name]).mean(0) for name in known} for draws in (reference, drawn))
    order = order_of(theirs, ours, known)
    if torch.equal(order, torch.arange(len(order))):
        return drawn
    latents = {name: drawn[name] for name in result._program.sites.latent}
    after_draws = {name: tuple(dim + 1 for dim in along) for name, along in dims.items()}
    return posterior_draws_at(result, permuted(latents, after_draws, order), seed)
