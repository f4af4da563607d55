"""Which rule each parameter follows in the M-step, read off what the sites do with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.em.batch import Batch
from pyro_lvm.em.forms import Dirichlet, Form, Ratio, Simplex, Values
from pyro_lvm.em.matched import Beta, Gamma, NegativeBinomial
from pyro_lvm.em.pairs import MultivariateNormal, Normal
from pyro_lvm.em.priors import pseudo_sums
from pyro_lvm.em.program import HEAD, EMProgram
from pyro_lvm.em.roles import IDENTITY, Items, Link, Theta
from pyro_lvm.em.use import Use, base, depends_on, use_of
from pyro_lvm.params import is_real
from pyro_lvm.sites import sample_sites

NUMERIC, LEAST_SQUARES, UNUSED = "L-BFGS on Q", "weighted least squares", "not used"
SINGLE = "one category has all probability"
_RULES = {
    ("rate", "rate"): "weighted mean",
    ("probability", "probs"): "weighted proportion",
    ("simplex", "probs"): "expected counts, normalised",
    ("normal", "loc"): "weighted mean",
    ("normal", "scale"): "weighted standard deviation",
    ("multivariate_normal", "loc"): "weighted mean",
    ("multivariate_normal", "covariance"): "weighted covariance",
    ("gamma", "concentration"): "Newton's method",
    ("gamma", "rate"): "concentration over weighted mean",
    ("beta", "concentration1"): "Newton's method",
    ("beta", "concentration0"): "Newton's method",
    ("dirichlet", "concentration"): "Newton's method",
    ("negative_binomial", "total_count"): "bisection on expected counts",
    ("negative_binomial", "probs"): "weighted proportion",
}
_LOC_FORMS = ("normal", "multivariate_normal")
_MATCHED_FORMS = ("gamma", "beta", "negative_binomial")

Claim = tuple[str, str, Link]  # form, argument and what stands between the parameter and the argument
AFFINE: Claim = ("normal", "loc", Link("affine", lambda v: v, lambda v: v))
_SHARE = 0.3


class Plan:
    """The rule of each parameter.

    Args:
        program: The model.
        theta: Where the fit starts.
        batches: Rows to look at, in one batch or several.

    Attributes:
        rules: For each parameter the name of its rule, as it is told to users.
        links: For each parameter what stands between it and the argument.
        forms: The M-steps in closed form.
        priors: What conjugate priors add to the sums of each.
    """

    def __init__(self, program: EMProgram, theta: Theta, batches: Iterable[Batch]) -> None:
        self.program, self.theta = program, dict(theta)
        looks, self._follows = [], False
        for batch in batches:
            head = self._head(batch)
            self._last = head, self._look(head)
            if head is not batch and any(map(self._needs_all_rows, self._last[1].values())):
                self._last = batch, self._look(batch)
            self._follows |= any(map(self._follows_rows, self._last[1].values()))
            looks.append(self._last[1])
            self._follows |= program.program.data.count(batch.args) == 1
            if not self._follows:
                break
        seen, uses = self._last
        affine = self._affine_locs(uses, seen)
        claims = {name: _claims(name, [use for look in looks for use in look.values()], affine) for name in theta}
        self.links = {name: c[0][2] for name, c in claims.items() if len(c) == 1}
        self._arguments = {name: c[0][:2] for name, c in claims.items() if len(c) == 1}
        self.rules = {name: self._rule(name, c) for name, c in claims.items()}
        self.forms: dict[str, Form] = {}
        self._learned: dict[str, dict[str, Any]] = {}
        self.priors = self._pseudo_sums(uses, claims)
        self._refuse_half_pairs(uses)

    @property
    def closed(self) -> list[str]:
        """The parameters with a maximum in closed form."""
        return [name for name, rule in self.rules.items() if rule in _RULES.values()]

    def governed_by(self, rule: str) -> list[str]:
        """The parameters under a rule that is no closed form."""
        return [name for name, own in self.rules.items() if own.startswith(rule)]

    def give_up(self, name: str, reason: str) -> None:
        """Let a numerical search find a parameter, and those with which it would be found together."""
        self.rules[name] = f"{NUMERIC}, for {reason}"
        for use in self._last[1].values():
            if use.family is not None and use.family.form in _MATCHED_FORMS and name in use.params:
                for other in use.params & set(self.closed):
                    self.give_up(other, "the other parameter of its family is not free")

    def uses(self, batch: Batch) -> dict[str, Use]:
        """What each site does with the parameters on these rows."""
        if batch is not self._last[0] and self._follows:
            self._last = batch, self._look(batch)
        return self._last[1]

    def _head(self, batch: Batch) -> Batch:
        """Enough rows to see what sites do, unless that differs from row to row."""
        program = self.program.program
        if program.sites.row_plate is None or batch.values or (program.data.count(batch.args) or 0) <= HEAD:
            return batch
        args = (a[:HEAD] if has else a for a, has in zip(batch.args, program.data.has_rows, strict=True))
        return batch._replace(args=tuple(args), weight=None if batch.weight is None else batch.weight[:HEAD])

    def _look(self, batch: Batch) -> dict[str, Use]:
        thetas = self.program.filling(1, self.theta), self.program.filling(2, self.theta)
        leaves = {name: v.clone().requires_grad_() for name, v in thetas[0].items()}
        with torch.no_grad():
            second = sample_sites(self.program.trace(thetas[1], batch))
        with torch.enable_grad():
            first = sample_sites(self.program.trace(leaves, batch))
            return {n: use_of((first[n], second[n]), thetas, leaves, self.program.points) for n in first}

    def _affine_locs(self, uses: dict[str, Use], batch: Batch) -> dict[str, set[str]]:
        """The sites whose loc is an affine function of parameters, as in a regression, and these parameters.

        A loc that is picked counts as one where its scale is that of a regression too: scales are found after locs.
        """
        normal = [u for u in uses.values() if u.family is not None and u.family.form == "normal" and not u.prior_of]
        asked = [use for use in normal if use.roles["loc"] is None]
        scales = {name for use in asked for name in _names(use, "scale")}
        asked += [use for use in normal if use.roles["loc"] and not scales.isdisjoint(_names(use, "scale"))]
        if not asked:
            return {}
        real = {n for n, c in self.program.program.parameters.constraints.items() if is_real(c) and n in self.theta}
        one, other = self.program.filling(1, self.theta), self.program.filling(2, self.theta)
        leaves = {n: v.clone().requires_grad_() for n, v in one.items()}
        ends = leaves, one | {n: other[n] for n in real}
        between = one | {n: (1 - _SHARE) * one[n] + _SHARE * other[n] for n in real}
        with torch.enable_grad():
            traces = [self.program.trace(theta, batch) for theta in (*ends, between)]
        found = {}
        for use in asked:
            first, last, middle = (base(t.nodes[use.site]["fn"])[0].loc for t in traces)
            moving = depends_on(first, leaves)
            scale = base(traces[0].nodes[use.site]["fn"])[0].scale
            if not moving.isdisjoint(depends_on(scale, leaves)):
                continue
            straight = (1 - _SHARE) * first + _SHARE * last
            tolerance = 100 * torch.finfo(middle.dtype).eps * (first.abs().max() + last.abs().max())
            if moving <= real and (middle - straight).abs().max() <= tolerance:
                found[use.site] = moving
        return found

    def users(self, key: str, argument: str) -> set[str]:
        """The parameters that stand for an argument of a form."""
        return {name for name, used in self._arguments.items() if used == (key.split()[0], argument)}

    def is_floored(self, name: str) -> bool:
        """Whether the last maximum is held on a boundary, where Q may still rise."""
        return any(mask.any() for mask in self._said_of(name, "floored"))

    def size(self, name: str) -> float:
        """How many times larger than itself a relative error of the parameter is in slopes, at the last maximum."""
        return max((float(sizes.max()) for sizes in self._said_of(name, "sizes")), default=0.0)

    def _said_of(self, name: str, what: str) -> list[Tensor]:
        """What the forms of a parameter say of its items."""
        form, argument = self._arguments.get(name, ("", ""))
        return [
            getattr(rule, what)[argument][rule.items[argument].of([name])]
            for key, rule in self.forms.items()
            if key.split()[0] == form and argument in getattr(rule, what)
        ]

    def _needs_all_rows(self, use: Use) -> bool:
        """Whether some rows do not tell what others do with the parameters, as is so where arguments are computed."""
        local = use.site in self.program.program.sites.local
        return self._follows_rows(use) or (local and use.family is not None and not use.picked)

    def _follows_rows(self, use: Use) -> bool:
        """Whether which items stand where differs from row to row, as in ``effects[group]``."""
        sites = self.program.program.sites
        if sites.row_plate is None or use.site not in sites.local:
            return False
        axis = sites.row_plate.dim - use.event_dims
        indices = [role.index for role in use.roles.values() if role is not None]
        return any(index.dim() >= -axis and index.shape[axis] > 1 for index in indices)

    @property
    def late_params(self) -> set[str]:
        """The parameters of scales that are found about such a loc."""
        return {name for use in self._last[1].values() if self.is_late(use) for name in use.params}

    def is_late(self, use: Use) -> bool:
        """Whether its scale is found about a loc that is found first, and not in closed form."""
        if use.family is None or use.family.form not in _LOC_FORMS:
            return False
        loc = use.roles["loc"]
        return loc is None or not set(loc.names) <= set(self.closed)

    def form(self, use: Use) -> tuple[str, Form]:
        """The M-step that takes a site's sums, and what it is called."""
        assert use.family is not None
        name = use.family.form
        shapes = {role.items.shape for role in use.roles.values() if role is not None and role.items.count}
        size = max(shapes, default=())[:1]
        key = " ".join([name, *map(str, size)])
        if key not in self.forms:
            self.forms[key] = self._make(name, list(use.family.arguments), size)
            self.forms[key].restore(self._learned.get(key, {}))
        return key, self.forms[key]

    def state(self) -> dict[str, Any]:
        """What was learned from the rows on the way."""
        return {"rules": dict(self.rules), "forms": {key: form.state() for key, form in self.forms.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Know what another plan for the same fit had learned."""
        self.rules.update(state["rules"])
        self._learned = state["forms"]
        for key, form in self.forms.items():
            form.restore(self._learned.get(key, {}))

    def _make(self, name: str, arguments: list[str], size: tuple[int, ...]) -> Form:
        numbers, vectors = Items(self.theta, 0, ()), Items(self.theta, 1, size) if size else None
        row_plate = self.program.program.sites.row_plate
        row_dim = None if row_plate is None else row_plate.dim
        if name in ("rate", "probability"):
            return Ratio(arguments[0], numbers, row_dim)
        if name == "normal":
            return Normal(numbers, numbers.values(self.theta), row_dim)
        if name in _MATCHED_FORMS:
            if name == "negative_binomial":
                return NegativeBinomial(arguments, numbers)
            kind = Gamma if name == "gamma" else Beta
            return kind(arguments, numbers, row_dim, next(iter(self.theta.values())).dtype)
        assert vectors is not None
        if name == "multivariate_normal":
            return MultivariateNormal(vectors, Items(self.theta, 2, size * 2), vectors.values(self.theta), row_dim)
        return Simplex(vectors) if name == "simplex" else Dirichlet(vectors)

    def _rule(self, name: str, claims: list[Claim]) -> str:
        constraint = self.program.program.parameters.constraints[name]
        if constraint is constraints.simplex and self.theta[name].shape[-1] == 1:
            return SINGLE
        if any(not form for form, *_ in claims):
            return NUMERIC
        if AFFINE in claims and all(claim[:2] == AFFINE[:2] for claim in claims):
            return LEAST_SQUARES
        if len(claims) > 1:
            return f"{NUMERIC}, for it is used in {len(claims)} ways"
        return _RULES[claims[0][:2]] if claims else UNUSED

    def _pseudo_sums(self, uses: dict[str, Use], claims: dict[str, list[Claim]]) -> dict[str, Values]:
        """What conjugate priors add to the sums of each form; other priors leave their parameters to a search."""
        found: dict[str, Values] = {}
        trace = None
        for use in uses.values():
            name = use.prior_of
            if name and self.rules[name] == LEAST_SQUARES and not (use.fixed and _is_normal(use)):
                self.give_up(name, "its prior is not normal")
            if not name or self.rules[name] not in _RULES.values():
                continue
            if trace is None:
                trace = self.program.trace(self.theta, self._last[0])
            form, argument, link = claims[name][0]
            pseudo = pseudo_sums(trace.nodes[use.site], (form, argument, link.name)) if use.fixed else None
            if pseudo is None:
                self.give_up(name, "its prior is not conjugate")
                continue
            user = next(u for u in uses.values() if name in u.params and u.prior_of != name)
            key, rule = self.form(user)
            items = rule.items[argument]
            first = items.names[name]
            sums = pseudo.new_zeros(items.count, pseudo.shape[-1])
            sums[first : first + len(pseudo)] = pseudo
            held = found.setdefault(key, {})
            held[argument] = held.get(argument, 0.0) + sums
        return found

    def _refuse_half_pairs(self, uses: dict[str, Use]) -> None:
        """Both parameters of a gamma, beta or negative binomial are found together, or neither."""
        for use in uses.values():
            if use.family is None or use.prior_of:
                continue
            whole = (
                use.picked and all(role.names for role in use.roles.values() if role) and use.params <= set(self.closed)
            )
            if use.family.form in _MATCHED_FORMS and not whole:
                for name in use.params & set(self.closed):
                    self.give_up(name, "the other parameter of its family is not free")


def _names(use: Use, argument: str) -> list[str]:
    """The parameters from which an argument is picked."""
    role = use.roles[argument]
    return [] if role is None else role.names


def _is_normal(use: Use) -> bool:
    return use.family is not None and use.family.form in _LOC_FORMS


def _claims(name: str, uses: Iterable[Use], affine: dict[str, set[str]]) -> list[Claim]:
    """In what ways sites use a parameter; an empty form for what is no picking of items.

    Args:
        name: Of the parameter.
        uses: All uses.
        affine: The parameters in which the loc of a site is affine, by site.
    """
    claims: dict[Claim, None] = {}
    for use in uses:
        if name not in use.params or use.prior_of == name:
            continue
        if use.prior_of:  # a parameter of a prior, whose observations are parameters themselves
            claims[("", "", IDENTITY)] = None
            continue
        if name in affine.get(use.site, ()):
            claims[AFFINE] = None
            continue
        arguments = [a for a, role in use.roles.items() if role is not None and name in role.names]
        alone = use.family is not None and use.family.form in _LOC_FORMS and arguments not in ([], ["loc"])
        if not arguments or not (use.picked or alone):
            claims[("", "", IDENTITY)] = None
        for argument in arguments:
            claims[(use.family.form, argument, use.roles[argument].link)] = None  # type: ignore[union-attr]
    return list(claims)
