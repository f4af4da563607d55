"""What the draws of a fit say of a mixture: its components, and which rows belong together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.diagnostics.exchangeable import component_dims, component_site
from pyro_lvm.diagnostics.relabelling import Relabelled, relabel
from pyro_lvm.elbo.contraction import responsibilities
from pyro_lvm.result import Draws, Result
from pyro_lvm.vectorize import repeat
from pyro_lvm.verdict.finding import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS, _SHOWN = 5_000, 1_000


@dataclass(frozen=True)
class Components:
    """The components of a mixture in the draws of a fit.

    Attributes:
        site: The enumerated site that gives each row its component.
        rows: Which rows were looked at, ``[M]``: all, or 5,000 of them.
        dims: The dimension of each latent that counts components, or several; None where none was found.
        relabelled: Draws of the latents that all rows share, ``[S, ...]``, and of the responsibilities, ``[S, M, K]``,
            after relabelling; as they were drawn, where ``dims`` is None.
    """

    site: str
    rows: Tensor = field(repr=False, compare=False)
    dims: dict[str, tuple[int, ...]] | None
    relabelled: Relabelled = field(repr=False, compare=False)

    @property
    def num_components(self) -> int:
        """K."""
        return self.relabelled.permutations.shape[1]

    @property
    def switched(self) -> float:
        """The share of draws whose components were numbered otherwise than in the most common way."""
        return self.relabelled.switched

    @property
    def one_numbering(self) -> str:
        """What the evidence lacks where a guide keeps to one numbering of components that have many; empty elsewhere.

        A guide that has all of them is weighed against all of the posterior.
        """
        if not self.dims or self.switched:
            return ""
        K = self.num_components
        more = f"log p(x) may be up to log {K}! = {math.lgamma(K + 1):.1f} higher"
        return f"the guide holds one numbering of {K} components: {more}"

    @cached_property
    def responsibilities(self) -> Tensor:
        """The probability of each row's component, the mean over relabelled draws, ``[M, K]``."""
        return self._each.mean(0)

    @cached_property
    def similarity(self) -> Tensor:
        """See :func:`pyro_lvm.posterior_similarity`, ``[M, M]``."""
        return _similarity(self._each)

    @cached_property
    def num_effective(self) -> float:
        """The effective number of components that rows belong to: exp of the entropy of their shares, over draws."""
        return torch.special.entr(self._each.mean(1)).sum(-1).exp().mean().item()

    @property
    def _each(self) -> Tensor:
        assert self.relabelled.responsibilities is not None
        return self.relabelled.responsibilities

    def findings(self) -> list[Finding]:
        """Whether labels have switched, and how many components have rows."""
        return [self._labels(), Finding("components", "good", self._occupied())]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The similarity of at most a thousand rows, in the order of their components."""
        order = self.responsibilities.argmax(-1).argsort(stable=True)
        order = order[:: -(-len(order) // _SHOWN)]
        ax = plots.similarity(_similarity(self._each[:, order]), ax)
        ax.set(title="probability to be together", xlabel="rows by component")
        return ax

    def _labels(self) -> Finding:
        if self.dims is None:
            text = f"no dimension of the latents was found to count the states of {self.site!r}"
            return Finding("labels", "unknown", f"{text}: draws are taken as they are")
        if not self.switched:
            return Finding("labels", "good", "components mean the same in all draws")
        text = f"labels switched in {self.switched:.0%} of the draws: components mean the same after relabelling"
        advice = "means of lvm.relabel(...).draws, or what knows no labels, as lvm.posterior_similarity"
        return Finding("labels", "doubtful", text, advice)

    def _occupied(self) -> str:
        decided = self.responsibilities.amax(-1).mean().item()
        return (
            f"effectively {self.num_effective:.1f} of {self.num_components} components have rows, "
            f"which belong to theirs with a probability of {decided:.2f} on average"
        )

    def __str__(self) -> str:
        return "; ".join(finding.text for finding in self.findings())


def examine_mixture(result: Result, num_draws: int = 1_000, seed: int | None = None) -> Components | None:
    """Look at the components of a fitted mixture.

    Args:
        result: The fit.
        num_draws: S; without latents that are drawn one is enough.
        seed: Of the draws; the fit's, if None.

    Returns:
        None where no enumerated site gives each row its component, or several do.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> from pyro_lvm.diagnostics.mixtures import examine_mixture
        >>> x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
        >>> x[:20] += 8
        >>> mixture = lvm.models.BayesianGaussianMixture(3, 1).initialize(x)
        >>> print(examine_mixture(lvm.fit_em(mixture, x, progress=False), num_draws=200))
        components mean the same in all draws; effectively 1.9 of 3 components have rows, which belong to theirs with a
        probability of 1.00 on average
    """
    site = component_site(result)
    if site is None:
        return None
    dims = component_dims(result, site, seed) if result._program.sites.shared_latent else {}
    draws, probs, rows = _drawn(result, site, check_count("num_draws", num_draws), seed)
    if dims is None:
        relabelled = Relabelled(draws, torch.arange(probs.shape[-1]).expand(len(probs), -1), probs)
    elif draws:
        relabelled = relabel(draws, dims, probs)
    else:
        relabelled = relabel({site: probs}, {site: -1}, probs)
        relabelled = Relabelled({}, relabelled.permutations, relabelled.responsibilities)
    return Components(site, rows, dims, relabelled)


def posterior_similarity(result: Result, num_draws: int = 1_000, seed: int | None = None) -> Tensor:
    r"""The probability that two rows belong to the same component, for each pair of rows.

    The mean over draws of :math:`\sum_k p_{ik} p_{jk}`, the responsibilities of the draw: components may have other
    numbers in each, and nothing needs relabelling (Fritsch and Ickstadt 2009).

    Args:
        result: The fit of a mixture whose component of each row is enumerated.
        num_draws: S.
        seed: Of the draws; the fit's, if None.

    Returns:
        ``[N, N]``, with 1 on the diagonal.

    Raises:
        TypeError: if ``result`` is no result.
        ValueError: for more than 5,000 rows, and where no enumerated site gives each row its component, or several do.

    References:
        A. Fritsch and K. Ickstadt, "Improved criteria for clustering based on the posterior similarity matrix",
        *Bayesian Analysis* 4 (2009), 367-391.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> x = torch.tensor([[-4.1], [-4.0], [-3.9], [3.9], [4.0], [4.1]])
        >>> mixture = lvm.models.GaussianMixture(2, 1, covariance="tied").initialize(x)
        >>> result = lvm.fit_em(mixture, x, progress=False)
        >>> lvm.posterior_similarity(result)[0].round(decimals=2).tolist()
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    if not isinstance(result, Result):
        raise TypeError(f"posterior_similarity takes the result of a fit; got {type(result).__name__}")
    num_draws, seed = check_count("num_draws", num_draws), None if seed is None else check_seed(seed)
    if (result._program.data.num_rows or 0) > _MOST_ROWS:
        raise ValueError(
            f"the fit has {result._program.data.num_rows:,} rows, and a matrix of all pairs is made of at most "
            f"{_MOST_ROWS:,}: fit a part of them"
        )
    site = component_site(result)
    if site is None:
        raise ValueError(
            "no single enumerated site inside the row plate gives each row a component; the enumerated sites are "
            f"{list(result._program.sites.enumerated)}"
        )
    return _similarity(_drawn(result, site, num_draws, seed)[1])


def _similarity(probs: Tensor) -> Tensor:
    rows = probs.transpose(0, 1).flatten(1)
    found = rows @ rows.mT / len(probs)
    found.fill_diagonal_(1.0)
    return found


def _drawn(result: Result, site: str, num_draws: int, seed: int | None) -> tuple[Draws, Tensor, Tensor]:
    """What all rows share, ``[S, ...]``, responsibilities of some rows, ``[S, M, K]``, and which rows these are."""
    args, program = result._arguments(()), result._program
    shared, num_rows = program.sites.shared_latent, program.data.num_rows or 0
    rows = torch.linspace(0, num_rows - 1, min(num_rows, _MOST_ROWS), dtype=torch.float64).round().long()

    def once() -> tuple[Draws, Tensor]:
        drawn = poutine.trace(result.guide).get_trace(*args, **program.model_kwargs)
        probs = responsibilities(result._enumerated_trace(args, drawn))[site]
        probs = probs.reshape(num_rows, -1)[rows.to(probs.device)]
        return {name: drawn.nodes[name]["value"] for name in shared}, probs

    with result._quiet(seed):
        draws, probs = repeat(once, num_draws if program.sites.latent else 1)
    return draws, probs, rows
