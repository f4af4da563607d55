"""Where a fit of a flow guide starts: at the Gaussian that fits best."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_lvm.batches import Batches
from pyro_lvm.guides import FlowGuide
from pyro_lvm.svi.choice import choose_loop
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.run import Run


def fitted_gaussian(
    objective: Objective,
    guide: FlowGuide,
    example: tuple[Any, ...],
    batches: Batches,
    num_rows: int | None,
    optim: Any,
    clip: float | None,
    compile: bool | str,
    num_steps: int,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Tensor], SVIResult]:
    """The parameters of the model, and of the Gaussian under the flow, after a fit without the flow.

    Args:
        objective: Of the fit with the flow.
        guide: The guide.
        example: What it was made ready on.
        batches: Where each step's batch comes from.
        num_rows: N.
        optim: See :func:`pyro_lvm.fit`.
        clip: See :func:`pyro_lvm.fit`.
        compile: See :func:`pyro_lvm.fit`.
        num_steps: Of this fit.
        seed: Of the fit.
        progress: Whether to show a progress bar.

    Returns:
        Unconstrained values by their names in the fit with the flow, and how the fit went.
    """
    gaussian = guide.gaussian()
    alone = Objective(
        objective.model,
        gaussian,
        objective.given_elbo,
        plate=objective.plate,
        model_kwargs=objective.model_kwargs,
    )
    alone.prepare(objective.program.data, example, objective.weighted)
    loop = EagerLoop(alone, alone.program.parameters.start(), batches, num_rows, optim, None, clip)
    chosen = choose_loop(loop, compile, num_steps, seed, watched=False)
    result = Run(alone, chosen, None, num_steps, num_steps, [], None, seed).finish(progress)
    there, here = f"{gaussian._pyro_name}.", f"{guide._pyro_name}."
    values = {
        here + name.removeprefix(there) if name.startswith(there) else name: value.detach()
        for name, value in chosen.params.items()
    }
    return values, result
