"""Names of dimensions: those of the plates, those that the user gives, and ArviZ's for the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_lvm.sites import RowPlate, Site

Axis = tuple[str, int] | None  # the plate along a dimension and its size, or None
SAMPLE_DIMS = ("chain", "draw")


def axes(site: Site) -> list[Axis]:
    """The plate along each dimension of a site's value, from left to right."""
    shape, event_dim = site["value"].shape, site["fn"].event_dim
    if site["infer"].get("_deterministic") and event_dim == len(shape):
        event_dim = 0  # pyro.deterministic does not tell plates from the rest unless event_dim= does
    plates = {f.dim: (f.name, f.size) for f in site["cond_indep_stack"] if f.vectorized}
    along = [plates.get(i + event_dim - len(shape)) for i in range(len(shape))]
    return [p if p is not None and p[1] == size else None for p, size in zip(along, shape, strict=True)]


class DimNames:
    """Gives the same name to the same plate wherever it stands, and to no other dimension.

    A dimension is named by the user, else by its plate (``<plate>_<size>`` where that name is taken: by a variable, or
    by the plate in another size), else ``<variable>_dim_0``, ``<variable>_dim_1`` and so on.

    Args:
        given: The user's names for all dimensions of a variable, by variable.
        variables: The names of all variables.

    Raises:
        TypeError: if ``given`` does not map variables to lists of names.
        ValueError: if ``given`` names no variable, a dimension as a variable or as one of the draws, or one twice.
    """

    def __init__(self, given: Mapping[str, Sequence[str]] | None, variables: Collection[str]) -> None:
        self.given = dict(given or {})
        self.taken = {*variables, *SAMPLE_DIMS}
        self._of_plates: dict[tuple[str, int], str] = {}
        for variable, names in self.given.items():
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"dims[{variable!r}] must be a list of names, one for each dimension; got {names!r}")
            if variable not in variables:
                raise ValueError(f"dims names {variable!r}, but the variables are {sorted(variables)}")
            if self.taken & set(names) or len(set(names)) < len(names):
                raise ValueError(
                    f"dims[{variable!r}] is {list(names)}: names of dimensions must differ from each other, "
                    f"and from {sorted(self.taken)}"
                )

    def __call__(self, variable: str, along: Sequence[Axis]) -> list[str]:
        """The names of a variable's dimensions, the sample dimensions apart.

        Raises:
            ValueError: if the user gave another number of names.
        """
        if variable in self.given:
            if len(self.given[variable]) != len(along):
                raise ValueError(
                    f"dims[{variable!r}] has {len(self.given[variable])} names, but {variable!r} has {len(along)} "
                    "dimensions besides chain and draw"
                )
            return list(self.given[variable])
        unnamed = iter(range(len(along)))
        return [f"{variable}_dim_{next(unnamed)}" if axis is None else self._of_plate(axis) for axis in along]

    def of_rows(self, plate: RowPlate | None) -> list[str]:
        """The names that have been given to the plate of the rows, in all its sizes."""
        return [name for (of, _), name in self._of_plates.items() if plate is not None and of == plate.name]

    def _of_plate(self, axis: tuple[str, int]) -> str:
        if axis not in self._of_plates:
            name = axis[0]
            if name in self.taken:
                name = f"{name}_{axis[1]}"
            while name in self.taken:
                name += "_"
            self.taken.add(name)
            self._of_plates[axis] = name
        return self._of_plates[axis]


def check_coords(
    coords: Mapping[str, Any] | None, dims: Mapping[str, Sequence[str]] | None, sizes: Mapping[str, set[int]]
) -> dict[str, np.ndarray]:
    """Coordinates that fit the dimensions.

    Args:
        coords: The user's values for the elements of a dimension, by dimension.
        dims: The user's names of dimensions, by variable.
        sizes: The sizes in which each dimension occurs.

    Raises:
        ValueError: for a dimension that does not exist, a wrong number of values, and a name that the user gave to
            dimensions of different sizes.
    """
    for name in {name for names in (dims or {}).values() for name in names}:
        if len(sizes[name]) > 1:
            raise ValueError(f"dims gives the name {name!r} to dimensions of different sizes, {sorted(sizes[name])}")
    checked = {}
    for name, given in (coords or {}).items():
        values = np.asarray(given)
        if name not in sizes or name in SAMPLE_DIMS:
            known = sorted(set(sizes) - set(SAMPLE_DIMS))
            raise ValueError(f"coords names {name!r}, but the dimensions are {known}; name others with dims=")
        if any(values.shape != (size,) for size in sizes[name]):
            expected = " and ".join(map(str, sorted(sizes[name])))
            raise ValueError(f"coords[{name!r}] has shape {list(values.shape)}, but {name!r} has size {expected}")
        checked[name] = values
    return checked
