"""The log-density of one run of a model, with its enumerated sites summed out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.sites import RowPlate, Site, sample_sites

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
    trace.compute_log_prob()
    trace.pack_tensors()
    return trace


def log_density(trace: poutine.Trace, row_plate: RowPlate | None, scaled: bool = False) -> tuple[Tensor, Tensor | None]:
    """log p of a trace, in nats: what lies outside the row plate, and each row's share.

    Args:
        trace: A trace from :func:`enumerate_model`.
        row_plate: The row plate, or None.
        scaled: Whether ``poutine.scale`` counts. The rows' common factor and weights never do.

    Returns:
        A scalar, and a tensor ``[N]`` (None without a row plate). Rows that share an enumerated site outside the row
        plate have no share of their own: they are in the scalar.

    Raises:
        ValueError: if sites that share an enumerated site have different scales.
    """
    terms, sum_dims = _terms(trace)
    mixed = [term for term in terms if not sum_dims.isdisjoint(term.log_prob._pyro_dims)]
    plain = [term for term in terms if sum_dims.isdisjoint(term.log_prob._pyro_dims)]
    common = _common_scale(mixed) if scaled else 1.0
    shares = [(plates, log_prob, scale if scaled else 1.0) for plates, log_prob, scale in plain]
    for plates, contracted in contract_tensor_tree(_by_plates(mixed), sum_dims, ring=_ring()).items():
        shares += [(plates, log_prob, common) for log_prob in contracted]

    row = trace.plate_to_symbol.get(row_plate.name) if row_plate is not None else None
    outside = torch.zeros(())
    rows: Tensor | None = None
    for plates, log_prob, scale in shares:
        if row is None or row not in plates:
            outside = outside + log_prob.sum() * scale
            continue
        others = [i for i, d in enumerate(log_prob._pyro_dims) if d != row]
        share = (log_prob.sum(others) if others else log_prob) * scale
        rows = share if rows is None else rows + share
    if rows is not None and rows.dim() == 0:
        rows = rows.reshape(1)  # packing drops the dimension of a single row
    return outside, rows


def responsibilities(trace: poutine.Trace) -> dict[str, Tensor]:
    """Posterior probabilities of every enumerated site, as the gradient of log p with respect to its log-density.

    Returns:
        For each enumerated site, a tensor of its plates' shape with the support on a new last dimension.
    """
    sites = _enumerated_sites(trace)
    dims = {name: site["packed"]["unscaled_log_prob"]._pyro_dims for name, site in sites.items()}

    def log_p(log_probs: dict[str, Tensor]) -> Tensor:
        for name, site in sites.items():
            leaf: Packed = log_probs[name][...]
            leaf._pyro_dims = dims[name]
            site["packed"]["unscaled_log_prob"] = leaf
        return log_density(trace, None)[0]

    grads = torch.func.grad(log_p)({name: site["packed"]["unscaled_log_prob"] for name, site in sites.items()})
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
    terms, sum_dims = _terms(trace)
    # packing has dropped the dimensions of plates of size 1, for which the contraction would look
    present = {dim for term in terms for dim in term.log_prob._pyro_dims}
    factors = _by_plates([term._replace(plates=term.plates & present) for term in terms])
    draws = {}
    for name, site in _enumerated_sites(trace).items():
        symbol, plates = site["infer"]["_enumerate_symbol"], present & _plates(trace, site).keys()
        logits: Packed = contract_to_tensor(
            factors, sum_dims, target_ordinal=frozenset(plates), target_dims={symbol} & sum_dims, ring=_ring()
        )
        logits = _support_last(trace, site, logits, logits._pyro_dims)
        index = torch.distributions.Categorical(logits=logits).sample()
        support = site["fn"].enumerate_support(expand=False)
        draws[name] = support.reshape(len(support), *site["fn"].event_shape)[index]
        if symbol in sum_dims:
            packed_index = packed.pack(index, site["infer"]["_dim_to_symbol"])
            for packed_terms in factors.values():
                for i, term in enumerate(packed_terms):
                    if symbol in term._pyro_dims:
                        packed_terms[i] = packed.gather(term, packed_index, symbol)
            sum_dims = sum_dims - {symbol}
    return draws


def _enumerated_sites(trace: poutine.Trace) -> dict[str, Site]:
    return {n: s for n, s in sample_sites(trace).items() if s["infer"].get("_enumerate_dim") is not None}


def _plates(trace: poutine.Trace, site: Site) -> dict[str, Any]:
    """The vectorised plates around a site, by symbol, from left to right."""
    frames = sorted((f for f in site["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
    return {trace.plate_to_symbol[f.name]: f for f in frames}


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


class _Term(NamedTuple):
    """The masked, unscaled log-density of a site: packed, with the symbols of its plates, and its scale."""

    plates: frozenset[str]
    log_prob: Packed
    scale: Any


def _terms(trace: poutine.Trace) -> tuple[list[_Term], set[str]]:
    """The terms of all sites, and the symbols of the enumerated dimensions."""
    terms = []
    for site in sample_sites(trace).values():
        log_prob = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
        terms.append(_Term(frozenset(_plates(trace, site)), log_prob, site["infer"].get("scale_within", site["scale"])))
    dims = {d for term in terms for d in term.log_prob._pyro_dims}
    return terms, dims - set(trace.plate_to_symbol.values())


def _by_plates(terms: list[_Term]) -> OrderedDict[frozenset[str], list[Packed]]:
    factors: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
    for term in terms:
        factors.setdefault(term.plates, []).append(term.log_prob)
    return factors


def _common_scale(terms: list[_Term]) -> Any:
    """The scale of terms that are summed out together, which stands outside their sum."""
    scales = [term.scale for term in terms]
    if any(scale is not scales[0] and not _equal_numbers(scale, scales[0]) for scale in scales):
        raise ValueError("sites that depend on an enumerated site must share one poutine.scale, and these differ")
    return scales[0] if scales else 1.0


def _equal_numbers(a: Any, b: Any) -> bool:
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _ring() -> LogRing:
    ring = LogRing()
    ring._backend = "pyro_lvm.elbo.log_einsum"
    return ring
