"""What an estimator's gradient should be on average: exact where it can be computed, else the mean of many draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_lvm import randomness
from pyro_lvm.diagnostics.gradients import draw_gradients
from pyro_lvm.elbo.bounds import ParticleBound, TraceIWAE_ELBO
from pyro_lvm.elbo.estimator import Estimator
from pyro_lvm.elbo.inclusive import TraceWakePhi
from pyro_lvm.elbo.linear import Trace_ELBO
from pyro_lvm.elbo.particles import Cells, Run, draw
from pyro_lvm.params import Values
from pyro_lvm.sites import sample_sites
from pyro_lvm.svi.objective import Objective
from pyro_lvm.vectorize import repeat


@dataclass(frozen=True)
class Reference:
    """The gradient that an estimator should have on average.

    Attributes:
        gradient: All parameters side by side, ``[P]``.
        error: Its standard error, ``[P]``; 0 where it is exact up to rounding.
        source: How it was found.
    """

    gradient: Tensor
    error: Tensor
    source: str


def reference(objective: Objective, values: Values, args: tuple[Any, ...], num_draws: int) -> Reference:
    """The gradient of an objective's target.

    Args:
        objective: It has seen its data.
        values: Unconstrained parameters.
        args: The model's arguments.
        num_draws: Draws to average where there is no exact answer.
    """
    elbo = objective.elbo
    if isinstance(elbo, Trace_ELBO | ParticleBound) and not isinstance(elbo, TraceWakePhi):
        exact = _by_enumeration(objective, elbo, values, args)
        if exact is not None:
            return exact
    if isinstance(elbo, Trace_ELBO):
        exact = _by_cubature(objective, values, args)
        if exact is not None:
            return exact
    best = objective.with_elbo(elbo.reference(objective.structure)) if isinstance(elbo, Estimator) else objective
    draws = draw_gradients(best, values, args, num_draws).flat()
    error = draws.std(0) / math.sqrt(num_draws)
    name = repr(best.elbo) if isinstance(best.elbo, Estimator) else type(best.elbo).__name__
    return Reference(draws.mean(0), error, f"mean of {num_draws:,} gradients of {name}")


_CONFIGURATIONS = 256
_TUPLES = 10_000


def _by_enumeration(objective: Objective, elbo: Estimator, values: Values, args: tuple[Any, ...]) -> Reference | None:
    """Exact, by summing over all tuples of particles, where all latents are discrete and take few values."""
    program = objective.program
    try:  # an ELBO does not ask whether rows are separate
        structure = (objective if elbo.has_cells else objective.with_elbo(TraceIWAE_ELBO())).structure
    except ValueError:
        return None
    latents = structure.local | structure.shared
    nested = structure.separate and bool(structure.shared)
    if set(structure.score) != latents or not latents or nested or structure.draws_subsamples:
        return None
    leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
    with torch.no_grad():
        drawn = program.call(leaves, poutine.trace(program.guide).get_trace, *args, **program.model_kwargs)
    sites = {name: sample_sites(drawn)[name] for name in latents}
    if not all(site["fn"].has_enumerate_support for site in sites.values()):
        return None
    tables = {
        name: _assignments(site, program.row_dim(name, site) if structure.separate else None)
        for name, site in sites.items()
    }
    num = math.prod(len(places) ** count for places, count, _ in tables.values())
    num_particles = 1 if isinstance(elbo, Trace_ELBO) else elbo.num_particles
    if num > _CONFIGURATIONS or num**num_particles > _TUPLES:
        return None
    found = []
    for configuration in itertools.product(
        *(itertools.product(range(len(places)), repeat=count) for places, count, _ in tables.values())
    ):
        given = poutine.Trace()
        for (name, (places, _, expand)), index in zip(tables.items(), configuration, strict=True):
            given.add_node(
                name, name=name, type="sample", value=expand(places[list(index)]), is_observed=False, infer={}
            )
        run = Run(structure, program.model, poutine.replay(program.guide, trace=given), args, program.model_kwargs)
        found.append(program.call(leaves, lambda run=run: draw(run, 1).cells()))
    log_p, log_q, score = (torch.cat([getattr(c, kind) for c in found]) for kind in ("log_p", "log_q", "score"))
    tuples = torch.cartesian_prod(*[torch.arange(num)] * num_particles).reshape(-1, num_particles).T  # [K, T]
    num_cells = log_p.shape[1]
    cells = Cells(*(part[tuples].reshape(num_particles, -1) for part in (log_p, log_q, score, log_p)), *found[0][4:])
    bound = elbo.bound(cells) if isinstance(elbo, ParticleBound) else cells.log_weights[0]
    expected = (score[tuples].sum(0).exp() * bound.reshape(-1, num_cells)).sum(0)
    loss = -(found[0].shared + (found[0].counts * expected).sum())
    return _exact(loss, leaves, "exact, by enumeration")


def _assignments(site: Any, row_dim: int | None) -> tuple[Tensor, int, Callable[[Tensor], Tensor]]:
    """The support of a site, how many elements take a place in it of their own, and how these make a value.

    All rows take the same places, since rows that are separate do not see each other.
    """
    fn = site["fn"]
    support = fn.enumerate_support(expand=False)
    places = support.reshape(len(support), *fn.event_shape)
    shape = [
        1 if row_dim is not None and d == row_dim + len(fn.batch_shape) else n for d, n in enumerate(fn.batch_shape)
    ]

    def expand(chosen: Tensor) -> Tensor:
        return chosen.reshape([*shape, *fn.event_shape]).expand([*fn.batch_shape, *fn.event_shape])

    return places, math.prod(shape), expand


_DIMENSIONS = 1_000
_ROUNDING = 1e-6


def _by_cubature(objective: Objective, values: Values, args: tuple[Any, ...]) -> Reference | None:
    """Exact where the log-weight is quadratic in the guide's standard normal draws: in linear Gaussian models.

    The mean of a quadratic under a standard normal of d dimensions is its mean over 2 d points on the axes, at a
    distance of the root of d. So it is over the same points turned, and over nearer ones with the origin. Of other
    functions the three differ, as do values along a line from those of a parabola.
    """
    if objective.structure.score:
        return None
    exact = objective.with_elbo(Trace_ELBO())
    dimension = _count_normals(exact, values, args)
    if not dimension or dimension > _DIMENSIONS:
        return None
    detached = {name: v.detach() for name, v in values.items()}

    def loss_at(noise: Tensor) -> Tensor:
        with GivenNormals(noise):
            return exact(values, args)

    def gradient_at(noise: Tensor) -> dict[str, Tensor]:
        with GivenNormals(noise):
            return torch.func.grad(lambda p: exact(p, args))(detached)

    along = repeat(loss_at, 15, (torch.randn(3, 1, dimension) * _STEPS).reshape(15, dimension)).reshape(3, 5).double()
    powers = _STEPS.double() ** torch.arange(3)
    residual = along.T - powers @ torch.linalg.lstsq(powers, along.T).solution
    if not residual.abs().max() <= 1e-4 * (along.max() - along.min()) + _ROUNDING * along.abs().max():
        return None
    axes = math.sqrt(dimension) * torch.cat([torch.eye(dimension), -torch.eye(dimension)])
    turn = torch.linalg.qr(torch.randn(dimension, dimension)).Q
    points = torch.cat([axes, axes @ turn, axes / 2, torch.zeros(1, dimension)])
    try:
        gradients = repeat(gradient_at, len(points), points)
    except RuntimeError:  # what torch.func does not take, such as batch norm that counts its calls
        return None
    flat = torch.cat([g.reshape(len(g), -1).double() for g in gradients.values()], 1)
    far, turned, near = flat[:-1].reshape(3, 2 * dimension, -1).mean(1)
    rules = torch.stack([far, turned, 4 * near - 3 * flat[-1]])  # the last for points at half the distance, and 0
    error = rules.max(0).values - rules.min(0).values
    rounding = _ROUNDING * along[:, 2].abs().max()  # of the loss in the middle, far from which it may be huge
    if not (error <= 1e-4 * flat.square().mean(0).sqrt() + rounding).all():
        return None
    return Reference(rules[0], torch.zeros_like(error), "exact, for a linear Gaussian model")


_STEPS = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0]).reshape(5, 1)


def _count_normals(objective: Objective, values: Values, args: tuple[Any, ...]) -> int:
    """How many standard normal numbers an estimate draws; 0 if it draws others too."""
    with torch.no_grad(), GivenNormals(None) as normals:
        state = randomness.get_state()
        objective.value(values, args)
        others = any(
            not torch.equal(a, b) for a, b in zip(state.values(), randomness.get_state().values(), strict=True)
        )
    return 0 if others else normals.count


class GivenNormals(TorchFunctionMode):
    """Standard normal draws are taken from a given tensor in their order; zeros, if None. Other draws stay random."""

    def __init__(self, noise: Tensor | None) -> None:
        super().__init__()
        self.noise, self.count = noise, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.normal_ or len(args) > 1 or kwargs:
            return func(*args, **(kwargs or {}))
        start, self.count = self.count, self.count + args[0].numel()
        if self.noise is None:
            return torch.zeros_like(args[0])
        return self.noise[start : self.count].reshape(args[0].shape).to(args[0])


def _exact(loss: Tensor, leaves: dict[str, Tensor], source: str) -> Reference:
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    parts = [torch.zeros_like(v) if g is None else g for v, g in zip(leaves.values(), gradients, strict=True)]
    flat = torch.cat([p.reshape(-1).double() for p in parts])
    return Reference(flat, torch.zeros_like(flat), source)
