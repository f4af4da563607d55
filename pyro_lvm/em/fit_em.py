"""``fit_em``: expectation maximisation from a model and data to a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_lvm import randomness
from pyro_lvm.batches import LoaderRows
from pyro_lvm.checks import check_count, check_model, check_seed
from pyro_lvm.data import Data, check_weight
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.result import EMResult
from pyro_lvm.em.run import EMState, Rows, Run
from pyro_lvm.modules import awaits_start, unchanged_if_it_fails
from pyro_lvm.svi.initial import initial_values

_E_STEPS = ("auto", "exact", "hard")


def fit_em(
    model: Callable,
    *data: Any,
    e_step: str = "auto",
    max_iter: int = 200,
    tol: float = 1e-6,
    batch_size: int | None = None,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    sample_weight: Any = None,
    latents: Sequence[str] | None = None,
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
        model: A Pyro model: a function, a ``PyroModule``, or a bound method. Its discrete latents are enumerated, whether
            it marks them or not. Its continuous latents outside the row plate are parameters with a prior, so that
            the fit is a posterior mode.
        data: Arguments of the model: tensors, arrays, data frames, lists of numbers, or one ``DataLoader``.
        e_step: "exact" (which "auto" means), or "hard": each row counts with its best states alone.
        max_iter: The most iterations.
        tol: The gain below which the fit has converged, in nats a row.
        batch_size: Rows at a time in each sweep over all rows. The result does not depend on it, the memory does.
        plate: The name of the plate that the rows index, where it must be named.
        rows: Positions of the data arguments that have rows, where they cannot be told by their length.
        sample_weight: One weight for each row, ``[N]``.
        latents: The continuous sites that are latents and not parameters.
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
        >>> [round(rate, 2) for rate in em.params["rate"].tolist()]
        [1.0, 10.0]
    """
    check_model(model, model_kwargs, plate)
    max_iter, seed = check_count("max_iter", max_iter), check_seed(seed)
    batch_size = None if batch_size is None else check_count("batch_size", batch_size)
    if e_step not in _E_STEPS:
        raise ValueError(f"e_step must be one of {list(_E_STEPS)}; got {e_step!r}")
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not tol >= 0:
        raise ValueError(f"tol must be a number that is not negative, in nats a row; got {tol!r}")
    loader = data[0] if len(data) == 1 and isinstance(data[0], DataLoader) else None
    with randomness.seeded(seed), unchanged_if_it_fails(model):
        began = time.perf_counter()
        held = Data(LoaderRows(loader, None).first()) if loader is not None else Data(data, rows)
        held.complete = loader is None
        weight = check_weight(sample_weight, held.num_rows)
        if (owner := awaits_start(model)) is not None:
            owner.initialize(*held.args)
            owner.initialized = True
        example = None if batch_size is None else held.take(slice(0, batch_size))
        em = EMProgram(model, held, latents, model_kwargs, plate, example)
        program = em.program
        if batch_size is not None or loader is not None:
            program.check_minibatches()
        batches, total = _batches(held, weight, batch_size, loader)
        theta = program.parameters.start() | initial_values(program, init)
        steps = GenericSteps(em, theta, batches, total, batch_size is None and loader is None, e_step == "hard")
        run = Run(steps, theta, max_iter, tol, total, list(callbacks))
        run.finish(progress)
        program.parameters.write(run.theta)
        return EMResult(
            program,
            run.theta,
            objective=torch.tensor(run.objective, dtype=torch.float64),
            objective_name=steps.objective_name,
            latents={
                name: "enumerated, its best state" if steps.hard else "enumerated" for name in program.sites.enumerated
            },
            rules=steps.plan.rules,
            segments=[],
            seconds=time.perf_counter() - began,
            converged=run.converged,
            seed=seed,
        )


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
