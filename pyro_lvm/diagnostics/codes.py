"""What the latents of rows say, where the guide is a function of the rows, as in an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_lvm import plots
from pyro_lvm.checks import check_count
from pyro_lvm.diagnostics.aggregated import Aggregated, aggregate
from pyro_lvm.diagnostics.amortized import Amortized, is_amortized
from pyro_lvm.importance import Estimate, mean_of
from pyro_lvm.result import Result
from pyro_lvm.sites import Site
from pyro_lvm.vectorize import repeat
from pyro_lvm.verdict.finding import Finding
from pyro_lvm.verdict.table import number_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACTIVE = 0.01  # variance of posterior means (Burda et al. 2016)
_USED = 0.01  # nats
_NUMBERS_AT_ONCE = 5_000_000
_MOST_ROWS = 10_000  # at a time
_GAUSSIAN = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal)
_COLLAPSE = (
    "KL annealing (lvm.elbo.Beta(elbo, warm_up=)), free bits (lvm.elbo.FreeBits), a weaker decoder, or a smaller beta; "
    "or fewer latents, if the data needs no more"
)


@dataclass(frozen=True)
class Codes:
    r"""The latents of N rows, L numbers each, under a guide that is a function of the rows. All is in nats a row.

    The rate :math:`R = \frac1N \sum_i \mathrm{KL}(q(z \mid x_i) \,\|\, p(z))` and the distortion
    :math:`D = -\frac1N \sum_i \mathbb{E}_q \log p(x_i \mid z)` add up to the negative ELBO (Alemi et al. 2018).

    Attributes:
        names: Of the units, as the numbers in a row's latents are called here, ``L`` of them.
        spread: The variance over rows of each unit's posterior mean, ``[L]``: what the draws add to it is subtracted,
            so that it may be a little below 0.
        divergences: Each unit's part of the rate, ``[L]``; None where guide or prior does not factorise over units.
        loc: Mean of each unit over the aggregated posterior, ``[L]``.
        scale: Standard deviation of the same, ``[L]``.
        rate: How much the guide tells of a row's latents beyond the prior.
        distortion: How badly they tell of the row.
        aggregated: The aggregated posterior against the prior; None where there is no one prior of all rows.
        num_rows: N.
    """

    names: tuple[str, ...] = field(repr=False)
    spread: Tensor = field(repr=False, compare=False)
    divergences: Tensor | None = field(repr=False, compare=False)
    loc: Tensor = field(repr=False, compare=False)
    scale: Tensor = field(repr=False, compare=False)
    rate: Estimate
    distortion: Estimate
    aggregated: Aggregated | None
    num_rows: int

    @property
    def active(self) -> Tensor:
        """Which units have posterior means that move with the rows, by a variance above 0.01 (Burda et al. 2016)."""
        return self.spread > _ACTIVE

    @property
    def collapsed(self) -> Tensor:
        """Which units are within 0.01 nats of the prior; those not active, where a unit has no divergence."""
        return ~self.active if self.divergences is None else self.divergences < _USED

    def findings(self) -> list[Finding]:
        """Which units are in use, what they cost, and whether the prior knows of them."""
        found = [self._units(), *self._idle()]
        text = f"rate {self.rate} and distortion {self.distortion} a row, whose sum is the negative ELBO"
        found.append(Finding("rate and distortion", "good", text))
        return found + ([] if self.aggregated is None else self.aggregated.findings())

    def _units(self) -> Finding:
        count, L = int(self.collapsed.sum()), len(self.names)
        by = "variance of posterior means at most 0.01" if self.divergences is None else "KL below 0.01 nats"
        text = f"{count} of {L} units are inactive ({by})"
        if count == L:
            return Finding(
                "units", "bad", f"{text}: posterior collapse, the latents tell nothing of the rows", _COLLAPSE
            )
        if 2 * count >= L:
            return Finding("units", "doubtful", f"{text}: posterior collapse, or more than the data needs", _COLLAPSE)
        return Finding("units", "good", text if count else f"all {L} units are active")

    def _idle(self) -> list[Finding]:
        """Units that are away from the prior, and at the same place for all rows."""
        if self.divergences is None:
            return []
        idle = ~self.collapsed & ~self.active
        cost = float(self.divergences[idle].sum())
        if cost < _USED * len(self.names):
            return []
        text = f"{int(idle.sum())} units cost {cost:.2f} nats, and their means are the same for all rows"
        return [Finding("idle units", "doubtful", text, "more steps: the guide has not come to the prior yet")]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The divergence of each unit; the variance of posterior means, where units have none."""
        if self.divergences is None:
            return plots.units(self.spread.clamp(min=0), self.active, label="variance of posterior means", ax=ax)
        return plots.units(self.divergences, self.active, ax=ax)

    def __str__(self) -> str:
        return "; ".join(finding.text for finding in self.findings())


