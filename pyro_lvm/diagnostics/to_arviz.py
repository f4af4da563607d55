"""``to_arviz``: a fit as the object that ArviZ summarises, compares and plots."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_lvm.checks import check_count
from pyro_lvm.diagnostics.arviz_versions import Variable, assemble
from pyro_lvm.diagnostics.dims import SAMPLE_DIMS, Axis, DimNames, axes, check_coords
from pyro_lvm.diagnostics.draws import EvaluatedDraws, evaluate
from pyro_lvm.program import Program
from pyro_lvm.result import Result
from pyro_lvm.sites import Site
from pyro_lvm.sparse import is_sparse


def to_arviz(
    result: Result,
    num_draws: int = 1_000,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
) -> Any:
    """The posterior of a fit, in one chain, as an object of ArviZ.

    The same draws serve all groups, and they are those of ``result.sample(num_draws, seed)``:

    - ``posterior``: every latent site, enumerated and deterministic ones too;
    - ``posterior_predictive``: every observed site, drawn anew at the latents of each draw;
    - ``log_likelihood``: log p of each observed site given all latents of the draw, in nats, one value for each row;
      for a model without a row plate, one for each element of the site's batch. Where a row has latents of its own,
      leave-one-out from it is unreliable: score held-out rows with ``result.score``;
    - ``sample_stats``: ``lp``, the log-joint density of model and draw, enumerated sites at their drawn values, and
      ``log_q``, the guide's log-density of what it drew. Both in nats; scales and row weights do not count. Enumerated
      sites are not the guide's, so that ``lp - log_q`` is an importance weight only where there are none;
    - ``observed_data`` and ``constant_data``: the observed sites, and the other data under the names that the model's
      signature gives them.

    Sites whose observations are a sparse table, such as word counts, are in ``log_likelihood`` alone.

    A dimension inside a plate has the plate's name, another one ``<site>_dim_0`` and so on.

    Args:
        result: What ``fit`` returned.
        num_draws: S.
        coords: Values for the elements of dimensions, by dimension, such as ``{"rows": patients}``.
        dims: Names for all dimensions of a variable, by variable, such as ``{"weights": ["feature"]}``.
        seed: Of the draws; the fit's, if None.

    Returns:
        An ``InferenceData`` with ArviZ 0.2x, an ``xarray.DataTree`` with ArviZ 1.x.

    Raises:
        ImportError: if ArviZ is not installed.
        TypeError: if ``result`` is no result, or ``dims`` does not hold lists of names.
        ValueError: for unknown names in ``coords`` and ``dims``, a wrong number of them, a result that kept no rows
            (a ``DataLoader``), and a model that subsamples its rows by itself.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> result = lvm.fit(model, "mean_field", y, num_steps=1_000, optim=0.05, progress=False)
        >>> data = lvm.to_arviz(result, num_draws=500, coords={"rows": ["Ada", "Ben", "Cleo", "Dan"]})
        >>> dict(data["log_likelihood"]["y"].sizes)
        {'chain': 1, 'draw': 500, 'rows': 4}
        >>> print(f"{data['posterior_predictive']['y'].sel(rows='Cleo').std().item():.1f}")
        1.1
    """
    if not isinstance(result, Result):
        raise TypeError(f"to_arviz takes the result of a fit; got {type(result).__name__}")
    num_draws = check_count("num_draws", num_draws)
    program = result._program
    drawn = evaluate(result, num_draws, seed)
    constant = _constant_data(program, [drawn.sites[name] for name in drawn.log_likelihood])
    names = DimNames(dims, {*drawn.values, *drawn.log_likelihood, *constant})
    groups = _groups(program, drawn, constant, names)
    sizes: dict[str, set[int]] = {}
    for variables in groups.values():
        for of_variable, array in variables.values():
            for name, size in zip(of_variable, array.shape, strict=True):
                sizes.setdefault(name, set()).add(size)
    checked = check_coords(coords, dims, sizes)
    # read when called, since no file imports the package's front
    library = {"inference_library": "pyro_lvm", "inference_library_version": sys.modules["pyro_lvm"].__version__}
    attrs = {group: dict(library) for group in groups}
    if "log_q" not in groups["sample_stats"]:
        attrs["sample_stats"]["log_q"] = f"left out: {drawn.lacks_density}"
    return assemble(groups, checked, attrs)


def _groups(
    program: Program, drawn: EvaluatedDraws, constant: dict[str, tuple[list[Axis], np.ndarray]], names: DimNames
) -> dict[str, dict[str, Variable]]:
    of_site = {name: names(name, axes(drawn.sites[name])) for name in (*drawn.values, *drawn.log_likelihood)}
    stats = {"lp": drawn.log_joint} | ({} if drawn.lacks_density else {"log_q": drawn.log_guide})
    groups = {
        "posterior": {n: _draws(of_site[n], v) for n, v in drawn.values.items()},
        "posterior_predictive": {n: _draws(of_site[n], v) for n, v in drawn.predictions.items()},
        "log_likelihood": {
            n: _draws(_dims_of_log_likelihood(program, drawn.sites[n], of_site[n]), v)
            for n, v in drawn.log_likelihood.items()
        },
        "sample_stats": {n: _draws([], v) for n, v in stats.items()},
        "observed_data": {n: (of_site[n], _array(drawn.sites[n]["value"])) for n in drawn.predictions},
        "constant_data": {n: (names(n, along), array) for n, (along, array) in constant.items()},
    }
    return {group: variables for group, variables in groups.items() if variables}


def _draws(dims: list[str], draws: Tensor) -> Variable:
    return [*SAMPLE_DIMS, *dims], _array(draws)[None]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _dims_of_log_likelihood(program: Program, site: Site, dims: list[str]) -> list[str]:
    batch, plate = dims[: site["unscaled_log_prob"].dim()], program.sites.row_plate
    if plate is None:
        return batch
    return [batch[plate.dim]] if any(f.name == plate.name for f in site["cond_indep_stack"]) else []


def _constant_data(program: Program, observed: list[Site]) -> dict[str, tuple[list[Axis], np.ndarray]]:
    """The data arguments that no site observes, by name."""
    found = {}
    plate, data = program.sites.row_plate, program.data
    for name, value, has_rows in zip(_argument_names(program), data.args, data.has_rows, strict=True):
        if (
            isinstance(value, Tensor)
            and not is_sparse(value)
            and not any(_same(value, site["value"]) for site in observed)
        ):
            rows: list[Axis] = [(plate.name, len(value))] if plate is not None and has_rows else []
            found[name] = rows + [None] * (value.dim() - len(rows)), _array(value)
        elif isinstance(value, bool | int | float):
            found[name] = [], np.asarray(value)
    return found


def _same(value: Tensor, observed: Tensor) -> bool:
    return not is_sparse(observed) and value.shape == observed.shape and torch.equal(value.to(observed.dtype), observed)


def _argument_names(program: Program) -> list[str]:
    model = program.model.forward if isinstance(program.model, nn.Module) else program.model
    parameters = inspect.signature(model).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    count = len(program.data.args)
    return [*named, *(f"data_{i}" for i in range(len(named), count))][:count]
