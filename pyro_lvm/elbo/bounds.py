"""Bounds from K particles: a logarithm or power stands around their average, so that rows need bounds of their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from pyro_lvm.elbo.estimator import Estimator, log_mean_exp, refuse_unless_along_draws, value_with_gradient_of
from pyro_lvm.elbo.particles import Cells, Run, draw
from pyro_lvm.elbo.structure import Structure


class ParticleBound(Estimator):
    """A bound of each cell from the log-weights of its K particles.

    Where every latent belongs to a row, each row is a cell, and minibatches are unbiased. Where rows share some latents
    g and have others of their own, it is ``E_q(g) [log p(g) / q(g) + sum_i bound_i(g)]``, from one draw of g. Where all
    latents are shared, or rows depend on each other, all rows are one cell, and minibatches are refused.
    """

    def check_minibatches(self, structure: Structure) -> None:
        """Refuse them where all rows are one cell.

        Raises:
            ValueError: that says why.
        """
        if not structure.separate:
            raise ValueError(
                f"{type(self).__name__} averages particles inside a logarithm or a power, and all rows stand in it "
                f"together, because {structure.why_together}: a minibatch has no unbiased estimate of it. Take all "
                "rows in each step, or Trace_ELBO"
            )

    def check(self, structure: Structure) -> None:
        """Refuse plates inside a row that take a random part of their elements.

        Raises:
            ValueError: that names one.
        """
        if structure.subsampled:
            raise ValueError(
                f"the plate {structure.subsampled[0]!r} takes a part of its elements, whose scale would stand inside "
                f"the logarithm or power of {type(self).__name__}: only the plate of the rows may, or use Trace_ELBO"
            )

    def estimate(self, run: Run) -> Tensor:
        """The negative bound in nats, summed over cells."""
        cells = draw(run, self.num_particles, self.path, nested=run.structure.separate).cells()
        bound = self.bound(cells)
        total = cells.shared + (cells.counts * bound).sum()
        signal = cells.counts * (bound - self.baseline(cells.log_weights)).detach()
        scores = (cells.score * signal).sum() + cells.shared_score * total.detach()
        return -value_with_gradient_of(total, total + scores)

    @abstractmethod
    def bound(self, cells: Cells) -> Tensor:
        """The bound of each cell, ``[C]``."""

    def baseline(self, log_weights: Tensor) -> Tensor:
        """By what the bound is compensated where it weighs the score of a particle: ``[K, C]``, from the others."""
        return torch.zeros_like(log_weights)


class TraceIWAE_ELBO(ParticleBound):
    r"""The importance-weighted bound (Burda et al. 2016).

    .. math:: \log \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k)}

    Args:
        num_particles: K; with 1 it is the ELBO.
        gradient: "total"; "dreg", doubly reparametrised (Tucker et al. 2019), whose signal does not fade with K; "stl",
            which sticks the landing and is biased for K > 1.
        plate: The name of the plate of the rows, where it must be named.

    Raises:
        ValueError: for an unknown gradient.

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
        >>> elbo = lvm.elbo.TraceIWAE_ELBO(10, gradient="dreg")
        >>> result = lvm.fit(model, guide, torch.randn(100), elbo=elbo, num_steps=300, progress=False)
        >>> abs(result.params["slope"].item() - 0.5) < 0.1
        True
    """

    def __init__(
        self, num_particles: int = 1, gradient: Literal["total", "stl", "dreg"] = "total", *, plate: str | None = None
    ) -> None:
        super().__init__(num_particles, plate=plate)
        if gradient not in ("total", "stl", "dreg"):
            raise ValueError(f"gradient must be 'total', 'stl' or 'dreg'; got {gradient!r}")
        self.path = self.gradient = gradient

    def check(self, structure: Structure) -> None:
        """Refuse what has no right form.

        Raises:
            ValueError: that says why.
        """
        super().check(structure)
        if self.path != "total":
            refuse_unless_along_draws(structure, f"TraceIWAE_ELBO(gradient={self.path!r})", twice=self.path == "dreg")
        if self.path == "dreg" and structure.score:
            raise ValueError(
                f"gradient='dreg' needs reparametrised draws, and {structure.score[0]!r} has none: use TraceVIMCO_ELBO"
            )

    @property
    def target(self) -> str:
        """The bound of K particles."""
        return "ELBO" if self.num_particles == 1 else f"IWAE-{self.num_particles}"

    @property
    def unbiased(self) -> bool:
        """Not where the landing is stuck with several particles."""
        return self.gradient != "stl" or self.num_particles == 1

    def reference(self, structure: Structure) -> Estimator:
        """Doubly reparametrised where it can be."""
        if structure.score and self.num_particles > 1:
            return TraceVIMCO_ELBO(self.num_particles, plate=self.plate)
        doubly = not structure.score and not structure.why_not_along_draws(twice=True)
        return TraceIWAE_ELBO(self.num_particles, "dreg" if doubly else "total", plate=self.plate)

    def bound(self, cells: Cells) -> Tensor:
        """log of the mean weight."""
        bound = log_mean_exp(cells.log_weights)
        if self.path != "dreg":
            return bound
        weights = cells.log_weights.detach().softmax(0)
        surrogate = (weights.square() * cells.log_weights + weights * cells.held).sum(0)
        return value_with_gradient_of(bound, surrogate)


class TraceVIMCO_ELBO(TraceIWAE_ELBO):
    r"""The importance-weighted bound for latents without reparametrised draws (Mnih & Rezende 2016).

    .. math:: \sum_k \nabla \log q(z_k) \Bigl(\hat L - \log \frac1K
        \bigl(\textstyle\sum_{j \ne k} w_j + \hat w_{-k}\bigr)\Bigr) + \nabla \hat L,
        \qquad \hat w_{-k} = \exp \frac1{K-1} \sum_{j \ne k} \log w_j

    Args:
        num_particles: K, at least 2.
        plate: The name of the plate of the rows, where it must be named.

    Raises:
        ValueError: for a single particle.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=slope * (x - 1)))
        >>> _ = torch.manual_seed(0)
        >>> x = 2 * torch.bernoulli(torch.full((100,), 0.5)) + torch.randn(100)
        >>> elbo = lvm.elbo.TraceVIMCO_ELBO(5)
        >>> result = lvm.fit(model, guide, x, elbo=elbo, num_steps=400, optim=0.05, progress=False)
        >>> 1 < result.params["slope"].item() < 3  # the posterior has a slope of 2
        True
    """

    def __init__(self, num_particles: int = 2, *, plate: str | None = None) -> None:
        super().__init__(num_particles, plate=plate)
        if self.num_particles < 2:
            raise ValueError("TraceVIMCO_ELBO compares particles with each other and needs num_particles of at least 2")

    def baseline(self, log_weights: Tensor) -> Tensor:
        """The bound with a particle's weight replaced by the geometric mean of the others."""
        num = self.num_particles
        of_others = (log_weights.sum(0) - log_weights) / (num - 1)
        own = torch.eye(num, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)
        return log_mean_exp(torch.where(own, of_others.unsqueeze(0), log_weights.unsqueeze(1)))