def examine_codes(result: Result, num_draws: int = 20, seed: int | None = None) -> Codes | None:
    """Look at the latents of the fitted rows.

    Args:
        result: A fit.
        num_draws: S, draws of the latents of all rows; standard errors are over them.
        seed: Of the draws; the fit's, if None.

    Returns:
        None unless all latents are continuous and belong to single rows, and the guide has a density of them for any
        rows.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> from pyro_lvm.diagnostics.codes import examine_codes
        >>> _ = torch.manual_seed(0)
        >>> x = (torch.randn(200, 1) + torch.zeros(6) > 0).float()  # six copies of one bit
        >>> vae = lvm.models.VAE(num_features=6, num_latents=3, hidden=(16,))
        >>> codes = examine_codes(lvm.fit(vae, None, x, num_steps=600, optim=1e-2, progress=False))
        >>> int(codes.active.sum())
        1
    """
    num_draws = check_count("num_draws", num_draws)
    with result._quiet(seed):
        if not is_amortized(result):
            return None
        fit, N = Amortized(result), result._program.data.num_rows
        assert N is not None
        with torch.no_grad():
            first = fit.data.take(slice(0, 1))
            names = _names(fit, first)
        size = max(1, min(_MOST_ROWS, _NUMBERS_AT_ONCE // (num_draws * len(names))))
        sums: dict[str, Tensor] = {}
        for start in range(0, N, size):
            for name, value in _sums(fit, fit.data.take(slice(start, start + size)), num_draws).items():
                sums[name] = sums[name] + value if name in sums else value
        aggregated = aggregate(fit)
    return _codes(names, sums, num_draws, N, aggregated)


def _sums(fit: Amortized, args: tuple[Any, ...], num_draws: int) -> dict[str, Tensor]:
    """What is to be summed over all rows."""

    def once() -> dict[str, Tensor]:
        q = fit.guide(args)
        p = fit.model(args, fit.values(q))
        moments = [_moments(q[name]) for name in fit.names]
        rows = [torch.cat([fit.by_row(q[n], m[i]) for n, m in zip(fit.names, moments, strict=True)], 1) for i in (0, 1)]
        found = {"mean": rows[0], "variance": rows[1].double().sum(0)}
        found["distortion"] = -fit.log_likelihood(p).double().sum()
        kl = [_divergences(q[name], p[name]) for name in fit.names]
        if all(part is not None for part in kl):
            by_row = [fit.by_row(q[n], part) for n, part in zip(fit.names, kl, strict=True) if part is not None]
            found["divergences"] = torch.cat(by_row, 1).double().sum(0)
            return found | {"rate": found["divergences"].sum()}
        return found | {"rate": (fit.log_latents(q) - fit.log_latents(p)).double().sum()}

    found = repeat(once, num_draws)
    means = found.pop("mean").double()
    return found | {
        "means": means.mean(0).sum(0),
        "squares": means.mean(0).square().sum(0),
        "within": means.var(0).sum(0) if num_draws > 1 else torch.zeros_like(means[0, 0]),
    }


def _codes(names: tuple[str, ...], sums: dict[str, Tensor], S: int, N: int, aggregated: Aggregated | None) -> Codes:
    each = {name: value / N for name, value in sums.items()}
    between = each["squares"] - each["means"].square() - each["within"] / S
    divergences = each.get("divergences")
    return Codes(
        names=names,
        spread=between,
        divergences=None if divergences is None else divergences.mean(0),
        loc=each["means"],
        scale=(between + each["within"] + each["variance"].mean(0)).clamp(min=0).sqrt(),
        rate=mean_of(each["rate"]),
        distortion=mean_of(each["distortion"]),
        aggregated=aggregated,
        num_rows=N,
    )


def _names(fit: Amortized, row: tuple[Any, ...]) -> tuple[str, ...]:
    found, sites = [], fit.guide(row)
    for name in fit.names:
        shape = sites[name]["value"].movedim(fit.row_dim(sites[name]), 0).shape[1:]
        found += [number_name(name, place) for place in product(*map(range, shape))]
    return tuple(found)


def _moments(site: Site) -> tuple[Tensor, Tensor]:
    """Mean and variance of a guide's site; at other distributions than Gaussians a draw, and none."""
    value, fn = site["value"], site["fn"]
    if isinstance(_element(fn), _GAUSSIAN):
        return fn.mean.expand_as(value), fn.variance.expand_as(value)
    return value, torch.zeros_like(value)


def _divergences(q: Site, p: Site) -> Tensor | None:
    """The divergence of each number of a site, in closed form where torch has one, else at the draw.

    A prior that depends on other latents is taken at their draws, so that the chain rule holds.
    """
    value, one, other = q["value"], _element(q["fn"]), _element(p["fn"])
    if one.event_shape or other.event_shape:
        return None
    try:
        kl = kl_divergence(one, other)
    except NotImplementedError:
        kl = one.log_prob(value) - other.log_prob(value)
    return kl.expand(value.shape)


def _element(fn: Any) -> Any:
    """A distribution without the events that were declared on its batch."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn
