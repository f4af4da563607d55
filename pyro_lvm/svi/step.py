"""One training step as a pure function of tensors: the batch, the loss, its gradient, clipping and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.batches import HeldBatches, ShuffledRows
from pyro_lvm.elbo.estimator import Estimator
from pyro_lvm.modules import unchanged_buffers
from pyro_lvm.noise import Given, Noise, Numbers
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.svi.pure_optimizer import PureOptimizer, State
from pyro_lvm.tracing import NotCompilable

Tree = dict[str, Any]  # tensors in nested dicts and lists


class Step:
    """A step of an :class:`EagerLoop` without its memory: ``carry, loss = step(carry, x, fixed)``.

    Args:
        loop: Whose objective, batches, optimizer and clipping to take.
        seed: Of the random numbers.

    Attributes:
        noise: The random numbers of each step.
        optimizer: The optimizer's step.
        draws_itself: Whether it makes random numbers beside those that it is given.

    Raises:
        NotCompilable: for what only an eager loop can do.
    """

    def __init__(self, loop: EagerLoop, seed: int) -> None:
        if not isinstance(loop.objective.elbo, Estimator):
            raise NotCompilable(f"{type(loop.objective.elbo).__name__} is none of the estimators in pyro_lvm.elbo")
        if isinstance(loop.optimizer, torch.optim.LBFGS):
            raise NotCompilable(
                "L-BFGS takes several losses in a step: use another optimizer, such as torch.optim.Adam"
            )
        if not isinstance(loop.batches, HeldBatches):
            raise NotCompilable("a DataLoader makes its batches in Python: pass the data themselves and batch_size=")
        self.loop, self.batches = loop, loop.batches
        self.parameters = loop.objective.program.parameters
        given, moved = self._look()
        held = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
        moved = [name for name in moved if id(loop.params[name]) in held]
        self.optimizer = PureOptimizer(loop.optimizer, {name: loop.params[name] for name in moved})
        self.draws_itself = bool(given.others)
        self.noise = Noise(seed, given.taken, next(iter(loop.params.values())).device)
        if isinstance(self.batches, ShuffledRows) and self.batches.short:
            self._check_short_batch(self.batches, given)

    def _look(self) -> tuple[Given, list[str]]:
        """Take a step's loss once: the random numbers that it draws, and the parameters that have a gradient."""
        program = self.loop.objective.program
        state = randomness.get_state()
        leaves = {name: v.detach().requires_grad_() for name, v in self.loop.params.items()}
        own = self._own(0)
        with unchanged_buffers(program.model, program.guide):
            before = {name: (v, v._version, v.clone()) for name, v in self.parameters.untrained().items()}
            with Given(None) as given:
                loss = self._loss(leaves, own, self.batches.tensors)
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            after = self.parameters.untrained()
            if replaced := [name for name, (v, *_) in before.items() if after[name] is not v]:
                raise NotCompilable(
                    f"the buffer {replaced[0]!r} is replaced by another: change it in place, by copy_()"
                )
            # a version tells also of a write that leaves the value; batch norm in its own language does not count
            self.buffers = [n for n, (v, version, old) in before.items() if v._version != version or v.ne(old).any()]
        randomness.set_state(state)
        return given, [name for name, grad in zip(leaves, grads, strict=True) if grad is not None]

    def _check_short_batch(self, batches: ShuffledRows, given: Given) -> None:
        """A short batch runs filled up with rows of weight zero, which must not change its loss."""
        last = batches.num_batches - 1
        if given.others or self.buffers:
            raise NotCompilable(
                f"the last batch of an epoch is short ({batches.short} of {batches.batch_size} rows), and what it is "
                f"filled up with would change {', '.join([*given.others, *self.buffers])}: take a batch_size that "
                f"divides {batches.num_rows}"
            )
        noise = torch.Generator().manual_seed(0)
        elsewhere = {  # trainable, or Pyro would warn of a module with frozen parameters
            name: (
                v.detach() + 0.1 * torch.randn(v.shape, generator=noise, dtype=v.dtype).to(v.device)
            ).requires_grad_()
            for name, v in self.loop.params.items()
        }
        own = self._own(last)
        rows = own["indices"]["rows"].clone()
        rows[batches.short :] = (rows[batches.short :] + 1) % batches.num_rows
        other = own | {"indices": own["indices"] | {"rows": rows}}
        numbers = {kind: value[0] for kind, value in self.noise.between(0, 1).items()}
        one, another = (self._loss_and_gradient(elsewhere, o, numbers) for o in (own, other))
        middle = {kind: torch.full_like(v, 0.0 if kind[0] == "normal" else 0.5) for kind, v in numbers.items()}
        filled, _ = self._loss_and_gradient(elsewhere, own, middle)
        args, weight = batches.get(last)
        with torch.no_grad(), Given(middle):
            short = self.loop.objective(elsewhere, args, self.loop.num_rows, weight, last)
        same = all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(one[1], another[1], strict=True))
        if not (same and torch.allclose(one[0], another[0]) and torch.allclose(filled, short, rtol=1e-4)):
            raise NotCompilable(
                f"the last batch of an epoch is short ({batches.short} of {batches.batch_size} rows), and the loss "
                "depends on the rows that it is filled up with, though they weigh nothing, or on the number of rows: "
                f"take a batch_size that divides {batches.num_rows}"
            )

    def _loss_and_gradient(
        self, values: Mapping[str, Tensor], own: Tree, numbers: Numbers
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
        with Given(numbers):
            loss = self._loss(leaves, own, self.batches.tensors)
        return loss.detach(), torch.autograd.grad(loss, [leaves[name] for name in self.optimizer.params])

    def carry(self) -> Tree:
        """What a step takes over from the one before, as the loop holds it now."""
        return self._carry(self.optimizer.state())

    def _carry(self, state: list[State]) -> Tree:
        buffers = self.parameters.untrained()
        return {
            "params": self.optimizer.vectors(),
            "state": state,
            "buffers": {name: buffers[name].clone() for name in self.buffers},
        }

    def write(self, carry: Tree) -> None:
        """Give the loop what was reached."""
        self.optimizer.write(carry["params"], carry["state"])
        self.parameters.write_untrained(carry["buffers"])

    def fixed(self) -> Tree:
        """What is the same in all steps of a block."""
        still = {name: v.detach() for name, v in self.loop.params.items() if name not in self.optimizer.params}
        return {"data": self.batches.tensors, "still": still} | (
            {} if self.loop.scheduler else {"rates": self._rates()}
        )

    def block(self, start: int, stop: int) -> Tree:
        """What each step from ``start`` to ``stop``, of one chunk of the noise, has of its own; moves the scheduler."""
        own = {"step": torch.arange(start, stop), "indices": self.batches.indices(start, stop)}
        own["noise"] = self.noise.between(start, stop)
        if self.loop.scheduler:
            rates = []
            for _ in range(start, stop):
                rates.append(self._rates())
                self.loop.scheduler.step()
            own["rates"] = torch.stack(rates)
        return own

    def _rates(self) -> Tensor:
        return torch.tensor(self.optimizer.rates, dtype=torch.float64)

    def example(self) -> tuple[Tree, Tree, Tree]:
        """A carry, what one step has of its own, and what is fixed, to trace a step by; the loop stays as it is."""
        own = self._own(0) | {"noise": {k: v[0] for k, v in self.noise.between(0, 1).items()}}
        if self.loop.scheduler:
            own["rates"] = self._rates()
        return self._carry(self.optimizer.example_state()), own, self.fixed()

    def _own(self, step: int) -> Tree:
        indices = {k: v[0] for k, v in self.batches.indices(step, step + 1).items()}
        return {"step": torch.tensor(step), "indices": indices}

    def _loss(self, values: Mapping[str, Tensor], own: Tree, tensors: dict[str, Tensor]) -> Tensor:
        args, weight = self.batches.select(tensors, own["indices"])
        return self.loop.objective(values, args, self.loop.num_rows, weight, own["step"])

    def __call__(self, carry: Tree, own: Tree, fixed: Tree) -> tuple[Tree, Tensor]:
        """The step."""
        buffers = {name: v.clone() for name, v in carry["buffers"].items()}
        with torch.enable_grad():
            vectors = [v.detach().requires_grad_() for v in carry["params"]]
            values = dict(fixed["still"])
            for unit, vector in zip(self.optimizer.units, vectors, strict=True):
                values |= unit.split(vector)
            with Given(own["noise"]):
                loss = self._loss(values | buffers, own, fixed["data"])
            grads = torch.autograd.grad(loss, vectors)
        norm = self._clip(vectors, list(grads))
        if not self.optimizer.passes_on or self.loop.clips_values:
            loss = torch.where(torch.isfinite(norm), loss, torch.nan)
        rates = own["rates"] if self.loop.scheduler else fixed["rates"]
        params, state = self.optimizer(carry["params"], grads, carry["state"], list(rates.unbind()))
        return {"params": params, "state": state, "buffers": buffers}, loss.detach()

    def _clip(self, vectors: list[Tensor], grads: list[Tensor]) -> Tensor:
        """Clip the gradients in place as the loop does; their norm before."""
        parts = []
        for unit, vector, grad in zip(self.optimizer.units, vectors, grads, strict=True):
            slices = unit.split(grad)
            for name, value in unit.split(vector.detach()).items():
                leaf = value.detach()
                leaf.grad = slices[name]
                parts.append(leaf)
        return self.loop.clip(parts)
