"""M-steps: the parameters at which the expected log-density of rows and latents, Q, is largest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from pyro_lvm.em.batch import Batch
from pyro_lvm.em.e_step import Expectation
from pyro_lvm.em.forms import add
from pyro_lvm.em.plan import LEAST_SQUARES, NUMERIC, Plan
from pyro_lvm.em.roles import Theta
from pyro_lvm.em.search import Free, climb, conjugate_gradients
from pyro_lvm.sites import sample_sites

Sums = dict[str, Tensor]
Expected = tuple[Batch, Expectation]  # rows, and the E-step on them
Objective = Callable[[Theta, Iterable[Expected]], Iterator[Tensor]]  # a number in nats, as a sum over batches

_PLAIN = ("identity", "exp", "sigmoid", "softmax")  # links through which the smallest number goes
_SEARCH_STEPS = 50
_MANY_COEFFICIENTS = 300  # of least squares, whose Hessian is not written down
_NUMBERS_AT_ONCE = 5_000_000  # of the derivatives of a batch of rows by some coefficients


def collect(into: Sums, part: Sums) -> None:
    """Add the sums of some sites or rows to those of others."""
    for key, value in part.items():
        into[key] = add(into[key], value) if key in into else value


class MStep:
    """The M-step of a model.

    Args:
        plan: The rule of each parameter.
        patient: Whether a number that has no maximum stays as it is until more rows are seen, and is else searched for.
        q: What is to be maximised, at parameters and given rows with their expectations, batch by batch; the expected
            log-density, if None.
    """

    def __init__(
        self,
        plan: Plan,
        patient: bool = False,
        q: Objective | None = None,
    ) -> None:
        self.plan, self.program, self.patient, self.q = plan, plan.program, patient, q or self._expected_log_density
        self._constraints = self.program.program.parameters.constraints
        self._numbers = 1  # in the largest log-density of a batch, events by entry

    def sums(self, batch: Batch, expectation: Expectation, late: bool = False) -> Sums:
        """What the closed forms need to know of some rows.

        Args:
            batch: The rows.
            expectation: Of the E-step on them; its trace may be at later parameters.
            late: Whether to look at sites whose loc was just found by other means, and else at all others.
        """
        found: Sums = {}
        sites, closed = sample_sites(expectation.trace), set(self.plan.closed)
        sizes = [w.numel() * sites[n]["fn"].event_shape.numel() for n, w in expectation.weights.items()]
        self._numbers = max(self._numbers, *sizes)
        with torch.no_grad():
            for use in self.plan.uses(batch).values():
                if use.family is None or use.prior_of or not use.params & closed or self.plan.is_late(use) != late:
                    continue
                if not batch.first and use.site not in self.program.program.sites.local:
                    continue
                use = use.given("loc") if late else use
                if not use.picked:
                    continue
                key, form = self.plan.form(use)
                weights = expectation.weights[use.site].detach()
                collect(found, {key: form.sums(use, sites[use.site], weights)})
        return found

    def closed(self, sums: Sums, theta: Theta) -> dict[str, Tensor]:
        """The parameters with all maxima in closed form that these sums speak of."""
        new = dict(theta)
        for key in sums:
            for name in self.plan.forms[key].entangled & set(self.plan.closed):
                self.plan.give_up(name, "other arguments of its family are shared, or constants")
        names = set(self.plan.closed)
        for key, part in sums.items():
            form = self.plan.forms[key]
            now = {argument: self._as_arguments(key, argument, theta) for argument in form.items}
            free = {a: items.of(names & self.plan.users(key, a)) for a, items in form.items.items()}
            maximum = form.maximum(part, self.plan.priors.get(key, {}), now, free)
            found = {
                name: self._of_argument(name, value, theta[name].dtype)
                for argument, values in maximum.items()
                for name, value in form.items[argument].split(values, theta).items()
                if name in names & self.plan.users(key, argument)
            }
            new |= self._allowed(found, theta, form.together)
        return new

    def _of_argument(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The parameter for an argument; a number next to zero, where it may not be zero."""
        link, check = self.plan.links[name], self._constraints[name].check
        found = link.inverse(value).to(dtype)
        if (value >= 0).all() and not (found.isfinite().all() and check(found).all()):
            least = torch.finfo(dtype).tiny
            found = link.inverse(value.clamp(min=least if link.name in _PLAIN else least**0.5)).to(dtype)
        return found.clamp(max=-math.log(torch.finfo(dtype).tiny)) if link.name == "sigmoid" else found

    def _allowed(self, found: Theta, theta: Theta, together: bool) -> Theta:
        """Maxima that constraints allow. Others stay where they are if there is patience, and are given up else."""
        fits = {name: self._constraints[name].check(value) for name, value in found.items()}
        if self.patient:
            if together and found:
                alike = len({fit.shape for fit in fits.values()}) == 1
                both = torch.stack([fit if alike else fit.all() for fit in fits.values()]).all(0)
                fits = {n: both[(..., *[None] * (v.dim() - both.dim()))].expand(v.shape) for n, v in found.items()}
            whole = [name for name, fit in fits.items() if fit.shape != found[name].shape]
            return {n: v if n in whole else torch.where(fits[n], v, theta[n]) for n, v in found.items()}
        for name, value in found.items():
            if not torch.isfinite(value).all():
                self.plan.give_up(name, f"its maximum is no {self.plan.links[name].name} of any number")
            elif not fits[name].all():
                self.plan.give_up(name, "its maximum is outside its constraint")
        closed = set(self.plan.closed)
        return {name: value for name, value in found.items() if name in closed}

    def _as_arguments(self, key: str, argument: str, theta: Theta) -> Tensor:
        """All items as distributions take them; those of parameters that are no such argument are not looked at."""
        items, users = self.plan.forms[key].items[argument], self.plan.users(key, argument)
        linked = {
            n: self.plan.links[n].call(theta[n].double()) if n in users else theta[n].double() for n in items.names
        }
        return items.values(linked)

    def __call__(self, theta: Theta, sums: Sums, batches: Callable[[], Iterable[Expected]]) -> dict[str, Tensor]:
        """The new parameters.

        Args:
            theta: The old ones.
            sums: Of all rows at the old ones.
            batches: Goes through the rows and their expectations at the old parameters once more.
        """
        new = self.closed(sums, theta)
        if linear := self.plan.governed_by(LEAST_SQUARES):
            new |= self._newton(linear, new, batches)
        if searched := self.plan.governed_by(NUMERIC):
            new = climb(searched, new, self._constraints, lambda there: self.q(there, batches()), _SEARCH_STEPS)
        if linear or searched:
            late: Sums = {}
            for batch, expectation in batches():
                there = expectation._replace(trace=self.program.trace(new, batch))
                collect(late, self.sums(batch, there, late=True))
            new = self.closed(late, new)
        return new

    def _expected_log_density(self, theta: Theta, batches: Iterable[Expected]) -> Iterator[Tensor]:
        for batch, expectation in batches:
            total = torch.zeros((), dtype=torch.float64)
            for name, site in sample_sites(self.program.trace(theta, batch)).items():
                if not batch.first and name not in self.program.program.sites.local:
                    continue  # what lies outside the rows counts once
                weight = expectation.weights[name].detach()
                log_prob = torch.where(weight == 0, 0.0, site["unscaled_log_prob"])
                total = total + (weight * log_prob).double().sum()
            yield total

    def slopes(self, names: list[str], theta: Theta, batches: Callable[[], Iterable[Expected]]) -> dict[str, Tensor]:
        """The derivative of Q by unconstrained values of parameters."""
        return Free(names, theta, self._constraints).gradient(lambda there: self.q(there, batches()))[1]

    def _newton(self, names: list[str], theta: Theta, batches: Callable[[], Iterable[Expected]]) -> dict[str, Tensor]:
        """One step of Newton's method, which ends at the maximum, for in these parameters Q is quadratic."""
        sizes = [theta[n].numel() for n in names]
        here = torch.cat([theta[n].reshape(-1) for n in names]).double()

        def split(v: Tensor) -> dict[str, Tensor]:
            return {n: p.reshape(theta[n].shape).to(theta[n].dtype) for n, p in zip(names, v.split(sizes), strict=True)}

        def slopes(create_graph: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
            """The parameters as one vector, and the slope of each batch, which can be differentiated by it."""
            with torch.enable_grad():
                vector = here.clone().requires_grad_()
                for value in self.q({**theta, **split(vector)}, batches()):
                    if value.requires_grad:  # not so of a batch of rows, if all that moves lies outside the rows
                        yield vector, torch.autograd.grad(value, vector, create_graph=create_graph)[0]

        if len(here) > _MANY_COEFFICIENTS:
            gradient = torch.stack([slope for _, slope in slopes(create_graph=False)]).sum(0)
            step = conjugate_gradients(
                lambda v: -torch.stack([torch.autograd.grad(slope, x, v)[0] for x, slope in slopes()]).sum(0), gradient
            )
            return split(here + step)
        at_once = max(1, _NUMBERS_AT_ONCE // self._numbers)
        gradient, hessian = torch.zeros_like(here), here.new_zeros(len(here), len(here))
        units = torch.eye(len(here), dtype=here.dtype, device=here.device)
        for vector, slope in slopes():
            gradient += slope.detach()
            for rows, some in zip(hessian.split(at_once), units.split(at_once), strict=True):
                rows += torch.autograd.grad(slope, vector, some, retain_graph=True, is_grads_batched=True)[0]
        step = torch.linalg.lstsq(-hessian, gradient.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        return split(here + step)
