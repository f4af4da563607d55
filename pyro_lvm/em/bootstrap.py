"""The bootstrap: EM again on rows drawn with replacement, from where a fit has ended."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from pyro_lvm import randomness
from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.em.batch import AllRows
from pyro_lvm.em.derived import derived_steps
from pyro_lvm.em.fused import FusedSteps
from pyro_lvm.em.matching import in_the_order_of
from pyro_lvm.em.result import EMResult
from pyro_lvm.em.run import Run, Theta
from pyro_lvm.result import Draws, Result
from pyro_lvm.sites import is_observed, sample_sites

_GAIN = 1e-4  # nats of all rows together: what is this far from a maximum is 0.014 standard errors away


class Replicates(NamedTuple):
    """Fits to rows drawn with replacement.

    Attributes:
        params: Constrained parameters by the names of the program, ``[R, ...]``.
        converged: Which fits have converged, ``[R]``.
    """

    params: Draws
    converged: Tensor


def bootstrap(result: Result, num_replicates: int, seed: int | None = None) -> Replicates:
    """EM on rows drawn with replacement, once for each replicate (Efron 1979).

    Each starts at the fitted parameters, so that it stays at their maximum of several, and has its components in their
    order (McLachlan and Peel 2000, section 2.16). Rows count as often as they were drawn. It takes the steps of the
    fit, as many at most, and a tolerance that is small for all rows together.

    Args:
        result: A fit by EM, from which nothing changes, nor do the user's modules.
        num_replicates: R.
        seed: Of the draws; the fit's, if None.

    Raises:
        TypeError: if ``num_replicates`` is no integer.
        ValueError: for fewer than 2 replicates, a result that is not by exact EM on all rows alike or that kept no
            rows, and rows that are not independent given the parameters.
    """
    num_replicates = check_count("bootstrap", num_replicates)
    if num_replicates < 2:
        raise ValueError(f"bootstrap needs 2 replicates or more; got {num_replicates}")
    seed = result.seed if seed is None else check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    found: list[Theta] = []
    converged = []
    with randomness.one_at_a_time, result._quiet(seed), tqdm(disable=True) as bar:
        fit = _checked(result)
        data, options = fit._program.data, fit._options
        start = {name: fit._values[name] for name in fit._program.parameters.constraints}
        like, size = next(iter(start.values())), options["batch_size"]
        steps = _steps(fit, start, AllRows(data, None, size, None), seed)
        axes = steps.axes(start)
        for _ in range(num_replicates):
            rows = torch.randint(data.num_rows or 1, (data.num_rows or 1,), generator=generator)
            steps.rows = AllRows(data, rows.bincount(minlength=len(rows)).to(like), size, None)
            tol = min(options["tol"], _GAIN / len(rows))
            # a dict of its own, for steps know an E-step again by the parameters
            run = Run(steps, dict(start), options["max_iter"], tol, steps.rows.total)
            run.finish(lambda: False, bar)
            found.append(in_the_order_of(start, run.theta, axes))
            converged.append(bool(run.converged))
    params = {name: torch.stack([theta[name] for theta in found]) for name in start}
    return Replicates(params, torch.tensor(converged))


def _steps(result: EMResult, theta: Theta, rows: AllRows, seed: int) -> Any:
    """The steps of the fit."""
    if result._em is not None:
        options = result._options
        return derived_steps(result._em, theta, rows, options["e_step"], options["m_step"], None, seed)
    owner: Any = getattr(result._program.model, "__self__", result._program.model)
    return FusedSteps(owner.em_steps(*rows.data.args), theta, rows)


def _checked(result: Result) -> EMResult:
    """A fit whose rows can be drawn anew."""
    if not isinstance(result, EMResult):
        raise ValueError("the bootstrap fits again by EM, and this result is none of fit_em")
    options = result._options
    others = {"minibatches": options["online"], "weighted rows": options["weighted"]}
    others["an ELBO"] = "ELBO" in result.objective_name
    for words in (words for words, is_so in others.items() if is_so):
        raise ValueError(f"the bootstrap needs a fit by exact EM to all rows alike, and this one is of {words}")
    args, program = result._arguments(()), result._program
    plate = program.sites.row_plate
    if plate is None:
        raise ValueError(
            "the bootstrap draws rows, and no plate of the model follows the rows of the data" + program.sites.search
        )
    program.check_one_row_plate()
    if shared := program.sites.shared_enumerated:
        raise ValueError(f"the rows depend on the latent {shared[0]!r} together: they cannot be drawn one by one")
    run = sample_sites(poutine.trace(result.model).get_trace(*args, **program.model_kwargs))
    outside = [name for name, site in run.items() if is_observed(site) and name not in program.sites.local]
    if outside:
        raise ValueError(f"the observations {outside[0]!r} lie outside the rows: the bootstrap cannot draw them anew")
    return result
