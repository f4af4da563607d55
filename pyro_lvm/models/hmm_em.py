"""EM for hidden Markov models, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.models._chains import Smoothed
from pyro_lvm.models._row_family import Family, log_densities
from pyro_lvm.models._steps import Params, Steps, Sums

__all__ = ["HMMSteps"]

Rows = tuple[dict[str, Tensor], Tensor]  # those of all sequences, `[M, D]` by part, and the lengths, `[N]`


class HMMSteps(Steps):
    """The algorithm of Baum and Welch.

    A state that no row is in keeps its transitions and emissions. Zeros among the probabilities stay.

    Args:
        families: Of the emissions, by part.
        attributes: The names of their parameters, by part and by the family's own names.
        rows_of: Makes rows of the arguments of the model.
        floors: The smallest variances, by part.

    References:
        L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition" (1989).
    """

    def __init__(
        self,
        families: Mapping[str, Family],
        attributes: Mapping[str, Mapping[str, str]],
        rows_of: Callable[..., Rows],
        floors: Mapping[str, float],
    ) -> None:
        self.families, self.attributes, self.rows_of, self.floors = families, attributes, rows_of, floors

    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """See `Steps.expect`."""
        rows, lengths = self.rows_of(*args)
        emissions = {part: self._emission(part, params) for part in rows}
        density = log_densities(self.families, emissions, rows)
        smoothed = Smoothed(density, lengths, params["initial"], params["transition"])
        counts = torch.ones_like(smoothed.log_prob) if weight is None else weight.to(smoothed.log_prob)
        states = smoothed.states if weight is None else smoothed.states * smoothed.per_row(weight)
        sums = {
            "log_p": counts @ smoothed.log_prob,
            "initial": counts @ smoothed.first(),
            "transition": smoothed.transitions(counts),
        }
        for part, x in rows.items():
            found = self.families[part].sums(emissions[part], x, states)
            sums |= {f"{part}.{name}": value for name, value in found.items()}
        return sums

    def maximize(self, sums: Sums, params: Params) -> Params:
        """See `Steps.maximize`."""
        leaving = sums["transition"].sum(-1, keepdim=True)
        moves = sums["transition"] / leaving.where(leaving > 0, 1.0)
        found = {
            "initial": sums["initial"] / sums["initial"].sum(),
            "transition": moves.where(leaving > 0, params["transition"].double()),
        }
        for part, family in self.families.items():
            own = {name.removeprefix(f"{part}."): value for name, value in sums.items() if name.startswith(f"{part}.")}
            emission = family.maximize(own, self._emission(part, params), self.floors[part])
            found |= {self.attributes[part][name]: value for name, value in emission.items()}
        return {name: found[name].to(value.dtype) for name, value in params.items()}

    def component_axes(self, params: Params) -> dict[str, tuple[int, ...]]:
        """See `Steps.component_axes`."""
        return {name: (0, 1) if name == "transition" else (0,) for name in params}

    def _emission(self, part: str, params: Params) -> Params:
        return {name: params[attribute] for name, attribute in self.attributes[part].items()}
