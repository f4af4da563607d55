"""The eager training loop: one block of steps at a time, with a state that a checkpoint can carry."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.batches import Batch, Batches
from pyro_lvm.modules import unchanged_buffers
from pyro_lvm.svi.nonfinite import NonFiniteError, blame
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.optimizers import make_clipping, make_optimizer, make_scheduler


class EagerLoop:
    """Steps of a torch optimizer on the objective.

    Args:
        objective: The loss.
        params: Starting values, unconstrained, by name; they are changed in place.
        batches: Where each step's batch comes from.
        num_rows: N, by which minibatches are scaled.
        optim: See :func:`pyro_lvm.fit`.
        scheduler: See :func:`pyro_lvm.fit`.
        clip: See :func:`pyro_lvm.fit`.
    """

    compiled = False

    def __init__(
        self,
        objective: Objective,
        params: dict[str, Tensor],
        batches: Batches,
        num_rows: int | None,
        optim: Any,
        scheduler: Any,
        clip: float | None,
    ) -> None:
        self.objective, self.batches, self.num_rows = objective, batches, num_rows
        self.params = {name: v.requires_grad_() for name, v in params.items()}
        self.good = {name: v.detach().clone() for name, v in params.items()}
        self.clip = make_clipping(clip, optim)
        self.clips_values = isinstance(optim, PyroOptim) and "clip_value" in optim.pt_clip_args
        self.optimizer = make_optimizer(optim, self.params)
        self.scheduler = make_scheduler(scheduler, self.optimizer)

    def run(self, start: int, stop: int, interrupted: Callable[[], bool]) -> Tensor:
        """Steps ``start`` to ``stop``; fewer if ``interrupted`` says so between two of them.

        Returns:
            The loss of each step taken, in nats, ``[n]``.

        Raises:
            NonFiniteError: at the first loss or gradient that is not finite, before it touches the parameters.
        """
        losses = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered (NaN|[+-]inf)", UserWarning)  # the error says more
            for step in range(start, stop):
                losses.append(self._step(step))
                if interrupted():
                    break
        return torch.tensor(losses, dtype=torch.float64)

    def _step(self, step: int) -> float:
        args, weight = self.batches.get(step)
        random_state = randomness.get_state()
        leaves = list(self.params.values())

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.objective(self.params, args, self.num_rows, weight, step)
            loss.backward()
            if not torch.isfinite(loss.detach() + self.clip(leaves)):
                raise FloatingPointError(f"the loss is {loss.item()}")
            with torch.no_grad():
                for name, v in self.params.items():
                    self.good[name].copy_(v)
            return loss.detach()

        with self._explained(step, args, random_state):
            loss = self.optimizer.step(closure)  # type: ignore[arg-type]
        if self.scheduler is not None:
            self.scheduler.step()
        return float(loss)

    @contextmanager
    def _explained(self, step: int, args: tuple[Any, ...], random_state: Any) -> Iterator[None]:
        """What goes wrong with a loss is told with its step and site."""
        try:
            yield
        except (FloatingPointError, ValueError) as error:
            program = self.objective.program
            randomness.set_state(random_state)
            site, reason = blame(program, self.params, args)
            if site is None and isinstance(error, ValueError):
                raise
            raise NonFiniteError(step, site, reason, program.parameters.constrained(self.good)) from error

    def finish(self, stop: int) -> None:
        """All steps to ``stop`` are taken; Pyro has checked them one by one."""

    def check(self, step: int, batch: Batch) -> None:
        """Raise what Pyro's checks find in the loss of a batch, and change nothing."""
        args, weight = batch
        program, state = self.objective.program, randomness.get_state()
        with unchanged_buffers(program.model, program.guide), self._explained(step, args, state):
            self.objective(self.params, args, self.num_rows, weight, step)
        randomness.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """Everything on which the next step depends."""
        return {
            "params": {name: v.detach() for name, v in self.params.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "batches": self.batches.state_dict(),
            "untrained": self.objective.program.parameters.untrained(),
            "random": randomness.get_state(),
            "compiled": False,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        with torch.no_grad():
            for name, v in self.params.items():
                v.copy_(state["params"][name])
                self.good[name].copy_(v)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.batches.load_state_dict(state["batches"])
        self.objective.program.parameters.write_untrained(state["untrained"])
        randomness.set_state(state["random"])
