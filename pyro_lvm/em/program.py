"""A model made ready for EM: latents marked for enumeration, other unknowns turned into parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import transform_to

from pyro_lvm.data import Data
from pyro_lvm.elbo.contraction import enumerate_model
from pyro_lvm.elbo.terms import masked, unscaled_log_prob
from pyro_lvm.em.batch import Batch
from pyro_lvm.em.gaussian import GaussianLatents
from pyro_lvm.em.gaussian_guide import GaussianPosterior
from pyro_lvm.em.roles import Theta
from pyro_lvm.guides import check_guide
from pyro_lvm.params import ConstrainedParameters
from pyro_lvm.program import Program
from pyro_lvm.sites import (
    Site,
    draw_or_feasible,
    find_row_plate,
    held_at,
    is_observed,
    prior_trace,
    refuse_random_rows,
    sample_sites,
)
from pyro_lvm.sparse import is_sparse
from pyro_lvm.statements import private_statements
from pyro_lvm.svi.objective import Objective

HEAD = 100  # rows
POINT = "points."  # stands before the name of a site in that of the parameter which it is


class Points(Messenger):
    """Holds sites at parameters: their log-density becomes a prior's.

    Args:
        names: Of the sites.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            msg["value"] = pyro.param(POINT + msg["name"], lambda: draw_or_feasible(msg), constraint=msg["fn"].support)
            msg["is_observed"] = True
            msg["infer"] = {**msg["infer"], "_deterministic": True}  # no data, which a prediction would draw anew


