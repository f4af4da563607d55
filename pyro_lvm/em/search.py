"""Numerical maxima over parameters, in unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint

from pyro_lvm.em.roles import Theta

Values = Callable[[Theta], Iterable[Tensor]]  # a number in nats, as a sum over batches


class Free:
    """Some parameters as unconstrained leaves.

    Args:
        names: Of the parameters.
        theta: Where they stand.
        constraints: Of all parameters.
    """

    def __init__(self, names: Sequence[str], theta: Theta, constraints: Mapping[str, Constraint]) -> None:
        self.theta, self._there = theta, {n: transform_to(constraints[n]) for n in names}
        self.leaves = {n: t.inv(theta[n]).detach().clone().requires_grad_() for n, t in self._there.items()}

    def constrained(self) -> dict[str, Tensor]:
        """All parameters, these where the leaves stand."""
        return {**self.theta, **{n: t(self.leaves[n]) for n, t in self._there.items()}}

    def gradient(self, values: Values) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of values there, and its derivative by each leaf."""
        total, found = torch.zeros((), dtype=torch.float64), {n: torch.zeros_like(v) for n, v in self.leaves.items()}
        with torch.enable_grad():
            for value in values(self.constrained()):
                total = total + value.detach()
                if not value.requires_grad:  # of a batch of rows, if all that moves lies outside the rows
                    continue
                grads = torch.autograd.grad(value, list(self.leaves.values()), retain_graph=True, allow_unused=True)
                for n, g in zip(self.leaves, grads, strict=True):
                    found[n] += 0 if g is None else g
        return total, found


def climb(
    names: Sequence[str], theta: Theta, constraints: Mapping[str, Constraint], values: Values, max_steps: int
) -> dict[str, Tensor]:
    """Parameters at which a sum of values is larger, by L-BFGS (Liu and Nocedal 1989).

    Args:
        names: Of those that move.
        theta: Where all parameters stand.
        constraints: Of all parameters.
        values: What to maximise; the same function at every call.
        max_steps: Of the search.

    Returns:
        The best that were met, all parameters.

    Raises:
        ValueError: If a slope is not finite at the start.
    """
    free = Free(names, theta, constraints)
    optimizer = torch.optim.LBFGS(
        list(free.leaves.values()), max_iter=max_steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )
    best, reached = dict(theta), -torch.inf

    def closure() -> Tensor:
        nonlocal best, reached
        value, gradient = free.gradient(values)
        bad = [n for n, g in gradient.items() if not g.isfinite().all()]
        if bad and reached == -torch.inf:
            raise ValueError(
                f"the slope of the log-density by {bad[0]!r} is not finite where the search begins: does the model "
                "compute with NaN or infinity, be it under a mask?"
            )
        for n, leaf in free.leaves.items():
            leaf.grad = -gradient[n]
        if value > reached:
            best, reached = {n: v.detach().clone() for n, v in free.constrained().items()}, float(value)
        return -value

    optimizer.step(closure)
    return best


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """The solution of linear equations whose matrix, positive semidefinite, is known by its products alone.

    Args:
        product: Of the matrix and a vector, ``[n]``.
        right: The right side, ``[n]``.
    """

    def multiply(vector: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(vector.reshape(-1)).to(right)).cpu().numpy()

    matrix = LinearOperator((len(right), len(right)), multiply, dtype=np.float64)
    solution, _ = cg(matrix, right.cpu().numpy(), rtol=1e-10)
    return torch.from_numpy(solution).to(right)
