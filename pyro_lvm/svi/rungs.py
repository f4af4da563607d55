"""The guides through which "auto" climbs, each moved in coordinates in which the posterior is near standard normal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide, AutoLowRankMultivariateNormal
from torch import Tensor

from pyro_lvm.elbo import Trace_ELBO, TraceSTL_ELBO
from pyro_lvm.flows import Flow
from pyro_lvm.guides import FlowGuide
from pyro_lvm.params import Values
from pyro_lvm.sites import median_or_feasible
from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.transforms import ActNorm, PLULinear


class Rung(ABC):
    """A guide and how it is moved.

    Attributes:
        name: Of the guide that comes of it.
        rates: The first and the smallest learning rate.
        length: Steps of the first epoch.
        place: The parameter that moves all draws of the guide alike.
        elbo: What is estimated.
        trial: Steps that are taken from each of several starts, to see which is the best.
        widens: Whether it starts with the directions in which the posterior is wide.
    """

    name: str
    place = "loc"
    elbo: type[Trace_ELBO] = Trace_ELBO
    rates = (0.05, 0.002)
    length = 250
    trial = 0
    widens = False

    @abstractmethod
    def guide(self, model: Callable) -> AutoGuide:
        """The guide that is moved; ``model`` is without enumerated sites."""

    def frame(self, at: Coordinates) -> Coordinates:
        """Coordinates that the guide can be moved in, from any."""
        return at

    @abstractmethod
    def start(self, at: Coordinates) -> dict[str, Tensor]:
        """Constrained values by name of the guide that is the Gaussian of these coordinates, its frame."""

    @abstractmethod
    def held(self, names: Iterable[str]) -> list[str]:
        """Which of the guide's parameters stay as they start."""

    def finish(self, guide: AutoGuide, params: Values) -> dict[str, Tensor]:
        """The constrained parameters of the guide that is known by ``name``, from those of the guide that was moved."""
        return dict(params)

    @abstractmethod
    def coordinates(self, params: Values) -> Coordinates:
        """Of the Gaussian that was reached, or that is under the flow."""


class _Bent(Rung):
    """A flow over a Gaussian that stays where it is."""

    base = "full_rank"
    flow: Callable[[int], Flow] | None = None

    def guide(self, model: Callable) -> AutoGuide:
        """See :class:`Rung`."""
        return FlowGuide(model, self.flow, base=self.base)

    def start(self, at: Coordinates) -> dict[str, Tensor]:
        """See :class:`Rung`."""
        found = {"loc": at.loc, "scale": at.scale}
        if self.base == "full_rank":
            found["scale_tril"] = torch.eye(len(at.loc)).to(at.loc) if at.tril is None else at.tril
        return found

    def held(self, names: Iterable[str]) -> list[str]:
        """See :class:`Rung`."""
        return [name for name in names if not name.startswith("flow.")]

    def coordinates(self, params: Values) -> Coordinates:
        """See :class:`Rung`."""
        return Coordinates(params["loc"], params["scale"], params.get("scale_tril"))


class MeanField(_Bent):
    """Independent normals, by a shift and a scale of each coordinate."""

    name, base = "mean_field", "mean_field"
    elbo = TraceSTL_ELBO
    trial = 2_000

    def frame(self, at: Coordinates) -> Coordinates:
        """See :class:`Rung`."""
        return at.independent()

    def flow(self, num_features: int) -> Flow:
        """A shift and a matrix."""
        return Flow([ActNorm(num_features)], num_features)

    def coordinates(self, params: Values) -> Coordinates:
        """See :class:`Rung`."""
        (log_scale,) = (v for name, v in params.items() if name.endswith("log_scale"))
        (loc,) = (v for name, v in params.items() if name.startswith("flow.") and name.endswith("loc"))
        at = super().coordinates(params)
        return Coordinates(at.loc + at.scale * loc, at.scale * log_scale.exp())

    def finish(self, guide: AutoGuide, params: Values) -> dict[str, Tensor]:
        """See :class:`Rung`."""
        reached = self.coordinates(params)
        shapes = guide._unconstrained_shapes
        sizes = [shape.numel() for shape in shapes.values()]
        return {
            f"{kind}.{name}": part.reshape(shape)
            for kind, vector in (("locs", reached.loc), ("scales", reached.scale))
            for (name, shape), part in zip(shapes.items(), vector.split(sizes), strict=True)
        }


