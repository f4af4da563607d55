"""EM in a file: after every iteration, all that goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_lvm import randomness
from pyro_lvm.checkpoint import Checkpoint
from pyro_lvm.em.online import OnlineRun
from pyro_lvm.em.run import Run, Steps

STATE = ("runs", "steps", "random")  # what a checkpoint holds


class Saved:
    """The runs of a fit, and the checkpoint from which they go on.

    Args:
        checkpoint: Where to keep them; None to keep nothing.
        steps: What an iteration does.
        runs: From each start; they are put where the checkpoint says.
    """

    def __init__(self, checkpoint: Checkpoint | None, steps: Steps, runs: Sequence[Run | OnlineRun]) -> None:
        self.checkpoint, self.steps, self.runs = checkpoint, steps, runs
        if checkpoint is None:
            return
        if checkpoint.state is None:
            self.save()
            return
        steps.restore(checkpoint.state["steps"])
        for run, state in zip(runs, checkpoint.state["runs"], strict=True):
            run.restore(state)
        randomness.set_state(checkpoint.state["random"])

    def save(self) -> None:
        """Replace what the file holds."""
        if self.checkpoint is not None:
            state: dict[str, Any] = {"steps": self.steps.state(), "runs": [run.state() for run in self.runs]}
            self.checkpoint.save(state | {"random": randomness.get_state()})
