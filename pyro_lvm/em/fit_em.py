"""``fit_em``: expectation maximisation from a model and data to a result."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pyro_lvm import randomness
from pyro_lvm.batches import LoaderRows, ShuffledRows
from pyro_lvm.checks import check_count, check_model, check_seed
from pyro_lvm.data import Data, check_weight
from pyro_lvm.em.fused import FusedSteps
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.online import OnlineRun
from pyro_lvm.em.program import POINT, complete, make_program
from pyro_lvm.em.result import EMResult
from pyro_lvm.em.run import EMState, Rows, Run, Theta
from pyro_lvm.em.starts import other_start
from pyro_lvm.interrupts import interrupts
from pyro_lvm.modules import awaits_start, unchanged_if_it_fails
from pyro_lvm.program import Program
from pyro_lvm.result import Result
from pyro_lvm.svi.initial import initial_values

_E_STEPS = {
    "auto": "enumerated",
    "exact": "enumerated",
    "hard": "its best state",
    "monte_carlo": "ten draws of its state",
}


def fit_em(
    model: Callable,
    *data: Any,
    e_step: str = "auto",
    max_iter: int = 200,
    tol: float = 1e-6,
    num_restarts: int = 1,
    online: float | None = None,
    batch_size: int | None = None,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    sample_weight: Any = None,
    latents: Sequence[str] | None = None,
    missing: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[EMState], Any]] = (),
    init: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> EMResult:
    """Fit a model by expectation maximisation (Dempster, Laird and Rubin 1977).

    The E-step sums the discrete latents out and takes the derivative of log p(x) by each site's log-density, which is
    the posterior probability of its states. The M-step has rules for the families of :mod:`pyro_lvm.families`, which
    it finds by looking at what the sites do with the parameters; ``summary()`` of the result names them.

    Args:
        model: A Pyro model: a function, a ``PyroModule``, or a bound method. Its discrete latents are enumerated,
            whether it marks them or not. Its continuous latents outside the row plate are parameters with a prior, so
            that the fit is a posterior mode.
        data: Arguments of the model: tensors, arrays, data frames, lists of numbers, or one ``DataLoader``.
        e_step: "exact"; "hard": each row counts with its best states alone (Celeux and Govaert 1992); "monte_carlo":
            with ten draws of its states (Wei and Tanner 1990), so that the objective may fall and nothing converges;
            or "auto": the steps that a model brings along, as :class:`pyro_lvm.models.GaussianMixture` does, and else
            "exact".
        max_iter: The most iterations.
        tol: The gain below which the fit has converged, in nats a row.
        num_restarts: How many starts; the result is that of the best. The first is where the parameters are, others are
            made by the model's ``initialize``, or by k-means++ clusters of the rows where it is a mixture, or by noise.
        online: The exponent of stepwise EM (Cappé and Moulines 2009), above 0.5 and at most 1: an M-step after every
            minibatch of ``batch_size`` shuffled rows, on sums that forget with it; ``max_iter`` then counts passes. The
            objective of a pass is that of its minibatches, each at the parameters of its moment.
        batch_size: Rows at a time in each sweep over all rows. The result does not depend on it, the memory does, but
            for online EM.
        plate: The name of the plate that the rows index, where it must be named.
        rows: Positions of the data arguments that have rows, where they cannot be told by their length.
        sample_weight: One weight for each row, ``[N]``.
        latents: The continuous sites that are latents and not parameters.
        missing: Whether entries that are NaN are missing, and integrated out, by models that can.
        model_kwargs: Keyword arguments of the model.
        callbacks: Called after each iteration with an :class:`EMState`; a true answer ends the fit.
        init: Constrained starting values by name, or a result whose parameters to start from.
        seed: Fixes every random choice.
        progress: Whether to show a progress bar.

    Returns:
        The fitted result. The user's modules hold the final values too.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for latents that cannot be summed out, data that are not finite, options out of range.
        NotMonotoneError: if the objective falls, which tells of a model that is not the same from run to run.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> from torch.distributions import constraints
        >>> def model(counts):
        ...     weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        ...     rate = pyro.param("rate", torch.tensor([1.0, 5.0]), constraint=constraints.positive)
        ...     with pyro.plate("rows", len(counts)):
        ...         z = pyro.sample("z", dist.Categorical(weights))
        ...         pyro.sample("counts", dist.Poisson(rate[z]), obs=counts)
        >>> em = lvm.fit_em(model, torch.tensor([0.0, 1.0, 2.0, 1.0, 9.0, 11.0, 10.0]), progress=False)
        >>> [round(rate) for rate in em.params["rate"].tolist()]
        [1, 10]
    """
    check_model(model, model_kwargs, plate)
    max_iter, num_restarts = check_count("max_iter", max_iter), check_count("num_restarts", num_restarts)
    seed, batch_size = check_seed(seed), None if batch_size is None else check_count("batch_size", batch_size)
    _check_options(e_step, tol, callbacks, progress)
    _check_online(online, batch_size, e_step, num_restarts, data)
    loader = data[0] if len(data) == 1 and isinstance(data[0], DataLoader) else None
    owner: Any = getattr(model, "__self__", model)
    fused = e_step == "auto" and online is None and hasattr(owner, "em_steps")
    if missing and not (fused and "missing" in inspect.signature(owner.em_steps).parameters):
        raise ValueError(
            "missing=True needs a model that integrates missing entries, as lvm.models.GaussianMixture does"
        )
    began = time.perf_counter()
    with randomness.seeded(seed), unchanged_if_it_fails(model):
        held = Data(LoaderRows(loader, None).first()) if loader is not None else Data(data, rows, missing=missing)
        held.complete = loader is None
        weight = check_weight(sample_weight, held.num_rows)
        filled = complete(held, rows) if missing else held
        if (waiting := awaits_start(model)) is not None:
            waiting.initialize(*filled.args)
            waiting.initialized = True
        example = None if batch_size is None else filled.take(slice(0, batch_size))
        batches, total = _batches(held, weight, batch_size, loader)
        em, program = make_program(model, filled, fused, latents, model_kwargs, plate, example)
        if batch_size is not None or loader is not None:
            program.check_minibatches()
        theta = program.parameters.start() | initial_values(program, _named(program, init))
        if not theta:
            raise ValueError("the model has no parameters to fit: it needs pyro.param, PyroParam or a prior")
        with interrupts() as interrupted, tqdm(disable=not progress, unit=" iterations") as bar:
            options = (max_iter, tol, total, callbacks)
            if em is None:
                counted = held.args if weight is None else held.take(weight > 0)
                own = owner.em_steps(*counted, **({"missing": True} if missing else {}))
                steps: Any = FusedSteps(own, batches)
                starts = [theta, *_own_starts(owner, program, filled, num_restarts - 1, seed)]
                together = [_stacked(starts)] if own.takes_restarts else starts
                runs: list[Any] = [Run(steps, start, *options) for start in together]
                latent_rules, rules = {n: "the model's own E-step" for n in program.sites.enumerated}, {}
            else:
                one_batch = batch_size is None and loader is None
                steps = GenericSteps(
                    em, theta, batches, total, one_batch, "exact" if e_step == "auto" else e_step, online is not None
                )
                if online is None:
                    starts = [theta, *(other_start(steps, theta, seed + i) for i in range(1, num_restarts))]
                    runs = [Run(steps, start, *options) for start in starts]
                else:
                    shuffled = ShuffledRows(held, weight, batch_size or 1, seed)
                    runs = [OnlineRun(steps, theta, shuffled, online, max_iter, callbacks)]
                latent_rules = dict.fromkeys(program.sites.enumerated, _E_STEPS[e_step])
                rules = steps.plan.rules
            for run in runs:
                run.finish(interrupted, bar)
        objective, theta, restarts = _best(runs)
        program.parameters.write(theta)
        return EMResult(
            program,
            theta,
            objective=objective,
            objective_name=steps.objective_name,
            num_iter=len(objective) - (online is None),
            restarts=restarts,
            latents=latent_rules,
            rules=rules or dict.fromkeys(theta, "the model's own M-step"),
            own_steps=fused,
            asked=None if latents is None else list(latents),
            missing=missing,
            seconds=time.perf_counter() - began,
            converged=all(run.converged for run in runs),
            seed=seed,
        )


def _check_options(e_step: Any, tol: Any, callbacks: Any, progress: Any) -> None:
    if e_step not in _E_STEPS:
        raise ValueError(f"e_step must be one of {list(_E_STEPS)}; got {e_step!r}")
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not tol >= 0:
        raise ValueError(f"tol must be a number that is not negative, in nats a row; got {tol!r}")
    if not isinstance(callbacks, list | tuple) or not all(callable(c) for c in callbacks):
        raise TypeError("callbacks must be a list of functions of the state of EM")
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be True or False; got {progress!r}")


def _check_online(online: Any, batch_size: int | None, e_step: str, num_restarts: int, data: tuple[Any, ...]) -> None:
    if online is None:
        return
    if isinstance(online, bool) or not isinstance(online, int | float) or not 0.5 < online <= 1:
        raise ValueError(f"online must be an exponent above 0.5 and at most 1; got {online!r}")
    if batch_size is None or any(isinstance(d, DataLoader) for d in data):
        raise ValueError("online EM takes the data themselves and batch_size=, the rows of a minibatch")
    if e_step not in ("auto", "exact") or num_restarts > 1:
        raise ValueError("online EM has the exact E-step and one start")


def _named(program: Program, init: Any) -> Any:
    """Values by the names that the fit has for them: those of sites that are parameters are longer than in results."""
    if isinstance(init, Result):
        here = program.parameters.start()
        named = _named(program, dict(init.params))
        shared = {n: v for n, v in named.items() if n in here and here[n].shape == v.shape}
        return shared or init
    if not isinstance(init, Mapping):
        return init
    known = program.parameters.constraints
    return {POINT + n if n not in known and POINT + n in known else n: v for n, v in init.items()}


def _own_starts(owner: Any, program: Program, data: Data, count: int, seed: int) -> Iterator[Theta]:
    """Starts that a model makes from the data by itself."""
    for i in range(1, count + 1):
        owner.initialize(*data.args, seed=seed + i)
        yield program.parameters.start()


def _stacked(starts: list[Theta]) -> Theta:
    return starts[0] if len(starts) == 1 else {n: torch.stack([start[n] for start in starts]) for n in starts[0]}


def _best(runs: Sequence[Run | OnlineRun]) -> tuple[Tensor, Theta, Tensor]:
    """The objective and the parameters of the best run, and the objective that each has reached."""
    if runs[0].objective.dim() == 2:
        reached = runs[0].objective[-1]
        best = int(reached.argmax())
        return runs[0].objective[:, best], {n: v[best] for n, v in runs[0].theta.items()}, reached
    reached = torch.stack([run.objective[-1] for run in runs])
    chosen = runs[int(reached.argmax())]
    return chosen.objective, chosen.theta, reached


def _batches(
    data: Data, weight: Tensor | None, batch_size: int | None, loader: DataLoader | None
) -> tuple[Callable[[], Iterator[Rows]], float]:
    """What goes through all rows, and how many these are or weigh."""
    if loader is not None:
        source = LoaderRows(loader, None)
        return source.sweep, float(len(loader.dataset))  # type: ignore[arg-type]
    num_rows = data.num_rows or 1
    size = batch_size or num_rows

    def sweep() -> Iterator[Rows]:
        if size >= num_rows:
            yield data.args, weight
            return
        for first in range(0, num_rows, size):
            rows = slice(first, first + size)
            yield data.take(rows), None if weight is None else weight[rows]

    return sweep, float(num_rows if weight is None else weight.sum())
