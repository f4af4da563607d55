"""The gradient of an objective: many draws of it, and what one of them costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.elbo.detach import DetachSamples, detached
from pyro_lvm.elbo.terms import unscaled_log_prob
from pyro_lvm.params import Values, leaves
from pyro_lvm.sites import sample_sites
from pyro_lvm.svi.objective import Objective
from pyro_lvm.vectorize import repeat


@dataclass(frozen=True)
class GradientDraws:
    """Independent draws of a loss and its gradient at the same parameters.

    Attributes:
        losses: ``[R]``, in nats.
        gradients: Of the loss, in the unconstrained parameters, by name: ``[R, ...]``.
    """

    losses: Tensor
    gradients: dict[str, Tensor]

    def flat(self) -> Tensor:
        """The gradients of all parameters side by side, ``[R, P]``."""
        return torch.cat([g.reshape(len(g), -1).double() for g in self.gradients.values()], 1)

    def places(self) -> dict[str, slice]:
        """Where each parameter stands in :meth:`flat`."""
        found, start = {}, 0
        for name, g in self.gradients.items():
            found[name] = slice(start, start + g[0].numel())
            start = found[name].stop
        return found


def draw_gradients(objective: Objective, values: Values, args: tuple[Any, ...], num_draws: int) -> GradientDraws:
    """Draw gradients, all at a time where the estimator can be mapped.

    Args:
        objective: It has seen its data.
        values: Unconstrained parameters.
        args: The model's arguments.
        num_draws: R.
    """
    values = {name: v.detach() for name, v in values.items()}

    def once() -> tuple[dict[str, Tensor], Tensor]:
        return torch.func.grad_and_value(lambda p: objective(p, args))(values)

    try:
        gradients, losses = repeat(once, num_draws, width=objective.elbo.num_particles)
    except RuntimeError:  # an estimator of Pyro's with an operation that torch.func does not take
        drawn = [_gradient(objective, values, args) for _ in range(num_draws)]
        losses = torch.stack([loss for loss, _ in drawn])
        gradients = {name: torch.stack([g[name] for _, g in drawn]) for name in values}
    return GradientDraws(losses, gradients)


def _gradient(objective: Objective, values: Values, args: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
    loss = objective(leaves, args)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = zip(leaves.items(), gradients, strict=True)
    return loss.detach(), {name: torch.zeros_like(v) if g is None else g for (name, v), g in found}


_TIMED = 15


def costs(
    objectives: Mapping[str, Objective], values: Values, args: tuple[Any, ...]
) -> dict[str, tuple[float, int | None]]:
    """What a gradient of each objective takes: seconds, and the bytes that autograd keeps for it.

    The bytes are None for estimators of Pyro's that take their gradient themselves, and keep nothing afterwards.

    Seconds are medians of some gradients, for which the objectives take turns: a busy machine is so to all alike.
    """
    leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
    kept = {
        name: _kept_bytes(objective(leaves, args)) if hasattr(objective.elbo, "differentiable_loss") else None
        for name, objective in objectives.items()
    }
    times: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(_TIMED):
        for name, objective in objectives.items():
            began = time.perf_counter()
            _gradient(objective, values, args)
            times[name].append(time.perf_counter() - began)
    return {name: (sorted(times[name])[_TIMED // 2], kept[name]) for name in objectives}


def _kept_bytes(loss: Tensor) -> int:
    """The size of all tensors that the graph of a loss holds until its gradient is taken."""
    seen, sizes, todo = set(), {}, [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            held = getattr(node, name) if name.startswith("_saved_") else None
            for tensor in held if isinstance(held, list | tuple) else [held]:
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
        todo += [parent for parent, _ in node.next_functions]
    return sum(sizes.values())


def parameters_of_sites(objective: Objective, values: Values) -> dict[str, list[str]]:
    """For each sample site of guide and model, the parameters on which it depends directly, by name.

    Sites that depend on none are left out, and so are sites of the model with the name of one of the guide.
    """
    program = objective.program
    leaf_values = {name: v.detach().requires_grad_() for name, v in values.items()}

    def sites() -> dict[str, Any]:
        with DetachSamples():
            drawn = poutine.trace(program.guide).get_trace(*program.data.args, **program.model_kwargs)
        held = detached(drawn, sample_sites(drawn).keys())
        model = poutine.trace(poutine.replay(program.model, trace=held))
        plain = model.get_trace(*program.data.args, **program.model_kwargs)
        return sample_sites(prune_subsample_sites(plain)) | sample_sites(prune_subsample_sites(drawn))

    names = {id(v): name for name, v in leaf_values.items()}
    found = {}
    with randomness.seeded(0):
        for site, node in program.call(leaf_values, sites).items():
            parts = [node["value"], unscaled_log_prob(node)]
            total = sum(part.sum() for part in parts if isinstance(part, Tensor) and part.requires_grad)
            used = [names[i] for i in leaves(total) if i in names] if isinstance(total, Tensor) else []
            if used:
                found[site] = [name for name in leaf_values if name in used]
    return found
