"""The best of several runs, and the others beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.em.matching import in_the_order_of
from pyro_lvm.em.online import OnlineRun
from pyro_lvm.em.run import Refilled, Run, Steps, Theta


class Outcome(NamedTuple):
    """What several runs have reached.

    Attributes:
        theta: The parameters of the best run.
        objective: Its path.
        converged: Whether it has converged.
        refilled: Its components that were empty.
        reached: The objective that each run has reached, ``[R]``.
        all_params: The parameters of all runs, ``[R, ...]``, their components in the order of the best run's.
    """

    theta: Theta
    objective: Tensor
    converged: bool
    refilled: list[Refilled]
    reached: Tensor
    all_params: Theta


def outcome_of(runs: Sequence[Run | OnlineRun], steps: Steps) -> Outcome:
    """The best of some runs, of which the first may hold several starts at once."""
    first = runs[0]
    if first.objective.dim() == 2:
        thetas = [{n: v[r] for n, v in first.theta.items()} for r in range(first.objective.shape[1])]
        paths = list(first.objective.unbind(1))
    else:
        thetas, paths = [run.theta for run in runs], [run.objective for run in runs]
    reached = torch.stack([path[-1] for path in paths])
    best = int(reached.argmax())
    run = first if len(runs) == 1 else runs[best]
    refilled = [event for r, event in run.refilled if r == (best if run is first and len(runs) == 1 else 0)]
    axes = steps.axes(thetas[best]) if len(thetas) > 1 else {}
    matched = [in_the_order_of(thetas[best], theta, axes) for theta in thetas]
    all_params = {name: torch.stack([theta[name] for theta in matched]) for name in thetas[best]}
    converged = bool(run.converged[best] if run.converged.dim() else run.converged)
    return Outcome(thetas[best], paths[best], converged, refilled, reached, all_params)
