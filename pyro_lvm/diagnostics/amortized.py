"""Fits whose guide is a function of the rows: what guide and model say of the latents of some rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.elbo.look import look
from pyro_lvm.elbo.terms import masked, unscaled_log_prob
from pyro_lvm.guides import is_delta, lacks_density
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import Site, held_at, sample_sites, sum_within_rows

_FEW = 64  # rows that show what a program does


class Amortized:
    """A fit whose latents are continuous and belong to single rows, and whose guide has their density for any rows.

    Densities are unscaled, in nats.

    Args:
        result: A fit that :func:`is_amortized`.
    """

    def __init__(self, result: Result) -> None:
        program = result._program
        assert program.sites.row_plate is not None
        self.data, self.names, self._dim = program.data, program.sites.latent, program.sites.row_plate.dim
        self._result, self._kwargs, self._local = result, program.model_kwargs, program.sites.local

    def guide(self, args: tuple[Any, ...], latents: Mapping[str, Tensor] | None = None) -> dict[str, Site]:
        """The guide's sites on some rows, at draws or at given latents."""
        guide = poutine.replay(self._result.guide, trace=held_at(latents or {}))
        return self._sites(poutine.trace(guide).get_trace(*args, **self._kwargs))

    def model(self, args: tuple[Any, ...], latents: Mapping[str, Tensor]) -> dict[str, Site]:
        """The model's sites on some rows, at given latents."""
        model = poutine.replay(self._result.model, trace=held_at(latents))
        return self._sites(poutine.trace(model).get_trace(*args, **self._kwargs))

    def values(self, sites: Mapping[str, Site]) -> Draws:
        """The latents of a run."""
        return {name: sites[name]["value"] for name in self.names}

    def log_latents(self, sites: Mapping[str, Site]) -> Tensor:
        """The log-density of each row's latents, by the guide or the prior, ``[N]``."""
        found = [sum_within_rows(unscaled_log_prob(sites[name]), self._dim) for name in self.names]
        return torch.stack(found).sum(0)

    def log_likelihood(self, sites: Mapping[str, Site]) -> Tensor:
        """log p(x_i | z_i): all that the model says of a row beside its prior, ``[N]``."""
        own = [s for n, s in sites.items() if n in self._local and n not in self.names]
        said = [masked(s, unscaled_log_prob(s)) for s in own if not s["infer"].get("_deterministic")]
        return torch.stack([sum_within_rows(log_p, self._dim) for log_p in said]).sum(0)

    def row_dim(self, site: Site) -> int:
        """The dimension of a latent's value that the rows index, negative."""
        return self._dim - site["fn"].event_dim

    def by_row(self, site: Site, values: Tensor) -> Tensor:
        """Something of the shape of a latent's value, a line for each row, ``[N, L]``."""
        rows = values.movedim(self.row_dim(site), 0)
        return rows.reshape(len(rows), -1)

    @staticmethod
    def _sites(trace: poutine.Trace) -> dict[str, Site]:
        return sample_sites(prune_subsample_sites(trace))


def is_amortized(result: Result) -> bool:
    """Whether all latents belong to single rows and are continuous, and the guide has their density for any rows."""
    program = result._program
    sites, data = program.sites, program.data
    if (
        not sites.local_latent
        or sites.latent != sites.local_latent
        or sites.enumerated
        or sites.row_plate is None
        or sites.row_plate.beside
        or not set(sites.observed) & set(sites.local)
        or not data.complete
        or program.covers_fitted_rows_only
        or program.guide_enumerates
    ):
        return False
    few = data.take(slice(0, _FEW))
    structure = look(result.model, result.guide, few, program.model_kwargs, sites.row_plate)
    if structure.draws_subsamples or not structure.separate:
        return False
    with torch.no_grad():
        trace = poutine.trace(result.guide).get_trace(*few, **program.model_kwargs)
    latents = [trace.nodes[name] for name in sites.latent]
    plain = all(s["mask"] is None and not is_delta(s) and not s["fn"].support.is_discrete for s in latents)
    return plain and not lacks_density(program.guide, trace, sites.latent)
