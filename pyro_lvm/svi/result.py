"""The result of stochastic variational inference, and how to read a saved one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import files, randomness
from pyro_lvm.data import Data, arguments_of, fingerprint
from pyro_lvm.guides import FlowGuide, guided
from pyro_lvm.modules import awaits_start
from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.result import Result
from pyro_lvm.svi.climb import Climb
from pyro_lvm.svi.path import ParameterPath
from pyro_lvm.svi.rungs import Bent
from pyro_lvm.svi.stopping import FEWEST, StopWhenFlat


class SVIResult(Result):
    """A model and guide fitted by :func:`pyro_lvm.fit`.

    Attributes:
        losses: The loss of each step, in nats, ``[num_steps]``: the negative ELBO, unless ``elbo=`` was something else.
        target: What the loss is minus an estimate of, such as "ELBO" or "IWAE-5".
        path: Unconstrained parameters at some of the steps.
        validation: Held-out losses by step, in nats.
        compiled: Whether the steps ran as one compiled program.
        climb: The guides that "auto" tried; None of a guide that the user chose.
        restarts: What each start has reached, as minus the loss at its end, ``[num_restarts]``; minus infinity where a
            loss was not finite.
    """

    climb: Climb | None = None
    restarts: Tensor

    def __init__(
        self,
        program: Program,
        values: Values,
        *,
        losses: Tensor,
        target: str,
        path: ParameterPath,
        validation: dict[int, float],
        seconds: float,
        seed: int,
        compiled: bool = False,
    ) -> None:
        self.losses, self.target, self.path = losses, target, path
        self.validation, self.compiled = validation, compiled
        self.restarts = torch.tensor([-self.final_loss], dtype=torch.float64)
        converged = StopWhenFlat(min_steps=FEWEST).is_flat(losses)
        super().__init__(program, values, num_steps=len(losses), seconds=seconds, converged=converged, seed=seed)

    @property
    def resamples(self) -> bool:
        """Whether draws are resampled towards the posterior, as those of "auto" are where their weights allow it."""
        return self.climb is not None and self.climb.resamples

    @property
    def final_loss(self) -> float:
        """The mean of the last steps' losses."""
        return self._tail.mean().item()

    @property
    def _tail(self) -> Tensor:
        return self.losses[-max(1, min(100, len(self.losses) // 10)) :]

    def __str__(self) -> str:
        state = "levelled off" if self.converged else "still falling: more steps would help"
        if self.num_steps < FEWEST:
            state = "too few steps to tell whether it has levelled off"
        unit = "" if "chi-square" in self.target else " nats"
        lines = [
            f"{self.num_steps:,} steps in {self.seconds:.1f} s with {self._guide_name()}",
            f"{self.target} {-self.final_loss:.2f}{unit} (mean of the last {len(self._tail)} steps), {state}",
        ]
        lines += [f"  {step}" for step in self.climb.steps] if self.climb is not None else []
        width = max(map(len, self.params), default=0)
        for name, value in self.params.items():
            shape = "x".join(map(str, value.shape)) or "number"
            flat = value.flatten()
            shown = " ".join(f"{v:.4g}" for v in flat[:6].tolist()) + (" ..." if len(flat) > 6 else "")
            lines.append(f"  {name:<{width}}  {shape:>9}  {shown}")
        return "\n".join(lines)

    __repr__ = __str__

    def _guide_name(self) -> str:
        guide = self._program.guide
        if not self._program.has_guide:
            return "no guide, every latent enumerated"
        if getattr(guide, "__self__", None) is self._program.model:
            return "the model's own guide"
        return f"guide {getattr(guide, '__name__', type(guide).__name__)}"

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "losses": self.losses,
            "target": self.target,
            "path": self.path.state_dict(),
            "validation": self.validation,
            "compiled": self.compiled,
            "restarts": self.restarts,
            "climb": None if self.climb is None else self.climb.state_dict(),
        }

    @classmethod
    def _from_state(cls, program: Program, state: dict[str, Any]) -> SVIResult:
        names = ("losses", "target", "validation", "seconds", "seed", "compiled")
        path = ParameterPath.of_state(state["path"])
        result = cls(program, state["params"], path=path, **{name: state[name] for name in names})
        result.restarts = state["restarts"]
        result.climb = None if state["climb"] is None else Climb.of_state(state["climb"])
        return result


def load(
    path: files.FilePath,
    model: Callable,
    guide: Any,
    *data: Any,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> SVIResult:
    """Read a result of :func:`pyro_lvm.fit`; see :func:`pyro_lvm.load`."""
    state = files.read(
        path,
        "result",
        [
            "data",
            "params",
            "losses",
            "target",
            "path",
            "validation",
            "seconds",
            "seed",
            "compiled",
            "restarts",
            "climb",
        ],
    )
    with randomness.seeded(state["seed"]):
        held = Data(arguments_of(model, data), rows)
        if isinstance(guide, str) and guide == "auto":
            guide = _climbed_to(
                state["climb"], path, model, Program(model, "mean_field", held, None, model_kwargs, plate)
            )
        program = Program(model, guide, held, None, model_kwargs, plate)
    return SVIResult._from_state(program, state | {"params": restored(program, state, path)})


def _climbed_to(climb: Mapping[str, Any] | None, path: files.FilePath, model: Callable, look: Program) -> Any:
    """The guide that a climb has taken."""
    if climb is None:
        raise ValueError(
            f"{str(path)!r} holds a fit of a guide that was chosen: pass that guide in the place of 'auto'"
        )
    return Bent().guide(guided(model, look.sites)) if climb["guide"] == Bent.name else climb["guide"]


def restored(program: Program, state: Mapping[str, Any], path: files.FilePath) -> dict[str, Tensor]:
    """The parameters of a saved result, which the user's modules hold then, too.

    Raises:
        ValueError: if the result is one of other data, or its parameters are not those of the program.
    """
    if state["data"] not in (None, fingerprint(program.data.args)):
        raise ValueError(
            f"{str(path)!r} holds a fit to other data: load it with the data of the fit, and give new rows to score, "
            "predict or posterior"
        )
    parameters = program.parameters
    here = parameters.start() | parameters.untrained()
    expected = {name: tuple(v.shape) for name, v in here.items()}
    found = {name: tuple(v.shape) for name, v in state["params"].items()}
    if expected != found:
        raise ValueError(f"{str(path)!r} holds parameters {found}, but this model and guide have {expected}")
    values = {name: v.to(here[name].device) for name, v in state["params"].items()}
    program.weighted = bool(state.get("weighted"))
    parameters.write(values)
    parameters.write_untrained({path: values[path] for path in parameters.untrained()})
    if (owner := awaits_start(program.model)) is not None:
        owner.initialized = True
    if isinstance(program.guide, FlowGuide):
        program.guide.fitted = True
    return values
