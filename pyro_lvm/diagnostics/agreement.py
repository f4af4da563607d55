"""How far the marginals of a fit are from those of reference draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import wasserstein_distance

from pyro_lvm import plots
from pyro_lvm.verdict.table import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Agreement:
    """Marginals of a fit against those of a reference, in units of the reference's standard deviations.

    Attributes:
        names: Of the numbers compared, such as ``"theta[3]"``, P of them.
        mean_errors: The fit's mean minus the reference's, ``[P]``.
        sd_errors: The fit's standard deviation over the reference's, minus 1, ``[P]``.
        wasserstein: Wasserstein-1 distances of the marginals, ``[P]``.
        left_out: Variables that only one of the two has.
    """

    names: tuple[str, ...]
    mean_errors: np.ndarray
    sd_errors: np.ndarray
    wasserstein: np.ndarray
    left_out: tuple[str, ...]

    @property
    def worst(self) -> str:
        """The name of the number with the largest Wasserstein-1 distance."""
        return self.names[int(self.wasserstein.argmax())]

    @property
    def largest_mean_error(self) -> float:
        """In posterior standard deviations, without its sign."""
        return float(np.abs(self.mean_errors).max())

    @property
    def largest_sd_error(self) -> float:
        """As a share of the reference's standard deviation, without its sign."""
        return float(np.abs(self.sd_errors).max())

    def to_dataframe(self) -> Any:
        """A row for each number, the worst first; it needs pandas."""
        import pandas

        columns = {"mean_error": self.mean_errors, "sd_error": self.sd_errors, "wasserstein": self.wasserstein}
        return pandas.DataFrame(columns, index=list(self.names)).sort_values("wasserstein", ascending=False)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Each mean of the fit, and one standard deviation to both sides, over the same of the reference."""
        return plots.standardized(self.names, self.mean_errors, 1 + self.sd_errors, ax=ax)

    def __str__(self) -> str:
        worst = np.argsort(-self.wasserstein)[:5]
        width = max(len(self.names[i]) for i in worst)
        lines = [
            f"{len(self.names)} marginals: means within {self.largest_mean_error:.2f} posterior sd, "
            f"sds within {100 * self.largest_sd_error:.0f}%, the worst is {self.worst}",
            f"  {'':<{width}}  {'mean (sd)':>9}  {'sd':>6}  {'Wasserstein-1 (sd)':>18}",
        ]
        lines += [
            f"  {self.names[i]:<{width}}  {self.mean_errors[i]:+9.2f}  {self.sd_errors[i]:+6.0%}  "
            f"{self.wasserstein[i]:18.3f}"
            for i in worst
        ]
        if self.left_out:
            lines.append(f"  not in both: {', '.join(self.left_out)}")
        return "\n".join(lines)

    __repr__ = __str__


def compare(draws: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> Agreement:
    """Compare draws ``[S, ...]`` of each variable; numbers that are constant in the reference are passed over.

    Raises:
        ValueError: if no variable is in both, or one has another shape.
    """
    shared = [name for name in reference if name in draws]
    if not shared:
        raise ValueError(f"no variable is in both: the fit has {sorted(draws)}, the reference {sorted(reference)}")
    for name in shared:
        ours, theirs = draws[name].shape[1:], reference[name].shape[1:]
        if ours != theirs:
            raise ValueError(f"{name!r} has shape {list(ours)}, in the reference {list(theirs)}")
    names, x = table({name: draws[name] for name in shared})
    _, y = table({name: reference[name] for name in shared})
    kept = np.flatnonzero(y.std(0) > 0)
    if not len(kept):
        raise ValueError(f"the reference draws of {shared} are constant")
    loc, scale = y[:, kept].mean(0), y[:, kept].std(0, ddof=1)
    x, y = (x[:, kept] - loc) / scale, (y[:, kept] - loc) / scale
    distances = np.array([wasserstein_distance(*pair) for pair in zip(x.T, y.T, strict=True)])
    left_out = tuple(sorted({*draws, *reference} - set(shared)))
    return Agreement(tuple(names[i] for i in kept), x.mean(0), x.std(0, ddof=1) - 1, distances, left_out)
