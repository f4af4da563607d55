"""The result of expectation maximisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_lvm import files, randomness
from pyro_lvm.data import Data, arguments_of
from pyro_lvm.elbo.contraction import responsibilities
from pyro_lvm.em.gaussian_guide import GaussianPosterior
from pyro_lvm.em.program import POINT, EMProgram, complete, own_program
from pyro_lvm.em.run import Refilled
from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.result import Draws, Result
from pyro_lvm.svi.result import restored


class EMResult(Result):
    """A model fitted by :func:`pyro_lvm.fit_em`.

    Attributes:
        objective: What was maximised, in nats, at the start and after each iteration, ``[num_iter + 1]``; of
            online EM, of each pass, ``[num_iter]``.
        objective_name: What that is, such as "log-likelihood", "log-posterior" or "ELBO".
        num_iter: Iterations taken.
        restarts: The objective that each start has reached, ``[num_restarts]``.
        restart_params: The parameters that each has reached, ``[num_restarts, ...]`` by name, components in the order
            of the best start's where the model says how parameters belong to them.
        refilled: Components to which no row belonged, and that got rows: each with the number of the iteration in which
            a new segment of the objective begins.
    """

    def __init__(
        self,
        program: Program,
        values: Values,
        em: EMProgram | None,
        *,
        objective: Tensor,
        objective_name: str,
        latents: dict[str, str],
        rules: dict[str, str],
        own_steps: bool,
        asked: list[str] | None,
        num_iter: int,
        restarts: Tensor,
        restart_params: Values,
        refilled: list[Refilled],
        missing: bool,
        options: dict[str, Any],
        seconds: float,
        converged: bool,
        seed: int,
    ) -> None:
        self.objective, self.objective_name, self.restarts = objective, objective_name, restarts
        self._missing, self._own_steps, self._asked = missing, own_steps, asked
        self._em, self._options = em, options
        self.num_iter = num_iter
        self._latents_by, self._rules = latents, rules
        super().__init__(program, values, num_steps=self.num_iter, seconds=seconds, converged=converged, seed=seed)
        self.params = {name.removeprefix(POINT): value for name, value in self.params.items()}
        self.restart_params = {name.removeprefix(POINT): value for name, value in restart_params.items()}
        self.refilled = refilled

    def _arguments(self, given: tuple[Any, ...], needs_rows: bool = True) -> tuple[Any, ...]:
        if self._missing and not given and needs_rows:
            raise ValueError(
                "the fitted rows have missing entries: pass complete rows, or ask the model, by impute(x) and "
                "observed_log_prob(x)"
            )
        return super()._arguments(given, needs_rows)

    def _responsibilities(self, args: tuple[Any, ...], num_draws: int) -> Draws:
        guide, kwargs = self._program.guide, self._program.model_kwargs
        if not isinstance(guide, GaussianPosterior):
            return super()._responsibilities(args, num_draws)

        def exact() -> Draws:
            return responsibilities(guide.integrated(guide.latents.moments(*args, **kwargs), args, kwargs))

        return self._program.call(self._values, exact)

    def summary(self) -> str:
        """How each latent was dealt with, and which rule each parameter followed."""
        rows = [("latent", name, how) for name, how in self._latents_by.items()]
        rows += [("parameter", name.removeprefix(POINT), rule) for name, rule in self._rules.items()]
        rows += [("component", str(k), f"was empty and got rows in iteration {i}") for i, k in self.refilled]
        widths = [max(len(row[i]) for row in rows) for i in range(2)] if rows else [0, 0]
        return "\n".join(f"{kind:<{widths[0]}}  {name:<{widths[1]}}  {how}" for kind, name, how in rows)

    def __str__(self) -> str:
        state = "converged" if self.converged else "not converged: more iterations would help"
        return "\n".join(
            [
                f"{self.num_iter:,} iterations of EM in {self.seconds:.1f} s, {state}",
                f"{self.objective_name} {self.objective[-1]:.4f} nats",
                self.summary(),
            ]
        )

    __repr__ = __str__

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "objective": self.objective,
            "objective_name": self.objective_name,
            "restarts": self.restarts,
            "restart_params": {name: v.detach() for name, v in self.restart_params.items()},
            "refilled": [tuple(event) for event in self.refilled],
            "guided": self._program.has_guide,
            "num_iter": self.num_iter,
            "missing": self._missing,
            "latents": self._latents_by,
            "rules": self._rules,
            "own_steps": self._own_steps,
            "asked": self._asked,
            "options": self._options,
        }


def load(
    path: files.FilePath,
    model: Callable,
    guide: Any,
    *data: Any,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> EMResult:
    """Read a result of :func:`pyro_lvm.fit_em`; see :func:`pyro_lvm.load`."""
    names = ["objective", "objective_name", "restarts", "restart_params", "refilled", "num_iter", "missing", "latents"]
    names += ["rules", "own_steps", "asked", "options", "seconds", "converged", "seed"]
    state = files.read(path, "result", ["data", "params", "guided", *names])
    if guide is not None and not state["guided"]:
        raise ValueError(f"{str(path)!r} holds a fit by EM without a guide: pass None")
    with randomness.seeded(state["seed"]):
        held = complete(Data(arguments_of(model, data), rows, missing=state["missing"]), rows)
        if state["own_steps"]:
            em, program = None, own_program(model, held, model_kwargs, plate)
        else:
            default = getattr(getattr(model, "__self__", model), "guide", None) if state["guided"] else None
            em = EMProgram(
                model,
                held,
                latents=state["asked"],
                model_kwargs=model_kwargs,
                plate=plate,
                guide=guide,
                default_guide=default,
            )
            program = em.program
    state["refilled"] = [Refilled(*event) for event in state["refilled"]]
    return EMResult(program, restored(program, state, path), em, **{name: state[name] for name in names})
