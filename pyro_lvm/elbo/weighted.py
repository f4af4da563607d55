"""The ELBO of a model with enumerated sites whose rows have weights, which Pyro's TraceEnum_ELBO refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm.elbo.contraction import enumerate_model, log_density
from pyro_lvm.program import Program
from pyro_lvm.sites import is_enumerated, sample_sites


class WeightedTraceEnum_ELBO(TraceEnum_ELBO):
    """``log p(outside) - log q(outside) + sum_i w_i (log p_i - log q_i)``, enumerated sites of row i summed out in p_i.

    With weights of one it is ``TraceEnum_ELBO``. Model-side enumeration and reparametrised guide sites only.

    Args:
        program: The model and guide.
        num_particles: Draws from the guide.

    Raises:
        ValueError: if an enumerated site lies outside the row plate, or a guide site is not reparametrised.
    """

    def __init__(self, program: Program, num_particles: int = 1) -> None:
        shared = program.sites.shared_enumerated
        if shared:
            raise ValueError(
                f"sample_weight: the enumerated site {shared[0]!r} lies outside the row plate, so that rows have no "
                "evidence of their own to weight: repeat the rows instead"
            )
        super().__init__(num_particles=num_particles, max_plate_nesting=program.max_plate_nesting)
        self.program = program

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO in nats."""
        total = torch.zeros(())
        for _ in range(self.num_particles):
            drawn = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
            self._check(drawn)
            trace = enumerate_model(model, args, kwargs, self.max_plate_nesting, drawn)
            outside, rows = log_density(trace, self.program.sites.row_plate, scaled=True)
            drawn.compute_log_prob()
            for site in sample_sites(drawn).values():
                outside = outside - site["log_prob_sum"]  # in which the rows' factors are already
            assert rows is not None
            total = total - outside - (rows * self._factor(trace)).sum()
        return total / self.num_particles

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def _factor(self, trace: poutine.Trace) -> Tensor:
        """What each row counts, which the handler of the rows has left at every site of the row plate."""
        infer = next(trace.nodes[name]["infer"] for name in self.program.sites.local if name in trace.nodes)
        return torch.as_tensor(infer.get("row_factor", 1.0)).reshape(-1)

    @staticmethod
    def _check(drawn: poutine.Trace) -> None:
        for name, site in sample_sites(drawn).items():
            if is_enumerated(site) or not site["fn"].has_rsample:
                raise ValueError(
                    f"sample_weight with enumerated sites needs reparametrised guide sites, and {name!r} is not: "
                    "repeat the rows instead of weighting them"
                )
