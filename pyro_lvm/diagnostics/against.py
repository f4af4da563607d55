"""``against``: a fit beside draws of the same posterior by another way."""

from __future__ import annotations

from typing import Any

from pyro_lvm.checks import check_count
from pyro_lvm.diagnostics.agreement import Agreement, compare
from pyro_lvm.diagnostics.reference_draws import draws_by_name
from pyro_lvm.draws import posterior_draws
from pyro_lvm.result import Result


def against(result: Result, reference_draws: Any, num_draws: int = 10_000, seed: int | None = None) -> Agreement:
    """The errors of a fit's marginals, where draws of the same posterior are to be had from elsewhere.

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
    return compare(draws_by_name(drawn, "the fit"), reference)
