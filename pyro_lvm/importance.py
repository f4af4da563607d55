"""Log-weights at fitted parameters, and what they estimate: log p(x) of all rows and of each row."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.elbo.contraction import enumerate_model, log_density
from pyro_lvm.guides import is_point
from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.sites import prior_trace, refuse_random_rows, sample_sites
from pyro_lvm.vectorize import repeat


class Estimate(NamedTuple):
    """A value in nats and its Monte Carlo standard error, 0 where the value is exact.

    Attributes:
        value: A number, or a tensor ``[N]`` with one value per row.
        standard_error: Of the same shape.
    """

    value: Any
    standard_error: Any

    def __str__(self) -> str:
        if isinstance(self.value, Tensor):
            return f"{len(self.value)} rows, mean {self.value.mean():.4g} nats"
        return f"{self.value:.2f} +- {self.standard_error:.2g} nats"


def log_weights(
    program: Program, values: Values, args: tuple[Any, ...], num_draws: int, proposal: str = "guide"
) -> tuple[Tensor, Tensor | None]:
    """log p(x, z) - log q(z) for draws of z, enumerated sites summed out.

    Returns:
        What lies outside the row plate, ``[S]``, and each row's share, ``[S, N]`` (None without a row plate).
    """
    sites, kwargs = program.sites, program.model_kwargs
    model, guide = program.bind(values, program.model), program.bind(values, program.guide)

    def once() -> dict[str, Tensor]:
        if proposal == "prior":
            drawn = prior_trace(model, *args, **kwargs)
            for name in set(sample_sites(drawn)) - set(sites.latent):
                drawn.remove_node(name)
        else:
            drawn = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        trace = enumerate_model(model, args, kwargs, program.max_plate_nesting, drawn)
        outside, rows = log_density(trace, sites.row_plate)
        drawn.compute_log_prob()
        for name, site in sample_sites(drawn).items():
            log_q = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
            dim = program.row_dim(name, site)
            if dim is None:
                outside = outside - log_q.sum()
            else:
                assert rows is not None
                rows = rows - log_q.movedim(dim, 0).flatten(1).sum(1) if log_q.dim() > 1 else rows - log_q
        return {"outside": outside} if rows is None else {"outside": outside, "rows": rows}

    drawn = repeat(once, num_draws)
    return drawn["outside"], drawn.get("rows")


def log_mean_exp(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of exp over the first dimension, and its standard error by the delta method."""
    log_weights = log_weights.double()
    num_draws = len(log_weights)
    value = log_weights.logsumexp(0) - math.log(num_draws)
    relative = (log_weights - value).exp()
    error = relative.std(0) / math.sqrt(num_draws) if num_draws > 1 else torch.zeros_like(value)
    return value, error


def evidence(program: Program, values: Values, args: tuple[Any, ...], num_draws: int, proposal: str) -> Estimate:
    """log p(x) on all rows.

    Where every latent site is local to a row and the guide draws rows independently, rows are estimated one by one
    and added; otherwise the joint weights of all rows are averaged.

    Raises:
        ValueError: for a point guide, which has no density to weight by, and for models that take a random part of
            their rows by themselves.
    """
    if proposal not in ("guide", "prior"):
        raise ValueError(f"proposal must be 'guide' or 'prior'; got {proposal!r}")
    model = program.bind(values, program.model)
    refuse_random_rows(sample_sites(prior_trace(model, *args, **program.model_kwargs)))
    if not program.sites.latent:
        outside, rows = log_weights(program, values, args, 1)
        return Estimate(_total(outside, rows).item(), 0.0)
    if proposal == "guide" and is_point(program.guide):
        raise ValueError("a MAP fit is a point and has no density to weight by: use proposal='prior', or another guide")
    outside, rows = log_weights(program, values, args, num_draws, proposal)
    separate = set(program.sites.latent) == set(program.sites.local_latent)
    if rows is not None and separate and not (proposal == "guide" and program.couples_rows):
        value, error = log_mean_exp(rows)
        return Estimate((value.sum() + outside[0].double()).item(), error.square().sum().sqrt().item())
    value, error = log_mean_exp(_total(outside, rows))
    return Estimate(value.item(), error.item())


def _total(outside: Tensor, rows: Tensor | None) -> Tensor:
    return outside.double() if rows is None else outside.double() + rows.double().sum(-1)


def score(program: Program, values: Values, args: tuple[Any, ...], num_draws: int) -> Estimate:
    """log p(x_i) of each row: latents outside the row plate averaged over the guide, those inside integrated out.

    Raises:
        ValueError: if the model has no row plate, or the guide draws the latents of all rows jointly.
    """
    if program.sites.row_plate is None:
        raise ValueError(
            "the model has no plate that follows the rows of the data, so that no row has a score of its own"
        )
    if program.couples_rows:
        raise ValueError("this guide draws the latents of all rows jointly, so that no row has a score of its own")
    if is_point(program.guide) and program.sites.local_latent:
        raise ValueError("a MAP fit has no density over the rows' latents to integrate them out: use another guide")
    exact = not program.sites.latent or is_point(program.guide)
    _, rows = log_weights(program, values, args, 1 if exact else num_draws)
    assert rows is not None
    return Estimate(*log_mean_exp(rows))
