"""The log-density of one run of a model, with its enumerated sites summed out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.rings import LogRing, MapRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.elbo.terms import Term, by_row, equal_numbers, frames, masked, over_plates, unscaled_log_prob
from pyro_lvm.sites import Site, sample_sites

Packed = Any  # a tensor with an attribute ``_pyro_dims``: one letter for each of its dimensions


def enumerate_model(
    model: Callable, args: Sequence[Any], kwargs: dict[str, Any], max_plate_nesting: int, replay: poutine.Trace | None
) -> poutine.Trace:
    """A trace of the model with its enumerated sites in parallel and the others as in ``replay``."""
    model = EnumMessenger(first_available_dim=-1 - max_plate_nesting)(model)
    if replay is not None:  # outside: what it replaces must still learn of the enumerated dimensions
        model = poutine.replay(model, trace=replay)
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    trace = prune_subsample_sites(trace)
    if _enumerated_sites(trace):
        for site in trace.nodes.values():
            if site["type"] == "sample":
                site["unscaled_log_prob"] = unscaled_log_prob(site)
                site["log_prob"] = masked(site, site["unscaled_log_prob"], site["scale"])
        if replay is not None:
            _tell_of_later_states(trace)
        trace.pack_tensors()
    return trace


def _tell_of_later_states(trace: poutine.Trace) -> None:
    """Let sites know the dimensions of discrete latents that are drawn after them, which their values may have."""
    sites = sample_sites(trace).values()
    later = {dim: number for site in sites for dim, number in site["infer"].get("_dim_to_id", {}).items()}
    for site in sites:
        site["infer"]["_dim_to_id"] = later | site["infer"].get("_dim_to_id", {})


def log_density(
    trace: poutine.Trace, scale: Callable[[Site], Any] = lambda site: 1.0, best: bool = False
) -> list[Term]:
    """log p of a trace in nats, as terms over plates.

    Args:
        trace: A trace from :func:`enumerate_model`.
        scale: By what the log-density of a site is multiplied; masks always hold.
        best: Whether to take the best states of the enumerated sites instead of the sum over all.

    Returns:
        The terms of sites that depend on no enumerated site, and those that are left when these are summed out. Rows
        that share an enumerated site outside the row plate have no term of their own.

    Raises:
        ValueError: if sites that share an enumerated site have different scales.
    """
    if not _enumerated_sites(trace):
        return [over_plates(s, masked(s, unscaled_log_prob(s), scale(s))) for s in sample_sites(trace).values()]
    factors, sum_dims = _factors(trace)
    mixed = [f for f in factors if not sum_dims.isdisjoint(f.log_prob._pyro_dims)]
    terms = []
    for site, plates, log_prob in factors:
        if sum_dims.isdisjoint(log_prob._pyro_dims):
            term = _unpacked(trace, log_prob, plates, site["name"])
            factor = scale(site)
            factor = over_plates(site, factor).value if isinstance(factor, Tensor) else factor
            terms.append(term._replace(value=term.value * factor))
    common = _common_scale([scale(f.site) for f in mixed])
    for plates, contracted in contract_tensor_tree(
        _by_plates(mixed), sum_dims, ring=MapRing() if best else _ring()
    ).items():
        for log_prob in contracted:
            term = _unpacked(trace, log_prob, plates)
            terms.append(term._replace(value=term.value * common))
    return terms


def _unpacked(trace: poutine.Trace, log_prob: Packed, plates: frozenset[str], site: str = "") -> Term:
    """A packed tensor as a term; packing has dropped the plates of size 1."""
    names = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
    symbols, dims = sorted(plates, key=trace.symbol_to_dim.__getitem__), log_prob._pyro_dims
    value = log_prob.permute([dims.index(s) for s in symbols if s in dims])
    value = value.reshape([log_prob.shape[dims.index(s)] if s in dims else 1 for s in symbols])
    return Term(tuple(names[s] for s in symbols), value, site)


def expected_counts(
    trace: poutine.Trace, sites: Collection[str], total: Callable[[], tuple[Tensor, Any]]
) -> tuple[dict[str, Packed], Any]:
    """How often each entry of a site's log-density counts: the derivative of log p by it.

    Args:
        trace: A trace with enumerated sites.
        sites: The names of the sites.
        total: Computes the number to be differentiated from the trace, and what else to return.
    """
    parts = {name: trace.nodes[name]["packed"] for name in sites}
    before = {name: part["unscaled_log_prob"] for name, part in parts.items()}

    def at(log_probs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        for name, part in parts.items():
            leaf: Packed = log_probs[name][...]
            leaf._pyro_dims = before[name]._pyro_dims
            part["unscaled_log_prob"] = leaf
        return total()

    try:
        counts, rest = torch.func.grad(at, has_aux=True)({name: v.detach() for name, v in before.items()})
    finally:
        for name, part in parts.items():
            part["unscaled_log_prob"] = before[name]
    for name, count in counts.items():
        count._pyro_dims = before[name]._pyro_dims
    return counts, rest


def responsibilities(trace: poutine.Trace) -> dict[str, Tensor]:
    """Posterior probabilities of every enumerated site, as the gradient of log p with respect to its log-density.

    Returns:
        For each enumerated site, a tensor of its plates' shape with the support on a new last dimension.
    """
    sites = _enumerated_sites(trace)
    grads, _ = expected_counts(trace, sites, lambda: (by_row(log_density(trace), ())[0], ()))
    dims = {name: count._pyro_dims for name, count in grads.items()}
    result = {}
    for name, site in sites.items():
        own = {site["infer"]["_enumerate_symbol"], *_plates(trace, site)}
        others = [i for i, d in enumerate(dims[name]) if d not in own]
        marginal = grads[name].sum(others) if others else grads[name]
        result[name] = _support_last(trace, site, marginal, "".join(d for d in dims[name] if d in own))
    return result


def over_support(fn: dist.Distribution, probs: Tensor) -> dist.Distribution:
    """The distribution of an enumerated site, given the probability of each place in its support (last dimension)."""
    if isinstance(fn, dist.Bernoulli):
        return dist.Bernoulli(probs=probs[..., 1])
    if isinstance(fn, dist.OneHotCategorical):
        return dist.OneHotCategorical(probs=probs)
    return dist.Categorical(probs=probs)


def draw_enumerated(trace: poutine.Trace) -> dict[str, Tensor]:
    """One joint draw of the enumerated sites given all other sites: each from its posterior given those before it."""
    factors, sum_dims = _factors(trace)
    # packing has dropped the dimensions of plates of size 1, for which the contraction would look
    present = {dim for factor in factors for dim in factor.log_prob._pyro_dims}
    grouped = _by_plates([factor._replace(plates=factor.plates & present) for factor in factors])
    draws = {}
    for name, site in _enumerated_sites(trace).items():
        symbol, plates = site["infer"]["_enumerate_symbol"], present & _plates(trace, site).keys()
        logits: Packed = contract_to_tensor(
            grouped, sum_dims, target_ordinal=frozenset(plates), target_dims={symbol} & sum_dims, ring=_ring()
        )
        logits = _support_last(trace, site, logits, logits._pyro_dims)
        index = torch.distributions.Categorical(logits=logits).sample()
        support = site["fn"].enumerate_support(expand=False)
        draws[name] = support.reshape(len(support), *site["fn"].event_shape)[index]
        if symbol in sum_dims:
            packed_index = packed.pack(index, site["infer"]["_dim_to_symbol"])
            for packed_terms in grouped.values():
                for i, term in enumerate(packed_terms):
                    if symbol in term._pyro_dims:
                        packed_terms[i] = packed.gather(term, packed_index, symbol)
            sum_dims = sum_dims - {symbol}
    return draws


def _enumerated_sites(trace: poutine.Trace) -> dict[str, Site]:
    return {n: s for n, s in sample_sites(trace).items() if s["infer"].get("_enumerate_dim") is not None}


def _plates(trace: poutine.Trace, site: Site) -> dict[str, Any]:
    """The vectorised plates around a site, by symbol, from left to right."""
    return {trace.plate_to_symbol[f.name]: f for f in frames(site)}


def _support_last(trace: poutine.Trace, site: Site, tensor: Tensor, dims: str) -> Tensor:
    """A packed tensor over a site's plates and support, with each plate in its place and the support last."""
    plates, symbol = _plates(trace, site), site["infer"]["_enumerate_symbol"]
    tensor = tensor.permute([dims.index(d) for d in (*plates, symbol) if d in dims])
    present = {f.dim: f.size for d, f in plates.items() if d in dims}
    nesting = max((-f.dim for f in plates.values()), default=0)
    size = site["fn"].enumerate_support(expand=False).shape[0]
    tensor = tensor.reshape([present.get(d, 1) for d in range(-nesting, 0)] + [size])
    full = {f.dim: f.size for f in plates.values()}
    return tensor.expand([full.get(d, 1) for d in range(-nesting, 0)] + [size])


