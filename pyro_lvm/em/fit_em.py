"""``fit_em``: expectation maximisation from a model and data to a result."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pyro_lvm import files, randomness
from pyro_lvm.batches import LoaderRows, ShuffledRows
from pyro_lvm.checkpoint import Checkpoint, name_of
from pyro_lvm.checks import check_callbacks, check_count, check_device, check_model, check_seed
from pyro_lvm.data import MOST_ROWS, Data, arguments_of, check_weight
from pyro_lvm.em.batch import AllRows
from pyro_lvm.em.derived import derived_steps
from pyro_lvm.em.fused import FusedSteps
from pyro_lvm.em.online import OnlineRun
from pyro_lvm.em.options import E_STEPS, check_online, check_rows, check_steps
from pyro_lvm.em.outcome import outcome_of
from pyro_lvm.em.program import POINT, EMProgram, complete, own_program
from pyro_lvm.em.result import EMResult
from pyro_lvm.em.run import EMState, Run
from pyro_lvm.em.saved import STATE, Saved
from pyro_lvm.em.starts import other_starts, stacked
from pyro_lvm.interrupts import interrupts
from pyro_lvm.modules import awaits_start, move, unchanged_if_it_fails
from pyro_lvm.program import Program
from pyro_lvm.result import Result
from pyro_lvm.svi.initial import initial_values


def fit_em(
    model: Callable,
    *data: Any,
    guide: Any = None,
    e_step: str = "auto",
    m_step: str = "auto",
    max_iter: int = 200,
    tol: float = 1e-6,
    num_restarts: int = 1,
    online: float | None = None,
    batch_size: int | None = None,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    num_rows: int | None = None,
    sample_weight: Any = None,
    latents: Sequence[str] | None = None,
    missing: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callable[[EMState], Any]] = (),
    checkpoint: files.FilePath | None = None,
    init: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> EMResult:
    """Fit a model by expectation maximisation (Dempster, Laird and Rubin 1977).

    The E-step sums the discrete latents out and takes the derivative of log p(x) by each site's log-density, which is
    the posterior probability of its states. The M-step has rules for the families of :mod:`pyro_lvm.families`, which
    it finds by looking at what the sites do with the parameters; ``summary()`` of the result names them.

    Args:
        model: A Pyro model: a function, a ``PyroModule``, or a bound method. Its discrete latents are enumerated,
            whether it marks them or not. Its continuous latents in the row plate are integrated out where the
            log-density is quadratic in them, as in factor models. Those outside are parameters with a prior, so that
            the fit is a posterior mode.
        data: Arguments of the model: tensors, arrays, data frames, lists of numbers, or one ``DataLoader``.
        guide: For latents that cannot be summed or integrated out: a callable, an AutoGuide, "mean_field" or another
            name that :func:`pyro_lvm.fit` knows; the model's own ``guide``, if it has one and needs it. EM is
            variational then (Neal and Hinton 1998): the E-step climbs the ELBO in the guide's parameters, the M-step in
            the model's.
        e_step: "exact"; "hard": each row counts with its best states alone (Celeux and Govaert 1992); "monte_carlo":
            with ten draws of its states (Wei and Tanner 1990), so that the objective may fall and nothing converges;
            "variational": by a guide; or "auto": the steps that a model brings along, as
            :class:`pyro_lvm.models.GaussianMixture` does, else "variational" where there is a guide, and "exact".
        m_step: "auto", the rules that are found in the model, or "numeric", a search for all parameters.
        max_iter: The most iterations.
        tol: The gain below which the fit has converged, in nats a row.
        num_restarts: How many starts; the result is that of the best. The first is where the parameters are, others are
            made by the model's ``initialize``, or by k-means++ clusters of the rows where it is a mixture, or by noise.
            ``restart_params`` of the result has the parameters of all, their components in the same order.
        online: The exponent of stepwise EM (Cappé and Moulines 2009), above 0.5 and at most 1: an M-step after every
            minibatch of ``batch_size`` shuffled rows, on sums that forget with it; ``max_iter`` then counts passes. The
            objective of a pass is that of its minibatches, each at the parameters of its moment.
        batch_size: Rows at a time in each sweep over all rows. The result does not depend on it, the memory does, but
            for online EM.
        plate: The name of the plate that the rows index, where it must be named.
        rows: Positions of the data arguments that have rows, where they cannot be told by their length.
        num_rows: N, for a ``DataLoader`` without a length.
        sample_weight: One weight for each row, ``[N]``.
        latents: The continuous sites that are latents and not parameters.
        missing: Whether entries that are NaN are missing, and integrated out, by models that can.
        model_kwargs: Keyword arguments of the model.
        callbacks: Called after each iteration with an :class:`EMState`; a true answer ends the fit.
        checkpoint: A file, written after each iteration, that makes the fit survive its process; a call like the first
            continues it. Data and options are compared with those of the first call, but not the bodies of model and
            guide: delete the file when you edit them.
        init: Constrained starting values by name, or a result whose parameters to start from.
        seed: Fixes every random choice.
        device: Where to compute; where the data and modules are, if None.
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
    check_steps(e_step, m_step, guide, tol)
    check_callbacks(callbacks, progress)
    check_device(device)
    check_online(online, batch_size, e_step, guide, num_restarts, data)
    path = None if checkpoint is None else files.check_writable(checkpoint, "checkpoint")
    loader = LoaderRows(data[0], device, model, missing) if len(data) == 1 and isinstance(data[0], DataLoader) else None
    check_rows(loader, num_rows, sample_weight, rows)
    data = data if loader is not None else arguments_of(model, data)
    owner: Any = getattr(model, "__self__", model)
    own = e_step == m_step == "auto" and guide is None and hasattr(owner, "em_steps")
    own = own and (online is None or getattr(owner, "em_online", False))
    if missing and not (own and "missing" in inspect.signature(owner.em_steps).parameters):
        if online is not None:
            raise ValueError("online EM takes no missing entries: leave online= or missing= out")
        raise ValueError(
            "missing=True needs a model that integrates missing entries, as lvm.models.GaussianMixture does"
        )
    began = time.perf_counter()
    move([model, guide], device)
    generators = [] if loader is None else loader.generators
    on_device = nullcontext() if device is None else torch.device(device)
    with (
        randomness.one_at_a_time,
        randomness.seeded(seed, generators),
        on_device,
        unchanged_if_it_fails(model, guide),
    ):
        held = (
            Data(loader.first(), missing=missing) if loader is not None else Data(data, rows, device, missing=missing)
        )
        held.complete = loader is None
        weight = check_weight(sample_weight, held.num_rows)
        all_rows = AllRows(held, weight, batch_size, loader, num_rows)
        filled = complete(held, rows) if missing else held
        shown = _shown(all_rows, missing)
        complete_rows = filled if shown is held else complete(shown, rows)
        if (waiting := awaits_start(model)) is not None:
            waiting.initialize(*complete_rows.args)
            waiting.initialized = True
        example = None if batch_size is None else filled.take(slice(0, batch_size))
        em = None
        if own:
            program = own_program(model, filled, model_kwargs, plate, example)
        else:
            guided = e_step in ("auto", "variational") and online is None
            default = getattr(owner, "guide", None) if guided else None
            em = EMProgram(
                model,
                filled,
                latents=latents,
                model_kwargs=model_kwargs,
                plate=plate,
                example=example,
                guide=guide,
                default_guide=default,
                weighted=weight is not None,
                num_rows=all_rows.num_rows,
            )
            program = em.program
        if batch_size is not None or loader is not None:
            program.check_minibatches()
        if weight is not None:
            program.check_one_row_plate()
        theta = program.parameters.start() | initial_values(program, _named(program, init))
        if not theta:
            raise ValueError("the model has no parameters to fit: it needs pyro.param, PyroParam or a prior")
        if wrong := {value.dtype for value in theta.values()} - {torch.float32, torch.float64}:
            raise ValueError(f"EM takes parameters of single or double precision; got {sorted(map(str, wrong))[0]}")
        if em is None:
            own_steps = owner.em_steps(*shown.args, **({"missing": True} if missing else {}))
            steps: Any = FusedSteps(own_steps, theta, all_rows)
        else:
            steps = derived_steps(em, theta, all_rows, e_step, m_step, online, seed)
        if online is not None:
            shuffled = ShuffledRows(held, weight, batch_size or 1, seed)
            runs: list[Any] = [OnlineRun(steps, theta, shuffled, online, max_iter, callbacks)]
        else:
            starts = [theta, *other_starts(owner, steps, program, complete_rows, num_restarts - 1, seed, theta)]
            together = [stacked(starts)] if own and steps.steps.takes_restarts else starts
            runs = [Run(steps, start, max_iter, tol, all_rows.total, callbacks) for start in together]
        what: dict[str, Any] = {
            "model": name_of(model),
            "guide": name_of(program.guide),
            "data": held.args,
            "loader": None if loader is None else f"{all_rows.num_rows} rows",
            "sample_weight": weight,
            "start": theta,
            "model_kwargs": model_kwargs or {},
        }
        what |= {"e_step": e_step, "m_step": m_step, "max_iter": max_iter, "tol": tol, "num_restarts": num_restarts}
        what |= {"online": online, "batch_size": batch_size, "plate": plate, "rows": rows, "num_rows": num_rows}
        what |= {"latents": latents, "missing": missing, "seed": seed, "device": device}
        saved = Saved(None if path is None else Checkpoint(path, what, STATE), steps, runs)
        with interrupts() as interrupted, tqdm(disable=not progress, unit=" iterations") as bar:
            for run in runs:
                run.finish(interrupted, bar, saved.save)
        best = outcome_of(runs, steps)
        program.parameters.write(best.theta)
        latent_rules = dict.fromkeys(program.sites.enumerated, "the model's own E-step" if own else E_STEPS[e_step])
        integrated = "integrated out, Gaussian" if em is not None and em.gaussian is not None else "the guide"
        program.weighted = weight is not None
        return EMResult(
            program,
            best.theta,
            em,
            objective=best.objective,
            objective_name=steps.objective_name,
            num_iter=len(best.objective) - (online is None),
            restarts=best.reached,
            restart_params=best.all_params,
            refilled=best.refilled,
            latents=latent_rules | dict.fromkeys(program.sites.latent if em is not None else (), integrated),
            rules=steps.rules | steps.remarks(best.theta),
            own_steps=own,
            asked=None if latents is None else list(latents),
            missing=missing,
            options={
                "e_step": e_step,
                "m_step": m_step,
                "max_iter": max_iter,
                "tol": float(tol),
                "batch_size": batch_size,
                "online": online is not None,
                "weighted": weight is not None,
            },
            seconds=time.perf_counter() - began,
            converged=best.converged,
            seed=seed,
        )


def _shown(rows: AllRows, missing: bool) -> Data:
    """What a model may look at before the fit: the rows that weigh anything, or some rows of a loader."""
    data, weight = rows.data, rows.weight
    if weight is None and rows.loader is None:
        return data
    args = data.take(weight > 0) if weight is not None else rows.sample(MOST_ROWS, seed=0).args
    return Data(args, [i for i, has in enumerate(data.has_rows) if has], missing=missing)


def _named(program: Program, init: Any) -> Any:
    """Values by the names that the fit has for them: those of sites that are parameters are longer than in results."""
    if isinstance(init, Result):
        here = program.parameters.start()
        named = _named(program, dict(init.params))
        return {n: v for n, v in named.items() if n in here} or init
    if not isinstance(init, Mapping):
        return init
    known = program.parameters.constraints
    return {POINT + n if n not in known and POINT + n in known else n: v for n, v in init.items()}
