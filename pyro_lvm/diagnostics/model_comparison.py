"""The report of a comparison of models: a table, a picture, and which is best."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyro_lvm import plots
from pyro_lvm.checks import check_choice
from pyro_lvm.diagnostics.loo import LOO, expanded
from pyro_lvm.importance import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CRITERIA = ("loo", "evidence", "bic", "icl")
_LABELS = {
    "loo": "elpd_loo, below the best (nats)",
    "evidence": "log p(x), below the best (nats)",
    "bic": "BIC, above the best",
    "icl": "ICL, above the best",
}
_HEADS = {
    "log_likelihood": "log-lik",
    "num_parameters": "params",
    "bic": "BIC",
    "icl": "ICL",
    "evidence": "log p(x)",
    "loo": "elpd_loo",
}
_LOWER_IS_BETTER = ("bic", "icl")


@dataclass(frozen=True)
class ComparedModel:
    """What one fitted model says of the data. What does not apply is None, and ``reasons`` says why.

    Attributes:
        kind: "EM" or "SVI".
        log_likelihood: log p(x) at the parameters, where these are points, in nats, with its standard error (0 if
            exact).
        num_parameters: How many numbers of such parameters are free to vary: K - 1 of K weights.
        bic: num_parameters log N - 2 log_likelihood; lower is better.
        icl: BIC plus twice the entropy of the responsibilities (Biernacki et al. 2000, in the form of McLachlan and
            Peel 2000); lower is better.
        evidence: log p(x), parameters with a prior integrated out, in nats, with its standard error.
        loo: Leave-one-out cross-validation.
        reasons: Why a number is missing, by its name.
        notes: What is to be known of the numbers that are there.
        doubtful: The criteria whose estimates are not to be trusted.
    """

    kind: str
    log_likelihood: Estimate | None
    num_parameters: int | None
    bic: float | None
    icl: float | None
    evidence: Estimate | None
    loo: LOO | None
    reasons: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()

    def value(self, criterion: str) -> float:
        """The number of a criterion; NaN where there is none."""
        found = getattr(self, criterion)
        if found is None:
            return math.nan
        return found.elpd if criterion == "loo" else found.value if criterion == "evidence" else found


class ModelComparison(Mapping[str, ComparedModel]):
    """What :func:`pyro_lvm.compare_models` found: a mapping from the names of the models to :class:`ComparedModel`."""

    def __init__(self, compared: dict[str, ComparedModel]) -> None:
        self._compared = compared

    def __getitem__(self, name: str) -> ComparedModel:
        return self._compared[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._compared)

    def __len__(self) -> int:
        return len(self._compared)

    @property
    def reasons(self) -> dict[str, dict[str, str]]:
        """Why numbers are missing, by model and by name of the number."""
        return {name: model.reasons for name, model in self.items()}

    def best(self, criterion: str = "loo") -> str:
        """The name of the best of the models that have a criterion.

        Args:
            criterion: "loo", "evidence", "bic" or "icl".

        Raises:
            ValueError: for another criterion, and where no model has it.
        """
        found = self._values(check_choice("criterion", criterion, CRITERIA))
        if not found:
            why = next((model.reasons[criterion] for model in self.values() if criterion in model.reasons), "")
            raise ValueError(f"no model has {criterion!r}: {why}")
        return (min if criterion in _LOWER_IS_BETTER else max)(found, key=found.__getitem__)

    def differences(self, criterion: str = "loo") -> dict[str, Estimate]:
        """How much worse than the best each model is that has a criterion, with the standard error of the difference.

        That of leave-one-out is the error for other rows, each row's difference counted as one (Vehtari et al. 2017,
        equation 24); that of the evidence comes of a finite number of draws; BIC and ICL have none.

        Args:
            criterion: See :meth:`best`.

        Raises:
            ValueError: see :meth:`best`.
        """
        best, values = self.best(criterion), self._values(criterion)
        return {
            name: Estimate(abs(value - values[best]), self._error(criterion, name, best))
            for name, value in values.items()
        }

    def _values(self, criterion: str) -> dict[str, float]:
        values = {name: model.value(criterion) for name, model in self.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _error(self, criterion: str, name: str, best: str) -> float:
        if name == best or criterion in _LOWER_IS_BETTER:
            return 0.0
        one, other = self[name], self[best]
        if criterion == "evidence":
            assert one.evidence is not None
            assert other.evidence is not None
            return math.hypot(one.evidence.standard_error, other.evidence.standard_error)
        assert one.loo is not None
        assert other.loo is not None
        if len(one.loo.rows) != len(other.loo.rows):
            return math.nan
        return expanded(one.loo.rows - other.loo.rows, one.loo.num_rows).standard_error

    def to_dataframe(self) -> Any:
        """A table with a row for each model; what does not apply is NaN.

        Returns:
            A pandas ``DataFrame``.
        """
        import pandas

        rows = {}
        for name, model in self.items():
            likelihood, evidence, loo = model.log_likelihood, model.evidence, model.loo
            rows[name] = {
                "kind": model.kind,
                "log_likelihood": math.nan if likelihood is None else likelihood.value,
                "num_parameters": model.num_parameters,
                "bic": model.value("bic"),
                "icl": model.value("icl"),
                "evidence": model.value("evidence"),
                "evidence_se": math.nan if evidence is None else evidence.standard_error,
                "elpd_loo": model.value("loo"),
                "elpd_loo_se": math.nan if loo is None else loo.standard_error,
                "p_loo": math.nan if loo is None else loo.p_loo,
                "num_unreliable": math.nan if loo is None else loo.num_unreliable,
            }
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("model")

    def plot(self) -> Figure:
        """How much worse than the best each model is, one panel for each criterion that at least two models have.

        Returns:
            A matplotlib figure.

        Raises:
            ValueError: if no criterion is there.
        """
        import matplotlib.pyplot as plt

        shared = [criterion for criterion in CRITERIA if len(self._values(criterion)) > 1]
        if not shared:
            raise ValueError("no two models have a criterion in common, so that there is no difference to draw")
        size = (1.0 + 3.6 * len(shared), 1.2 + 0.4 * len(self))
        figure, axes = plt.subplots(1, len(shared), figsize=size, layout="constrained", squeeze=False)
        for ax, criterion in zip(axes[0], shared, strict=True):
            found = self.differences(criterion)
            values = {name: found[name].value if name in found else math.nan for name in self}
            errors = {name: found[name].standard_error for name in found}
            plots.dots(values, _LABELS[criterion], log=False, ax=ax, errors=errors)
            ax.axvline(0, color="#888888", linewidth=1, zorder=0)
            ax.set_title(f"best: {self.best(criterion)}{self._doubt(criterion)}", fontsize=10)
        for ax in axes[0, 1:]:
            ax.set_yticklabels([])
        return figure

    def _table(self) -> list[list[str]]:
        """The head and a line for each model; no column that is empty throughout."""
        head = ["model", "kind", *_HEADS.values(), "k > 0.7"]
        lines = [
            [
                name,
                m.kind,
                "-" if m.log_likelihood is None else _with_error(*m.log_likelihood),
                "-" if m.num_parameters is None else f"{m.num_parameters:,}",
                "-" if m.bic is None else _number(m.bic),
                "-" if m.icl is None else _number(m.icl),
                "-" if m.evidence is None else _with_error(*m.evidence),
                "-" if m.loo is None else _with_error(m.loo.elpd, m.loo.standard_error),
                "-" if m.loo is None else f"{m.loo.num_unreliable:,} of {len(m.loo.rows):,}",
            ]
            for name, m in self.items()
        ]
        kept = [i for i in range(len(head)) if i < 2 or any(line[i] != "-" for line in lines)]
        return [[line[i] for i in kept] for line in [head, *lines]]

    @property
    def _notes(self) -> list[str]:
        """Why a number is missing that others have, and notes, each once with the models that it is about."""
        shown = [what for what in _HEADS if any(getattr(model, what) is not None for model in self.values())]
        found: dict[str, list[str]] = {}
        for name, model in self.items():
            missing: dict[str, list[str]] = {}
            for what in shown:
                if what in model.reasons:
                    missing.setdefault(model.reasons[what], []).append(_HEADS[what])
            for text in [*(f"no {', '.join(w)}: {r}" for r, w in missing.items()), *model.notes]:
                found.setdefault(text, []).append(name)
        return [f"{', '.join(names)}: {text}" for text, names in found.items()]

    @property
    def _verdict(self) -> str:
        found = [criterion for criterion in CRITERIA if len(self._values(criterion)) > 1]
        return "; ".join(f"best by {_HEADS[c]}: {self.best(c)}{self._doubt(c)}" for c in found)

    def _doubt(self, criterion: str) -> str:
        return " (not to be trusted)" if any(criterion in model.doubtful for model in self.values()) else ""

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        return "\n\n".join(filter(None, ["\n".join(text), "\n".join(self._notes), self._verdict]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *lines = ([html.escape(cell) for cell in line] for line in self._table())
        table = f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"
        for name, kind, *numbers in lines:
            cells = "".join(f'<td style="text-align:right">{number}</td>' for number in numbers)
            table += f"<tr><td>{name}</td><td>{kind}</td>{cells}</tr>"
        notes = "<br>".join(map(html.escape, self._notes))
        return f"<table>{table}</table><p>{html.escape(self._verdict)}</p><p><small>{notes}</small></p>"


def _number(value: float) -> str:
    return f"{value:,.1f}"


def _with_error(value: float, error: float) -> str:
    return _number(value) if error < 1e-3 else f"{value:,.1f} +- {error:.2g}"
