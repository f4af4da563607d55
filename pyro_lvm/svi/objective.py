"""The loss of stochastic variational inference as a pure function of parameters and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    TraceTailAdaptive_ELBO,
)
from pyro.poutine.runtime import effectful
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.checks import check_count, check_model, check_seed
from pyro_lvm.data import Data, check_num_rows, check_weight
from pyro_lvm.elbo.estimator import Estimator
from pyro_lvm.elbo.particles import Run
from pyro_lvm.elbo.structure import refuse_tied_rows
from pyro_lvm.modules import awaits_start, unchanged_buffers, unchanged_if_it_fails
from pyro_lvm.params import Values
from pyro_lvm.program import Program
from pyro_lvm.sites import median_or_feasible
from pyro_lvm.svi.resolve import check_elbo, resolve_elbo


class Objective:
    """The negative ELBO of a model and a guide: ``objective(params, batch, num_rows) -> loss``.

    :func:`pyro_lvm.fit` is a loop around it; so is any training loop of your own.

    Args:
        model: A Pyro model.
        guide: A callable, an AutoGuide, "mean_field", "full_rank", "low_rank", "flow", "map", or None.
        elbo: A ``pyro.infer.ELBO``, of :mod:`pyro_lvm.elbo` or Pyro's own; the ELBO, enumerated sites summed out, if
            None.
        plate: The name of the row plate, where it must be named.
        model_kwargs: Keyword arguments of model and guide.
        init_loc_fn: Where a guide by name starts, as for Pyro's guides.

    Raises:
        TypeError: if ``elbo`` is no ``pyro.infer.ELBO``.
        ValueError: for an ELBO that keeps parameters of its own (the jitted ones).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> objective = lvm.Objective(model, "mean_field")
        >>> params = objective.init(y)
        >>> optimizer = torch.optim.Adam(params.values(), lr=0.1)
        >>> for batch in [y[:2], y[2:]] * 100:
        ...     optimizer.zero_grad()
        ...     objective(params, batch, num_rows=4).backward()
        ...     optimizer.step()
        >>> 1 < params["AutoNormal.locs.mean"].item() < 4
        True
    """

    def __init__(
        self,
        model: Callable,
        guide: Any = None,
        elbo: ELBO | None = None,
        *,
        plate: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        init_loc_fn: Callable = median_or_feasible,
    ) -> None:
        if elbo is not None:
            check_elbo(elbo)
        if isinstance(elbo, JitTrace_ELBO | JitTraceEnum_ELBO | JitTraceMeanField_ELBO):
            raise ValueError(f"{type(elbo).__name__} reads Pyro's global parameters; pass its counterpart without Jit")
        if isinstance(elbo, TraceTailAdaptive_ELBO):
            raise ValueError("TraceTailAdaptive_ELBO computes no loss that a fit could follow; take another ELBO")
        check_model(model, model_kwargs, plate)
        self.model, self.given_guide, self.given_elbo = model, guide, elbo
        self.plate, self.model_kwargs, self.init_loc_fn = plate, model_kwargs, init_loc_fn
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """Model and guide made ready.

        Raises:
            RuntimeError: before ``init`` has shown the objective its data.
        """
        if self._program is None:
            raise RuntimeError("the objective has not seen data yet: call objective.init(*data) first")
        return self._program

    @property
    def target(self) -> str:
        """What the loss is minus an estimate of, such as "ELBO" or "IWAE-5"."""
        if isinstance(self.elbo, Estimator):
            return self.elbo.target
        if isinstance(self.elbo, RenyiELBO):
            return f"RenyiELBO {self.elbo.alpha:g}, K = {self.elbo.num_particles}"
        return "ReweightedWakeSleep" if isinstance(self.elbo, ReweightedWakeSleep) else "ELBO"

    def init(self, *data: Any, seed: int = 0) -> dict[str, Tensor]:
        """Run model and guide once on ``data`` and return their parameters.

        Returns:
            Unconstrained starting values by name, as leaf tensors that require gradients.
        """
        seed = check_seed(seed)
        with randomness.seeded(seed), unchanged_if_it_fails(self.model, self.given_guide):
            self.prepare(Data(data))
        return {name: v.requires_grad_() for name, v in self.program.parameters.start().items()}

    def prepare(self, data: Data, example: tuple[Any, ...] | None = None, weighted: bool = False) -> None:
        """Make model and guide ready on data; ``weighted`` says whether rows will have weights."""
        if (owner := awaits_start(self.model)) is not None:
            owner.initialize(*data.args, **(self.model_kwargs or {}))
        start = self.init_loc_fn
        program = Program(self.model, self.given_guide, data, example, self.model_kwargs, self.plate, start)
        if not program.parameters.constraints:
            raise ValueError("the model and the guide have no trainable parameters, so that there is nothing to fit")
        self._take(program, weighted)

    def with_elbo(self, elbo: ELBO) -> Objective:
        """The same model and guide, as they were made ready, with another estimator.

        Raises:
            TypeError: if ``elbo`` is no ``pyro.infer.ELBO``.
            ValueError: for an estimator that has no right form for them.
        """
        other = Objective(self.model, self.given_guide, elbo, plate=self.plate, model_kwargs=self.model_kwargs)
        other._take(self.program, self.weighted)
        return other

    def _take(self, program: Program, weighted: bool) -> None:
        self.elbo, self.weighted = resolve_elbo(self.given_elbo, program, weighted), weighted
        program.weighted = weighted
        if isinstance(self.elbo, Estimator):
            start = {name: v.requires_grad_() for name, v in program.parameters.start().items()}
            self.structure = program.call(
                start,
                self.elbo.look,
                program.model,
                program.guide,
                program.example,
                program.model_kwargs,
                program.sites.row_plate,
            )
        self._program = program

    def check_start(self, values: Values, args: tuple[Any, ...]) -> None:
        """Refuse parameters from which a fit could not start.

        Raises:
            ValueError: that says why.
        """
        if isinstance(self.elbo, Estimator):
            program = self.program
            run = Run(self.structure, program.model, program.guide, args, program.model_kwargs)
            with torch.no_grad(), randomness.seeded(0), unchanged_buffers(program.model, program.guide):
                program.call(values, self.elbo.check_start, run)

    def __call__(
        self,
        params: Values,
        batch: Any,
        num_rows: int | None = None,
        sample_weight: Tensor | None = None,
        step: int | None = None,
    ) -> Tensor:
        """The negative ELBO in nats, differentiable in ``params``.

        Args:
            params: Unconstrained values by name.
            batch: The model's arguments: a tensor, or a tuple.
            num_rows: N, by which a minibatch is scaled; the batch counts as the whole data, if None.
            sample_weight: One weight for each row of the batch.
            step: Of the optimisation, for an ELBO with a schedule; its end, if None.
        """
        args = batch if isinstance(batch, tuple) else (batch,)
        self._check_call(params, args, num_rows, sample_weight)
        if isinstance(self.elbo, Estimator):
            return self._estimate(self.elbo, params, args, num_rows, sample_weight, step)
        if hasattr(self.elbo, "differentiable_loss"):
            return self._evaluate("differentiable_loss", params, args, num_rows, sample_weight)
        # An ELBO that only knows how to add its gradient to the leaves: give its value and gradient to a stand-in.
        leaves = {name: v.detach().requires_grad_() for name, v in params.items()}
        value = self._evaluate("loss_and_grads", leaves, args, num_rows, sample_weight)
        pairs = [(params[n], leaf.grad) for n, leaf in leaves.items() if leaf.grad is not None]
        stand_in = torch.stack([(p * g).sum() for p, g in pairs]).sum()
        return stand_in - stand_in.detach() + value

    def value(
        self, params: Values, batch: tuple[Any, ...], num_rows: int | None = None, sample_weight: Tensor | None = None
    ) -> float:
        """The negative ELBO in nats, without its gradient."""
        with torch.no_grad():
            if isinstance(self.elbo, Estimator):
                return float(self._estimate(self.elbo, params, batch, num_rows, sample_weight, None))
            return float(self._evaluate("loss", params, batch, num_rows, sample_weight))

    def _estimate(
        self,
        elbo: Estimator,
        params: Values,
        args: Sequence[Any],
        num_rows: int | None,
        weight: Tensor | None,
        step: int | None,
    ) -> Tensor:
        program = self.program
        model, guide = program.model, program.guide
        scale = program.scaling(args, num_rows, weight)
        if scale is not None:
            model, guide = scale(model), scale(guide)
        run = Run(self.structure, model, guide, args, program.model_kwargs, step)
        return program.call(params, elbo.estimate, run)

    def _evaluate(
        self, method: str, params: Values, args: Sequence[Any], num_rows: int | None, weight: Tensor | None
    ) -> Any:
        program = self.program

        def scaled(fn: Callable) -> Callable:
            fn = _declaring_a_parameter(fn) if method == "loss_and_grads" else fn
            scale = program.scaling(args, num_rows, weight)
            return fn if scale is None else scale(fn)

        value = program.call(
            params,
            getattr(self.elbo, method),
            scaled(program.model),
            scaled(program.guide),
            *args,
            **program.model_kwargs,
        )
        return value[0] if isinstance(value, tuple) else value  # wake-sleep gives the model's loss and the guide's

    def _check_call(self, params: Any, args: tuple[Any, ...], num_rows: Any, weight: Any) -> None:
        program = self.program
        if not isinstance(params, Mapping):
            raise TypeError(f"params must be a dict, such as objective.init returns; got {type(params).__name__}")
        missing = [name for name in program.parameters.constraints if name not in params]
        if missing:
            raise ValueError(
                f"params has no {missing[0]!r}; the objective expects {list(program.parameters.constraints)}"
            )
        if len(args) != len(program.data.args):
            raise ValueError(f"batch has {len(args)} arguments, but init was given {len(program.data.args)}")
        if not all(isinstance(a, Tensor) for a, has in zip(args, program.data.has_rows, strict=True) if has):
            raise TypeError(f"batch must be a tensor or a tuple of the model's arguments; got {args}")
        rows = program.data.count(args)
        if num_rows is not None:
            check_count("num_rows", num_rows)
            check_num_rows(num_rows, rows)
            if num_rows != rows:
                self.check_minibatches()
        if weight is not None:
            if not isinstance(weight, Tensor) or weight.shape != (rows,):
                shape = list(weight.shape) if isinstance(weight, Tensor) else weight
                raise ValueError(f"sample_weight must have one entry per row, shape [{rows}]; got {shape}")
            if not self.weighted:
                self.elbo, self.weighted = resolve_elbo(self.given_elbo, program, True), True

    def check_minibatches(self, scaled: bool = True) -> None:
        """Refuse minibatches that would fit something else than the user means.

        Args:
            scaled: Whether the rows of a batch stand for more than themselves.

        Raises:
            ValueError: for a model or guide whose rows cannot be taken in parts, and for an ELBO with a logarithm
                around its average over particles: N / B, by which rows are scaled, would stand inside of it.
        """
        self.program.check_minibatches()
        if scaled and isinstance(self.elbo, Estimator):
            self.elbo.check_minibatches(self.structure)
            refuse_tied_rows(self.structure)
        if scaled and isinstance(self.elbo, RenyiELBO | ReweightedWakeSleep):
            raise ValueError(
                f"{type(self.elbo).__name__} takes the logarithm of an average over particles, in which the scale of a "
                "minibatch would become a power of its rows' density: the result bounds nothing. Use "
                "pyro_lvm.elbo.TraceRenyi_ELBO or TraceWakePhi, or take all rows in each step"
            )

    def check_weight(self, weight: Any, num_rows: int | None) -> Tensor | None:
        """A row weight fit for this objective.

        Raises:
            ValueError: if the model has no row plate to weight, or the guide couples the rows.
        """
        weight = check_weight(weight, num_rows)
        if weight is None:
            return None
        if self.program.sites.row_plate is None:
            needed = "sample_weight needs a plate that follows the rows, such as pyro.plate('rows', len(x))"
            raise ValueError(needed + self.program.sites.search)
        self.program.check_one_row_plate()
        if self.program.couples_rows:
            raise ValueError("sample_weight needs a guide whose rows are independent: this one draws them jointly")
        if isinstance(self.elbo, Estimator):
            refuse_tied_rows(self.structure)
        return weight


def _declaring_a_parameter(fn: Callable) -> Callable:
    """Pyro's ``loss_and_grads`` takes gradients only of programs whose trace shows a parameter."""

    def run(*args: Any, **kwargs: Any) -> Any:
        effectful(lambda *_, **__: torch.zeros(()), type="param")("_declared", name="_declared")
        return fn(*args, **kwargs)

    return run
