"""Files that hold tensors and plain numbers: written whole or not at all, and never unpickled."""

from __future__ import annotations

import os
import pickle
import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

FilePath = str | os.PathLike[str]


def check_writable(path: Any, what: str) -> Path:
    """A path in a folder that exists.

    Raises:
        TypeError: if it is no path.
        ValueError: if its folder does not exist, or it is a folder itself.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{what} must be a path; got {path!r}")
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        reason = "it is a folder" if target.is_dir() else f"the folder {target.parent} does not exist"
        raise ValueError(f"{what}={str(target)!r} cannot be written: {reason}")
    return target


def write(state: dict[str, Any], path: Path) -> None:
    """Save a state so that a reader sees the old file or the new one, never a part, whenever the process dies."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: FilePath, kind: str, keys: Collection[str]) -> dict[str, Any]:
    """Read a state that :func:`write` wrote.

    Raises:
        TypeError: if it is no path.
        ValueError: if the file does not exist or does not hold such a state.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path; got {path!r}")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of a foreign file
            state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:  # OSError: a file cut short
        raise ValueError(f"{str(path)!r} is no {kind} of pyro_lvm: it holds more than tensors and numbers") from error
    if not isinstance(state, dict) or state.get("kind") != kind or not state.keys() >= set(keys):
        raise ValueError(f"{str(path)!r} is no {kind} of pyro_lvm")
    return state
