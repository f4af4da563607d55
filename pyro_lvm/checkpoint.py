"""Checkpoints: a fit that was killed continues as if it had not been."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_lvm import files
from pyro_lvm.data import fingerprint
from pyro_lvm.version import __version__


class Checkpoint:
    """A file with the state of a fit, replaced as a whole at every save.

    Args:
        path: Where to keep it.
        what: What the fit is: shapes, data, options by name.
        keys: What the state of the fit must have.

    Raises:
        ValueError: if the file exists and belongs to another fit; its message says in what they differ.
    """

    def __init__(self, path: Path, what: dict[str, Any], keys: Collection[str]) -> None:
        self.path = path
        versions = {"pyro_lvm": __version__, "torch": torch.__version__, "pyro": pyro.__version__}
        self.fingerprint = {name: fingerprint(value) for name, value in (what | versions).items()}
        self.state: dict[str, Any] | None = None
        if path.exists():
            self.state = files.read(path, "checkpoint", ["fingerprint", *keys])
            self._compare(self.state["fingerprint"])

    def _compare(self, other: dict[str, str]) -> None:
        names = sorted(set(self.fingerprint) | set(other))
        differences = [n for n in names if self.fingerprint.get(n) != other.get(n)]
        if differences:
            told = "; ".join(f"{n} was {other.get(n)}, is {self.fingerprint.get(n)}" for n in differences)
            raise ValueError(
                f"the checkpoint {str(self.path)!r} belongs to another fit ({told}); delete it to start anew"
            )

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file."""
        files.write({"kind": "checkpoint", "fingerprint": self.fingerprint, **state}, self.path)


def name_of(program: Callable) -> str:
    """What a model or guide is called."""
    return getattr(program, "__qualname__", type(program).__qualname__)
