"""Densities of rows by flows."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.data import as_tensor
from pyro_lvm.flows import Flow, FlowDistribution, as_flow
from pyro_lvm.models._base import AssignableModule
from pyro_lvm.transforms import ActNorm

__all__ = ["FlowDensity"]


class FlowDensity(AssignableModule):
    r"""A density of rows, or of rows given others, by a flow.

    .. math:: x_n \mid c_n \sim \mathrm{Flow}(c_n), \qquad n = 1, \dots, N

    `lvm.fit(FlowDensity(flow), None, x)` is maximum likelihood: the divergence of the density from that of the data is
    smallest, forward KL. Site: `x` `[N, *event]`, observed. Parameters: those of the flow.

    Args:
        flow: A flow of :mod:`pyro_lvm.flows`, or of zuko.

    Raises:
        TypeError: If `flow` is no flow.

    References:
        G. Papamakarios et al., "Normalizing flows for probabilistic modeling and inference" (2021), section 2.3.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(500, 2) @ torch.tensor([[1.0, 2.0], [0.0, 0.5]])
        >>> model = lvm.models.FlowDensity(lvm.flows.LinearFlow(2))
        >>> result = lvm.fit(model, None, x, num_steps=500, progress=False)
        >>> normal = torch.distributions.MultivariateNormal(x.mean(0), x.mT.cov(correction=0))
        >>> bool((model.log_prob(x) - normal.log_prob(x)).mean().abs() < 0.01)
        True
    """

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = as_flow(flow)
        norms = [part for part in self.flow.modules() if isinstance(part, ActNorm)]
        self.initialized = any(bool(tensor.any()) for norm in norms for tensor in (norm.log_scale, norm.loc))

    def forward(self, x: Tensor, context: Tensor | None = None) -> None:
        """The model.

        Args:
            x: Data, `[N, *event]`.
            context: Of each row, `[N, C]`, for a flow that takes one.

        Raises:
            TypeError: If `x` is not a tensor.
            ValueError: If `x` has another shape or dtype, or the context does not fit the flow.
        """
        density = self._density(x, context)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", density, obs=x)

    def log_prob(self, x: Any, context: Any = None) -> Tensor:
        """Log-density of each row.

        Args:
            x: Data, `[N, *event]`.
            context: Of each row, `[N, C]`, for a flow that takes one.

        Returns:
            Nats, `[N]`.
        """
        x, context = as_tensor(x), as_tensor(context)
        with torch.no_grad():
            return self._density(x, context).log_prob(x)

    @torch.no_grad()
    def sample(self, num_rows: int | None = None, context: Any = None, seed: int = 0) -> Tensor:
        """Draw rows.

        Args:
            num_rows: N; for each context, if there are some, or one for each if None.
            context: `[M, C]`, for a flow that takes one.
            seed: Fixes the draws.

        Returns:
            `[N, *event]`, `[M, *event]` or `[N, M, *event]`.

        Raises:
            ValueError: If there is neither a number nor a context.
        """
        if num_rows is None and context is None:
            raise ValueError("num_rows: expected a number of rows, for there is no context")
        shape = () if num_rows is None else (check_count("num_rows", num_rows),)
        with randomness.seeded(check_seed(seed)):
            return self.flow(as_tensor(context)).sample(shape)

    def initialize(self, x: Any, context: Any = None) -> FlowDensity:
        """Start the :class:`~pyro_lvm.transforms.ActNorm` layers of the flow from data, if it has some.

        Args:
            x: Data, `[N, *event]`.
            context: Of each row, `[N, C]`, for a flow that takes one.

        Returns:
            The model itself.
        """
        x, context = as_tensor(x), as_tensor(context)
        self._density(x, context)
        if isinstance(self.flow, Flow):
            self.flow.initialize(x, context)
        self.initialized = True
        return self

    def _density(self, x: Tensor, context: Tensor | None) -> FlowDistribution:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}; convert it with torch.as_tensor")
        density = self.flow(context)
        event, dtype = density.event_shape, next(chain(self.flow.parameters(), self.flow.buffers())).dtype
        if x.dim() != len(event) + 1 or x.shape[1:] != event:
            raise ValueError(f"x: expected shape [N, {', '.join(map(str, event))}], got {list(x.shape)}")
        if x.dtype != dtype:
            raise ValueError(f"x: expected {dtype}, the dtype of the flow, got {x.dtype}")
        if density.batch_shape not in (torch.Size(), x.shape[:1]):
            raise ValueError(f"context: expected {len(x)} rows, as many as x, got {list(density.batch_shape)}")
        return density
