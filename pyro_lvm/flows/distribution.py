"""What a flow is at a context: a distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_lvm.transforms import Transform

__all__ = ["FlowDistribution"]


class FlowDistribution(TorchDistribution):
    """What a flow is at a context: draws of a base distribution, transformed.

    Args:
        base: Of vectors `[D]` or images `[C, H, W]`, with the batch shape of the context.
        transform: From the base to the data.
    """

    arg_constraints: Mapping[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, base: Distribution, transform: Transform) -> None:
        self.base_dist, self.transform = base, transform
        shape = transform.forward_shape(base.event_shape)
        self._last: tuple[Tensor, int, Tensor, bool] | None = None
        super().__init__(base.batch_shape, shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All vectors or images."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients, `[*sample_shape, *batch, *event]`."""
        draw, log_prob = self.rsample_and_log_prob(sample_shape)
        if not draw.is_inference():  # tensors that count no versions
            self._last = draw, draw._version, log_prob, torch.is_grad_enabled()
        return draw

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, `[*sample_shape, *batch, *event]`."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities in nats, in one pass: of flows that are slow backward, the only fast way."""
        x = self.base_dist.rsample(torch.Size(sample_shape))
        y, log_det = self.transform.forward_and_log_det(x)
        return y, self.base_dist.log_prob(x) - log_det

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities in nats, `[*]`; of the draw that was just made, without going back to the base.

        Raises:
            ValueError: If the value has another event shape.
        """
        event = self.event_shape
        if value.shape[max(0, value.dim() - len(event)) :] != event:
            raise ValueError(f"value: expected shape [*, {', '.join(map(str, event))}], got {list(value.shape)}")
        if self._last is not None:
            draw, version, log_prob, with_gradients = self._last
            # at a draw that was made without gradients, the density has some all the same
            if value is draw and value._version == version and (with_gradients or not torch.is_grad_enabled()):
                return log_prob
        x, log_det = self.transform.inverse_and_log_det(value)
        return self.base_dist.log_prob(x) + log_det

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        """The distribution with another batch shape."""
        return FlowDistribution(self.base_dist.expand(torch.Size(batch_shape)), self.transform)
