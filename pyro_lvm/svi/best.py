"""The best of the parameters that a fit passes through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.data import MOST_ROWS, Data
from pyro_lvm.elbo import Trace_ELBO
from pyro_lvm.svi.objective import Objective

_DRAWS = 200  # the same at all parameters, so that their ELBOs have most of their noise in common


class Best:
    """Keeps the parameters with the largest ELBO, on draws that take no part in the fit.

    Args:
        objective: Of the fit.
        data: Of the fit, or a part of it; of many rows, some drawn by the seed are looked at.
        weight: Of the rows.
        num_rows: N.
        seed: Of the draws.
    """

    def __init__(
        self, objective: Objective, data: Data, weight: Tensor | None, num_rows: int | None, seed: int
    ) -> None:
        self.objective, self.seed = objective.with_elbo(Trace_ELBO(_DRAWS)), seed + 1
        self.batch: tuple[Any, ...] = data.args
        self.weight, self.num_rows = weight, None if data.num_rows is None else num_rows
        if data.num_rows is not None and data.num_rows > MOST_ROWS:
            rows = torch.randperm(data.num_rows, generator=torch.Generator().manual_seed(seed))[:MOST_ROWS]
            self.batch = data.take(rows)
            self.weight = None if weight is None else weight[rows.to(weight.device)]
        self.loss, self.params = torch.inf, dict[str, Tensor]()

    def see(self, params: dict[str, Tensor]) -> None:
        """Keep these parameters if they are the best so far."""
        with randomness.seeded(self.seed), self.objective.program.parameters.evaluating():
            loss = self.objective.value(params, self.batch, self.num_rows, self.weight)
        if loss < self.loss or not self.params:
            self.loss, self.params = loss, {name: v.detach().clone() for name, v in params.items()}

    def state_dict(self) -> dict[str, Any]:
        """What has been seen."""
        return {"loss": self.loss, "params": self.params}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.loss, self.params = state["loss"], state["params"]
