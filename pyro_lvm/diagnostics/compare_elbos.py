"""Estimators of the ELBO and its relatives, side by side at the same parameters."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm import plots, randomness
from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.data import Data
from pyro_lvm.diagnostics.gradients import cost, draw_gradients
from pyro_lvm.diagnostics.reference_gradients import Reference, reference
from pyro_lvm.elbo.bounds import TraceIWAE_ELBO, TraceRenyi_ELBO, TraceVIMCO_ELBO
from pyro_lvm.elbo.linear import Trace_ELBO, TraceMeanField_ELBO, TraceScore_ELBO, TraceSTL_ELBO
from pyro_lvm.modules import unchanged, unchanged_if_it_fails
from pyro_lvm.svi.fit import fit
from pyro_lvm.svi.initial import initial_values
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.stopping import FitState

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


def compare_elbos(
    model: Callable,
    guide: Any,
    *data: Any,
    params: Any = None,
    elbos: Mapping[str, ELBO] | None = None,
    num_repeats: int = 100,
    plate: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train: bool = False,
    num_steps: int = 1_000,
    optim: Any = 1e-2,
    seed: int = 0,
) -> ELBOComparison:
    """Measure what estimators of the ELBO and its relatives say at the same parameters, and how their gradients vary.

    The variance of a gradient times the time that it takes is the figure that decides between estimators of one target:
    half the variance is worth twice the particles. The bias is measured against a reference: the exact gradient of the
    estimator's target where the guide's latents are discrete and few or the model is linear and Gaussian, else the mean
    of ten times as many gradients of the least noisy unbiased estimator. The reference of the inclusive KL divergence
    has a thousand particles.

    Args:
        model: A Pyro model.
        guide: A guide, as for :func:`pyro_lvm.fit`.
        data: The model's arguments.
        params: Where to compare: a result, or constrained values by name; where a fit would start, if None.
        elbos: Estimators by name; eight of 5 particles each, if None.
        num_repeats: Gradients of each estimator; at least 2.
        plate: The name of the plate of the rows, where it must be named.
        model_kwargs: Keyword arguments of model and guide.
        train: Whether to fit with each estimator from the same parameters, too, and watch the ELBO.
        num_steps: Of these fits.
        optim: Of these fits; see :func:`pyro_lvm.fit`.
        seed: Of all draws.

    Returns:
        The comparison: print it, or see ``to_dataframe()``, ``plot()`` and ``recommendation``.

    Raises:
        TypeError: for ``elbos`` that are no estimators by name.
        ValueError: for parameters that do not fit the model, and if no estimator has a right form.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyro_lvm as lvm
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> elbos = {"score": lvm.elbo.TraceScore_ELBO(5), "draws": lvm.elbo.Trace_ELBO(5)}
        >>> comparison = lvm.compare_elbos(model, "mean_field", y, elbos=elbos)
        >>> comparison["draws"].sd < comparison["score"].sd
        True
        >>> comparison["draws"].reference
        'exact, for a linear Gaussian model'
    """
    num_repeats, num_steps = check_count("num_repeats", num_repeats), check_count("num_steps", num_steps)
    if num_repeats < 2:
        raise ValueError("num_repeats must be at least 2, or gradients have no variance")
    elbos = _usual() if elbos is None else _check_elbos(elbos)
    compared: dict[str, Compared] = {}
    refused: dict[str, str] = {}
    first = Objective(model, guide, plate=plate, model_kwargs=model_kwargs)
    with randomness.seeded(check_seed(seed)):
        with unchanged_if_it_fails(model, guide):
            first.prepare(Data(data))
            values = first.program.parameters.start() | initial_values(first.program, params, "params")
        with unchanged(model, first.program.guide):
            references: dict[str, Reference] = {}
            for name, elbo in elbos.items():
                try:
                    objective = first.with_elbo(elbo)
                except ValueError as error:
                    refused[name] = str(error)
                else:
                    compared[name] = _compare(objective, values, num_repeats, references)
            if not compared:
                raise ValueError(f"no estimator has a right form for this model and guide: {refused}")
            chosen = compared if train else {}
            training = {name: _train(first, elbos[name], data, values, num_steps, optim, seed) for name in chosen}
    return ELBOComparison(compared, refused, training)


def _usual() -> dict[str, ELBO]:
    return {
        "Trace_ELBO": Trace_ELBO(5),
        "TraceMeanField_ELBO": TraceMeanField_ELBO(5),
        "TraceSTL_ELBO": TraceSTL_ELBO(5),
        "TraceScore_ELBO": TraceScore_ELBO(5),
        "TraceIWAE_ELBO": TraceIWAE_ELBO(5),
        "TraceIWAE_ELBO, dreg": TraceIWAE_ELBO(5, "dreg"),
        "TraceVIMCO_ELBO": TraceVIMCO_ELBO(5),
        "TraceRenyi_ELBO, 0.5": TraceRenyi_ELBO(0.5, 5),
    }


def _check_elbos(elbos: Any) -> dict[str, ELBO]:
    if not isinstance(elbos, Mapping) or not elbos or not all(isinstance(name, str) for name in elbos):
        raise TypeError(f"elbos must be a dict of estimators by name; got {elbos!r}")
    for name, elbo in elbos.items():
        if not isinstance(elbo, ELBO):
            raise TypeError(f"elbos[{name!r}] must be a pyro.infer.ELBO; got {elbo!r}")
    return dict(elbos)


def _compare(
    objective: Objective, values: dict[str, Tensor], num_repeats: int, references: dict[str, Reference]
) -> Compared:
    args, target = objective.program.data.args, objective.target
    draws = draw_gradients(objective, values, args, num_repeats)
    if target not in references:
        references[target] = reference(objective, values, args, 10 * num_repeats)
    expected = references[target]
    gradients = draws.flat()
    seconds, kept = cost(objective, values, args)
    error = gradients.var(0) / num_repeats + expected.error.square()
    return Compared(
        target=target,
        value=-draws.losses.mean().item(),
        standard_error=draws.losses.std().item() / math.sqrt(num_repeats),
        bias=(gradients.mean(0) - expected.gradient).norm().item(),
        bias_error=error.sum().sqrt().item(),
        reference=expected.source,
        sd=_spread(gradients)[1],
        signal_to_noise=_spread(gradients)[2],
        parameters={name: _spread(draws.flat(name)) for name in draws.gradients},
        seconds=seconds,
        bytes=kept,
    )


def _spread(gradients: Tensor) -> tuple[float, float, float]:
    """The length of the mean of ``[R, P]``, its standard deviation, and the ratio of the two."""
    length, sd = gradients.mean(0).norm().item(), gradients.var(0).sum().sqrt().item()
    return length, sd, length / sd if sd else math.inf


_MEASURED = 25  # times during a fit


def _train(
    first: Objective,
    elbo: ELBO,
    data: tuple[Any, ...],
    values: dict[str, Tensor],
    num_steps: int,
    optim: Any,
    seed: int,
) -> Training:
    measure, parameters = first.with_elbo(Trace_ELBO(100)), first.program.parameters
    result = Training()
    spent = time.perf_counter()

    def watch(step: int, at: dict[str, Tensor]) -> None:
        nonlocal spent
        began = time.perf_counter()
        result.steps.append(step)
        result.seconds.append(began - spent)
        with randomness.seeded(seed):
            result.elbo.append(-measure.value(at, measure.program.data.args))
        spent += time.perf_counter() - began

    def callback(state: FitState) -> None:
        watch(state.step, parameters.unconstrained(state.params))

    watch(0, values)
    fit(
        first.model,
        first.program.guide,
        *data,
        elbo=elbo,
        num_steps=num_steps,
        optim=optim,
        plate=first.plate,
        model_kwargs=first.model_kwargs,
        every=max(1, num_steps // _MEASURED),
        callbacks=[callback],
        init=parameters.constrained(values),
        seed=seed,
        progress=False,
    )
    return result


class ELBOComparison(Mapping[str, Compared]):
    """What :func:`compare_elbos` found: a mapping from the names of the estimators to :class:`Compared`.

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
        best = self._best(self[name].target)
        return self[name].variance_time / self[best].variance_time if self[best].variance_time else math.nan

    def biased(self, name: str) -> bool:
        """Whether the mean gradient is further from the reference than noise explains: by three times its length."""
        return self[name].bias > 3 * self[name].bias_error

    def _best(self, target: str) -> str:
        rivals = [name for name, c in self.items() if c.target == target]
        return min([n for n in rivals if not self.biased(n)] or rivals, key=lambda n: self[n].variance_time)

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
