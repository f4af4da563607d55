"""Several fits from several starts, of which the best is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pyro_lvm.interrupts import interrupts
from pyro_lvm.modules import Snapshot
from pyro_lvm.sites import draw_or_feasible, median_or_feasible
from pyro_lvm.svi.nonfinite import FAILURES, NonFiniteError
from pyro_lvm.svi.result import SVIResult


def best_of(num_restarts: int, model: Callable, guide: Any, fit: Callable[..., SVIResult], seed: int) -> SVIResult:
    """The fit with the lowest loss at its end, at which the modules are left.

    Args:
        num_restarts: R. Ctrl-C leaves it at those that are done, and the one that it stops.
        model: Whose modules start each fit as they are.
        guide: The same.
        fit: Takes ``seed=`` and ``init_loc_fn=``.
        seed: Of the first fit, which starts where a single one does; the others add 1 each.

    Raises:
        NonFiniteError: if no fit has a finite loss to its end.
        ValueError, RuntimeError: what the first fit raises; a later one that raises is passed over.
    """
    start, reached = Snapshot(model, guide), list[float]()
    best, end, error = None, start, None
    with interrupts() as interrupted:
        try:
            for i in range(num_restarts):
                start.restore()
                try:
                    result = fit(seed=seed + i, init_loc_fn=draw_or_feasible if i else median_or_feasible)
                except FAILURES as failure:
                    if i == 0 and not isinstance(failure, NonFiniteError):  # of wrong arguments, as like as not
                        raise
                    reached.append(-math.inf)
                    error = failure
                else:
                    reached.append(-result.final_loss)
                    if best is None or reached[-1] > -best.final_loss:
                        best, end = result, Snapshot(model, guide)
                if interrupted():
                    break
        except BaseException:
            start.restore()
            raise
    end.restore()
    if best is None:
        assert error is not None
        raise error
    best.restarts = torch.tensor(reached, dtype=torch.float64)
    return best
