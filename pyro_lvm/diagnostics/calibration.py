"""Ranks of true values among draws of fitted guides, and what they tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.diagnostics.picture import figure_of
from pyro_lvm.verdict.table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_SIMULATIONS = 50
"""Below which a histogram has no two bins."""

_REJECTED, _MOST_FAILED = 0.01, 0.01
_MOST_BINS, _FEWEST_A_BIN = 20, 25
_SHOWN = 9


@dataclass(frozen=True)
class Calibration:
    r"""Simulation-based calibration.

    Attributes:
        ranks: For each latent site, how many of the guide's draws lie below the true value, from 0 to L, ``[J, ...]``.
        num_draws: L.
        num_failed: Simulations that were left out, for their fit was not finite.
        seed: Of the simulations.
        seconds: What they took.
    """

    ranks: Mapping[str, Tensor] = field(repr=False, compare=False)
    num_draws: int
    num_failed: int
    seed: int
    seconds: float

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the latent numbers, such as ``"theta[3]"``, P of them."""
        return self._table[0]

    @cached_property
    def p_values(self) -> np.ndarray:
        r"""Of each number's hypothesis that its ranks are uniform, ``[P]``.

        It is twice the smaller of two: of a chi-square test of the histogram, and of the squares of the ranks as normal
        deviates, whose sum is :math:`\chi^2_J` (Cook et al. 2006, equation 3) and is too large for a guide that is too
        narrow, too small for one too wide.
        """
        from scipy.stats import chisquare

        bins = int(np.clip(len(self._uniform) // _FEWEST_A_BIN, 2, _MOST_BINS))
        shapes = [chisquare(np.histogram(column, bins, (0, 1))[0]).pvalue for column in self._uniform.T]
        narrower, wider = self._tails
        return np.minimum(1.0, 2 * np.minimum(shapes, 2 * np.minimum(narrower, wider)))

    @cached_property
    def symmetry_p_values(self) -> np.ndarray:
        """Of each number's Wilcoxon test that its ranks are symmetric, as they are about unbiased means, ``[P]``.

        Yao et al. (2018, section 3.2) test the symmetry of these probabilities, which a guide that is only too narrow
        or too wide has.
        """
        from scipy.stats import wilcoxon

        return np.array([wilcoxon(column - 0.5).pvalue for column in self._uniform.T])

    @property
    def p_value(self) -> float:
        """Of the hypothesis that all numbers are calibrated: the smallest of :attr:`p_values`, times P (Bonferroni)."""
        return float(min(1.0, len(self.p_values) * self.p_values.min()))

    @property
    def verdict(self) -> str:
        """Whether calibration is rejected at one per cent: "bad" or "good"; "doubtful" if over 1% of fits failed."""
        if self.p_value < _REJECTED:
            return "bad"
        return "doubtful" if self.num_failed > _MOST_FAILED * (self.num_failed + len(self._uniform)) else "good"

    def summary(self) -> str:
        """What was found, the worst numbers first."""
        simulated = len(self._uniform)
        lines = [
            f"{simulated:,} simulations, {self.num_draws:,} draws of the guide in each, in {self.seconds:.0f} s",
            f"verdict: {self.verdict} (ranks of all {len(self.names)} latent numbers are uniform with p = "
            f"{self.p_value:.2g})",
        ]
        if self.num_failed:
            lines.append(f"{self.num_failed} fits were not finite, and are left out")
        lines += [f"  {self._described(i)}" for i in self.p_values.argsort()[:_SHOWN]]
        return "\n".join(lines)

    __str__ = summary

    def __repr__(self) -> str:
        return self.summary()

    def plot(self) -> Figure:
        """Histograms of the ranks of the numbers that are furthest from uniform."""
        return figure_of([partial(self._plot, i) for i in self.p_values.argsort()[:_SHOWN]])

    def _plot(self, i: int, ax: Axes) -> None:
        plots.ranks(self._uniform[:, i], ax).set_title(f"{self.names[i]}: p = {self.p_values[i]:.2g}")

    @cached_property
    def _table(self) -> tuple[tuple[str, ...], np.ndarray]:
        return table({name: value.numpy() for name, value in self.ranks.items()})

    @cached_property
    def _uniform(self) -> np.ndarray:
        """Ranks as probabilities, spread evenly over the share that each stands for, ``[J, P]``."""
        ranks = self._table[1]
        return (ranks + np.random.default_rng(self.seed).uniform(size=ranks.shape)) / (self.num_draws + 1)

    @cached_property
    def _tails(self) -> tuple[np.ndarray, np.ndarray]:
        """P-values of the sums of squares, which are large if the guide is too narrow, and small if too wide."""
        from scipy.stats import chi2, norm

        squares = (norm.ppf(self._uniform) ** 2).sum(0)
        return chi2.sf(squares, len(self._uniform)), chi2.cdf(squares, len(self._uniform))

    def _described(self, i: int) -> str:
        found, rejected = f"{self.names[i]}: p = {self.p_values[i]:.2g}", _REJECTED / len(self.names)
        if self.p_values[i] >= rejected:
            return found
        if self.symmetry_p_values[i] < rejected:  # which moves the sum of squares, too
            return found + ", the guide is too " + ("low" if self._uniform[:, i].mean() > 0.5 else "high")
        narrow, wide = (p[i] < rejected / 2 for p in self._tails)
        return found + (", the guide is too narrow" if narrow else ", the guide is too wide" if wide else "")
