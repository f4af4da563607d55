"""Means and standard deviations of a guide, beside what better draws of the posterior say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyro_lvm.diagnostics.numbers import table

MOST_MEAN_ERROR, MOST_SD_ERROR = 0.25, 0.2  # of a fit that is not bad, in posterior standard deviations
_SURE = 2.0  # standard errors
GRADES = ("good", "doubtful", "bad")


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
        guide: By draws of the guide.
        corrected: By the better draws, by the name of what made them; none if there was nothing.
    """

    names: tuple[str, ...]
    guide: Moments
    corrected: Mapping[str, Moments]

    @property
    def mean_errors(self) -> np.ndarray:
        """The guide's means less the corrected ones, in corrected standard deviations, the largest, ``[P]``."""
        return _largest([self._error(moments)[0] for moments in self.corrected.values()])

    @property
    def sd_errors(self) -> np.ndarray:
        """The guide's standard deviations over the corrected ones, minus 1, the largest, ``[P]``."""
        return _largest([self._error(moments)[1] for moments in self.corrected.values()])

    @property
    def grades(self) -> tuple[str, ...]:
        """Good or bad where all corrections are sure of it by two standard errors, else doubtful; P of them."""
        good, bad = (np.ones(len(self.names), bool) for _ in range(2))
        for moments in self.corrected.values():
            mean, sd, mean_error, sd_error = self._error(moments)
            good &= (abs(mean) + _SURE * mean_error <= MOST_MEAN_ERROR) & (abs(sd) + _SURE * sd_error <= MOST_SD_ERROR)
            bad &= (abs(mean) - _SURE * mean_error > MOST_MEAN_ERROR) | (abs(sd) - _SURE * sd_error > MOST_SD_ERROR)
        return tuple(GRADES[0] if g else GRADES[2] if b else GRADES[1] for g, b in zip(good, bad, strict=True))

    @property
    def grade(self) -> str:
        """The worst of all."""
        return max(self.grades, key=GRADES.index)

    def by_site(self) -> dict[str, str]:
        """The worst grade of each site's numbers."""
        found: dict[str, str] = {}
        for name, grade in zip(self.names, self.grades, strict=True):
            site = name.partition("[")[0]
            found[site] = max(found.get(site, GRADES[0]), grade, key=GRADES.index)
        return found

    def _error(self, by: Moments) -> tuple[np.ndarray, ...]:
        """Errors of the guide's mean and sd, and standard errors of these."""
        mean, ratio = (self.guide.means - by.means) / by.sds, self.guide.sds / by.sds
        mean_error = np.hypot(by.mean_errors, self.guide.mean_errors) / by.sds
        sd_error = ratio * np.hypot(by.sd_errors / by.sds, self.guide.sd_errors / self.guide.sds)
        return mean, ratio - 1, mean_error, sd_error


def _largest(errors: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(errors)
    return np.take_along_axis(stacked, abs(stacked).argmax(0)[None], 0)[0]


def columns(draws: Mapping[str, Tensor]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the numbers and their draws, ``[S, P]``."""
    return table({name: value.detach().cpu().numpy() for name, value in draws.items()})