class TraceRenyi_ELBO(ParticleBound):
    r"""The K-sample estimate of the variational Rényi bound (Li & Turner 2016, equation 6).

    .. math:: \frac1{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}

    Args:
        alpha: 0 is the importance-weighted bound; towards 1 it is the ELBO; negative values bound nothing from below.
        num_particles: K.
        plate: The name of the plate of the rows, where it must be named.

    Raises:
        ValueError: for ``alpha=1``, and alphas that are not finite.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> elbo = lvm.elbo.TraceRenyi_ELBO(alpha=0.5, num_particles=10)
        >>> result = lvm.fit(model, "mean_field", y, elbo=elbo, num_steps=1_000, optim=0.02, progress=False)
        >>> result.target
        'Renyi 0.5, K = 10'
    """

    def __init__(self, alpha: float = 0.0, num_particles: int = 2, *, plate: str | None = None) -> None:
        super().__init__(num_particles, plate=plate)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number; got {alpha!r}")
        if alpha == 1:
            raise ValueError("alpha=1 is the ELBO: use Trace_ELBO")
        self.alpha = alpha

    @property
    def target(self) -> str:
        """The estimate's expectation, which depends on K."""
        return f"Renyi {self.alpha:g}, K = {self.num_particles}"

    def check(self, structure: Structure) -> None:
        """Refuse what has no right form.

        Raises:
            ValueError: that says why.
        """
        super().check(structure)
        if self.alpha < 0 and structure.separate and structure.shared:
            raise ValueError(
                f"alpha={self.alpha} gives no lower bound, and rows that share the latents {structure.shared_latents} "
                "have a right form for lower bounds only: use alpha of 0 or more"
            )

    def bound(self, cells: Cells) -> Tensor:
        """The bound of each cell."""
        power = 1 - self.alpha
        return log_mean_exp(power * cells.log_weights) / power
