"""Several fits from several starts, of which the best is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pyro_lvm.modules import unchanged
from pyro_lvm.sites import draw_or_feasible, median_or_feasible
from pyro_lvm.svi.nonfinite import NonFiniteError
from pyro_lvm.svi.result import SVIResult


def best_of(num_restarts: int, model: Callable, guide: Any, fit: Callable[..., SVIResult], seed: int) -> SVIResult:
    """The fit with the lowest loss at its end.

    Args:
        num_restarts: R.
        model: Whose modules start each fit as they are.
        guide: The same.
        fit: Takes ``seed=`` and ``init_loc_fn=``.
        seed: Of the first fit, which starts where a single one does; the others add 1 each.

    Raises:
        NonFiniteError: if no fit has a finite loss to its end.
    """
    fits, error = list[SVIResult | None](), None
    for i in range(num_restarts):
        try:
            with unchanged(model, guide):
                fits.append(fit(seed=seed + i, init_loc_fn=draw_or_feasible if i else median_or_feasible))
        except NonFiniteError as failure:
            fits.append(None)
            error = failure
    reached = [-math.inf if result is None else -result.final_loss for result in fits]
    best = fits[max(range(num_restarts), key=reached.__getitem__)]
    if best is None:
        assert error is not None
        raise error
    best.restarts = torch.tensor(reached, dtype=torch.float64)
    best._program.parameters.write(best._values)
    best._program.parameters.write_untrained({n: best._values[n] for n in best._program.parameters.untrained()})
    return best
