"""A model and its guide made ready on data: sites sorted, row plate found, guide built, parameters collected."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.checks import check_model
from pyro_lvm.data import Data
from pyro_lvm.guides import check_guide, couples_rows, no_guide, resolve, shares_rows
from pyro_lvm.modules import unchanged_buffers
from pyro_lvm.params import Bound, Parameters, Values
from pyro_lvm.sites import (
    ScaleRows,
    describe,
    find_row_plate,
    median_or_feasible,
    plate_nesting,
    prior_trace,
    sample_sites,
)
from pyro_lvm.statements import private_statements


class Program:
    """A model and its guide, ready to be evaluated as pure functions of their parameters.

    Args:
        model: A Pyro model.
        guide: A guide, a name, or None.
        data: The data.
        example: Arguments on which the programs are run to see what they do; the whole data, if None.
        model_kwargs: Keyword arguments of model and guide.
        plate: The name of the row plate, if it must be named.
        init_loc_fn: Where a guide by name starts, as for Pyro's guides.

    Attributes:
        data_sites: The observed sites that hold data; another holds a parameter, so that its density is a prior.

    Raises:
        TypeError: if the model is not callable or the guide is data.
        ValueError: for latents that no guide covers, a guide that misses latents of the model or knows others, dtypes
            that clash, and parameters that cannot be found.
    """

    def __init__(
        self,
        model: Callable,
        guide: Any,
        data: Data,
        example: tuple[Any, ...] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        plate: str | None = None,
        init_loc_fn: Callable = median_or_feasible,
    ) -> None:
        check_model(model, model_kwargs, plate)
        if plate is not None and data.num_rows is None:
            raise ValueError(f"plate={plate!r} was given, but the data has no rows")
        check_guide(guide)
        self.model, self.data = model, data
        self.weighted = False  # whether the fit weighs the rows
        self.model_kwargs = dict(model_kwargs or {})
        self.example = data.args if example is None else example
        try:
            with unchanged_buffers(model, guide):
                self._inspect(guide, plate, init_loc_fn)
                with randomness.seeded(0):
                    self.covers_fitted_rows_only = self._covers_these_rows_only()
        except RuntimeError as error:
            if "dtype" in str(error):
                raise ValueError(f"{self._dtypes()}; the model failed on them: {error}") from error
            raise
        self.check_dtypes(self.example)

    def _inspect(self, guide: Any, plate: str | None, init_loc_fn: Callable) -> None:
        store = pyro.get_param_store()
        with store.scope():
            with private_statements(self.model):
                trace = self._explained(prior_trace, self.model, *self.example, **self.model_kwargs)
                row_plate, search = find_row_plate(self.model, self.data, self.model_kwargs, plate)
            self.sites = describe(trace, row_plate, search)
            self.guide = resolve(self.model, guide, self.sites, init_loc_fn)
            with private_statements(self.model, self.guide):
                # the first call of an AutoGuide makes its parameters
                run = poutine.trace(self.guide).get_trace
                covered = self._check_guide(self._explained(run, *self.example, **self.model_kwargs))
            self.sites = replace(
                self.sites,
                latent=tuple(n for n in (*self.sites.latent, *self.sites.enumerated) if n in covered),
                enumerated=tuple(n for n in self.sites.enumerated if n not in covered),
            )
            store.clear()
            self.parameters = Parameters(
                {"model": self.model, "guide": self.guide}, lambda: self._explained(self._run_once)
            )

    def _explained(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        """A run of a program on the example; where that is a batch, a failure says so."""
        try:
            return fn(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            if self.example is self.data.args or "dtype" in str(error):
                raise
            raise ValueError(
                "the model or guide does not run on a batch of the rows alone; with batch_size, every shape must "
                f"follow the batch, as in pyro.plate('rows', len(x)). It failed with: {error}"
            ) from error

    def _run_once(self) -> Tensor:
        """A scalar that depends on every parameter that a run uses."""
        guide = poutine.trace(self.guide).get_trace(*self.example, **self.model_kwargs)
        model = poutine.trace(poutine.replay(self.model, trace=guide))
        trace = model.get_trace(*self.example, **self.model_kwargs)
        self.max_plate_nesting = plate_nesting(trace, guide)
        self.guide_enumerates = any(s["infer"].get("enumerate") for s in sample_sites(guide).values())
        self._check_shapes(guide, trace)
        trained = {name for name in self.sites.observed if _is_trained(trace.nodes[name]["value"])}
        # in the rows, that is data which a parameter transforms; elsewhere a parameter that is given a prior
        self.data_sites = tuple(n for n in self.sites.observed if n not in trained or n in self.sites.local)
        hidden = sorted(pyro.get_param_store().keys())
        if hidden:
            raise ValueError(
                f"the parameters {hidden} are hidden from the fit by poutine.block; "
                "name the sites to hide (poutine.block(fn, hide=[...])) so that pyro.param stays visible"
            )
        terms = [s["fn"].log_prob(s["value"]).sum() for t in (guide, trace) for s in sample_sites(t).values()]
        values = [s["value"] for t in (guide, trace) for s in t.nodes.values() if s["type"] in ("sample", "param")]
        differentiable = [v.sum() for v in values if isinstance(v, Tensor) and v.requires_grad]
        return torch.stack([t.reshape(()).to(torch.float64) for t in terms + differentiable]).sum()

    @staticmethod
    def _check_shapes(*traces: poutine.Trace) -> None:
        """Pyro's check of every site's log-density against its plates, which its estimators make in part only."""
        if is_validation_enabled():
            for trace in traces:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Encountered (NaN|[+-]inf)", UserWarning)  # shapes alone matter
                    trace.compute_log_prob()
                for site in sample_sites(prune_subsample_sites(trace)).values():
                    check_site_shape(site, math.inf)

    def _check_guide(self, guide_trace: poutine.Trace) -> set[str]:
        covered = sample_sites(prune_subsample_sites(guide_trace))
        extra = [
            n
            for n, s in covered.items()
            if n not in (*self.sites.latent, *self.sites.enumerated)
            and not s["is_observed"]
            and not s["infer"].get("is_auxiliary")
        ]
        missing = [n for n in self.sites.latent if n not in covered]
        if missing:
            raise ValueError(
                f"the guide has no site {missing[0]!r}, which the model leaves latent; it has {sorted(covered)}. Add "
                "the site, pass 'mean_field', or mark a discrete site with infer={'enumerate': 'parallel'}"
            )
        if extra:
            raise ValueError(
                f"the guide samples {extra[0]!r}, which the model does not have; its latent sites are "
                f"{list(self.sites.latent)} (auxiliary sites take infer={{'is_auxiliary': True}})"
            )
        return set(covered)

    def _dtypes(self) -> str:
        found = sorted({str(a.dtype) for a in self.data.args if isinstance(a, Tensor) and a.is_floating_point()})
        return f"the data has dtype {' and '.join(found)}, torch's default is {torch.get_default_dtype()}"

    def check_dtypes(self, args: Sequence[Any]) -> None:
        """Refuse data whose floating dtype is not that of the parameters.

        Raises:
            ValueError: if they clash.
        """
        params = self.parameters.dtypes
        data = {a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()}
        if params and data and params != data:
            raise ValueError(
                f"the data has dtype {sorted(map(str, data))}, the parameters have {sorted(map(str, params))}: "
                "convert the data (x.float()) or the model (model.double(), torch.set_default_dtype)"
            )

    def check_minibatches(self) -> None:
        """Refuse minibatches that would fit something else than the user means.

        Raises:
            ValueError: without a row plate or with several, and for a guide that keeps parameters of each row.
        """
        plate = self.sites.row_plate
        if plate is None:
            raise ValueError(
                "batches of rows were given, but no plate of the model follows the rows of the data: write "
                "pyro.plate('rows', len(x)) around what belongs to a row, or pyro.plate('rows', N, subsample=x)"
                + self.sites.search
            )
        self.check_one_row_plate()
        if self.covers_fitted_rows_only:
            raise ValueError(
                f"the site {self.sites.local_latent[0]!r} is latent in the row plate {plate.name!r}, and this guide "
                "keeps one parameter per row: minibatches would share them between different rows. Write an amortized "
                "guide, a function of the rows"
            )

    def check_one_row_plate(self) -> None:
        """Refuse models whose rows are in several plates, where rows are to be scaled or weighted.

        Raises:
            ValueError: that names the plates.
        """
        plate = self.sites.row_plate
        if plate is not None and plate.beside:
            raise ValueError(
                f"the plates {[plate.name, *plate.beside]} follow the rows of the data, and only one can be taken in "
                "parts or weighted: write one plate around all that belongs to a row"
            )

    def _covers_these_rows_only(self) -> bool:
        """Whether the guide's local latents belong to the rows that it saw, so that it cannot take others.

        So it is with AutoGuides, with ``pyro.param`` statements whose shape follows the rows, and with guides that do
        not run on fewer rows.
        """
        if not self.sites.local_latent or self.data.num_rows is None:
            return False
        if shares_rows(self.guide, self.sites.local_latent):
            return True
        shapes = []
        for count in (1, 2):
            # batch norm refuses a single row in training
            private = private_statements(self.guide)
            with pyro.get_param_store().scope(), self.parameters.evaluating(), private as statements:
                try:
                    self.guide(*self.data.take(torch.arange(count) % self.data.num_rows), **self.model_kwargs)
                except (RuntimeError, ValueError, IndexError):  # what shapes that do not fit raise
                    return True
            shapes.append({name: value.shape for name, value in statements.unconstrained.items()})
        return shapes[0] != shapes[1]

    @property
    def couples_rows(self) -> bool:
        """Whether the rows' local latents have one joint log q."""
        return couples_rows(self.guide, self.sites.local_latent)

    @property
    def has_guide(self) -> bool:
        """Whether there is anything to draw from the guide."""
        return self.guide is not no_guide

    def call(self, values: Values, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn`` with the parameters at ``values``."""
        return self.parameters.call(values, fn, *args, **kwargs)

    def bind(self, values: Values, program: Callable) -> Bound:
        """The model or guide at fixed values of its parameters."""
        return Bound(self.parameters, values, program)

    def scaling(self, args: Sequence[Any], num_rows: int | None, weight: Tensor | None) -> ScaleRows | None:
        """A handler under which the rows in ``args`` stand for ``num_rows``, each as often as its weight says."""
        plate = self.sites.row_plate
        given = self.data.count(args)
        scaled = plate is not None and not plate.subsampled and num_rows is not None and given is not None
        ratio = num_rows / given if scaled else 1.0  # type: ignore[operator]
        if plate is None or (ratio == 1.0 and weight is None):
            return None
        return ScaleRows(self.sites, ratio, weight)

    def row_dim(self, name: str, site: dict[str, Any]) -> int | None:
        """The dimension of a guide's site that the rows index, or None for a site outside the row plate."""
        plate = self.sites.row_plate
        if plate is None:
            return None
        frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name == plate.name]
        if frames:
            return frames[0].dim
        return plate.dim if name in self.sites.local_latent else None


def _is_trained(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
