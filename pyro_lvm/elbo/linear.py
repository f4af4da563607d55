"""Estimators of the ELBO itself, which is linear in the log-weights: no plate, minibatch or scale disturbs it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyro_lvm.elbo.estimator import Estimator, refuse_unless_along_draws, value_with_gradient_of
from pyro_lvm.elbo.particles import Path, Run, draw
from pyro_lvm.elbo.structure import Structure
from pyro_lvm.elbo.terms import Term, by_row, sum_to


class Trace_ELBO(Estimator):
    r"""The evidence lower bound, by reparametrised draws where there are any and by the score function elsewhere.

    .. math:: \frac1K \sum_k \log p(x, z_k) - \log q(z_k)

    Each score is weighted by what lies in its own plates only (Ranganath et al. 2014, section 3.1). With enumerated
    sites it is what Pyro calls ``TraceEnum_ELBO``.

    Args:
        num_particles: K.
        plate: The name of the plate of the rows, where it must be named.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> result = lvm.fit(model, "mean_field", y, elbo=lvm.elbo.Trace_ELBO(10), progress=False)
        >>> abs(result.params["AutoNormal.locs.mean"].item() - 2.5) < 0.2
        True
    """

    has_cells = False
    closed_form = False
    leave_one_out = False

    @property
    def target(self) -> str:
        """The ELBO."""
        return "ELBO"

    def reference(self, structure: Structure) -> Estimator:
        """Along the draws alone, where that can be."""
        kind = Trace_ELBO if structure.why_not_along_draws() else TraceSTL_ELBO
        return kind(self.num_particles, plate=self.plate)

    def estimate(self, run: Run) -> Tensor:
        """The negative ELBO in nats."""
        particles = draw(run, self.num_particles, self.path, self.closed_form)
        log_p, log_q = particles.scaled(particles.log_p), particles.scaled(particles.log_q)
        pathwise = _sum(log_p) - _sum(log_q)
        if not particles.score:
            return -pathwise.mean()
        costs = [t._replace(value=t.value.detach()) for t in log_p] + [
            t._replace(value=-t.value.detach()) for t in log_q
        ]
        scores = torch.stack([(self._weight(costs, s.plates) * s.value).sum() for s in particles.score]).sum()
        # E[d log q] = 0: without the score sites' own log q the gradient varies less
        surrogate = pathwise.sum() + _sum(particles.scaled(particles.scored)).sum() + scores
        return -value_with_gradient_of(pathwise.mean(), surrogate / self.num_particles)

    def _weight(self, costs: list[Term], plates: tuple[str, ...]) -> Tensor:
        """By what a score is multiplied: the log-weight of its elements, less that of the other particles."""
        weight = torch.stack(torch.broadcast_tensors(*(sum_to(cost, plates) for cost in costs))).sum(0)
        if self.leave_one_out:
            num = self.num_particles
            weight = weight - (weight.sum(0) - weight) / (num - 1)
        return weight


class TraceMeanField_ELBO(Trace_ELBO):
    r"""The evidence lower bound, with the KL divergence of a latent in closed form wherever torch or Pyro knows it.

    .. math:: \frac1K \sum_k \log p(x \mid z_k) - \mathrm{KL}(q(z) \| p(z))

    A guide by name draws on the real line, where torch knows no divergence from the prior: there this is
    ``Trace_ELBO``. Latents without reparametrised draws, and enumerated sites, are a ``ValueError``.

    Args:
        num_particles: K.
        plate: The name of the plate of the rows, where it must be named.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> lvm.elbo.TraceMeanField_ELBO().loss(model, guide)  # the divergence, without noise
        0.5
    """

    closed_form = True

    def check(self, structure: Structure) -> None:
        """Refuse guides that are not reparametrised, and enumeration.

        Raises:
            ValueError: that names the site.
        """
        if structure.enumerated:
            raise ValueError(
                f"TraceMeanField_ELBO does not sum out sites, and {structure.enumerated[0]!r} is marked for "
                "enumeration: use Trace_ELBO"
            )
        if structure.score:
            raise ValueError(
                f"TraceMeanField_ELBO needs reparametrised draws, and {structure.score[0]!r} has none: use Trace_ELBO"
            )


class TraceSTL_ELBO(Trace_ELBO):
    r"""The evidence lower bound, "sticking the landing": gradients flow through the draws alone (Roeder et al. 2017).

    .. math:: \frac1K \sum_k \log p(x, z_k(\phi)) - \log q_{\bar\phi}(z_k(\phi))

    The gradient of the guide's parameters has no variance where the guide is the posterior. A parameter that model and
    guide share is a ``ValueError``.

    Args:
        num_particles: K.
        plate: The name of the plate of the rows, where it must be named.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.5**0.5))
        >>> objective = lvm.Objective(model, guide, lvm.elbo.TraceSTL_ELBO())
        >>> params = objective.init(torch.tensor(2.0))  # of which the posterior has a mean of 1
        >>> objective(params, torch.tensor(2.0)).backward()
        >>> abs(params["loc"].grad.item()) < 1e-5
        True
    """

    path: Path = "stl"

    def check(self, structure: Structure) -> None:
        """Refuse what has no right form.

        Raises:
            ValueError: that says why.
        """
        refuse_unless_along_draws(structure, "TraceSTL_ELBO")


class TraceScore_ELBO(Trace_ELBO):
    r"""The evidence lower bound, by the score function at every site, reparametrised or not (Ranganath et al. 2014).

    .. math:: \frac1K \sum_k \nabla \log q(z_k) \Bigl(\log w_k - \frac1{K-1} \sum_{j \ne k} \log w_j\Bigr)

    with :math:`w = p(x, z) / q(z)`; the baseline is that of Richter et al. (2020, VarGrad) and Kool et al. (2019).

    Args:
        num_particles: K; at least 2 with a baseline.
        baseline: "leave_one_out", the mean log-weight of the other particles, or None.
        plate: The name of the plate of the rows, where it must be named.

    Raises:
        ValueError: for a single particle with a baseline.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Poisson(3.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("z", dist.Poisson(scale * x.clamp(min=0.1)))
        >>> x = torch.tensor([1.0, 3.0, 4.0, 2.0])
        >>> elbo = lvm.elbo.TraceScore_ELBO(10)
        >>> result = lvm.fit(model, guide, x, elbo=elbo, num_steps=300, optim=0.02, progress=False)
        >>> result.losses[-50:].mean() < result.losses[:50].mean()
        tensor(True)
    """

    path: Path = "none"

    def __init__(
        self,
        num_particles: int = 2,
        baseline: Literal["leave_one_out"] | None = "leave_one_out",
        *,
        plate: str | None = None,
    ) -> None:
        super().__init__(num_particles, plate=plate)
        if baseline not in ("leave_one_out", None):
            raise ValueError(f"baseline must be 'leave_one_out' or None; got {baseline!r}")
        if baseline is not None and self.num_particles < 2:
            raise ValueError(
                "baseline='leave_one_out' compares particles with each other and needs num_particles of at least 2"
            )
        self.baseline, self.leave_one_out = baseline, baseline is not None


def _sum(terms: list[Term]) -> Tensor:
    """The sum of terms over all their plates, ``[K]``."""
    return by_row(terms, ())[0]
