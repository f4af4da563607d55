"""What the climb of "auto" has found on its way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyro_lvm import plots
from pyro_lvm.importance import Estimate
from pyro_lvm.svi.settle import GAIN, Epoch
from pyro_lvm.verdict.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NOWHERE = Estimate(math.nan, math.nan)
_MOST_ELSEWHERE = 0.05  # of a posterior's mass, from which on a fit of one mode is in doubt


@dataclass(frozen=True)
class Step:
    """One guide of a climb.

    Attributes:
        guide: Its name.
        verdict: "good", "doubtful", "bad", "unknown"; "not available", where rows or sites are weighted; "start" of a
            Laplace approximation, which is not judged; "failed" or "skipped", for which ``note`` gives the reason.
        khat: The Pareto k of its importance weights; NaN if it was not judged.
        elbo: Where it came to; NaN if it came nowhere.
        num_steps: Optimisation steps; Newton steps of a Laplace approximation's starts.
        num_particles: Draws in each step; 0 where there were none.
        seconds: All that it took.
        note: What else is to be said.
        epochs: Of its way.
    """

    guide: str
    verdict: str
    khat: float = math.nan
    elbo: Estimate = _NOWHERE
    num_steps: int = 0
    num_particles: int = 0
    seconds: float = 0.0
    note: str = ""
    epochs: tuple[Epoch, ...] = field(default=(), repr=False)

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers and strings."""
        epochs = [(epoch.num_steps, epoch.learning_rate, *epoch.elbo) for epoch in self.epochs]
        return {**vars(self), "elbo": tuple(self.elbo), "epochs": epochs}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Step:
        """A step that was saved."""
        epochs = tuple(Epoch(steps, rate, Estimate(*elbo)) for steps, rate, *elbo in state["epochs"])
        return cls(**{**state, "elbo": Estimate(*state["elbo"]), "epochs": epochs})

    def __str__(self) -> str:
        parts = [f"{self.guide}: {self.verdict}"]
        if self.epochs:
            parts += [] if math.isnan(self.khat) else [f"k-hat {self.khat:.2f}"]
            parts.append(f"ELBO {self.elbo}")
            parts.append(f"{self.num_steps:,} steps of {self.num_particles} particles")
        if self.seconds:
            parts.append(f"{self.seconds:.1f} s")
        return ", ".join(parts) + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Climb:
    """The guides that "auto" has tried, from the first to the last.

    Attributes:
        steps: One for each guide.
        guide: The name of the one that was taken.
        resamples: Whether its draws are resampled by their importance weights.
        other_modes: The share that Laplace approximations give to modes of the posterior that were seen and not taken;
            NaN of a model with parameters, for which the modes are those of the start.
    """

    steps: tuple[Step, ...]
    guide: str
    resamples: bool
    other_modes: float

    @property
    def taken(self) -> Step:
        """Of the guide that was taken."""
        return next(step for step in self.steps if step.guide == self.guide)

    @property
    def misses_modes(self) -> bool:
        """Whether a part of the posterior that matters is known to be elsewhere."""
        return self.other_modes > _MOST_ELSEWHERE

    def findings(self) -> list[Finding]:
        """How the climb went."""
        found = [Finding("climb", "good" if self.taken.verdict == "good" else "doubtful", str(self))]
        if self.misses_modes:
            text = f"Laplace approximations give {self.other_modes:.0%} of the posterior to modes that were not taken"
            advice = "an order of the components, if they are permutations of each other; MCMC else"
            found.append(Finding("modes", "doubtful", text, advice))
        return found

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps))

    def plot(self, ax: Axes | None = None) -> Axes:
        """How far below the largest ELBO of all each guide is along its steps; linear up to the gain that matters."""
        reached = [epoch.elbo.value for step in self.steps for epoch in step.epochs]
        largest = max(filter(math.isfinite, reached), default=math.nan)
        curves, done = {}, 0
        for step in self.steps:
            if step.epochs:
                places = [done + epoch.num_steps for epoch in step.epochs]
                below = [largest - epoch.elbo.value for epoch in step.epochs]
                curves[f"{step.guide}: {step.verdict}, {step.seconds:.0f} s"] = places, below
                done = places[-1]
        ax = plots.curves(curves, "steps", "below the largest ELBO (nats)", ax=ax)
        ax.set_yscale("symlog", linthresh=GAIN)
        ax.set_ylim(bottom=0.0)
        return ax

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers and strings."""
        return {**vars(self), "steps": [step.state_dict() for step in self.steps]}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Climb:
        """A climb that was saved."""
        return cls(**{**state, "steps": tuple(map(Step.of_state, state["steps"]))})
