"""Guides by name, and what a guide says about each site's posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.infer.autoguide.guides import AutoCallable, AutoContinuous
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_lvm.flow_guide import FlowGuide
from pyro_lvm.modules import reachable_modules
from pyro_lvm.sites import Site, Sites, median_or_feasible, sample_sites

__all__ = ["FlowGuide"]


class _MultivariateNormal(dist.MultivariateNormal):
    """One that knows the noise of its last draw, at which the density takes no triangular solve.

    There the density is a function of the parameters alone: it has no derivative by the draw itself.
    """

    _last: tuple[Tensor, int, Tensor] | None = None

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        noise = self.loc.new_empty(self._extended_shape(sample_shape)).normal_()
        draw = self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        if torch.is_grad_enabled():  # a draw made without is one at which the density moves with the parameters
            self._last = draw, draw._version, noise
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is None or value is not self._last[0] or value._version != self._last[1]:
            return super().log_prob(value)
        noise = self._last[2]
        half_log_det = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi)) - half_log_det


class AutoMultivariateNormal(autoguide.AutoMultivariateNormal):
    """Pyro's guide with a density that is cheap where it is asked for: at the draw that was just made."""

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.MultivariateNormal:
        """The guide's distribution on the unconstrained latents, all in one vector."""
        return _MultivariateNormal(self.loc, scale_tril=self.scale[..., None] * self.scale_tril)


_NAMED: dict[str, type[AutoGuide]] = {
    "mean_field": AutoNormal,
    "full_rank": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
    "map": AutoDelta,
    "flow": FlowGuide,
}


