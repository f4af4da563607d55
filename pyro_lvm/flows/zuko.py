"""Flows of the package zuko as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_lvm.flows.distribution import FlowDistribution
from pyro_lvm.flows.flow import Flow
from pyro_lvm.transforms import Transform

__all__ = ["as_flow"]


def as_flow(flow: Any) -> nn.Module:
    """A flow of this package as it is, and one of zuko as a module whose calls return a :class:`FlowDistribution`.

    Args:
        flow: A :class:`Flow`, or a `zuko.flows.Flow`.

    Raises:
        TypeError: If it is neither.

    References:
        F. Rozet et al., "Zuko: normalizing flows in PyTorch" (2022), https://zuko.readthedocs.io.

    Example:
        >>> import pyro_lvm as lvm, zuko  # doctest: +SKIP
        >>> flow = lvm.flows.as_flow(zuko.flows.MAF(3))  # doctest: +SKIP
        >>> draws, log_prob = flow().rsample_and_log_prob((5,))  # doctest: +SKIP
    """
    if isinstance(flow, Flow | _ZukoFlow):
        return flow
    of_zuko = isinstance(flow, nn.Module) and any(kind.__module__.startswith("zuko.") for kind in type(flow).__mro__)
    if of_zuko and hasattr(flow, "transform") and hasattr(flow, "base"):
        return _ZukoFlow(flow)
    raise TypeError(f"flow: expected a flow of pyro_lvm or of zuko, got {type(flow).__name__}")


class _ZukoFlow(nn.Module):
    context = None  # which zuko does not tell

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        found = self.flow(context)
        return FlowDistribution(found.base, _FromData(found.transform))


class _FromData(Transform):
    """A transform of zuko's, which go from the data to the base, the other way round."""

    def __init__(self, transform: torch.distributions.Transform) -> None:
        super().__init__(transform.codomain.event_dim)
        self.transform = transform

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.inv.call_and_ladj(x)  # type: ignore[attr-defined]

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.call_and_ladj(y)  # type: ignore[attr-defined]
