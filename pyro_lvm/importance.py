"""Log-weights at fitted parameters, and what they estimate: log p(x) of all rows and of each row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.elbo.contraction import enumerate_model, log_density
from pyro_lvm.elbo.terms import by_row, masked, unscaled_log_prob
from pyro_lvm.guides import lacks_density, points
from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.psis import USEFUL, pareto_k
from pyro_lvm.sites import prior_trace, refuse_improper_priors, refuse_random_rows, sample_sites, sum_within_rows
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


def mean_of(values: Tensor) -> Estimate:
    """The mean of independent values, and its standard error: 0 where all are the same, NaN where there is one."""
    if len(values) == 1:
        return Estimate(values.item(), math.nan)
    if bool((values == values[0]).all()):
        return Estimate(values[0].item(), 0.0)
    return Estimate(values.mean().item(), (values.std() / len(values) ** 0.5).item())


@dataclass(frozen=True)
class Evidence:
    """log p(x) in nats, as importance weights tell it; ``value, standard_error = evidence`` unpacks the estimate.

    Attributes:
        value: The logarithm of the mean weight of all draws.
        standard_error: Its Monte Carlo standard error, 0 where it is exact.
        lower_bound: The importance-weighted bound (Burda et al. 2016) of ``bound_particles`` draws, averaged over
            disjoint groups of them. Unlike ``value``, a single draw of such a bound, it comes with an error that says
            how far its expectation, which bounds log p(x) from below, may be.
        bound_particles: The draws in each group.
        log_weights: Of all rows together, ``[S]``.
    """

    value: float
    standard_error: float
    lower_bound: Estimate
    bound_particles: int
    log_weights: Tensor = field(repr=False, compare=False)

    @cached_property
    def cubo(self) -> float | None:
        """Half the logarithm of the mean squared weight (Dieng et al. 2017), which log p(x) should not exceed by much.

        It estimates an upper bound, is biased down, and is no bound itself. It is None unless the tail of the squared
        weights has a Pareto k below 0.7, where the mean squared weight can be estimated at all.
        """
        if not self.squared_pareto_k < USEFUL:
            return None
        return 0.5 * float((2 * self.log_weights).logsumexp(0) - math.log(len(self.log_weights)))

    @cached_property
    def squared_pareto_k(self) -> float:
        """The Pareto k of the squared joint weights, by ArviZ."""
        exact = len(self.log_weights) == 1 and self.standard_error == 0.0
        return -math.inf if exact else pareto_k(2 * self.log_weights)

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.standard_error))

    def __str__(self) -> str:
        return str(Estimate(self.value, self.standard_error))


RUNS = 5
"""Of draws, over which the median of the Pareto k is taken: that of a single one can be off by 0.1."""

_BOUND_GROUPS = 20
_WEIGHTS_AT_ONCE = 10_000_000


def log_weights(
    program: Program, values: Values, args: tuple[Any, ...], num_draws: int, proposal: str = "guide"
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """log p(x, z) - log q(z) for draws of z, enumerated sites summed out, a bounded number of draws at a time.

    Yields:
        What lies outside the row plate, ``[S]``, and each row's share, ``[S, N]`` (None without a row plate).
    """
    kwargs = program.model_kwargs
    model, guide = program.bind(values, program.model), program.bind(values, program.guide)

    def once() -> dict[str, Tensor]:
        if proposal == "prior":
            drawn = latents_of_prior(program, model, args)
        else:
            drawn = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        outside, rows = weigh(program, model, args, drawn)
        return {"outside": outside} if rows is None else {"outside": outside, "rows": rows}

    at_once = max(1, _WEIGHTS_AT_ONCE // max([len(a) for a in args if isinstance(a, Tensor) and a.dim()], default=1))
    for start in range(0, num_draws, at_once):
        drawn = repeat(once, min(at_once, num_draws - start))
        yield drawn["outside"], drawn.get("rows")


def latents_of_prior(program: Program, model: Callable, args: tuple[Any, ...]) -> poutine.Trace:
    """The latents that a guide covers, drawn from the model."""
    drawn = prior_trace(model, *args, **program.model_kwargs)
    for name in set(sample_sites(drawn)) - set(program.sites.latent):
        drawn.remove_node(name)
    return drawn


def weigh(
    program: Program, model: Callable, args: tuple[Any, ...], drawn: poutine.Trace
) -> tuple[Tensor, Tensor | None]:
    """log p(x, z) - log q(z) of one draw of the guide, enumerated sites summed out.

    Returns:
        What lies outside the row plate, a number, and each row's share, ``[N]`` (None without a row plate).
    """
    plate = program.sites.row_plate
    trace = enumerate_model(model, args, program.model_kwargs, program.max_plate_nesting, drawn)
    outside, rows = by_row(log_density(trace), () if plate is None else (plate.name,))
    for name, site in sample_sites(drawn).items():
        log_q = masked(site, unscaled_log_prob(site))
        dim = program.row_dim(name, site)
        if dim is None:
            outside = outside - log_q.sum()
        else:
            assert rows is not None
            rows = rows - sum_within_rows(log_q, dim)
    return outside, rows


def log_mean_and_error(log_weights: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """log of the mean of exp over the first dimension, and its standard error by the delta method.

    Args:
        log_weights: Tensors ``[S, ...]``, to be joined along their first dimension.

    Returns:
        Two tensors of the other dimensions; the error of a single draw is NaN.
    """
    num_draws, total, squares = 0, torch.tensor(-torch.inf), torch.tensor(-torch.inf)
    for part in log_weights:
        part = part.double()
        num_draws += len(part)
        total = torch.logaddexp(total, part.logsumexp(0))
        squares = torch.logaddexp(squares, (2 * part).logsumexp(0))
    value = total - math.log(num_draws)
    variance = ((squares - math.log(num_draws) - 2 * value).exp() - 1).clamp(min=0)  # of the weights over their mean
    return value, (variance / (num_draws - 1)).sqrt() if num_draws > 1 else torch.full_like(value, torch.nan)


def _in_groups(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same draws, ``size`` at a time; fewer in the last group."""
    held: Tensor | None = None
    for part in parts:
        held = part if held is None else torch.cat([held, part])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held is not None and len(held):
        yield held


