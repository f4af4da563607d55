"""The result of expectation maximisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_lvm import files, randomness
from pyro_lvm.data import Data
from pyro_lvm.em.program import POINT, complete, make_program
from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.result import Result
from pyro_lvm.svi.result import restored


class EMResult(Result):
    """A model fitted by :func:`pyro_lvm.fit_em`.

    Attributes:
        objective: What was maximised, in nats, at the start and after each iteration, ``[num_iter + 1]``; of
            online EM, of each pass, ``[num_iter]``.
        objective_name: What that is, such as "log-likelihood", "log-posterior" or "ELBO".
        num_iter: Iterations taken.
        restarts: The objective that each start has reached, ``[num_restarts]``.
    """

    def __init__(
        self,
        program: Program,
        values: Values,
        *,
        objective: Tensor,
        objective_name: str,
        latents: dict[str, str],
        rules: dict[str, str],
        own_steps: bool,
        asked: list[str] | None,
        num_iter: int,
        restarts: Tensor,
        missing: bool,
        seconds: float,
        converged: bool,
        seed: int,
    ) -> None:
        self.objective, self.objective_name, self.restarts = objective, objective_name, restarts
        self._missing, self._own_steps, self._asked = missing, own_steps, asked
        self.num_iter = num_iter
        self._latents_by, self._rules = latents, rules
        super().__init__(program, values, num_steps=self.num_iter, seconds=seconds, converged=converged, seed=seed)
        self.params = {name.removeprefix(POINT): value for name, value in self.params.items()}

    def _arguments(self, given: tuple[Any, ...], needs_rows: bool = True) -> tuple[Any, ...]:
        if self._missing and not given and needs_rows:
            raise ValueError(
                "the fitted rows have missing entries: pass complete rows, or ask the model, by impute(x) and "
                "observed_log_prob(x)"
            )
        return super()._arguments(given, needs_rows)

    def summary(self) -> str:
        """How each latent was dealt with, and which rule each parameter followed."""
        rows = [("latent", name, how) for name, how in self._latents_by.items()]
        rows += [("parameter", name.removeprefix(POINT), rule) for name, rule in self._rules.items()]
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
            "num_iter": self.num_iter,
            "missing": self._missing,
            "latents": self._latents_by,
            "rules": self._rules,
            "own_steps": self._own_steps,
            "asked": self._asked,
        }


def load(
    path: files.FilePath,
    model: Callable,
    *data: Any,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> EMResult:
    """Read a result of :func:`pyro_lvm.fit_em`; see :func:`pyro_lvm.load`."""
    names = ["objective", "objective_name", "restarts", "num_iter", "missing", "latents", "rules", "own_steps", "asked"]
    names += ["seconds", "converged", "seed"]
    state = files.read(path, "result", ["data", "params", *names])
    with randomness.seeded(state["seed"]):
        held = complete(Data(data, rows, missing=state["missing"]), rows)
        program = make_program(model, held, state["own_steps"], state["asked"], model_kwargs, plate)[1]
    return EMResult(program, restored(program, state, path), **{name: state[name] for name in names})
