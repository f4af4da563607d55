"""Wrappers that any estimator takes: a weight of the KL divergence that warms up, and free bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm.elbo.estimator import Estimator
from pyro_lvm.elbo.inclusive import TraceCUBO
from pyro_lvm.elbo.particles import Run, draw, fix_subsamples
from pyro_lvm.elbo.structure import Structure
from pyro_lvm.elbo.terms import Term, by_row
from pyro_lvm.elbo.translate import translate


class _Wrapper(Estimator):
    """An estimator that changes another."""

    def __init__(self, elbo: ELBO) -> None:
        inner = translate(elbo) if isinstance(elbo, ELBO) else None
        if inner is None:
            raise TypeError(
                f"{type(self).__name__} wraps an estimator of pyro_lvm.elbo, or Pyro's Trace_ELBO, TraceMeanField_ELBO "
                f"or TraceEnum_ELBO; got {elbo!r}"
            )
        super().__init__(inner.num_particles, plate=inner.plate)
        self.elbo, self.path = inner, inner.path

    @property
    def unbiased(self) -> bool:
        """As the wrapped estimator is."""
        return self.elbo.unbiased

    def check(self, structure: Structure) -> None:
        """As the wrapped estimator does, and refuse latents whose divergence cannot be told.

        Raises:
            ValueError: if there is no right form.
        """
        self.elbo.check(structure)
        if structure.entangled:
            raise ValueError(
                f"the prior of {structure.entangled[0]!r} depends on an enumerated site and is summed out with it: it "
                f"has no divergence of its own for {type(self).__name__}"
            )

    def check_minibatches(self, structure: Structure) -> None:
        """As the wrapped estimator does.

        Raises:
            ValueError: if that has no unbiased estimate.
        """
        self.elbo.check_minibatches(structure)

    def check_start(self, run: Run) -> None:
        """As the wrapped estimator does.

        Raises:
            ValueError: if that could not start there.
        """
        self.elbo.check_start(run)


class Beta(_Wrapper):
    r"""A weight of the KL divergence (Higgins et al. 2017), which may rise from 0 (Bowman et al. 2016).

    .. math:: \log p(x \mid z) + \beta_t \bigl(\log p(z) - \log q(z)\bigr), \qquad \beta_t = \beta \min(1, t / T)

    in place of the log-weight. z are the latents that the guide draws; enumerated sites keep their weight of 1.

    Args:
        elbo: The estimator to wrap.
        beta: The weight after the warm-up.
        warm_up: T, the number of optimisation steps over which it rises; 0 for none. Values without a gradient, such as
            those of validation, have the full weight. Under ``pyro.infer.SVI`` the object counts its steps itself:
            take a new one for each.

    Raises:
        TypeError: if ``elbo`` is none that can be wrapped.
        ValueError: for a weight that is negative or not finite, and a negative warm-up.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro_lvm as lvm
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> elbo = lvm.elbo.Beta(lvm.elbo.TraceMeanField_ELBO(), beta=4.0, warm_up=2)
        >>> [float(elbo.differentiable_loss(model, guide)) for _ in range(4)]  # four steps
        [-0.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, elbo: ELBO, beta: float = 1.0, warm_up: int = 0) -> None:
        super().__init__(elbo)
        self.beta = _check_nats("beta", beta)
        self.warm_up = _check_steps(warm_up)

    @property
    def target(self) -> str:
        """The wrapped target, weighted."""
        return f"{self.elbo.target}, beta {self.beta:g}"

    def reference(self, structure: Structure) -> Estimator:
        """That of the wrapped estimator, weighted too."""
        return Beta(self.elbo.reference(structure), self.beta, self.warm_up)

    def estimate(self, run: Run) -> Tensor:
        """The wrapped loss, its latents weighted."""
        return self.elbo.estimate(run._replace(kl_weight=run.kl_weight * self._weight(run.step)))

    def _weight(self, step: int | Tensor | None) -> float | Tensor:
        if step is None or self.warm_up == 0:
            return self.beta
        if isinstance(step, Tensor):
            return self.beta * (step / self.warm_up).clamp(max=1.0)
        return self.beta * min(step / self.warm_up, 1.0)


