"""EM on models with Gaussian latents: probabilistic PCA, factor analysis, mixtures of them, regressions on latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_lvm.em.assignment import Components
from pyro_lvm.em.batch import AllRows, Batch
from pyro_lvm.em.e_step import Expectation, expect
from pyro_lvm.em.gaussian import GaussianLatents, Moments
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.m_step import Expected
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.run import Theta


class LinearGaussianSteps(GenericSteps):
    r"""The E-step finds the moments of the latents, the M-step maximises Q as if it saw points with these moments.

    Q is quadratic in the latents, so that an average over points at the mean plus and minus multiples of the columns of
    a root of the covariance is exact. Where all rows have one covariance, they come once, at their means; what the
    covariance adds is, for all rows, that of the first:

    .. math::

        \mathrm{E} f(z) = f(m) + \tfrac12 \sum_j \left( f(r_j) + f(-r_j) - 2 f(0) \right),
        \qquad \textstyle\sum_j r_j r_j^\top = \Sigma.

    Args:
        em: The model.
        theta: Where EM starts.
        rows: All of them.
        numeric: Why all parameters are left to a numerical search; empty if they are not.
    """

    def __init__(self, em: EMProgram, theta: Theta, rows: AllRows, numeric: str = "") -> None:
        assert em.gaussian is not None
        self.latents: GaussianLatents = em.gaussian
        super().__init__(em, theta, rows, numeric=numeric)

    def completed(self, batch: Batch) -> Batch:
        """Rows with some values of their latents."""
        program = self.program.program
        vectors = torch.zeros(program.data.count(batch.args) or 1, self.latents.size, dtype=self.latents.dtype)
        generator = torch.Generator().manual_seed(0)
        return batch._replace(values=self.latents.values(vectors.normal_(generator=generator)))

    def find_components(self, theta: Theta) -> Components | None:
        """None: rows are not moved between components, whose latents would move with them."""
        return None

    def expected(self, theta: Theta, batch: Batch) -> list[Expected]:
        """The E-step on some rows, and points whose sums are expectations."""
        with torch.no_grad():
            program = self.program.program
            moments = program.bind(theta, self.latents.moments)(*batch.args, **program.model_kwargs)
            here = batch._replace(values=self.latents.values(moments.mean))
            trace = self.program.trace(theta, here)
            self.latents.integrate(trace, moments)
            found = expect(trace, program.sites.row_plate, batch.weight)
            if moments.root.shape[-3] == 1:
                return [(here, found), self._spread(theta, batch, moments, found)]
            return list(self._points(theta, batch, moments, found))

    def _spread(self, theta: Theta, batch: Batch, moments: Moments, found: Expectation) -> Expected:
        """What a covariance that all rows have adds to Q, as points that stand in the place of the first row."""
        columns = moments.root.squeeze(-3).mT
        vectors = torch.cat([torch.zeros_like(columns[..., :1, :]), columns, -columns], -2)
        count = vectors.shape[-2]
        share = torch.full((count,), 0.5).to(vectors)
        share[0] = -(count // 2)
        program = self.program.program
        has_rows = program.data.has_rows
        args = tuple(a[:1].expand(count, *a.shape[1:]) if h else a for a, h in zip(batch.args, has_rows, strict=True))
        points = Batch(args, None, first=False, values=self.latents.values(vectors))
        dim = program.sites.row_plate.dim  # type: ignore[union-attr]
        share = share.reshape(-1, *[1] * (-dim - 1))
        weights = {
            name: weight.sum(dim, keepdim=True) * share
            for name, weight in found.weights.items()
            if name in self.latents.dependents
        }
        return points, self._as_expectation(theta, points, weights)

    def _points(self, theta: Theta, batch: Batch, moments: Moments, found: Expectation) -> Iterator[Expected]:
        """Rows with covariances of their own, at points on both sides of their means."""
        size = self.latents.size
        local = self.program.program.sites.local
        weights = {n: w / (2 * size) if n in local else w for n, w in found.weights.items()}
        for i, column in enumerate((size**0.5 * moments.root).unbind(-1)):
            for sign in (1, -1):
                first = i == 0 and sign == 1
                values = self.latents.values(moments.mean + sign * column)
                points = batch._replace(values=values, first=batch.first and first)
                expectation = self._as_expectation(theta, points, weights)
                yield points, found._replace(trace=expectation.trace, weights=weights) if first else expectation

    def _as_expectation(self, theta: Theta, points: Batch, weights: dict[str, Tensor]) -> Expectation:
        """Points that count so often, and add nothing to the objective."""
        trace = self.program.trace(theta, points)
        sites = trace.nodes
        zeros = {n: torch.zeros_like(s["unscaled_log_prob"]) for n, s in sites.items() if "unscaled_log_prob" in s}
        return Expectation(None, torch.zeros(()), zeros | weights, trace)
