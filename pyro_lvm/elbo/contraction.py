"""The log-density of one run of a model, with its enumerated sites summed out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

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
    if replay is not None:
        model = poutine.replay(model, trace=replay)
    with EnumMessenger(first_available_dim=-1 - max_plate_nesting):
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    trace.pack_tensors()
    return trace


def log_density(trace: poutine.Trace, row_plate: RowPlate | None) -> tuple[Tensor, Tensor | None]:
    """Unscaled log p of a trace, in nats: what lies outside the row plate, and each row's share.

    Args:
        trace: A trace from :func:`enumerate_model`.
        row_plate: The row plate, or None.

    Returns:
        A scalar, and a tensor ``[N]`` (None without a row plate).
    """
    factors, sum_dims = _factors(trace)
    row = trace.plate_to_symbol.get(row_plate.name) if row_plate is not None else None
    outside = torch.zeros(())
    rows: Tensor | None = None
    for ordinal, terms in contract_tensor_tree(factors, sum_dims, ring=_ring()).items():
        for term in terms:
            if row is not None and row in ordinal:
                part = _sum_all_but(term, row)
                rows = part if rows is None else rows + part
            else:
                outside = outside + term.sum()
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


def draw_enumerated(trace: poutine.Trace) -> dict[str, Tensor]:
    """One joint draw of the enumerated sites given all other sites: each from its posterior given those before it."""
    all_factors, sum_dims = _factors(trace)
    # packing has dropped the dimensions of plates of size 1, for which the contraction would look
    present = {dim for terms in all_factors.values() for term in terms for dim in term._pyro_dims}
    factors: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
    for ordinal, terms in all_factors.items():
        factors.setdefault(ordinal & present, []).extend(terms)
    draws = {}
    for name, site in _enumerated_sites(trace).items():
        symbol, plates = site["infer"]["_enumerate_symbol"], present & _plates(trace, site).keys()
        logits: Packed = contract_to_tensor(
            factors, sum_dims, target_ordinal=frozenset(plates), target_dims={symbol} & sum_dims, ring=_ring()
        )
        logits = _support_last(trace, site, logits, logits._pyro_dims)
        index = torch.distributions.Categorical(logits=logits).sample()
        draws[name] = site["fn"].enumerate_support(expand=False).reshape(-1)[index]
        if symbol in sum_dims:
            packed_index = packed.pack(index, site["infer"]["_dim_to_symbol"])
            for terms in factors.values():
                for i, term in enumerate(terms):
                    if symbol in term._pyro_dims:
                        terms[i] = packed.gather(term, packed_index, symbol)
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


def _factors(trace: poutine.Trace) -> tuple[OrderedDict[frozenset[str], list[Packed]], set[str]]:
    """Masked, unscaled log-densities by the plates that they lie in, and the symbols of the enumerated dimensions."""
    factors: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
    plates, dims = set(trace.plate_to_symbol.values()), set()
    for site in sample_sites(trace).values():
        term = packed.scale_and_mask(site["packed"]["unscaled_log_prob"], mask=site["packed"]["mask"])
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        factors.setdefault(ordinal, []).append(term)
        dims.update(term._pyro_dims)
    return factors, dims - plates


def _ring() -> LogRing:
    ring = LogRing()
    ring._backend = "pyro_lvm.elbo.log_einsum"
    return ring


def _sum_all_but(term: Packed, symbol: str) -> Tensor:
    others = [i for i, d in enumerate(term._pyro_dims) if d != symbol]
    return term.sum(others) if others else term
