"""A guide that is the exact posterior of Gaussian latents."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.em.e_step import expect
from pyro_lvm.em.gaussian import GaussianLatents, Moments


class GaussianPosterior:
    """Draws Gaussian latents from their posterior: one after the other, each given those before.

    Args:
        latents: What is known of them.
    """

    def __init__(self, latents: GaussianLatents) -> None:
        self.latents = latents

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """The guide, for the arguments of the model."""
        latents = self.latents
        latents.trace(latents.zeros(args), args, kwargs)  # makes parameters, which differentiation could not
        moments = latents.moments(*args, **kwargs)
        mean, root = self._states_last(moments.mean, 1), self._states_last(moments.root, 2)
        logits = self._logits(moments, args, kwargs) if latents.states else None
        shares, before, noise = logits, 0, mean[..., :0]
        with pyro.plate(latents.row_plate.name, moments.mean.shape[-2], dim=latents.row_plate.dim):
            for name, event in latents.events.items():
                after = before + event.numel()
                loc = mean[..., before:after] + (root[..., before:after, :before] @ noise.unsqueeze(-1)).squeeze(-1)
                scale_tril = root[..., before:after, before:after]
                infer = {}
                if before:
                    of_all = mean[..., before:after], _root(root[..., before:after, :after]), shares
                    infer["marginal"] = _distribution(*of_all, is_vector=bool(event))
                value = pyro.sample(name, _distribution(loc, scale_tril, logits, is_vector=bool(event)), infer=infer)
                value = value if event else value.unsqueeze(-1)
                off = (value if logits is None else value.unsqueeze(-2)) - loc
                new = torch.linalg.solve_triangular(scale_tril, off.unsqueeze(-1), upper=False).squeeze(-1)
                if logits is not None:
                    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
                    logits = logits - 0.5 * new.square().sum(-1) - log_det
                before, noise = after, torch.cat([noise, new], -1)

    def _states_last(self, value: Tensor, event_dims: int) -> Tensor:
        """``[*states, B, *event]`` as ``[B, *plates, S, *event]``, without S where there are no states."""
        states = len(self.latents.states)
        rows, event = value.shape[states], value.shape[value.dim() - event_dims :]
        plates = [rows, *[1] * (-self.latents.row_plate.dim - 1)]
        if not states:
            return value.reshape(*plates, *event)
        return value.reshape(-1, rows, *event).transpose(0, 1).reshape(*plates, -1, *event)

    def integrated(self, moments: Moments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
        """The model without its Gaussian latents, which are integrated out."""
        trace = self.latents.trace(moments.mean, args, kwargs)
        self.latents.integrate(trace, moments)
        return trace

    def _logits(self, moments: Moments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """How probable the states are, ``[B, *plates, S]``."""
        latents = self.latents
        with torch.no_grad():
            trace = self.integrated(moments, args, kwargs)
            shares = expect(trace, latents.row_plate).weights[latents.names[0]]
        shares = shares.reshape(*latents.states, *moments.mean.shape[-2:-1])
        return self._states_last(shares, 0).log()


def _root(rows: Tensor) -> Tensor:
    """The triangular root of the covariance of some latents, ``[*, m, m]``, from their rows in that of all."""
    upper = torch.linalg.qr(rows.mT, mode="r").R
    return upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _distribution(loc: Tensor, scale_tril: Tensor, logits: Tensor | None, is_vector: bool) -> dist.Distribution:
    if is_vector:
        normal = dist.MultivariateNormal(loc, scale_tril=scale_tril)
    else:
        normal = dist.Normal(loc[..., 0], scale_tril[..., 0, 0])
    return normal if logits is None else dist.MixtureSameFamily(dist.Categorical(logits=logits), normal)
