"""The report of a comparison of estimators: a table, pictures, and what to use."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyro_lvm import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Compared:
    """One estimator at the given parameters. Gradients are those of the loss in the unconstrained parameters.

    Attributes:
        target: What it estimates; variances of different targets are no rivals.
        unbiased: Whether its gradient is that of the target on average, by construction.
        value: The mean of the estimates: minus the loss, in nats.
        standard_error: Of the value.
        bias: The length of the mean gradient's difference from the reference.
        bias_error: How long that difference is expected to be without any bias.
        reference: How the reference was found.
        sd: The gradient's standard deviation: the root of the sum of its components' variances.
        signal_to_noise: The length of the mean gradient over ``sd``; it cannot be told from 0 below
            ``1 / sqrt(num_repeats)``.
        biases: ``bias`` and ``bias_error`` of each parameter by name.
        parameters: For each parameter by name, its gradient's length, standard deviation and signal-to-noise.
        sites: The same for each sample site of guide and model, of all parameters on which it depends directly.
        variance_error: The relative standard error of the variance.
        seconds: Of one loss and its gradient.
        bytes: That autograd keeps for it; None where that cannot be told.
    """

    target: str
    unbiased: bool
    value: float
    standard_error: float
    bias: float
    bias_error: float
    reference: str
    sd: float
    signal_to_noise: float
    biases: dict[str, tuple[float, float]]
    parameters: dict[str, tuple[float, float, float]]
    sites: dict[str, tuple[float, float, float]]
    variance_error: float
    seconds: float
    bytes: int | None

    @property
    def variance_time(self) -> float:
        """Variance times seconds: what a given precision costs."""
        return self.sd**2 * self.seconds


@dataclass(frozen=True)
class Training:
    """How a fit with an estimator went.

    Attributes:
        steps: At which the ELBO was measured.
        seconds: Of fitting until then.
        elbo: The same estimate of the ELBO for all fits, in nats.
    """

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)


class ELBOComparison(Mapping[str, Compared]):
    """What :func:`pyro_lvm.compare_elbos` found: a mapping from the names of the estimators to :class:`Compared`.

    Attributes:
        refused: Why estimators that have no right form for the model and guide were left out, by name.
        training: How the fits went, by name, if they were asked for.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> comparison = lvm.compare_elbos(model, "mean_field", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> comparison["TraceIWAE_ELBO"].target
        'IWAE-5'
        >>> comparison.relative("TraceScore_ELBO") > 2
        True
    """

    def __init__(self, compared: dict[str, Compared], refused: dict[str, str], training: dict[str, Training]) -> None:
        self._compared, self.refused, self.training = compared, refused, training

    def __getitem__(self, name: str) -> Compared:
        return self._compared[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._compared)

    def __len__(self) -> int:
        return len(self._compared)

    def relative(self, name: str) -> float:
        """Variance times time of an estimator, over that of the best unbiased one of its target."""
        least, own = self[self._best(self[name].target)].variance_time, self[name].variance_time
        if least == 0:
            return 1.0 if own == 0 else math.inf
        return own / least

    def biased(self, name: str) -> bool:
        """Whether the mean gradient of a parameter is further from the reference than noise explains, by four times."""
        return any(bias > 4 * error for bias, error in self[name].biases.values())

    def _rivals(self, target: str) -> list[str]:
        """The estimators of a target that come into question: unbiased, by construction if there are such ones."""
        names = [name for name, c in self.items() if c.target == target]
        names = [name for name in names if self[name].unbiased] or names
        return [name for name in names if not self.biased(name)] or names

    def _best(self, target: str) -> str:
        return min(self._rivals(target), key=lambda name: (self[name].variance_time, self[name].seconds))

    def as_good(self, name: str) -> bool:
        """Whether variance times time is that of the best up to twice the errors of both, and a tenth for the clock."""
        best = self[self._best(self[name].target)]
        error = math.hypot(self[name].variance_error, best.variance_error)
        return name in self._rivals(best.target) and self.relative(name) <= 1.1 + 2 * error

    @property
    def recommendation(self) -> str:
        """Which estimators of each target to use, in words."""
        lines = []
        for target in dict.fromkeys(c.target for c in self.values()):
            rivals = sorted(self._rivals(target), key=self.relative)
            good = [name for name in rivals if self.as_good(name)]
            words = f"For {target} use {' or '.join(good)}"
            if len(good) > 1:
                words += ", which are as good as each other"
            others = ", ".join(f"{name} {self.relative(name):.3g} times" for name in rivals if name not in good)
            if others:
                words += f"; the same precision of the gradient takes {others} as long"
            words += "."
            for name in (name for name, c in self.items() if c.target == target):
                if not self[name].unbiased:
                    words += f" {name} is biased" + (", visibly here." if self.biased(name) else ".")
                elif self.biased(name):
                    words += f" {name} is biased here."
            lines.append(words)
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """A table with a row for each estimator; ``relative`` is variance times time over that of the best.

        Returns:
            A pandas ``DataFrame``.
        """
        import pandas

        rows = {
            name: {
                **{key: value for key, value in vars(c).items() if not isinstance(value, dict)},
                "variance_time": c.variance_time,
                "relative": self.relative(name),
                "as_good": self.as_good(name),
                "biased": self.biased(name),
            }
            for name, c in self.items()
        }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("estimator")

    def parameters_dataframe(self) -> Any:
        """A table with a row for each estimator and parameter: its gradient's length, sd and signal-to-noise.

        Returns:
            A pandas ``DataFrame``.
        """
        return _spreads(
            {(name, p): spread for name, c in self.items() for p, spread in c.parameters.items()}, "parameter"
        )

    def sites_dataframe(self) -> Any:
        """A table with a row for each estimator and sample site: the same of all parameters that the site depends on.

        Returns:
            A pandas ``DataFrame``.
        """
        rows = {(name, site): spread for name, c in self.items() for site, spread in c.sites.items()}
        return _spreads(rows, "site")

    def training_dataframe(self) -> Any:
        """A table of the fits: a row for each estimator and measurement, with steps, seconds and the ELBO in nats.

        Returns:
            A pandas ``DataFrame``.
        """
        import pandas

        parts = {name: pandas.DataFrame(vars(training)) for name, training in self.training.items()}
        return pandas.concat(parts, names=["estimator", "measurement"]) if parts else pandas.DataFrame()

    def plot(self) -> Figure:
        """Standard deviations and variance times time, by target; and the ELBO against steps and seconds of the fits.

        Returns:
            A matplotlib figure.
        """
        import matplotlib.pyplot as plt

        heights = [1.2 + 0.35 * len(self), 4.0][: 2 if self.training else 1]
        figure, axes = plt.subplots(
            len(heights), 2, figsize=(11, sum(heights)), layout="constrained", squeeze=False, height_ratios=heights
        )
        names = {name: f"{name}  ({c.target})" for name, c in self.items()}
        plots.dots({names[n]: c.sd for n, c in self.items()}, "standard deviation of the gradient", ax=axes[0, 0])
        relative = {names[n]: self.relative(n) for n in self}
        plots.dots(relative, "variance x time, over the best of its target", ax=axes[0, 1])
        axes[0, 1].set_yticklabels([])
        if self.training:
            for ax, label in zip(axes[1], ("steps", "seconds"), strict=True):
                paths = {n: (getattr(t, label), t.elbo) for n, t in self.training.items()}
                plots.curves(paths, label, "ELBO (nats), whatever was fitted", ax=ax)
                late = [e for t in self.training.values() for e in t.elbo[len(t.elbo) // 5 :]]
                margin = 0.1 * (max(late) - min(late)) + 1e-9
                ax.set_ylim(min(late) - margin, max(late) + margin)
                ax.get_legend().remove()
            figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure

    def _table(self) -> list[list[str]]:
        """The head and a line for each estimator."""
        head = ["estimator", "target", "value", "bias", "sd", "SNR", "ms", "kB", "var x time"]
        lines = [
            [
                name,
                c.target,
                f"{c.value:.2f} +- {c.standard_error:.2g}",
                f"{c.bias:.2g} ({c.bias_error:.2g})",
                f"{c.sd:.3g}",
                f"{c.signal_to_noise:.2g}",
                f"{1e3 * c.seconds:.2f}",
                "-" if c.bytes is None else f"{c.bytes / 1e3:,.0f}",
                f"{self.relative(name):.3g}",
            ]
            for name, c in self.items()
        ]
        return [head, *lines]

    @property
    def _notes(self) -> list[str]:
        sources = dict.fromkeys(f"{c.target}: {c.reference}" for c in self.values())
        notes = ["bias: distance to the reference gradient (in brackets what noise alone would give)"]
        notes += [f"reference of {source}" for source in sources]
        notes += [f"left out: {name}, because {reason}" for name, reason in self.refused.items()]
        notes += [
            f"{name}: ELBO {t.elbo[-1]:.2f} nats after {t.steps[-1]:,} steps and {t.seconds[-1]:.1f} s"
            for name, t in self.training.items()
        ]
        return notes

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        return "\n".join([*text, "", *self._notes, "", self.recommendation])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *lines = ([html.escape(cell) for cell in line] for line in self._table())
        table = f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"
        for name, target, *numbers in lines:
            cells = "".join(f'<td style="text-align:right">{number}</td>' for number in numbers)
            table += f"<tr><td>{name}</td><td>{target}</td>{cells}</tr>"
        notes, words = ("<br>".join(map(html.escape, part)) for part in (self._notes, self.recommendation.splitlines()))
        return f"<table>{table}</table><p>{words}</p><p><small>{notes}</small></p>"


def _spreads(rows: dict[tuple[str, str], tuple[float, float, float]], what: str) -> Any:
    import pandas

    table = pandas.DataFrame.from_dict(rows, orient="index", columns=["length", "sd", "signal_to_noise"])
    table.index = pandas.MultiIndex.from_tuples(table.index, names=["estimator", what])
    return table