def no_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model whose latents are all enumerated."""


def check_guide(guide: Any) -> None:
    """Refuse what can be no guide, before anything runs.

    Raises:
        TypeError: if it is data, a class, or no callable, name or None.
    """
    if isinstance(guide, Tensor) or hasattr(guide, "__array__"):
        raise TypeError(
            "the second argument is the guide, and data came in its place; write fit(model, None, *data) "
            "for a model that needs no guide, or fit(model, 'mean_field', *data)"
        )
    if isinstance(guide, type):
        raise TypeError(f"guide is the class {guide.__name__}: pass an object, such as {guide.__name__}(model)")
    if guide is not None and not isinstance(guide, str) and not callable(guide):
        raise TypeError(f"guide must be a callable, one of {sorted(_NAMED)} or None; got {type(guide).__name__}")


def resolve(model: Callable, guide: Any, sites: Sites, init_loc_fn: Callable = median_or_feasible) -> Callable:
    """The guide that the user means.

    Args:
        model: The model.
        guide: A callable, an AutoGuide, a name, or None for ``model.guide`` if there is one.
        sites: The sites of the model.
        init_loc_fn: Where a guide by name starts, as for Pyro's guides.

    Raises:
        ValueError: for an unknown name, and for latents that no guide covers.
    """
    if guide is None:
        guide = getattr(model, "guide", None)
    if guide is None:
        if sites.latent:
            raise ValueError(
                f"the latent sites {list(sites.latent)} are not enumerated and need a guide: "
                "pass 'mean_field', or mark discrete sites with infer={'enumerate': 'parallel'}"
            )
        return no_guide
    if isinstance(guide, str):
        return _by_name(model, guide, sites, init_loc_fn)
    return guide


def _by_name(model: Callable, name: str, sites: Sites, init_loc_fn: Callable) -> AutoGuide:
    if name == "auto":
        raise ValueError("guide='auto' is one that fit chooses: pass it to pyro_lvm.fit")
    if name not in _NAMED:
        raise ValueError(f"unknown guide {name!r}; known are {sorted(_NAMED)}")
    if not sites.latent:
        raise ValueError("a guide by name has nothing to cover: the model has no latent site that is not enumerated")
    return _NAMED[name](guided(model, sites), init_loc_fn=init_loc_fn)


def guided(model: Callable, sites: Sites) -> Callable:
    """A model as its AutoGuides are to see it: without the sites that are summed out."""
    return poutine.block(model, hide=list(sites.enumerated)) if sites.enumerated else model


def shares_rows(guide: Callable, local: Collection[str]) -> bool:
    """Whether an AutoGuide, alone or inside the guide, covers one of these latents: it has a parameter per element."""
    modules = [module for _, module in reachable_modules(guide)]
    parts = {part for module in modules for part in module.modules() if isinstance(part, AutoGuide)}
    traces = [part.prototype_trace for part in parts if not isinstance(part, AutoGuideList | AutoCallable)]
    return any(trace is not None and not trace.nodes.keys().isdisjoint(local) for trace in traces)


def couples_rows(guide: Callable, local: Collection[str]) -> bool:
    """Whether a guide draws one of these latents of all rows jointly, so that rows have no log q of their own."""
    if isinstance(guide, AutoGuideList):
        return any(couples_rows(part, local) for part in guide)
    joint = isinstance(guide, AutoContinuous | AutoStructured)
    return joint and not guide.prototype_trace.nodes.keys().isdisjoint(local)  # type: ignore[attr-defined]


def points(guide: Callable, trace: poutine.Trace, latent: Collection[str]) -> list[str]:
    """The latent sites that a guide puts at a point, where it has no density.

    A value that follows from an auxiliary draw is no point: its ``Delta`` carries the Jacobian, the draw the density.

    Args:
        guide: The guide.
        trace: A trace of it.
        latent: The latent sites of the model.
    """
    if isinstance(guide, AutoGuideList):
        return [name for part in guide for name in points(part, trace, _own(part, latent))]
    fixed = [name for name in latent if is_delta(trace.nodes[name])]
    moved = any(not is_delta(site) for site in _auxiliary(trace).values())
    return [] if moved and not isinstance(guide, AutoDelta) else fixed


def lacks_density(guide: Callable, trace: poutine.Trace, latent: Collection[str]) -> str:
    """Why the draws of a guide have no density q(z) to divide by; empty if they have one."""
    fixed = points(guide, trace, latent)
    if fixed:
        return f"the guide puts {fixed[0]!r} at a point, as a MAP fit does, and has no density there"
    extra = _auxiliary(trace)
    if extra and not any(is_delta(trace.nodes[name]) for name in latent):
        return f"the guide draws {next(iter(extra))!r} besides the latents of the model, whose density is then unknown"
    return ""


def _own(part: Callable, latent: Collection[str]) -> list[str]:
    return [name for name in latent if name in part.prototype_trace.nodes]  # type: ignore[attr-defined]


def _auxiliary(trace: poutine.Trace) -> dict[str, Site]:
    return {name: site for name, site in sample_sites(trace).items() if site["infer"].get("is_auxiliary")}


def is_delta(site: Site) -> bool:
    """Whether a site is a point (``Delta``), possibly in the wrappers that plates and events put around it."""
    fn = site["fn"]
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def distributions(guide: Callable, trace: poutine.Trace, latent: tuple[str, ...]) -> dict[str, dist.Distribution]:
    """The guide's distribution of each latent site, where there is one in closed form.

    A site that is drawn given others may say in ``infer["marginal"]`` how it is distributed without them.

    Args:
        guide: The guide.
        trace: A trace of it.
        latent: The latent sites of the model.
    """
    if isinstance(guide, AutoGuideList):
        return {n: d for part in guide for n, d in distributions(part, trace, tuple(_own(part, latent))).items()}
    if isinstance(guide, AutoNormal):
        return {name: _pushed(trace.nodes[f"{name}_unconstrained"]["fn"], guide, name) for name in latent}
    if isinstance(guide, AutoDiagonalNormal | autoguide.AutoMultivariateNormal | AutoLowRankMultivariateNormal):
        joint = guide.get_posterior()
        return {name: _marginal(joint, guide, name, part) for name, part in _parts(guide).items()}
    if isinstance(guide, AutoGuide) and not isinstance(guide, AutoDelta):
        return {}
    sites = {name: trace.nodes[name] for name in latent if name in trace.nodes}
    return {name: site["infer"].get("marginal", site["fn"]) for name, site in sites.items()}


def _parts(guide: AutoContinuous) -> dict[str, slice]:
    parts, start = {}, 0
    for name, shape in guide._unconstrained_shapes.items():
        parts[name] = slice(start, start + shape.numel())
        start = parts[name].stop
    return parts


def _marginal(joint: dist.Distribution, guide: AutoContinuous, name: str, part: slice) -> dist.Distribution:
    shape = guide._unconstrained_shapes[name]
    site = guide.prototype_trace.nodes[name]
    event_dim = site["fn"].event_dim + len(shape) - site["value"].dim()
    batch, event = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
    if event_dim == 0 or isinstance(joint, dist.Independent):
        base = dist.Normal(joint.mean[part].reshape(shape), joint.stddev[part].reshape(shape)).to_event(event_dim)
    else:
        block = torch.arange(part.start, part.stop).reshape(*batch, event.numel())  # of each element of the plates
        covariance = joint.covariance_matrix[block.unsqueeze(-1), block.unsqueeze(-2)]
        base = dist.MultivariateNormal(joint.mean[block], covariance)
        if event_dim > 1:
            reshape = torch.distributions.transforms.ReshapeTransform(torch.Size([event.numel()]), event)
            base = dist.TransformedDistribution(base, [reshape])
    return _pushed(base, guide, name)


def _pushed(base: dist.Distribution, guide: AutoGuide, name: str) -> dist.Distribution:
    """The distribution of the constrained value of a site."""
    support = guide.prototype_trace.nodes[name]["fn"].support
    unbounded = getattr(support, "base_constraint", support) is constraints.real
    return base if unbounded else dist.TransformedDistribution(base, [biject_to(support)])
