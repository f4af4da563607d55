"""The one file that knows which ArviZ is there: 0.2x keeps an ``InferenceData``, 1.x a ``DataTree`` of xarray."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

Variable = tuple[list[str], np.ndarray]  # names of the dimensions, and the values


def assemble(
    groups: Mapping[str, Mapping[str, Variable]],
    coords: Mapping[str, Mapping[str, np.ndarray]],
    attrs: Mapping[str, Mapping[str, str]],
) -> Any:
    """One object of the installed ArviZ.

    Args:
        groups: Variables by group and name.
        coords: Values of the elements of a dimension, by group; those not named count from 0.
        attrs: Attributes of each group, beside those by which ArviZ tells when and by what it was made.

    Returns:
        An ``arviz.InferenceData`` with ArviZ 0.x, an ``xarray.DataTree`` with ArviZ 1.x or arviz-base alone.

    Raises:
        ImportError: if neither ArviZ nor arviz-base is installed.
    """
    import xarray

    arviz, has_tree = _installed()
    datasets = {}
    for group, variables in groups.items():
        sizes = {d: n for names, array in variables.values() for d, n in zip(names, array.shape, strict=True)}
        sample_dims = {"sample_dims": [d for d in ("chain", "draw") if d in sizes]} if has_tree else {}
        datasets[group] = xarray.Dataset(
            dict(variables),
            coords={d: coords[group].get(d, np.arange(n)) for d, n in sizes.items()},
            attrs=arviz.dict_to_dataset({}, attrs={**sample_dims, **attrs[group]}).attrs,
        )
    return xarray.DataTree.from_dict(datasets) if has_tree else arviz.InferenceData(**datasets)


def _installed() -> tuple[Any, bool]:
    """ArviZ's module for data, and whether it keeps a ``DataTree``.

    ArviZ 0.2x goes first where arviz-base is there too: its plots and statistics take no tree.
    """
    try:
        if metadata.version("arviz").startswith("0."):
            return importlib.import_module("arviz"), False
    except metadata.PackageNotFoundError:
        pass
    try:
        return importlib.import_module("arviz_base"), True
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install arviz (or arviz-base, for the data alone)") from error
