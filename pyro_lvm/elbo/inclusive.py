"""Losses that spread a guide over the posterior, where an ELBO would draw it together: chi-square and inclusive KL."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_lvm.elbo.bounds import ParticleBound
from pyro_lvm.elbo.estimator import Estimator, log_mean_exp, value_with_gradient_of
from pyro_lvm.elbo.particles import Cells, Run, draw
from pyro_lvm.elbo.structure import Structure


class _Inclusive(ParticleBound):
    """Weighs all latents of a cell together."""

    def check(self, structure: Structure) -> None:
        """Refuse latents that rows share beside latents of their own.

        Raises:
            ValueError: that names them.
        """
        super().check(structure)
        if structure.separate and structure.shared:
            raise ValueError(
                f"{type(self).__name__} weighs all latents of a cell together, and rows share "
                f"{structure.shared_latents} beside latents of their own, so that no row has a weight: use a "
                "lower bound, such as TraceIWAE_ELBO"
            )


class TraceCUBO(_Inclusive):
    r"""The loss of chi-square variational inference (Dieng et al. 2017), summed over cells.

    .. math:: \frac1K \sum_k \Bigl(\frac{w_k}{e^{c}}\Bigr)^2

    It is no number of nats. Half the logarithm of its mean in a cell, plus c, bounds the log-evidence of the cell from
    above. An estimate of that does not: it is biased down, and its variance is often infinite.

    Args:
        num_particles: K.
        shift: c in nats, a constant near the log-evidence of a cell: weights of real data would underflow without. It
            changes the loss by a factor.
        plate: The name of the plate of the rows, where it must be named.

    Raises:
        ValueError: for a shift that is not finite.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> start = lvm.fit(model, "mean_field", y, num_steps=1_000, optim=0.02, progress=False)
        >>> elbo = lvm.elbo.TraceCUBO(20, shift=start.evidence().value)
        >>> result = lvm.fit(model, "mean_field", y, elbo=elbo, init=start, num_steps=200, progress=False)
        >>> 0.9 < result.losses[-50:].mean() < 1.5  # E[w^2] / p(y)^2, which is at least 1
        tensor(True)
    """

    def __init__(self, num_particles: int = 10, shift: float = 0.0, *, plate: str | None = None) -> None:
        super().__init__(num_particles, plate=plate)
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not math.isfinite(shift):
            raise ValueError(f"shift must be a finite number of nats; got {shift!r}")
        self.shift = shift

    def check(self, structure: Structure) -> None:
        """Refuse what has no right form.

        Raises:
            ValueError: that says why.
        """
        super().check(structure)
        if structure.separate and structure.outside:
            raise ValueError(f"TraceCUBO has a loss for each row, and {structure.outside[0]!r} lies outside all rows")

    def check_start(self, run: Run) -> None:
        """Refuse to start where no weight can be squared: loss and gradient would be 0 or infinite.

        Raises:
            ValueError: that says how large the log-weights are.
        """
        log_weights = draw(run, self.num_particles).cells().log_weights
        squares = (2 * (log_weights - self.shift)).exp()
        if not (torch.isfinite(squares).all() and squares.any()):
            typical = log_weights.max(0).values.mean().item()
            raise ValueError(
                f"TraceCUBO(shift={self.shift:g}): the squared weights are beyond what {squares.dtype} holds, with "
                f"log-weights of about {typical:.0f} nats in a cell. Fit an ELBO first and start from it (init=), with "
                "the log-evidence of a cell as shift="
            )

    @property
    def target(self) -> str:
        """The squared weight, which does not depend on K."""
        return f"minus chi-square, shift {self.shift:g}" if self.shift else "minus chi-square"

    def bound(self, cells: Cells) -> Tensor:
        """Minus the mean squared weight."""
        return -(2 * (cells.log_weights - self.shift)).exp().mean(0)

    def baseline(self, log_weights: Tensor) -> Tensor:
        """What the other particles add to the mean, which a particle's score has no part in."""
        squares = (2 * (log_weights - self.shift)).exp()
        return -(squares.sum(0) - squares) / len(squares)


class TraceWakePhi(_Inclusive):
    r"""The wake phase of a guide (Bornschein & Bengio 2015): the inclusive KL divergence, by self-normalised weights.

    .. math:: \sum_k \tilde w_k \nabla \bigl(\log q(z_k) + \log p(x, z_k)\bigr), \qquad \tilde w_k = w_k / \sum_j w_j

    No gradient flows through draws, so that any latents will do. The gradient of the guide is biased at finite K. The
    model's parameters follow the importance-weighted bound, whose negative is the value of the loss. A parameter that
    model and guide share, and latents that rows share beside their own, are a ``ValueError``.

    Args:
        num_particles: K.
        plate: The name of the plate of the rows, where it must be named.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 1.0))
        >>> _ = torch.manual_seed(0)
        >>> elbo = lvm.elbo.TraceWakePhi(50)
        >>> result = lvm.fit(model, guide, torch.randn(100), elbo=elbo, num_steps=300, progress=False)
        >>> abs(result.params["slope"].item() - 0.5) < 0.1
        True
    """

    def __init__(self, num_particles: int = 10, *, plate: str | None = None) -> None:
        super().__init__(num_particles, plate=plate)

    def check(self, structure: Structure) -> None:
        """Refuse what has no right form.

        Raises:
            ValueError: that says why.
        """
        super().check(structure)
        if structure.common_parameter:
            raise ValueError(
                "TraceWakePhi moves model and guide by different losses, and the parameter "
                f"{structure.common_parameter!r} belongs to both"
            )

    @property
    def target(self) -> str:
        """What the gradients tend to as K grows."""
        return "inclusive KL"

    @property
    def unbiased(self) -> bool:
        """Not at any finite number of particles."""
        return False

    def reference(self, structure: Structure) -> Estimator:
        """Many particles, with which the bias is small."""
        return TraceWakePhi(max(1_000, self.num_particles), plate=self.plate)

    def estimate(self, run: Run) -> Tensor:
        """The negative bound in nats, with the gradient of the wake phases."""
        cells = draw(run, self.num_particles, "none").cells()
        return -cells.shared - (cells.counts * self.bound(cells)).sum()

    def bound(self, cells: Cells) -> Tensor:
        """log of the mean weight, followed by the model; the guide follows the weighted particles."""
        weights = cells.log_weights.detach().softmax(0)
        return value_with_gradient_of(log_mean_exp(cells.log_weights), (weights * (cells.log_p + cells.log_q)).sum(0))
