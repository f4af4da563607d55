"""Steps at falling learning rates, until the averaged parameters gain nothing more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.importance import Estimate, log_weights, mean_of, totals
from pyro_lvm.params import Values
from pyro_lvm.svi.compiled import CompiledLoop
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.nonfinite import FAILURES
from pyro_lvm.tracing import first_line

_NUM_DRAWS = 1_000  # the same at all parameters, so that their ELBOs have most of their noise in common
GAIN = 0.02
"""Nats that matter."""

_FALL = 4.0  # by which rates fall
_LONGER = 1.3  # is each epoch than the last
_POINTS = 25  # of an epoch's second half, which are averaged
_MOST_STEPS = 20_000


@dataclass(frozen=True)
class Epoch:
    """Some steps at one learning rate.

    Attributes:
        num_steps: Taken since the start of the fit.
        learning_rate: Of these steps.
        elbo: At the parameters averaged over the second half of them.
    """

    num_steps: int
    learning_rate: float
    elbo: Estimate


@dataclass
class Settled:
    """Where steps have come to.

    Attributes:
        values: The parameters with the largest ELBO, unconstrained, by name.
        elbo: There.
        epochs: Of the way, the start first.
        losses: Of each step, ``[num_steps]``.
        note: Why the steps ended early; empty if they did not.
    """

    values: dict[str, Tensor]
    elbo: Estimate
    epochs: list[Epoch]
    losses: Tensor
    note: str = ""


def settle(
    loop: EagerLoop | CompiledLoop,
    rates: tuple[float, float],
    length: int,
    seed: int,
    interrupted: Callable[[], bool] = lambda: False,
    told: Callable[[int], object] = lambda steps: None,
) -> Settled:
    """Take steps until nothing is to be gained.

    An epoch is some steps at one learning rate. Its parameters, averaged over its second half, are compared with the
    best so far by their ELBOs, on draws that take no part in the steps. Where they gain less than 0.02 nats, or less
    than the error of that, the next epoch starts at the best with a learning rate four times smaller; at the smallest
    rate the fit ends. The averages and the falling rates are those of RABVI (Welandawe et al. 2022), whose rules of
    stationarity and of stopping work in the space of the parameters, and know Gaussians alone.

    Args:
        loop: Whose steps to take; the learning rates of its optimizer are set.
        rates: The first learning rate and the smallest.
        length: Steps of the first epoch; each is longer than the last.
        seed: Of the draws that compare.
        interrupted: Whether to stop between two steps.
        told: Called with the number of steps taken.

    Raises:
        NonFiniteError: at a loss or gradient that is not finite, where no ELBO has been; likewise a ``ValueError`` or
            ``RuntimeError`` of the model's.
    """
    eager = loop.eager if isinstance(loop, CompiledLoop) else loop
    program = eager.objective.program

    def elbos(values: Values) -> Tensor:
        with randomness.seeded(seed), torch.no_grad(), program.parameters.evaluating():
            return totals(log_weights(program, values, program.data.args, _NUM_DRAWS))

    rate, least = rates
    best = _copied(loop.params)
    reached = elbos(best)
    step, losses = 0, list[Tensor]()
    found = Settled(best, mean_of(reached), [Epoch(0, rate, mean_of(reached))], torch.empty(0))
    while step < _MOST_STEPS and not interrupted():
        for group in eager.optimizer.param_groups:
            group["lr"] = rate
        length = min(length, _MOST_STEPS - step)
        points, stop = list[dict[str, Tensor]](), step + length
        spacing = max(1, length // (2 * _POINTS))
        try:
            while step < stop and not interrupted():
                losses.append(loop.run(step, min(stop, step + spacing), interrupted))
                step += len(losses[-1])
                told(len(losses[-1]))
                if 2 * (stop - step) <= length:
                    points.append(_copied(loop.params))
            if not points:
                break
            mean = {name: torch.stack([point[name] for point in points]).mean(0) for name in best}
            elbo = elbos(mean)
        except FAILURES as error:
            if not reached.isfinite().all():
                raise
            found.note = first_line(error)
            break
        found.epochs.append(Epoch(step, rate, mean_of(elbo)))
        gain = mean_of(elbo - reached)
        first_finite = bool(elbo.isfinite().all()) and not math.isfinite(gain.value)
        if gain.value > 0 or first_finite:
            best, reached = mean, elbo
        if not (gain.value > max(GAIN, gain.standard_error) or first_finite):
            if rate <= least:
                break
            rate = max(least, rate / _FALL)
            _move(loop, best)
        length = int(length * _LONGER)
    else:
        if not interrupted():
            found.note = f"stopped after {step:,} steps, before they came to rest"
    found.values, found.elbo = best, mean_of(reached)
    found.losses = torch.cat(losses) if losses else torch.empty(0)
    return found


def _copied(values: Values) -> dict[str, Tensor]:
    return {name: v.detach().clone() for name, v in values.items()}


def _move(loop: EagerLoop | CompiledLoop, values: Values) -> None:
    """Go on from other parameters."""
    with torch.no_grad():
        for name, v in loop.params.items():
            v.copy_(values[name])
