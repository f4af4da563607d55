"""M-steps: the parameters at which the expected log-density of rows and latents, Q, is largest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_lvm.em.e_step import Expectation
from pyro_lvm.em.forms import add
from pyro_lvm.em.plan import LEAST_SQUARES, NUMERIC, Plan
from pyro_lvm.em.roles import Theta
from pyro_lvm.sites import sample_sites

Sums = dict[str, Tensor]
Batch = tuple[tuple[Any, ...], Expectation]

_SEARCH_STEPS = 50


def collect(into: Sums, part: Sums) -> None:
    """Add the sums of some sites or rows to those of others."""
    for key, value in part.items():
        into[key] = add(into[key], value) if key in into else value


class MStep:
    """The M-step of a model.

    Args:
        plan: The rule of each parameter.
        patient: Whether a number that has no maximum stays as it is until more rows are seen, and is else searched for.
    """

    def __init__(self, plan: Plan, patient: bool = False) -> None:
        self.plan, self.program, self.patient = plan, plan.program, patient

    def sums(self, args: tuple[Any, ...], expectation: Expectation, first: bool = True, late: bool = False) -> Sums:
        """What the closed forms need to know of some rows.

        Args:
            args: The rows.
            expectation: Of the E-step on them; its trace may be at later parameters.
            first: Whether these rows are the first of a sweep, with which what lies outside the rows is counted.
            late: Whether to look at sites whose loc was just found by other means, and else at all others.
        """
        found: Sums = {}
        sites, closed = sample_sites(expectation.trace), set(self.plan.closed)
        with torch.no_grad():
            for use in self.plan.uses(args).values():
                if use.family is None or use.prior_of or not use.params & closed or self.plan.is_late(use) != late:
                    continue
                if not first and use.site not in self.program.program.sites.local:
                    continue
                use = use.given("loc") if late else use
                if not use.picked:
                    continue
                key, form = self.plan.form(use)
                collect(found, {key: form.sums(use, sites[use.site], expectation.weights[use.site].detach())})
        return found

    def closed(self, sums: Sums, theta: Theta) -> dict[str, Tensor]:
        """The parameters with all maxima in closed form that these sums speak of."""
        new, constraints = dict(theta), self.program.program.parameters.constraints
        names = set(self.plan.closed)
        for key, part in sums.items():
            form = self.plan.forms[key]
            now = {argument: self._as_arguments(key, argument, theta) for argument in form.items}
            free = {a: items.of(names & self.plan.users(key, a)) for a, items in form.items.items()}
            maximum = form.maximum(part, self.plan.priors.get(key, {}), now, free)
            for argument, values in maximum.items():
                items = form.items[argument]
                for name, value in items.split(values, theta).items():
                    if name in names & self.plan.users(key, argument):
                        found = self.plan.links[name].inverse(value).to(theta[name])
                        fits = constraints[name].check(found)
                        if self.patient:
                            new[name] = torch.where(fits, found, theta[name]) if fits.shape == found.shape else found
                        elif not torch.isfinite(found).all():
                            self.plan.give_up(name, f"its maximum is no {self.plan.links[name].name} of any number")
                        elif not fits.all():
                            self.plan.give_up(name, "its maximum is outside its constraint")
                        else:
                            new[name] = found
        return new

    def _as_arguments(self, key: str, argument: str, theta: Theta) -> Tensor:
        """All items as distributions take them; those of parameters that are no such argument are not looked at."""
        items, users = self.plan.forms[key].items[argument], self.plan.users(key, argument)
        linked = {
            n: self.plan.links[n].call(theta[n].double()) if n in users else theta[n].double() for n in items.names
        }
        return items.values(linked)

    def __call__(self, theta: Theta, sums: Sums, batches: Callable[[], Iterable[Batch]]) -> dict[str, Tensor]:
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
            new |= self._search(searched, new, batches)
        if linear or searched:
            late: Sums = {}
            for i, (args, expectation) in enumerate(batches()):
                there = expectation._replace(trace=self.program.trace(new, args))
                collect(late, self.sums(args, there, first=i == 0, late=True))
            new = self.closed(late, new)
        return new

    def q(self, theta: Theta, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """The expected log-density at ``theta``, batch by batch, in nats."""
        for i, (args, expectation) in enumerate(batches):
            total = torch.zeros((), dtype=torch.float64)
            for name, site in sample_sites(self.program.trace(theta, args)).items():
                if i > 0 and name not in self.program.program.sites.local:
                    continue  # what lies outside the rows counts once
                weight = expectation.weights[name].detach()
                log_prob = torch.where(weight == 0, 0.0, site["unscaled_log_prob"])
                total = total + (weight * log_prob).double().sum()
            yield total

    def gradient(self, names: list[str], theta: Theta, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The derivative of Q by unconstrained values of parameters."""
        free = self._unconstrained(names, theta)
        leaves = {n: v.requires_grad_() for n, v in free.items()}
        total = {n: torch.zeros_like(v) for n, v in leaves.items()}
        with torch.enable_grad():
            for value in self.q({**theta, **self._constrained(leaves)}, batches):
                grads = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
                for n, g in zip(leaves, grads, strict=True):
                    total[n] += 0 if g is None else g
        return total

    def _search(self, names: list[str], theta: Theta, batches: Callable[[], Iterable[Batch]]) -> dict[str, Tensor]:
        """The maximum of Q by L-BFGS (Liu and Nocedal 1989), in unconstrained space."""
        leaves = {n: v.requires_grad_() for n, v in self._unconstrained(names, theta).items()}
        optimizer = torch.optim.LBFGS(
            list(leaves.values()), max_iter=_SEARCH_STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64)
            with torch.enable_grad():
                for value in self.q({**theta, **self._constrained(leaves)}, batches()):
                    (-value).backward(retain_graph=True)
                    total = total - value.detach()
            return total

        optimizer.step(closure)
        return {n: v.detach() for n, v in self._constrained(leaves).items()}

    def _newton(self, names: list[str], theta: Theta, batches: Callable[[], Iterable[Batch]]) -> dict[str, Tensor]:
        """One step of Newton's method, which ends at the maximum, for in these parameters Q is quadratic."""
        sizes = [theta[n].numel() for n in names]
        vector = torch.cat([theta[n].reshape(-1) for n in names]).double().requires_grad_()

        def split(v: Tensor) -> dict[str, Tensor]:
            return {n: p.reshape(theta[n].shape).to(theta[n].dtype) for n, p in zip(names, v.split(sizes), strict=True)}

        gradient, hessian = torch.zeros_like(vector), vector.new_zeros(len(vector), len(vector))
        with torch.enable_grad():
            for value in self.q({**theta, **split(vector)}, batches()):
                (first,) = torch.autograd.grad(value, vector, create_graph=True)
                gradient += first.detach()
                for row, unit in zip(hessian, torch.eye(len(vector), dtype=vector.dtype), strict=True):
                    row += torch.autograd.grad(first, vector, unit, retain_graph=True)[0]
        step = torch.linalg.lstsq(-hessian, gradient.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        return split(vector.detach() + step)

    def _unconstrained(self, names: list[str], theta: Theta) -> dict[str, Tensor]:
        constraints = self.program.program.parameters.constraints
        return {n: transform_to(constraints[n]).inv(theta[n]).detach().clone() for n in names}

    def _constrained(self, free: Theta) -> dict[str, Tensor]:
        constraints = self.program.program.parameters.constraints
        return {n: transform_to(constraints[n])(v) for n, v in free.items()}
