"""Means and standard deviations of a guide, beside what better draws of the posterior say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyro_lvm import plots
from pyro_lvm.verdict.finding import GRADES, RICHER, Finding
from pyro_lvm.verdict.table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MEAN_ERROR, MOST_SD_ERROR = 0.25, 0.2  # of a fit that is not bad, in posterior standard deviations
_SHOWN = 16  # numbers in a picture
_SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Moments:
    """Moments of P numbers and their Monte Carlo standard errors, ``[P]`` each.

    Attributes:
        means: Means.
        sds: Standard deviations.
        mean_errors: Standard errors of the means.
        sd_errors: Standard errors of the standard deviations.
    """

    means: np.ndarray
    sds: np.ndarray
    mean_errors: np.ndarray
    sd_errors: np.ndarray


def of_weighted(draws: np.ndarray, weights: np.ndarray) -> Moments:
    """Moments of independent draws ``[S, P]`` with weights ``[S]`` that sum to 1."""
    means = weights @ draws
    centred = draws - means
    variances = weights @ centred**2
    sds = np.sqrt(variances)
    error = np.sqrt(weights**2 @ centred**2)
    spread = np.sqrt(weights**2 @ (centred**2 - variances) ** 2)
    return Moments(means, sds, error, _of_sds(spread, sds))


def of_chains(draws: np.ndarray) -> Moments:
    """Moments of independent chains ``[M, C, P]``, whose own draws depend on each other."""
    num_chains = draws.shape[1]
    means = draws.mean((0, 1))
    squares = ((draws - means) ** 2).mean(0)
    sds = np.sqrt(squares.mean(0))
    root = np.sqrt(num_chains)
    return Moments(means, sds, draws.mean(0).std(0, ddof=1) / root, _of_sds(squares.std(0, ddof=1) / root, sds))


def _of_sds(variance_errors: np.ndarray, sds: np.ndarray) -> np.ndarray:
    return variance_errors / (2 * np.maximum(sds, np.finfo(float).tiny))


@dataclass(frozen=True)
class Marginals:
    """The marginals of a guide, graded by each correction of them.

    Attributes:
        names: Of the numbers, such as ``"theta[3]"``, P of them.
        sites: Of which each number is one.
        guide: By draws of the guide.
        corrected: By the better draws, by the name of what made them; none if there was nothing. It is NaN of numbers
            of which it says nothing.
        collapsed: Whether the guide has the number at a point, where nothing can correct it, ``[P]``.
    """

    names: tuple[str, ...]
    sites: tuple[str, ...]
    guide: Moments
    corrected: Mapping[str, Moments]
    collapsed: np.ndarray

    @property
    def mean_errors(self) -> np.ndarray:
        """The guide's means less the corrected ones, in corrected standard deviations, the largest, ``[P]``."""
        return self._largest([self._error(moments)[0] for moments in self.corrected.values()])

    @property
    def sd_errors(self) -> np.ndarray:
        """The guide's standard deviations over the corrected ones, minus 1, the largest, ``[P]``."""
        errors = self._largest([self._error(moments)[1] for moments in self.corrected.values()])
        return np.where(self.collapsed, -1.0, errors)

    @property
    def grades(self) -> tuple[str, ...]:
        """Good or bad where all corrections are sure of it by two standard errors, else doubtful; P of them."""
        good, bad, known = (np.full(len(self.names), start) for start in (True, True, False))
        for moments in self.corrected.values():
            mean, sd, mean_error, sd_error = self._error(moments)
            silent = np.isnan(moments.means)
            small = (abs(mean) + _SURE * mean_error <= MOST_MEAN_ERROR) & (abs(sd) + _SURE * sd_error <= MOST_SD_ERROR)
            large = (abs(mean) - _SURE * mean_error > MOST_MEAN_ERROR) | (abs(sd) - _SURE * sd_error > MOST_SD_ERROR)
            good, bad, known = good & (small | silent), bad & (large | silent), known | ~silent
        cases = [self.collapsed, ~known, good, bad]
        return tuple(np.select(cases, ["bad", "unknown", "good", "bad"], "doubtful").tolist())

    @property
    def grade(self) -> str:
        """The worst of all."""
        return max(self.grades, key=GRADES.index)

    def by_site(self) -> dict[str, str]:
        """The worst grade of each site's numbers."""
        return {site: max((self.grades[i] for i in of), key=GRADES.index) for site, of in self._sites().items()}

    def findings(self) -> list[Finding]:
        """Which sites' means and standard deviations can be trusted."""
        grades, sites = self.by_site(), self._sites()
        found = []
        for site, of in sites.items():
            if self.collapsed[of].any():
                how = "" if self.collapsed[of].all() else f" in {self.collapsed[of].sum()} of {len(of)} numbers"
                found.append(Finding("posterior", "bad", f"{site}: the guide has collapsed to a point{how}", RICHER))
                del grades[site]
        if not self.corrected:
            text = "means and sds: the weights cannot be used, and no chains could be run, so that nothing tells"
            advice = "a smaller model or a subset of its rows"
            return found + [Finding("posterior", "unknown", text, advice)] * bool(grades)
        for site, of in sites.items():
            if grades.get(site, "good") != "good":
                text = f"{site}: {self._worst(of)}"
                found.append(Finding("posterior", grades[site], text, RICHER))
        good = [i for site, of in sites.items() if grades.get(site) == "good" for i in of]
        if good:
            names = ", ".join(site for site, grade in grades.items() if grade == "good")
            found.append(Finding("posterior", "good", f"{names}: {self._worst(good)}"))
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """The numbers that are furthest off, over what the corrections say of them."""
        errors = np.fmax(abs(self.mean_errors), abs(self.sd_errors))
        worst = np.argsort(-errors)[:_SHOWN]
        names = [self.names[i] for i in worst]
        ax = plots.standardized(names, self.mean_errors[worst], 1 + self.sd_errors[worst], ax=ax)
        of = f", the worst {len(worst)} of {len(errors)}" if len(worst) < len(errors) else ""
        ax.set_xlabel(f"guide, in corrected means and sds{of}")
        return ax

    def _worst(self, of: list[int]) -> str:
        mean, sd = (max((errors[i] for i in of), key=abs) for errors in (self.mean_errors, self.sd_errors))
        by = " and ".join(name for name, moments in self.corrected.items() if not np.isnan(moments.means[of]).all())
        return f"means are within {abs(mean):.2f} sd, sds within {abs(sd):.0%} (the largest is {sd:+.0%}), by {by}"

    def _sites(self) -> dict[str, list[int]]:
        """The places of each site's numbers."""
        found: dict[str, list[int]] = {}
        for i, site in enumerate(self.sites):
            found.setdefault(site, []).append(i)
        return found

    def _error(self, by: Moments) -> tuple[np.ndarray, ...]:
        """Errors of the guide's mean and sd, and standard errors of these."""
        mean, ratio = (self.guide.means - by.means) / by.sds, self.guide.sds / by.sds
        mean_error = np.hypot(by.mean_errors, self.guide.mean_errors) / by.sds
        sd_error = np.hypot(ratio * by.sd_errors, self.guide.sd_errors) / by.sds
        return mean, ratio - 1, mean_error, sd_error

    def _largest(self, errors: list[np.ndarray]) -> np.ndarray:
        stacked = np.stack([np.full(len(self.names), np.nan), *errors])  # where nothing corrects, nothing is known
        return np.take_along_axis(stacked, np.nan_to_num(abs(stacked), nan=-1.0).argmax(0)[None], 0)[0]


def columns(draws: Mapping[str, Tensor]) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Names of the numbers, the sites of which they are, and their draws, ``[S, P]``."""
    names, found = table({name: value.detach().cpu().numpy() for name, value in draws.items()})
    return names, tuple(name for name, value in draws.items() for _ in range(value[0].numel())), found
