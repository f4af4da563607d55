"""What the groups of ArviZ's object hold, as named arrays with named dimensions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_lvm.diagnostics.arviz_versions import Variable
from pyro_lvm.diagnostics.dims import SAMPLE_DIMS, Axis, DimNames, axes
from pyro_lvm.diagnostics.moments import Moments
from pyro_lvm.draws import EvaluatedDraws
from pyro_lvm.program import Program
from pyro_lvm.result import Draws
from pyro_lvm.sites import Site
from pyro_lvm.sparse import is_sparse

Groups = dict[str, dict[str, Variable]]
Constant = dict[str, tuple[list[Axis], np.ndarray]]


def of_draws(program: Program, drawn: EvaluatedDraws, parameters: Draws, constant: Constant, names: DimNames) -> Groups:
    """The groups of a fit on its own rows."""
    of_site = {name: names(name, axes(drawn.sites[name])) for name in (*drawn.values, *drawn.log_likelihood)}
    stats = {"lp": drawn.log_joint}
    if not drawn.lacks_density:
        stats |= {"log_q": drawn.log_guide, "log_weight": drawn.log_weights}
    return {
        "posterior": {n: sampled(names(n, [None] * (v.dim() - 1)), v) for n, v in parameters.items()}
        | {n: sampled(of_site[n], v) for n, v in drawn.values.items()},
        "posterior_predictive": {n: sampled(of_site[n], v) for n, v in drawn.predictions.items()},
        "log_likelihood": {
            n: sampled(_dims_of_log_likelihood(program, drawn.sites[n], of_site[n]), v)
            for n, v in drawn.log_likelihood.items()
        },
        "sample_stats": {n: sampled([], v) for n, v in stats.items()},
        "observed_data": {n: (of_site[n], _array(drawn.sites[n]["value"])) for n in drawn.predictions},
        "constant_data": {n: (names(n, along), array) for n, (along, array) in constant.items()},
    }


def of_prior(drawn: EvaluatedDraws, prior: Draws, names: DimNames) -> Groups:
    """The groups of draws of the model on the rows of the fit."""
    of_site = {name: names(name, axes(drawn.sites[name])) for name in prior}
    kinds = {"prior": drawn.values, "prior_predictive": drawn.predictions}
    return {group: {n: sampled(of_site[n], prior[n]) for n in sites if n in prior} for group, sites in kinds.items()}


def of_moments(moments: Moments, names: DimNames) -> Groups:
    """What the posterior of each latent is by itself."""
    return {"latent_moments": {n: (names(n, along), _array(value)) for n, (along, value) in moments.items()}}


def of_unconstrained(draws: Draws, sites: Mapping[str, Site], names: DimNames) -> Groups:
    """The latents in unconstrained space; events of another shape than in their own space have other dimensions."""
    found = {}
    for name, value in draws.items():
        along = axes(sites[name])
        if value.shape[1:] == sites[name]["value"].shape:
            dims = names(name, along)
        else:
            batch = sites[name]["fn"].batch_shape
            dims = names(name, along)[: len(batch)]
            dims += [f"{name}_unconstrained_dim_{i}" for i in range(value.dim() - 1 - len(batch))]
        found[name] = sampled(dims, value)
    return {"unconstrained_posterior": found}


def of_predictions(predicted: Draws, sites: Mapping[str, Site], constant: Constant, names: DimNames) -> Groups:
    """The groups of predictions for new inputs."""
    return {
        "predictions": {n: sampled(names(n, axes(sites[n])), v) for n, v in predicted.items()},
        "predictions_constant_data": {n: (names(n, along), array) for n, (along, array) in constant.items()},
    }


def sampled(dims: list[str], draws: Tensor) -> Variable:
    """Draws in one chain."""
    return [*SAMPLE_DIMS, *dims], _array(draws)[None]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _dims_of_log_likelihood(program: Program, site: Site, dims: list[str]) -> list[str]:
    batch, plate = dims[: site["unscaled_log_prob"].dim()], program.sites.row_plate
    if plate is None:
        return batch
    return [batch[plate.dim]] if any(f.name == plate.name for f in site["cond_indep_stack"]) else []


def constant_data(program: Program, args: Sequence[Any], observed: Iterable[Site]) -> Constant:
    """The data arguments that no site observes, under the names of the model's signature."""
    found: Constant = {}
    observed = list(observed)
    plate, has_rows = program.sites.row_plate, program.data.has_rows
    for i, (name, value) in enumerate(zip(_argument_names(program, len(args)), args, strict=True)):
        if (
            isinstance(value, Tensor)
            and not is_sparse(value)
            and not any(_same(value, site["value"]) for site in observed)
        ):
            along = plate is not None and i < len(has_rows) and has_rows[i]
            rows: list[Axis] = [(plate.name, len(value))] if along and plate is not None else []
            found[name] = rows + [None] * (value.dim() - len(rows)), _array(value)
        elif isinstance(value, bool | int | float):
            found[name] = [], np.asarray(value)
    return found


def _same(value: Tensor, observed: Tensor) -> bool:
    return not is_sparse(observed) and value.shape == observed.shape and torch.equal(value.to(observed.dtype), observed)


def _argument_names(program: Program, count: int) -> list[str]:
    model = inspect.unwrap(program.model)
    parameters = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*named, *(f"data_{i}" for i in range(len(named), count))][:count]