class _Factor(NamedTuple):
    """A site and its masked, unscaled log-density: packed, with the symbols of its plates."""

    site: Site
    plates: frozenset[str]
    log_prob: Packed


def _factors(trace: poutine.Trace) -> tuple[list[_Factor], set[str]]:
    """The factors of all sites, and the symbols of the enumerated dimensions."""
    factors = []
    for site in sample_sites(trace).values():
        log_prob = site["packed"]["unscaled_log_prob"]
        if site["infer"].get("_enumerate_dim") is None:  # the states of a masked site sum to one, as they are
            log_prob = packed.scale_and_mask(log_prob, mask=site["packed"]["mask"])
        factors.append(_Factor(site, frozenset(_plates(trace, site)), log_prob))
    dims = {d for factor in factors for d in factor.log_prob._pyro_dims}
    return factors, dims - set(trace.plate_to_symbol.values())


def _by_plates(factors: list[_Factor]) -> OrderedDict[frozenset[str], list[Packed]]:
    grouped: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
    for factor in factors:
        grouped.setdefault(factor.plates, []).append(factor.log_prob)
    return grouped


def check_scales(trace: poutine.Trace) -> None:
    """Refuse scales of sites that depend on an enumerated site, unless they are one; this looks at values.

    Raises:
        ValueError: if they differ.
    """
    if _enumerated_sites(trace):
        factors, sum_dims = _factors(trace)
        mixed = [f.site["scale"] for f in factors if not sum_dims.isdisjoint(f.log_prob._pyro_dims)]
        if mixed and not all(torch.equal(torch.as_tensor(s), torch.as_tensor(mixed[0])) for s in mixed):
            raise ValueError(_DIFFERENT_SCALES)


_DIFFERENT_SCALES = "sites that depend on an enumerated site must share one poutine.scale, and these differ"


def _common_scale(scales: list[Any]) -> Any:
    """The scale of sites that are summed out together, which stands outside their sum.

    Of tensors this takes the first: whether they are equal, :func:`check_scales` has seen.
    """
    tensors = [isinstance(scale, Tensor) for scale in scales]
    if not all(tensors) and (any(tensors) or not all(equal_numbers(scale, scales[0]) for scale in scales)):
        raise ValueError(_DIFFERENT_SCALES)
    if scales and isinstance(scales[0], Tensor) and scales[0].dim():
        raise ValueError(
            "sites that depend on an enumerated site take one number as poutine.scale, and this is a tensor"
        )
    return scales[0] if scales else 1.0


def _ring() -> LogRing:
    ring = LogRing()
    ring._backend = "pyro_lvm.elbo.log_einsum"
    return ring
