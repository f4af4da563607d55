"""What all estimators share: they are Pyro ELBOs, and pure functions once they know model and guide."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.checks import check_count
from pyro_lvm.elbo.look import look
from pyro_lvm.elbo.particles import Path, Run, draw
from pyro_lvm.elbo.structure import Structure
from pyro_lvm.modules import unchanged_buffers
from pyro_lvm.sites import RowPlate


class Estimator(ELBO):
    """A loss of variational inference: works with ``pyro.infer.SVI``, :func:`pyro_lvm.fit` and by itself.

    Enumerated sites of the model (``infer={"enumerate": "parallel"}``) are summed out.

    Args:
        num_particles: K, draws from the guide in each estimate, made all at a time.
        plate: The name of the plate of the rows, where it must be named; see :func:`pyro_lvm.fit`.

    Raises:
        ValueError: for a number of particles that is no positive integer.
    """

    path: Path = "total"
    has_cells = True

    def __init__(self, num_particles: int = 1, *, plate: str | None = None) -> None:
        super().__init__(num_particles=check_count("num_particles", num_particles), vectorize_particles=True)
        if plate is not None and not isinstance(plate, str):
            raise TypeError(f"plate must be the name of a plate; got {plate!r}")
        self.plate = plate
        self._seen: tuple[Callable, Callable, Structure] | None = None
        self._steps = 0

    def look(
        self,
        model: Callable,
        guide: Callable,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        row_plate: RowPlate | None = None,
    ) -> Structure:
        """What the estimator must know of a model and a guide, found by a few runs.

        Raises:
            ValueError: if it has no right form for them, or names another plate than that of the rows.
        """
        if row_plate is not None and self.plate not in (None, row_plate.name):
            raise ValueError(
                f"the estimator names the plate {self.plate!r}, and the rows of the data are those of "
                f"{row_plate.name!r}: name the plate in the call that takes the data, as in fit(plate={self.plate!r})"
            )
        structure = look(model, guide, args, kwargs, row_plate, self.plate, self.has_cells)
        self.check(structure)
        if self.path in ("stl", "dreg"):
            _try_path(self.path, Run(structure, model, guide, args, kwargs))
        return structure

    def check(self, structure: Structure) -> None:
        """Refuse models and guides for which the estimator has no right form.

        Raises:
            ValueError: that says why.
        """

    def check_minibatches(self, structure: Structure) -> None:
        """Refuse minibatches where they have no unbiased estimate.

        Raises:
            ValueError: that says why.
        """

    def check_start(self, run: Run) -> None:
        """Refuse parameters from which a fit could not start.

        Raises:
            ValueError: that says why.
        """

    @property
    @abstractmethod
    def target(self) -> str:
        """The name of what the loss estimates; estimators of one target can be compared with each other."""

    @property
    def unbiased(self) -> bool:
        """Whether the mean gradient is that of the target, by construction."""
        return True

    def reference(self, structure: Structure) -> Estimator:
        """An estimator with the same target and no bias, of little variance: against it the others are measured."""
        return self

    @abstractmethod
    def estimate(self, run: Run) -> Tensor:
        """The loss in nats, whose gradient is the estimator's."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats, whose gradient is the estimator's; each call is a step, where there is a schedule.

        Raises:
            ValueError: if the estimator has no right form for the model and guide.
        """
        self._steps += 1
        return self._estimate(model, guide, args, kwargs, self._steps - 1)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without its gradient."""
        with torch.no_grad():
            return float(self._estimate(model, guide, args, kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; its gradient is added to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def _estimate(
        self, model: Callable, guide: Callable, args: Sequence[Any], kwargs: dict[str, Any], step: int | None = None
    ) -> Tensor:
        if self._seen is None or self._seen[:2] != (model, guide):
            self._seen = (model, guide, self.look(model, guide, args, kwargs))
        return self.estimate(Run(self._seen[2], model, guide, args, kwargs, step))

    def __repr__(self) -> str:
        parts = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name)
            if parameter.kind is parameter.KEYWORD_ONLY and value == parameter.default:
                continue
            parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _get_trace(
        self, model: Callable, guide: Callable, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        return poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs), drawn


def value_with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """A number whose gradient is that of a surrogate."""
    return value.detach() + (surrogate - surrogate.detach())


def log_mean_exp(x: Tensor) -> Tensor:
    """log of the mean of exp over the first dimension."""
    return x.logsumexp(0) - math.log(len(x))


def _try_path(path: Path, run: Run) -> None:
    """Refuse guides with a transform that can only be run forwards, as its density at given draws asks for more.

    Raises:
        ValueError: that says so.
    """
    state = randomness.get_state()
    try:
        with torch.no_grad(), unchanged_buffers(run.model, run.guide):
            draw(run, 1, path)
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            "a gradient along the draws alone needs log q at given draws, and a transform of the guide has no inverse: "
            f"{error}"
        ) from error
    finally:
        randomness.set_state(state)


def refuse_unless_along_draws(structure: Structure, name: str, twice: bool = False) -> None:
    """Refuse models and guides whose gradient cannot follow the draws alone.

    Raises:
        ValueError: that says why.
    """
    reason = structure.why_not_along_draws(twice)
    if reason:
        raise ValueError(
            f"{name} holds the parameters in log q fixed: {reason}. Use an estimator of the total gradient"
        )