def evidence(program: Program, values: Values, args: tuple[Any, ...], num_draws: int, proposal: str) -> Evidence:
    """log p(x) on all rows.

    Where every latent site is local to a row and the guide draws rows independently, rows are estimated one by one
    and added; otherwise the joint weights of all rows are averaged.

    Raises:
        ValueError: for a guide without a density to weight by, for models that take a random part of their rows by
            themselves, and for an improper prior as the proposal.
    """
    if proposal not in ("guide", "prior"):
        raise ValueError(f"proposal must be 'guide' or 'prior'; got {proposal!r}")
    sites = program.sites
    model = program.bind(values, program.model)
    run = sample_sites(prior_trace(model, *args, **program.model_kwargs))
    refuse_random_rows(run)
    if proposal == "prior":
        refuse_improper_priors(run)
    if not sites.latent:
        exact = totals(log_weights(program, values, args, 1))
        return Evidence(exact.item(), 0.0, Estimate(exact.item(), 0.0), 1, exact)
    if proposal == "guide":
        trace = _guide_trace(program, values, args)
        reason = lacks_density(program.guide, trace, sites.latent) or masked_apart(program, values, args, trace)
        if reason:
            raise ValueError(f"{reason}: use proposal='prior', or another guide")
    parts = log_weights(program, values, args, num_draws, proposal)
    first = next(parts)
    parts = itertools.chain([first], parts)
    if not rows_are_cells(program, first[0], proposal):
        return evidence_of(totals(parts))
    outside = first[0][0].double()  # the same in every draw
    joint, bounds, size = [], [], max(1, num_draws // _BOUND_GROUPS)

    def cells() -> Iterator[Tensor]:
        """Log-weights of each row, in groups of the size of the bound's."""
        for group in _in_groups(rows(), size):
            yield group
            if len(group) == size:
                bounds.append((group.double().logsumexp(0) - math.log(size)).sum() + outside)

    def rows() -> Iterator[Tensor]:
        for part in parts:
            assert part[1] is not None
            joint.append(totals([part]))
            yield part[1]

    value, error = log_mean_and_error(cells())
    return Evidence(
        value=(value.sum() + outside).item(),
        standard_error=error.square().sum().sqrt().item(),
        lower_bound=mean_of(torch.stack(bounds)),
        bound_particles=size,
        log_weights=torch.cat(joint),
    )


def evidence_of(log_weights: Tensor) -> Evidence:
    """log p(x) by weights of all rows together, ``[S]``."""
    value, error = log_mean_and_error([log_weights])
    size = max(1, len(log_weights) // _BOUND_GROUPS)
    groups = log_weights[: len(log_weights) // size * size].unflatten(0, (-1, size))
    return Evidence(
        value=value.item(),
        standard_error=error.item(),
        lower_bound=mean_of(groups.double().logsumexp(1) - math.log(size)),
        bound_particles=size,
        log_weights=log_weights,
    )


def joint_khats(
    program: Program, values: Values, args: tuple[Any, ...], num_draws: int, num_runs: int = RUNS
) -> tuple[float, ...]:
    """The Pareto k of the weights of all latents together, in each of some runs."""
    return tuple(pareto_k(totals(log_weights(program, values, args, num_draws))) for _ in range(num_runs))


def rows_are_cells(program: Program, outside: Tensor, proposal: str = "guide") -> bool:
    """Whether every latent belongs to a row, and rows are drawn and weighed independently of each other.

    Args:
        program: Model and guide.
        outside: What lies outside the rows in the log-weights of some draws, ``[S]``: not still, it depends on their
            latents.
        proposal: See :func:`evidence`.
    """
    sites = program.sites
    separate = set(sites.latent) == set(sites.local_latent) and not sites.shared_enumerated
    drawn_jointly = proposal == "guide" and program.couples_rows
    return separate and not drawn_jointly and torch.allclose(outside, outside[0], equal_nan=True)


def total(outside: Tensor, rows: Tensor | None) -> Tensor:
    """The joint log-weight of a draw, or of several, in double precision, from what :func:`weigh` has found."""
    return outside.double() if rows is None else outside.double() + rows.double().sum(-1)


def totals(parts: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    """The joint log-weight of each draw."""
    return torch.cat([total(*part) for part in parts])


def _guide_trace(program: Program, values: Values, args: tuple[Any, ...]) -> poutine.Trace:
    return poutine.trace(program.bind(values, program.guide)).get_trace(*args, **program.model_kwargs)


def masked_apart(program: Program, values: Values, args: tuple[Any, ...], guide_trace: poutine.Trace) -> str:
    """Why elements that the model masks out would be divided by their density in the guide; empty if none would."""
    model = poutine.replay(program.bind(values, program.model), trace=guide_trace)
    sites = sample_sites(poutine.trace(model).get_trace(*args, **program.model_kwargs))
    for name in program.sites.latent:
        masks = (sites[name]["mask"], guide_trace.nodes[name]["mask"])
        if not torch.equal(*torch.broadcast_tensors(*(torch.as_tensor(True if m is None else m) for m in masks))):
            return f"the model masks elements of {name!r} and the guide does not mask the same"
    return ""


def score(program: Program, values: Values, args: tuple[Any, ...], num_draws: int) -> Estimate:
    """log p(x_i) of each row: latents outside the row plate averaged over the guide, those inside integrated out.

    Raises:
        ValueError: if the model has no row plate, if the rows depend on each other through an enumerated site or a
            guide that draws their latents jointly, and for guides without a density of the rows' latents.
    """
    sites = program.sites
    if sites.row_plate is None:
        raise ValueError(
            "the model has no plate that follows the rows of the data, so that no row has a score of its own"
            + program.sites.search
        )
    if program.couples_rows:
        raise ValueError("this guide draws the latents of all rows jointly, so that no row has a score of its own")
    if sites.shared_enumerated:
        raise ValueError(
            f"the rows depend on the enumerated site {sites.shared_enumerated[0]!r}: no row has a score of its own"
        )
    trace = _guide_trace(program, values, args)
    reason = lacks_density(program.guide, trace, sites.local_latent) if sites.local_latent else ""
    reason = reason or masked_apart(program, values, args, trace)
    if reason:
        raise ValueError(f"{reason}, so that the rows' latents cannot be integrated out: use another guide")
    exact = len(points(program.guide, trace, sites.latent)) == len(sites.latent)
    shares = (rows for _, rows in log_weights(program, values, args, 1 if exact else num_draws) if rows is not None)
    value, error = log_mean_and_error(shares)
    return Estimate(value, torch.zeros_like(error) if exact else error)
