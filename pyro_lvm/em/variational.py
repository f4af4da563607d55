"""Variational EM: alternating ascent of the ELBO in the parameters of a guide and in those of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_lvm import randomness
from pyro_lvm.elbo import Trace_ELBO
from pyro_lvm.em.batch import AllRows, Batch
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.m_step import Expected
from pyro_lvm.em.matching import Axes
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.roles import Theta as Values
from pyro_lvm.em.run import Empty, Theta
from pyro_lvm.em.search import Free, climb
from pyro_lvm.em.use import depends_on
from pyro_lvm.guides import is_delta
from pyro_lvm.sites import sample_sites
from pyro_lvm.vectorize import each_draw

_DRAWS = 30  # as many as Giordano et al. (2024) found to be enough
_E_STEPS = 20  # steps of the search for the guide's parameters in each iteration
_NOISY_E_STEPS, _RATE = 50, 0.02  # of Adam, where a guide has draws that are not reparametrised


class VariationalSteps:
    """The E-step climbs the ELBO in the guide's parameters, the M-step in the model's (Neal and Hinton 1998).

    The ELBO is a mean over draws of the guide whose noise stays the same in all iterations (Giordano, Ingram and
    Broderick 2024): a function without noise, which never falls. The M-step takes the latents at these draws for
    observations, and has the closed forms that it would have then. Where a guide draws discrete latents, no gradient
    follows the draws: the E-step is stochastic then, by the score function, and the ELBO may fall.

    Args:
        em: The model with its guide.
        theta: Where EM starts.
        rows: All of them.
        seed: Of the draws.
        numeric: Why all parameters of the model are left to a numerical search; empty if they are not.

    Raises:
        ValueError: for a parameter that belongs to both model and guide, and for rows that come in another order each
            time, as the noise of a draw belongs to its place.
    """

    def __init__(self, em: EMProgram, theta: Theta, rows: AllRows, seed: int, numeric: str = "") -> None:
        assert em.objective is not None
        if rows.is_shuffled:
            raise ValueError("variational EM needs the same batches in each sweep: give the DataLoader shuffle=False")
        self.em, self.rows, self.seed, self._round = em, rows, seed, 0
        # the rows as the M-step sees them: those of the data, once for every draw of the latents
        self.num_rows, self.total, self.at_once = rows.num_rows, rows.total, False
        self._theta, self._latent = dict(theta), em.program.sites.latent
        guide = self._guide_trace(theta)
        drawn = [site for site in sample_sites(guide).values() if not site["is_observed"]]
        sums_out = any(site["infer"].get("enumerate") for site in drawn)
        noisy = [s for s in drawn if not is_delta(s) and not s["infer"].get("enumerate")]
        self.num_draws = _DRAWS if noisy else 1
        self.monotone = self.settles = all(site["fn"].has_rsample for site in noisy)
        self.objective = em.objective.with_elbo(Trace_ELBO(self.num_draws))
        self._of_guide = self._parameters_of_the_guide(theta)
        # Where latents of the model are summed out, the ELBO is no Q: their posterior moves with the parameters.
        numeric = numeric or ("the guide sums latents out" if sums_out else "")
        q = self._q if sums_out or not em.program.sites.enumerated else None
        self.inner = GenericSteps(em, self.of_model(theta), self, numeric=numeric, q=q)

    @property
    def objective_name(self) -> str:
        """What is maximised: with the noise of its draws held fixed, the ELBO is too high by what it fits of that."""
        return f"ELBO of {self.num_draws} fixed draws" if self.num_draws > 1 and self.monotone else "ELBO"

    @property
    def rules(self) -> dict[str, str]:
        """The rule of each parameter."""
        how = "L-BFGS on the ELBO" if self.monotone else "Adam on the ELBO"
        return self.inner.rules | dict.fromkeys(self._of_guide, how)

    def remarks(self, theta: Theta) -> dict[str, str]:
        """The rules of parameters of the model that are held on a boundary there."""
        self._theta = theta
        return self.inner.remarks(self.of_model(theta))

    def sweep(self, theta: Theta) -> tuple[Tensor, None]:
        """The ELBO at ``theta``."""
        with torch.no_grad():
            return torch.stack(list(self._elbo(theta))).sum(), None

    def maximize(self, theta: Theta, found: None) -> Theta:
        """An E-step and an M-step."""
        if not self.monotone:
            self._round += 1
        self._theta = self._climb(theta) if self.monotone else self._wander(theta)
        model = self.of_model(self._theta)
        with torch.no_grad():
            _, swept = self.inner.sweep(model)
        return self._theta | self.inner.maximize(model, swept)

    def empty(self, theta: Theta, found: None) -> list[Empty]:
        """None: a guide need not know of components."""
        return []

    def refill(self, theta: Theta, empty: list[Empty]) -> Theta:
        """There is nothing to fill."""
        return theta

    def axes(self, theta: Theta) -> Axes:
        """None: what a guide says of components is not known."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry."""
        return {"round": self._round, "inner": self.inner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self._round = state["round"]
        self.inner.restore(state["inner"])

    def __iter__(self) -> Iterator[Batch]:
        for i, batch in enumerate(self.rows):
            draws = self._draws(batch, i)
            for s in range(self.num_draws):
                values = {name: draw[s] for name, draw in draws.items()}
                yield batch._replace(values=values, share=1 / self.num_draws)

    def sample(self, count: int, seed: int) -> Batch:
        """Rows of the data alone."""
        return self.rows.sample(count, seed)

    def _elbo(self, theta: Values, step: int = 0) -> Iterator[Tensor]:
        """The part of each batch in the ELBO, at draws that depend on the batch, and on the step of a noisy E-step."""
        for i, batch in enumerate(self.rows):
            count = self.em.program.data.count(batch.args)
            whole = count is None or self.rows.at_once
            options = (theta, batch.args, None if whole else self.num_rows, batch.weight)
            with self._noise(i, step), self.em.program.parameters.evaluating():
                if torch.is_grad_enabled():
                    loss = self.objective(*options)
                else:  # in which Pyro's own estimators have no gradient to take
                    loss = torch.tensor(self.objective.value(*options), dtype=torch.float64)
            yield -loss.double() * (1.0 if whole else count / self.num_rows)  # type: ignore[operator]

    def _noise(self, batch: int, step: int = 0) -> Any:
        seed = np.random.SeedSequence([self.seed, self._round, step, batch])
        return randomness.seeded(int(seed.generate_state(1)[0]))

    def _q(self, theta: Values, batches: Iterable[Expected]) -> Iterator[Tensor]:
        """What the M-step maximises: the ELBO with the guide as it is."""
        return self._elbo({**self._theta, **theta})

    def _climb(self, theta: Theta) -> Theta:
        if not self._of_guide:
            return theta
        return climb(self._of_guide, theta, self._constraints, self._elbo, _E_STEPS)

    def _wander(self, theta: Theta) -> Theta:
        free = Free(self._of_guide, theta, self._constraints)
        optimizer = torch.optim.Adam(list(free.leaves.values()), lr=_RATE)
        for step in range(1, _NOISY_E_STEPS + 1):
            _, gradient = free.gradient(lambda there, step=step: self._elbo(there, step))  # type: ignore[misc]
            for name, leaf in free.leaves.items():
                leaf.grad = -gradient[name]
            optimizer.step()
        return {name: value.detach() for name, value in free.constrained().items()}

    @property
    def _constraints(self) -> Any:
        return self.em.program.parameters.constraints

    def of_model(self, theta: Theta) -> Theta:
        """The parameters of the model among these."""
        return {name: theta[name] for name in theta if name not in self._of_guide}

    def _draws(self, batch: Batch, i: int) -> dict[str, Tensor]:
        """The draws of the guide at which the ELBO of this batch is taken."""
        with torch.no_grad(), self._noise(i):
            vectorizes = self.objective.structure.vectorizes if hasattr(self.objective, "structure") else None
            return each_draw(lambda: self._values(self._guide_trace(self._theta, batch)), self.num_draws, vectorizes)[0]

    def _values(self, guide: poutine.Trace) -> dict[str, Tensor]:
        return {name: guide.nodes[name]["value"] for name in self._latent}

    def _guide_trace(self, theta: Theta, batch: Batch | None = None) -> poutine.Trace:
        program = self.em.program
        args = program.example if batch is None else batch.args
        guide = program.bind(theta, program.guide)
        return prune_subsample_sites(poutine.trace(guide).get_trace(*args, **program.model_kwargs))

    def _parameters_of_the_guide(self, theta: Theta) -> list[str]:
        program = self.em.program
        leaves = {name: value.detach().clone().requires_grad_() for name, value in theta.items()}
        with torch.enable_grad():
            trace = self._guide_trace(leaves)
            drawn = [s["fn"].log_prob(s["value"]).sum() + _sum(s["value"]) for s in sample_sites(trace).values()]
            found = depends_on(torch.stack(drawn).sum(), leaves)
            values = {name: trace.nodes[name]["value"].detach() for name in self._latent}
            model = self.em.trace(leaves, Batch(program.example, None, values=values))
            terms = [site["unscaled_log_prob"].sum() for site in sample_sites(model).values()]
            both = sorted(found & depends_on(torch.stack(terms).sum(), leaves))
        if both:
            raise ValueError(
                f"the parameter {both[0]!r} belongs to the model and to the guide, so that no step could keep the "
                "other fixed: fit both at once by lvm.fit"
            )
        return sorted(found)


def _sum(value: Tensor) -> Tensor:
    return value.sum() if value.is_floating_point() else torch.zeros(())
