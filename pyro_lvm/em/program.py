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
from pyro_lvm.em.roles import Theta
from pyro_lvm.params import ConstrainedParameters
from pyro_lvm.program import Program
from pyro_lvm.sites import Site, draw_or_feasible, find_row_plate, is_observed, prior_trace, sample_sites
from pyro_lvm.statements import private_statements

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

    Attributes:
        program: The model and no guide, its parameters in constrained space.
        points: Latent sites that are parameters with a prior, and what these are called.
    """

    def __init__(
        self,
        model: Callable,
        data: Data,
        latents: Sequence[str] | None,
        model_kwargs: Mapping[str, Any] | None,
        plate: str | None,
        example: tuple[Any, ...] | None = None,
    ) -> None:
        kwargs = dict(model_kwargs or {})
        args = data.args if example is None else example
        model = config_enumerate(model, default="parallel")
        with private_statements(model):
            sites = sample_sites(prior_trace(model, *args, **kwargs))
            row_plate, _ = find_row_plate(model, data, kwargs, plate)
        unknown = {n: s for n, s in sites.items() if not is_observed(s) and not s["is_observed"]}
        _check_latents(latents, unknown)
        self.points = {
            name: POINT + name
            for name, site in unknown.items()
            if site["infer"].get("enumerate") != "parallel"
            and name not in (latents or ())
            and (latents is not None or not _is_local(site, row_plate))
        }
        for name, site in unknown.items():
            if name not in self.points and site["infer"].get("enumerate") != "parallel":
                raise ValueError(
                    f"the latent {name!r} of the rows has no finite support, so that EM cannot sum it out: fit the "
                    "model by lvm.fit, with a guide for it"
                )
        self.model = Points(self.points)(model) if self.points else model
        self.program = Program(self.model, None, data, example, kwargs, plate)
        self.program.parameters = ConstrainedParameters(self.program.parameters)

    def trace(self, theta: Theta, args: tuple[Any, ...]) -> poutine.Trace:
        """The model on some rows with its latents in parallel and its parameters at ``theta``."""
        program = self.program
        bound = program.bind(theta, self.model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered (NaN|[+-]inf)", UserWarning)  # as under a mask
            trace = enumerate_model(bound, args, program.model_kwargs, program.max_plate_nesting, None)
            trace.compute_log_prob()
        return trace

    def filling(self, seed: int, theta: Theta) -> dict[str, Tensor]:
        """Valid values of all parameters, no two of which are alike."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name, constraint in self.program.parameters.constraints.items():
            there = transform_to(constraint)
            shape = there.inv(theta[name].clone()).shape
            found[name] = there(torch.randn(shape, generator=generator, dtype=theta[name].dtype)).to(theta[name].device)
        return found


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


def make_program(
    model: Callable,
    data: Data,
    own_steps: bool,
    latents: Sequence[str] | None,
    model_kwargs: Mapping[str, Any] | None,
    plate: str | None,
    example: tuple[Any, ...] | None = None,
) -> tuple[EMProgram | None, Program]:
    """The model as EM sees it, and as results do.

    A model with steps of its own keeps its guide, which says what its parameters are the posterior of.
    """
    if own_steps:
        program = Program(model, None, data, example, model_kwargs, plate)
        program.parameters = ConstrainedParameters(program.parameters)
        return None, program
    em = EMProgram(model, data, latents, model_kwargs, plate, example)
    return em, em.program


def complete(data: Data, rows: Sequence[int] | None) -> Data:
    """The data with the means of their columns in place of missing entries."""
    filled = Data(tuple(map(_filled, data.args)), rows)
    filled.complete = data.complete
    return filled


def _filled(argument: Any) -> Any:
    if not isinstance(argument, Tensor) or not argument.is_floating_point() or not argument.isnan().any():
        return argument
    return torch.where(argument.isnan(), argument.nanmean(0).nan_to_num(), argument)