class FullRank(_Bent):
    """A normal distribution, by a shift and a triangular matrix in the coordinates."""

    name = "full_rank"

    def flow(self, num_features: int) -> Flow:
        """A shift and a matrix."""
        return Flow([PLULinear(num_features)], num_features)

    def held(self, names: Iterable[str]) -> list[str]:
        """See :class:`Rung`."""
        return [name for name in names if not name.startswith("flow.") or name.endswith("upper")]

    def coordinates(self, params: Values) -> Coordinates:
        """See :class:`Rung`."""
        parts = {name.rpartition(".")[2]: v for name, v in params.items() if name.startswith("flow.")}
        lower = parts["lower"].tril(-1) + torch.eye(len(parts["loc"])).to(parts["lower"])
        return super().coordinates(params).after(parts["loc"], lower * parts["log_diagonal"].exp())

    def finish(self, guide: AutoGuide, params: Values) -> dict[str, Tensor]:
        """See :class:`Rung`."""
        return self.start(self.coordinates(params))


class LowRank(Rung):
    """A normal distribution whose covariance is diagonal but for a few directions."""

    name, place = "low_rank", "origin"
    elbo = TraceSTL_ELBO  # whose noise moves the directions that are not needed least
    widens = True
    rates, length = (0.01, 0.0006), 500  # there are many parameters

    def guide(self, model: Callable) -> AutoGuide:
        """See :class:`Rung`."""
        return _LowRank(model, init_loc_fn=median_or_feasible)

    def start(self, at: Coordinates) -> dict[str, Tensor]:
        """See :class:`Rung`."""
        found = {"origin": at.loc, "unit": at.scale, "loc": torch.zeros_like(at.loc), "scale": torch.ones_like(at.loc)}
        return found if at.wide is None else found | {"wide": at.wide, "cov_factor": at.factor}

    def held(self, names: Iterable[str]) -> list[str]:
        """See :class:`Rung`."""
        return ["origin", "unit", "wide"]

    def finish(self, guide: AutoGuide, params: Values) -> dict[str, Tensor]:
        """See :class:`Rung`."""
        unit, scale, wide = params["unit"], params["scale"], params["wide"]
        moved = params["loc"] + wide @ (wide.T @ params["loc"])
        return {"loc": params["origin"] + unit * moved, "scale": unit * scale, "cov_factor": params["cov_factor"]}

    def coordinates(self, params: Values) -> Coordinates:
        """See :class:`Rung`."""
        reached = self.finish(_LowRank, params)
        wider = (1 + reached["cov_factor"].square().sum(-1)).sqrt()
        return Coordinates(reached["loc"], reached["scale"] * wider)


class _LowRank(AutoLowRankMultivariateNormal):
    """Pyro's guide in coordinates."""

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        with torch.no_grad():
            self.cov_factor.mul_(0.1)  # near the diagonal that is known already
        self.origin = torch.nn.Parameter(self.loc.detach().clone())
        self.unit = torch.nn.Parameter(torch.ones_like(self.loc))
        self.wide = torch.nn.Parameter(torch.zeros_like(self.cov_factor))

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.LowRankMultivariateNormal:
        """See :class:`Rung`."""
        scale = self.unit * self.scale
        loc = self.origin + self.unit * (self.loc + self.wide @ (self.wide.T @ self.loc))
        return dist.LowRankMultivariateNormal(loc, self.cov_factor * scale.unsqueeze(-1), scale.square())


class Bent(_Bent):
    """A flow over the normal distribution that was reached."""

    name = "flow"
    rates, length = (0.01, 0.0006), 500