class EMProgram:
    """A model as EM sees it.

    Args:
        model: The model.
        data: Its data.
        latents: Continuous sites that are latents and no parameters.
        model_kwargs: Its keyword arguments.
        plate: The name of the row plate, if it must be named.
        example: Rows on which to look at it; all, if None.
        guide: Of the latents that are not summed out: a callable or a name; None if there are none.
        default_guide: What to take if there are some and ``guide`` is None.
        weighted: Whether rows will have weights.
        num_rows: N, where that is not the rows of ``data``.

    Attributes:
        program: The model and its guide, their parameters in constrained space.
        points: Latent sites that are parameters with a prior, and what these are called.
        gaussian: The latents that are integrated out as Gaussian, where there are some.
        objective: The ELBO, where there is a guide.
    """

    gaussian: GaussianLatents | None = None
    objective: Objective | None = None

    def __init__(
        self,
        model: Callable,
        data: Data,
        *,
        latents: Sequence[str] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        plate: str | None = None,
        example: tuple[Any, ...] | None = None,
        guide: Any = None,
        default_guide: Any = None,
        weighted: bool = False,
        num_rows: int | None = None,
    ) -> None:
        self.num_rows = num_rows or data.num_rows
        kwargs = dict(model_kwargs or {})
        model = config_enumerate(model, default="parallel")
        with private_statements(model):
            row_plate, _ = find_row_plate(model, data, kwargs, plate)
            if example is None and guide is None and default_guide is None and row_plate is not None:
                example = head_of(model, data, kwargs)
            args = data.args if example is None else example
            sites = sample_sites(prior_trace(model, *args, **kwargs))
        refuse_random_rows(sites, row_plate)
        unknown = {n: s for n, s in sites.items() if not is_observed(s) and not s["is_observed"]}
        _check_latents(latents, unknown)
        continuous = [name for name, site in unknown.items() if site["infer"].get("enumerate") != "parallel"]
        local = {name for name in continuous if _is_local(unknown[name], row_plate)} if latents is None else set()
        asked = local | set(latents or ())
        if guide is None and asked & set(continuous):
            guide = default_guide
        drawn = _sites_of(guide, args, kwargs)
        self.points = {name: POINT + name for name in continuous if name not in asked | drawn}
        left = [name for name in continuous if name in asked - drawn] if not isinstance(guide, str) else []
        self.model: Any = model
        if self.points:
            self.model = Points(self.points)(model)
            self.model.__wrapped__ = model  # for whoever asks for its signature
        if left:
            if guide is not None or row_plate is None:
                raise ValueError(
                    f"the latent {left[0]!r} has no finite support, so that EM cannot sum it out: pass guide=, such as "
                    "'mean_field', for variational EM"
                )
            self.gaussian = GaussianLatents(self.model, left, row_plate, data)
            with pyro.get_param_store().scope(), private_statements(self.model):
                self.gaussian.look(*args, **kwargs)
            self.program = Program(self.model, GaussianPosterior(self.gaussian), data, example, kwargs, plate)
        elif guide is None:
            self.program = Program(self.model, None, data, example, kwargs, plate)
        else:
            self.objective = Objective(self.model, guide, plate=plate, model_kwargs=kwargs)
            self.objective.prepare(data, example, weighted)
            self.program = self.objective.program
        self.program.parameters = ConstrainedParameters(self.program.parameters)

    def trace(self, theta: Theta, batch: Batch) -> poutine.Trace:
        """The model on some rows with its latents in parallel, or held, and its parameters at ``theta``."""
        program, held = self.program, held_at(batch.values)
        bound = program.bind(theta, self.model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered (NaN|[+-]inf)", UserWarning)  # as under a mask
            trace = enumerate_model(bound, batch.args, program.model_kwargs, program.max_plate_nesting, held)
            self._count_once(trace)
            for site in sample_sites(trace).values():
                if "log_prob" not in site:
                    site["unscaled_log_prob"] = unscaled_log_prob(site)
                    site["log_prob"] = masked(site, site["unscaled_log_prob"], site["scale"])
        return trace

    def _count_once(self, trace: poutine.Trace) -> None:
        """Let rows count as they do among all, where a model scales batches to all: EM adds batches up."""
        plate = self.program.sites.row_plate
        if plate is None or not plate.subsampled or self.num_rows is None:
            return
        for site in sample_sites(trace).values():
            for frame in site["cond_indep_stack"]:
                if frame.name == plate.name:
                    site["scale"] = site["scale"] * frame.size / self.num_rows

    def filling(self, seed: int, theta: Theta) -> dict[str, Tensor]:
        """Valid values of all parameters, no two of which are alike."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name in theta:
            there = transform_to(self.program.parameters.constraints[name])
            shape = there.inv(theta[name].clone()).shape
            found[name] = there(torch.randn(shape, generator=generator, dtype=theta[name].dtype)).to(theta[name].device)
        return found


def head_of(model: Callable, data: Data, kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Enough rows to see what a model does, for all may be many; None for all, where parameters follow their number."""
    if (data.num_rows or 0) <= HEAD:
        return None
    shapes = []
    for count in (HEAD, HEAD - 1):
        with pyro.get_param_store().scope(), private_statements(model) as statements:
            prior_trace(model, *data.take(slice(0, count)), **kwargs)
        shapes.append({name: value.shape for name, value in statements.unconstrained.items()})
    return data.take(slice(0, HEAD)) if shapes[0] == shapes[1] else None


def _sites_of(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[str]:
    """The sites that a guide draws; none of one that is only named."""
    check_guide(guide)
    if guide is None or isinstance(guide, str):
        return set()
    with pyro.get_param_store().scope(), private_statements(guide):
        return set(sample_sites(poutine.trace(guide).get_trace(*args, **kwargs)))


def _is_local(site: Site, row_plate: Any) -> bool:
    return row_plate is not None and any(f.name == row_plate.name for f in site["cond_indep_stack"])


def _check_latents(latents: Sequence[str] | None, unknown: Collection[str]) -> None:
    if latents is None:
        return
    if isinstance(latents, str) or not all(isinstance(name, str) for name in latents):
        raise TypeError(f"latents must be a list of names of sites; got {latents!r}")
    if wrong := [name for name in latents if name not in unknown]:
        raise ValueError(
            f"latents names {wrong[0]!r}, which is no latent site of the model; those are {sorted(unknown)}"
        )


def own_program(
    model: Callable,
    data: Data,
    model_kwargs: Mapping[str, Any] | None,
    plate: str | None,
    example: tuple[Any, ...] | None = None,
) -> Program:
    """A model with steps of its own, which keeps its guide: this says what its parameters are the posterior of."""
    with private_statements(model):
        row_plate, _ = find_row_plate(model, data, dict(model_kwargs or {}), plate)
    if example is None and row_plate is not None:
        example = head_of(model, data, dict(model_kwargs or {}))
    program = Program(model, None, data, example, model_kwargs, plate)
    program.parameters = ConstrainedParameters(program.parameters)
    return program


def complete(data: Data, rows: Sequence[int] | None) -> Data:
    """The data with the means of their columns in place of missing entries."""
    filled = Data(tuple(map(_filled, data.args)), rows)
    filled.complete = data.complete
    return filled


def _filled(argument: Any) -> Any:
    if not isinstance(argument, Tensor) or not argument.is_floating_point() or is_sparse(argument):
        return argument
    if not argument.isnan().any():
        return argument
    return torch.where(argument.isnan(), argument.nanmean(0).nan_to_num(), argument)
