"""A guide whose posterior is a Gaussian bent by a flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuide
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.nn import PyroParam
from torch import nn

from pyro_lvm.checks import check_choice
from pyro_lvm.flows import Flow, FlowDistribution, as_flow
from pyro_lvm.flows._bent import bent_gaussian
from pyro_lvm.flows._orders import orders
from pyro_lvm.sites import median_or_feasible
from pyro_lvm.transforms import Autoregressive, Spline

_START_SCALE = 0.1


class FlowGuide(AutoContinuous):
    r"""A guide by a flow: all latents together, in unconstrained space, are a Gaussian bent by a flow.

    .. math:: x \sim \mathrm{Normal}(0, I), \qquad z = \mu + L f(x)

    :func:`pyro_lvm.fit` first fits the Gaussian alone, with half as many steps and no scheduler, then both. It keeps
    the parameters with the largest ELBO on draws that it holds back (of data of more than 20,000 rows on some of them,
    of a `DataLoader` on its first batch). It never ends below where the second fit begins: at the Gaussian, for flows
    that begin near the identity, as those of this package do. Fitted again, the guide goes on from where it is.

    Args:
        model: A Pyro model.
        flow: A function of the number of latents that makes a flow, or a flow of this package or of zuko. None takes
            autoregressive layers, affine ones and splines in turn, whose draws and densities take one pass.
        base: "mean_field", with a diagonal :math:`L`, or "full_rank", with a triangular one.
        init_loc_fn: Where :math:`\mu` starts, as for Pyro's guides.

    Raises:
        TypeError: If `flow` makes no flow.
        ValueError: If `base` is neither of the two, or the flow has another number of features than the model latents.

    References:
        D. J. Rezende and S. Mohamed, "Variational inference with normalizing flows" (2015).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def funnel():
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale))
        >>> guide = lvm.guides.FlowGuide(funnel, base="full_rank")
        >>> result = lvm.fit(funnel, guide, num_steps=300, progress=False)
        >>> result.sample(5)["x"].shape
        torch.Size([5])
    """

    fitted = False
    """Whether it has been fitted, or read from a file."""

    def __init__(
        self,
        model: Callable,
        flow: Any = None,
        base: str = "mean_field",
        init_loc_fn: Callable = median_or_feasible,
    ) -> None:
        self.base = check_choice("base", base, ("mean_field", "full_rank"))
        self._given = (_default_flow if flow is None else flow, init_loc_fn)  # a tuple, for modules have no parts yet
        super().__init__(model, init_loc_fn=init_loc_fn)

    def gaussian(self) -> AutoGuide:
        """A guide of the same latents by the Gaussian alone, whose parameters have the same names and meaning."""
        kind = AutoDiagonalNormal if self.base == "mean_field" else autoguide.AutoMultivariateNormal
        return kind(self.model, init_loc_fn=self._given[1], init_scale=_START_SCALE)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        D = self.latent_dim
        loc = self._init_loc()
        given = self._given[0]
        flow = given if isinstance(given, nn.Module) or not callable(given) else given(D)
        self.flow = as_flow(flow).to(loc)
        if (shape := self.flow().event_shape) != (D,):
            raise ValueError(f"flow: expected {D} features, the number of latents of the model, got {list(shape)}")
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, _START_SCALE), constraints.softplus_positive)
        if self.base == "full_rank":
            self.scale_tril = PyroParam(torch.eye(D).to(loc), constraints.unit_lower_cholesky)

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """The guide's distribution on the unconstrained latents, all in one vector."""
        tril = self.scale_tril if self.base == "full_rank" else None
        return bent_gaussian(self.flow(), self.loc, self.scale, tril)


def _default_flow(num_features: int) -> Flow:
    functions = (None, Spline()) * 2
    layers = [
        Autoregressive(num_features, function, hidden=(32, 32), order=order)
        for function, order in zip(functions, orders(len(functions), num_features), strict=True)
    ]
    return Flow(layers, num_features)
