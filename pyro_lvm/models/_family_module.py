"""What models of rows of any family share: the parameters of each family, and checks of what the rows hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_lvm.checks import check_choice
from pyro_lvm.models._base import AssignableModule
from pyro_lvm.models._gaussian_rows import Gaussian
from pyro_lvm.models._row_families import Bernoulli, Categorical, Exponential, Gamma, Multinomial, Poisson
from pyro_lvm.models._row_family import Family, log_densities
from pyro_lvm.models._steps import Params

FAMILIES: dict[str, type[Family]] = {
    family.__name__.lower(): family
    for family in (Gaussian, Poisson, Multinomial, Bernoulli, Categorical, Exponential, Gamma)
}


class FamilyModule(AssignableModule):
    """A module with the parameters of some families, for each of its components or states.

    Attributes:
        families: By the names of the data arguments.
    """

    families: dict[str, Family]

    def _add_families(
        self,
        count: int,
        family: str | Family | Mapping[str, Family],
        sizes: Mapping[str, Any],
        taken: Collection[str],
        argument: str,
    ) -> None:
        """Add parameters with random values.

        Args:
            count: The number of components or states.
            family: A family, its name or several.
            sizes: Arguments of a family that is given by its name.
            taken: Names that no data argument may have.
            argument: How errors call the family.
        """
        if isinstance(family, str):
            family = FAMILIES[check_choice(argument, family, tuple(FAMILIES))](**sizes)
        elif sizes:
            raise TypeError(f"{', '.join(sizes)}: expected only where {argument} is a name, got {family!r}")
        self.families = (
            _checked_parts(family, taken, argument)
            if isinstance(family, Mapping)
            else {"x": _checked_family(family, argument)}
        )
        self._attributes: dict[str, dict[str, str]] = {}  # of each part, by the family's own names of the parameters
        for part, member in self.families.items():
            prefix = f"{part}_" if isinstance(family, Mapping) else ""
            self._attributes[part] = {name: prefix + name for name in member.shapes()}
            for name, shape in member.shapes().items():
                constraint = member.constraint_of(name)
                transform = transform_to(constraint)
                value = transform(torch.randn(transform.inverse_shape((count, *shape))))
                self._add_param(self._attributes[part][name], value, constraint)

    def _params(self, part: str) -> Params:
        return {name: getattr(self, attribute) for name, attribute in self._attributes[part].items()}

    def _densities(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Log-density of rows in each component or state, `[N, K]`."""
        return log_densities(self.families, {part: self._params(part) for part in rows}, rows)

    def _check_entries(self, rows: Mapping[str, Tensor]) -> None:
        """Refuse entries that a family cannot have."""
        for part, x in rows.items():
            invalid = ~self.families[part].valid(x)
            if invalid.any():
                *row, column = invalid.nonzero()[0].tolist()
                raise ValueError(
                    f"{part}: expected {self.families[part].words(column)}, got {x[*row, column].item():g} "
                    f"in row {', '.join(map(str, row))}, column {column}"
                )


def _checked_family(family: Any, argument: str) -> Family:
    if not isinstance(family, Family):
        raise TypeError(f"{argument}: expected a family such as Poisson(2), the name of one or a dict, got {family!r}")
    return family


def _checked_parts(families: Mapping[str, Any], taken: Collection[str], argument: str) -> dict[str, Family]:
    if not families:
        raise ValueError(f"{argument}: expected at least one family in the dict")
    for part in families:
        if not isinstance(part, str) or not part.isidentifier() or part in taken:
            raise ValueError(
                f"{argument}: expected names such as 'visits', other than {', '.join(taken)}, got {part!r}"
            )
    return {part: _checked_family(family, argument) for part, family in families.items()}
