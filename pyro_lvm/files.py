"""Files: written whole or not at all, and those that hold tensors and plain numbers never unpickled."""

from __future__ import annotations

import os
import pickle
import uuid
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, of which a reader sees the old one or the whole new one, whenever the process dies."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write(state: dict[str, Any], path: Path) -> None:
    """Save a state."""
    with _replacing(path) as file:
        torch.save(state, file)


def write_text(text: str, path: Path) -> None:
    """Save a text, in UTF-8."""
    with _replacing(path) as file:
        file.write(text.encode())


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