class FreeBits(_Wrapper):
    r"""Free bits (Kingma et al. 2016, appendix C.8): no reward for a KL divergence below a threshold.

    .. math:: L - N \sum_j \max(0, \lambda - \overline{\mathrm{KL}}_j)

    for an ELBO L, whose part :math:`-N \sum_j \overline{\mathrm{KL}}_j` thus becomes
    :math:`-N \sum_j \max(\lambda, \overline{\mathrm{KL}}_j)`. The divergence of a latent site inside the plate of the
    rows is that of a row, averaged over the batch; that of a site outside counts once. It is in closed form wherever
    torch knows it, else from one draw; model and guide run once more for it. The latents of a guide with auxiliary
    sites, such as AutoNormal, count together. With :class:`Beta`, put that around: ``Beta(FreeBits(elbo, nats), beta)``
    weighs what is charged.

    Args:
        elbo: The estimator to wrap.
        nats: The threshold for each latent site.

    Raises:
        TypeError: if ``elbo`` is none that can be wrapped.
        ValueError: for a threshold that is negative or not finite, and around ``Beta`` or ``TraceCUBO``.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro_lvm as lvm
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> lvm.elbo.FreeBits(lvm.elbo.TraceMeanField_ELBO(), nats=2.0).loss(model, guide)  # for a divergence of 0.5
        2.0
    """

    def __init__(self, elbo: ELBO, nats: float) -> None:
        super().__init__(elbo)
        if isinstance(self.elbo, Beta):
            raise ValueError(
                "FreeBits(Beta(...)) would reward divergences below the threshold: use Beta(FreeBits(...))"
            )
        if isinstance(self.elbo, TraceCUBO):
            raise ValueError("TraceCUBO has no divergence in nats from which FreeBits could spare some")
        self.nats = _check_nats("nats", nats)

    def check(self, structure: Structure) -> None:
        """Refuse what has no right form.

        Raises:
            ValueError: that says why.
        """
        super().check(structure)
        if structure.score and len(structure.local | structure.shared) > 1:
            raise ValueError(
                f"FreeBits needs reparametrised draws where there is more than one latent, and {structure.score[0]!r} "
                "has none"
            )

    @property
    def target(self) -> str:
        """The wrapped target, with free bits."""
        return f"{self.elbo.target}, {self.nats:g} free nats"

    def reference(self, structure: Structure) -> Estimator:
        """That of the wrapped estimator, with free bits too."""
        return FreeBits(self.elbo.reference(structure), self.nats)

    def estimate(self, run: Run) -> Tensor:
        """The wrapped loss, and what the divergences lack."""
        run = fix_subsamples(run)
        loss = self.elbo.estimate(run)
        particles = draw(run._replace(kl_weight=1.0), 1, closed_form=not run.structure.enumerated)
        if particles.score:
            raise ValueError(
                f"torch knows no KL divergence in closed form for {run.structure.score[0]!r}, as FreeBits needs"
            )
        latents = run.structure.local | run.structure.shared
        minus_log_p = [Term(t.plates, -t.value, t.site) for t in particles.log_p]
        terms = [t for t in particles.log_q + minus_log_p if t.site in latents]
        auxiliary = not {t.site for t in particles.log_q} <= {t.site for t in particles.log_p}
        groups: dict[tuple[str, bool], list[Term]] = {}
        for term in terms:
            local = term.site in run.structure.local
            groups.setdefault(("" if auxiliary else term.site, local), []).append(term)
        scales = particles.scales
        for (_, local), members in groups.items():
            outside, rows = by_row(members, run.structure.rows)
            count: Any = 1.0
            if local and rows is not None:
                weight = torch.as_tensor(scales.weight, dtype=rows.dtype, device=rows.device).expand(rows.shape[-1])
                total = weight.sum().clamp(min=torch.finfo(rows.dtype).tiny)  # no row of a batch need have a weight
                outside, count = (rows * weight).sum() / total, weight.sum() * scales.ratio
            inside = local or not run.structure.separate
            loss = loss + run.kl_weight * scales.around_all(inside) * count * (self.nats - outside.sum()).clamp(min=0)
        return loss


def _check_nats(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0; got {value!r}")
    return value


def _check_steps(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"warm_up must be a number of steps, 0 or more; got {value!r}")
    return value
