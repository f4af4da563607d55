"""What ``diagnose`` has found: in words, in one picture, and as a page."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyro_lvm import files
from pyro_lvm.diagnostics.codes import Codes
from pyro_lvm.diagnostics.loo import LOO
from pyro_lvm.diagnostics.mixtures import Components
from pyro_lvm.diagnostics.optimisation import Iterations, Optimisation
from pyro_lvm.diagnostics.page import page
from pyro_lvm.diagnostics.picture import figure_of
from pyro_lvm.diagnostics.pit import PIT
from pyro_lvm.diagnostics.predictive_checks import PredictiveChecks
from pyro_lvm.importance import Estimate, Evidence
from pyro_lvm.svi.climb import Climb
from pyro_lvm.verdict.finding import Finding
from pyro_lvm.verdict.judge import grade_of
from pyro_lvm.verdict.khat import KHat
from pyro_lvm.verdict.marginals import Marginals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Diagnosis:
    """Whether a fit can be trusted, and in what.

    Attributes:
        fit: The fit in a line.
        optimisation: Whether it has come to rest; the climb of "auto".
        khat: The Pareto k of its importance weights; None where the guide has no density.
        evidence: log p(x), by importance sampling; None likewise.
        elbo: The ELBO at the fit; None likewise.
        marginals: Means and standard deviations beside corrected ones; None where there is nothing to correct.
        loo: Leave-one-out cross-validation; None where rows cannot be left out.
        pit: For each observed site with a number a row, its place in its prediction from all other rows.
        checks: Posterior predictive checks.
        components: Of a mixture: whether labels switched, how many have rows, which rows belong together.
        codes: Of an amortized guide of the rows' latents: which are in use, rate and distortion.
        not_available: What is None, and why.
    """

    fit: str
    optimisation: Optimisation | Iterations | Climb
    khat: KHat | None
    evidence: Evidence | None
    elbo: Estimate | None
    marginals: Marginals | None
    loo: LOO | None
    pit: tuple[PIT, ...]
    checks: PredictiveChecks
    components: Components | None
    codes: Codes | None
    not_available: dict[str, str]

    @property
    def verdict(self) -> str:
        """Whether means and standard deviations of the latents can be trusted: "good", "doubtful" or "bad".

        Bad is a mean that is off by more than a quarter of a posterior standard deviation, or a standard deviation that
        is off by more than a fifth. It is "unknown" where nothing tells, and "not available" of a fit that has no
        posterior.
        """
        own = grade_of(self.khat, self.marginals)
        missed = isinstance(self.optimisation, Climb) and self.optimisation.misses_modes
        return "doubtful" if missed and own == "good" else own

    def findings(self) -> list[Finding]:
        """Everything that was found, each with its figure."""
        parts: list[Any] = [self.marginals, self.khat, self.optimisation, self.loo, *self.pit, self.checks]
        parts += [self.components, self.codes]
        found = [finding for part in parts if part is not None for finding in part.findings()]
        if self.evidence is not None and self.elbo is not None:
            found.append(self._evidence(self.evidence, self.elbo))
        return found + [Finding(what, "unknown", f"not available: {why}") for what, why in self.not_available.items()]

    def _evidence(self, evidence: Evidence, elbo: Estimate) -> Finding:
        text = f"log p(x) is {evidence}, {evidence.value - elbo.value:.2f} nats above the ELBO, {elbo}"
        if self.components is not None and self.components.one_numbering:
            text += f"; {self.components.one_numbering}"
        if self.khat is None or self.khat.useful:
            return Finding("evidence", "good", text)
        return Finding("evidence", "doubtful", f"{text}: not to be trusted at this k-hat")

    def summary(self) -> str:
        """What can be trusted, what not, and what to try next."""
        return "\n".join([f"{self.fit}", f"verdict: {self.verdict}", *self._sections()])

    def _sections(self) -> list[str]:
        lines = []
        heads = {"good": "can be trusted", "doubtful": "in doubt", "bad": "cannot be trusted", "unknown": "not known"}
        findings = self.findings()
        for grade, head in heads.items():
            some = [finding for finding in findings if finding.grade == grade]
            lines += ["", f"{head}:"] * bool(some)
            lines += [f"  {finding.about}: {finding.text}" for finding in some]
        advice = dict.fromkeys(f.advice for f in findings if f.advice and f.grade in ("doubtful", "bad"))
        lines += ["", "to try next:"] * bool(advice)
        return lines + [f"  {words}" for words in advice]

    __str__ = summary

    def __repr__(self) -> str:
        return self.summary()

    def plot(self) -> Figure:
        """One page: the way of the fit, marginals and their corrections, weights, rows and predictions."""
        drawn: list[Callable[[Axes], Any]] = [self.optimisation.plot]
        if self.marginals is not None and self.marginals.corrected:
            drawn.append(self.marginals.plot)
        if self.khat is not None and self.khat.rows is not None:
            drawn.append(self.khat.plot)
        checks = self.checks if self.checks.each else None
        parts = (self.loo, *self.pit, checks, self.components, self.codes)
        drawn += [part.plot for part in parts if part is not None]
        return figure_of(drawn)

    def to_html(self, path: files.FilePath | None = None) -> str:
        """A page that needs no other file, with the picture in it.

        Args:
            path: Where to write it, too.
        """
        text = page(self.fit, self.verdict, self.findings(), self.plot())
        if path is not None:
            files.write_text(text, files.check_writable(path, "path"))
        return text

    def _repr_html_(self) -> str:
        frame = 'width="100%" height="900" style="border:0"'
        return f'<iframe srcdoc="{html.escape(self.to_html(), quote=True)}" {frame}></iframe>'
