"""EM with the steps that a model brings along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.data import MOST_ROWS
from pyro_lvm.em.batch import Batch, Rows
from pyro_lvm.em.matching import Axes
from pyro_lvm.em.run import EMPTY, Empty, Theta
from pyro_lvm.models._steps import Steps, Sums


class FusedSteps:
    """A model's own E-step, summed over batches, and its M-step.

    Args:
        steps: The model's.
        theta: Where EM starts.
        rows: All of them.
    """

    settles = True

    def __init__(self, steps: Steps, theta: Theta, rows: Rows) -> None:
        self.steps, self.rows = steps, rows
        self.objective_name, self.monotone = steps.objective_name, steps.monotone
        self.rules = dict.fromkeys(theta, "the model's own M-step")

    def remarks(self, theta: Theta) -> dict[str, str]:
        """The rules of parameters about which there is more to say, once EM has ended there."""
        return {name: f"{self.rules[name]}; {remark}" for name, remark in self.steps.remarks(theta).items()}

    def sweep(self, theta: Theta) -> tuple[Tensor, Sums]:
        """The objective at ``theta``, and sums over all rows."""
        total: Sums = {}
        with torch.no_grad():
            for batch in self.rows:
                part = self.steps.expect(theta, batch.args, batch.weight)
                total = {k: total[k] + v for k, v in part.items()} if total else part
            return total["log_p"] + self.steps.outside(theta), total

    def maximize(self, theta: Theta, found: Sums) -> Theta:
        """The next parameters."""
        with torch.no_grad():
            return self.steps.maximize(found, theta)

    def check_online(self, theta: Theta) -> None:
        """Nothing: a model says whether its steps are fit for online EM."""

    def online_sums(self, theta: Theta, batch: Batch) -> tuple[Tensor, Sums]:
        """The objective of a minibatch, and its sums; the first of a pass adds what lies outside the rows."""
        with torch.no_grad():
            sums = self.steps.expect(theta, batch.args, batch.weight)
            objective = sums.pop("log_p") + (self.steps.outside(theta) if batch.first else 0.0)
        return objective, sums

    def online_maximum(self, sums: Sums, theta: Theta) -> Theta:
        """The next parameters."""
        return self.maximize(theta, sums)

    def empty(self, theta: Theta, found: Sums) -> list[Empty]:
        """The components to which no row belongs."""
        shares = self.steps.shares(found, theta)
        if shares is None:
            return []
        few = EMPTY * self.rows.total / self.rows.num_rows
        return [Empty(int(r), int(k)) for r, k in (shares < few).nonzero()]

    def refill(self, theta: Theta, empty: list[Empty]) -> Theta:
        """Parameters at which empty components have rows."""
        with torch.no_grad():
            return self.steps.refill(theta, empty, self.rows.sample(MOST_ROWS, seed=0).args)

    def axes(self, theta: Theta) -> Axes:
        """The dimensions of parameters that count components."""
        return self.steps.component_axes(theta)

    def state(self) -> dict[str, Any]:
        """Nothing: the steps learn nothing on the way."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to continue from."""
