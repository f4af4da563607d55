"""Whether a fit has come to rest, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from pyro.distributions.constraints import softplus_lower_cholesky
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm import plots
from pyro_lvm.em.result import EMResult
from pyro_lvm.importance import Estimate, log_weights, mean_of, totals
from pyro_lvm.params import without_events
from pyro_lvm.result import Result
from pyro_lvm.svi.climb import Climb
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.stopping import FEWEST, improvement
from pyro_lvm.verdict.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_DRAWS = 500
_NATS = 0.1  # that matter
_FEWEST_POINTS = 8
_AT_BOUND = 1e-8
_ROOTS = (constraints.lower_cholesky, softplus_lower_cholesky)  # whose diagonal is positive
_LR = "a smaller learning rate, a schedule that lets it fall, or more particles"
_STEPS = "more steps"


@dataclass(frozen=True)
class Optimisation:
    """How the steps of :func:`pyro_lvm.fit` ended.

    Attributes:
        improvement: By how much the loss fell from the third to the last quarter of the steps, in nats.
        drift: The ELBO at the parameters averaged over the last quarter, less that at the quarter before, on the same
            draws; None where the path of the parameters is too short, or has not all of them.
        jitter: The ELBO at the parameters averaged over the last quarter, less that at the last ones; None as above.
        names: Of the parameters' coordinates, P of them.
        rhat: Split R-hat of each coordinate over the second half of the path, ``[P]``.
        at_bound: Parameters with elements at the bound of their constraint, and how many.
        losses: Of each step, ``[num_steps]``.
        unit: Of the loss.
        restarts: What each start has reached, as minus the loss at its end, ``[num_restarts]``.
    """

    improvement: Estimate
    drift: Estimate | None
    jitter: Estimate | None
    names: tuple[str, ...]
    rhat: Tensor
    at_bound: dict[str, int]
    losses: Tensor = field(repr=False, compare=False)
    unit: str
    restarts: Tensor

    def findings(self) -> list[Finding]:
        """Whether it has levelled off, whether it stays, and what has run into a bound."""
        if len(self.losses) < FEWEST:
            text = f"{len(self.losses)} steps: too few to tell of a trend"
            found = [Finding("optimisation", "unknown", text, _STEPS)]
        else:
            found = [self._level()]
        if self.drift is not None:
            found.append(self._stationarity(self.drift))
        if self.jitter is not None and self.jitter.value > max(_NATS, 2 * self.jitter.standard_error):
            text = (
                f"averaged over the last quarter, the parameters are better by {_told(self.jitter)} than the last ones"
            )
            found.append(Finding("learning rate", "doubtful", f"{text}: it is too large", _LR))
        found += _restarts(self.restarts)
        return found + _bounds(self.at_bound, "another start, or a prior that keeps it away")

    def plot(self, ax: Axes | None = None) -> Axes:
        """The losses."""
        return plots.losses(self.losses, ax=ax)

    def _level(self) -> Finding:
        gain, error = self.improvement
        text = f"the loss fell by {gain:.3g} +- {error:.2g}{self.unit} from the third to the last quarter of the steps"
        if gain <= max(_NATS, error):
            return Finding("optimisation", "good", f"{text}: it has levelled off")
        return Finding("optimisation", "doubtful", f"{text}: it was still falling", _STEPS)

    def _stationarity(self, drift: Estimate) -> Finding:
        text = f"from one quarter of the path to the next, averaged parameters gained {_told(drift)}"
        if len(self.rhat):
            worst = int(self.rhat.argmax())
            text += f"; the largest split R-hat is {self.rhat[worst]:.2f}, of {self.names[worst]}"
        if drift.value <= max(_NATS, 2 * drift.standard_error):
            return Finding("stationarity", "good", text)
        return Finding("stationarity", "doubtful", text, f"{_STEPS}, or a larger learning rate at first")


@dataclass(frozen=True)
class Iterations:
    """How the iterations of :func:`pyro_lvm.fit_em` ended.

    Attributes:
        converged: Whether the objective had levelled off.
        objective: At the start and after each iteration, in nats, ``[num_iter + 1]``.
        restarts: What each start has reached, in nats, ``[num_restarts]``.
        at_bound: Parameters with elements at the bound of their constraint, and how many.
    """

    converged: bool
    objective: Tensor = field(repr=False, compare=False)
    restarts: Tensor
    at_bound: dict[str, int]

    def findings(self) -> list[Finding]:
        """Whether it has converged, and whether other starts came to the same."""
        text = (
            f"EM {'converged' if self.converged else 'had not converged'} after {len(self.objective) - 1:,} iterations"
        )
        grade, advice = ("good", "") if self.converged else ("doubtful", "a larger max_iter")
        found = [Finding("optimisation", grade, text, advice)]
        found += _restarts(self.restarts)
        return found + _bounds(self.at_bound, "fewer components, or a prior")

    def plot(self, ax: Axes | None = None) -> Axes:
        """The objective."""
        steps = range(len(self.objective))
        return plots.curves({"objective": (steps, self.objective)}, "iteration", "objective (nats)", ax=ax)


def _restarts(restarts: Tensor) -> list[Finding]:
    if len(restarts) < 2:
        return []
    below = restarts.max() - restarts
    same = int((below <= _NATS).sum())
    text = f"{same} of {len(below)} starts came within {_NATS} nats of the best, the worst {below.max():.3g} below"
    grade, advice = ("good", "") if same > 1 else ("doubtful", "more starts: num_restarts=")
    return [Finding("restarts", grade, text, advice)]


def _bounds(at_bound: dict[str, int], advice: str) -> list[Finding]:
    texts = [f"{count} elements of {name!r} are at the bound of their constraint" for name, count in at_bound.items()]
    return [Finding("bounds", "doubtful", text, advice) for text in texts]


def examine(result: Result) -> Optimisation | Iterations | Climb:
    """Look back on a fit."""
    if isinstance(result, EMResult):
        return Iterations(result.converged, result.objective, result.restarts, _at_bound(result))
    assert isinstance(result, SVIResult)
    if result.climb is not None:
        return result.climb
    path, drift, jitter, rhat = result.path, None, None, torch.empty(0)
    tail = path.tail
    if len(tail) >= _FEWEST_POINTS:
        rhat = split_rhat(tail)
        if path.complete:
            half = len(tail) // 2
            before, after = (_elbos(result, path.unflattened(part.mean(0))) for part in (tail[:half], tail[half:]))
            drift, jitter = mean_of(after - before), mean_of(after - _elbos(result, result._values))
    gain = Estimate(*improvement(result.losses)) if result.num_steps >= FEWEST else Estimate(torch.nan, torch.nan)
    unit = "" if "chi-square" in result.target else " nats"
    at_bound, names = _at_bound(result), tuple(path.names)
    return Optimisation(gain, drift, jitter, names, rhat, at_bound, result.losses, unit, result.restarts)


def split_rhat(points: Tensor) -> Tensor:
    """R-hat of the two halves of one path (Gelman et al. 2013, equation 11.4), ``[T, P]`` to ``[P]``.

    It is 1 for a coordinate that stands still, and infinite for one whose halves stand still at different places.
    """
    half = len(points) // 2
    halves = torch.stack([points[:half], points[-half:]]).double()
    within, between = halves.var(1).mean(0), half * halves.mean(1).var(0)
    rhat = (((half - 1) / half * within + between / half) / within).sqrt()
    return torch.where((within == 0) & (between == 0), 1.0, rhat)


def _elbos(result: SVIResult, values: dict[str, Tensor]) -> Tensor:
    """Log-weights at some parameters, the same draws for all, ``[S]``."""
    program = result._program
    values = {name: values.get(name, v).to(v) for name, v in result._values.items()}
    with result._quiet(None):
        return totals(log_weights(program, values, result._arguments(()), _NUM_DRAWS))


def _told(gain: Estimate) -> str:
    return f"{gain.value:+.2g} +- {gain.standard_error:.1g} nats"


def _at_bound(result: Result) -> dict[str, int]:
    parameters = result._program.parameters
    rooms = {n: _room(v, parameters.constraints[n]) for n, v in parameters.constrained(result._values).items()}
    counts = {name: int((room < _AT_BOUND).sum()) for name, room in rooms.items() if room is not None}
    return {name: count for name, count in counts.items() if count}


def _room(value: Tensor, constraint: constraints.Constraint) -> Tensor | None:
    """How far numbers are from the bound of their constraint; None where there is none.

    The unit is the width of the constraint, or the largest distance in the same parameter, if it has several.
    """
    constraint = without_events(constraint)
    lower, upper = (getattr(constraint, name, None) for name in ("lower_bound", "upper_bound"))
    if constraint is constraints.simplex:
        return value
    if lower is not None and upper is not None:
        return torch.minimum(value - lower, upper - value) / (upper - lower)
    if constraint in _ROOTS:
        room = value.diagonal(dim1=-2, dim2=-1)
    elif lower is not None:
        room = value - lower
    elif upper is not None:
        room = upper - value
    else:
        return None
    return room / room.max().clamp(min=torch.finfo(room.dtype).tiny) if room.numel() > 1 else room
