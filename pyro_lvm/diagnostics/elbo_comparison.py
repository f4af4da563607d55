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
        value: The mean of the estimates: minus the loss, in nats.
        standard_error: Of the value.
        bias: The length of the mean gradient's difference from the reference.
        bias_error: How long that difference is expected to be without any bias.
        reference: How the reference was found.
        sd: The gradient's standard deviation: the root of the sum of its components' variances.
        signal_to_noise: The length of the mean gradient over ``sd``; it cannot be told from 0 below
            ``1 / sqrt(num_repeats)``.
        parameters: For each parameter by name, its gradient's length, standard deviation and signal-to-noise.
        seconds: Of one loss and its gradient.
        bytes: That autograd keeps for it.
    """

    target: str
    value: float
    standard_error: float
    bias: float
    bias_error: float
    reference: str
    sd: float
    signal_to_noise: float
    parameters: dict[str, tuple[float, float, float]]
    seconds: float
    bytes: int

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
        """Whether the mean gradient is further from the reference than noise explains: by three times its length."""
        return self[name].bias > 3 * self[name].bias_error

    def _best(self, target: str) -> str:
        rivals = [name for name, c in self.items() if c.target == target]
        unbiased = [name for name in rivals if not self.biased(name)]
        return min(unbiased or rivals, key=lambda name: (self[name].variance_time, self[name].seconds))

    @property
    def recommendation(self) -> str:
        """Which estimator of each target to use, in words."""
        lines = []
        for target in dict.fromkeys(c.target for c in self.values()):
            rivals = [name for name, c in self.items() if c.target == target]
            best = self._best(target)
            biased = [name for name in rivals if self.biased(name)]
            words = f"For {target} use {best}"
            others = sorted((self.relative(n), n) for n in rivals if n not in (best, *biased))
            if others:
                words += ": it needs the least time for a given precision of the gradient"
                words += f" ({', '.join(f'{name} {ratio:.3g} times as much' for ratio, name in others)})"
            elif not biased:
                words += ", which is alone there"
            words += "." + "".join(f" {name} is biased here." for name in biased)
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
                **{key: value for key, value in vars(c).items() if key != "parameters"},
                "variance_time": c.variance_time,
                "relative": self.relative(name),
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
        import pandas

        rows = {(name, p): spread for name, c in self.items() for p, spread in c.parameters.items()}
        table = pandas.DataFrame.from_dict(rows, orient="index", columns=["length", "sd", "signal_to_noise"])
        table.index = pandas.MultiIndex.from_tuples(table.index, names=["estimator", "parameter"])
        return table

    def plot(self) -> Figure:
        """Standard deviations and variance times time, as bars; and the ELBO against steps and seconds of the fits.

        Returns:
            A matplotlib figure.
        """
        import matplotlib.pyplot as plt

        rows = 2 if self.training else 1
        figure, axes = plt.subplots(
            rows, 2, figsize=(11, (1.2 + 0.35 * len(self)) + 4 * (rows - 1)), layout="constrained", squeeze=False
        )
        plots.bars({n: c.sd for n, c in self.items()}, "standard deviation of the gradient", log=True, ax=axes[0, 0])
        relative = {n: self.relative(n) for n in self}
        plots.bars(relative, "variance x time, over the best of its target", log=True, ax=axes[0, 1])
        axes[0, 1].set_yticklabels([])
        if self.training:
            for ax, label in zip(axes[1], ("steps", "seconds"), strict=True):
                paths = {n: (getattr(t, label), t.elbo) for n, t in self.training.items()}
                plots.curves(paths, label, "ELBO (nats)", ax=ax)
                late = [e for t in self.training.values() for e in t.elbo[len(t.elbo) // 5 :]]
                margin = 0.1 * (max(late) - min(late)) + 1e-9
                ax.set_ylim(min(late) - margin, max(late) + margin)
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
                f"{c.bytes / 1e3:,.0f}",
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
        return notes + [f"left out: {name}, because {reason}" for name, reason in self.refused.items()]

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        return "\n".join([*text, "", *self._notes, "", self.recommendation])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *lines = ([html.escape(cell) for cell in line] for line in self._table())
        table = f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"
        table += "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
        below = "<br>".join(html.escape(line) for line in [*self._notes, *self.recommendation.splitlines()])
        return f"<table>{table}</table><p>{below}</p>"
