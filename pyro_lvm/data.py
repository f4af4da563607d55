"""Rows: what the user passed as data, checked and converted to tensors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_lvm import sparse

MOST_ROWS = 20_000  # to find a start by: more make it no better
_NUMBERS_AT_ONCE = 2**20  # of an array in a file, when it is looked through
_NUMPY_DTYPES = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16}


def as_tensor(value: Any, where: str = "the data") -> Any:
    """Tensors as they are, arrays, data frames and lists of numbers as tensors, anything else untouched.

    Sparse matrices of SciPy become sparse tensors, :mod:`pyro_lvm.sparse`.

    Floating-point arrays become torch's default dtype. Integer and boolean arrays keep their kind: they are counts,
    labels or indices, and an index that became a float could no longer select. A memory map of torch's default dtype,
    or of integers, stays in its file; another is read and converted.

    Raises:
        TypeError: for arrays that hold neither numbers nor booleans.
    """
    if isinstance(value, Tensor) or value is None or np.isscalar(value):
        return value
    if hasattr(value, "tocsr"):
        return sparse.from_scipy(value)
    if hasattr(value, "to_numpy"):
        value = _frame_as_array(value)
    if _is_list_of_numbers(value):
        value = np.array(value)
    if not isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.memmap) and value.dtype in (_NUMPY_DTYPES[torch.get_default_dtype()], np.int64):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # nor written
            return torch.from_numpy(value)
    if value.dtype.kind == "f":
        return torch.tensor(value.astype(np.float64), dtype=torch.get_default_dtype())  # any width and byte order
    if value.dtype.kind in "iu":
        return torch.tensor(value.astype(np.int64))
    if value.dtype.kind == "b":
        return torch.tensor(value)
    raise TypeError(
        f"{where} has dtype {value.dtype}, which is no number: encode text and categories as numbers first "
        "(pandas.get_dummies, or integer codes)"
    )


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Real) for v in value)


def _frame_as_array(frame: Any) -> Any:
    array = frame.to_numpy()
    kinds = {dtype.kind for dtype in np.ravel(getattr(frame, "dtypes", array.dtype))}
    if array.dtype.kind == "O" and kinds <= set("iufb"):  # the nullable numbers of pandas
        array = np.array(frame.to_numpy(na_value=np.nan).tolist())
    return array


def arguments_of(model: Any, data: Sequence[Any]) -> tuple[Any, ...]:
    """The data arguments of a model, made by its ``as_data`` of what users have at hand, if it has one."""
    return tuple(_owner(model).as_data(*data)) if converts(model) else tuple(data)


def converts(model: Any) -> bool:
    """Whether a model makes its data arguments itself, and so knows which shapes rows may have."""
    return hasattr(_owner(model), "as_data")


def _owner(model: Any) -> Any:
    return getattr(model, "__self__", model)


def as_arguments(value: Any) -> tuple[Any, ...]:
    """Positional arguments of a model, given as a tuple or list of them, or as one alone."""
    several = isinstance(value, list | tuple) and not _is_list_of_numbers(value)
    return tuple(value) if several else (value,)


def check_finite(tensor: Any, where: str, missing: bool = False) -> None:
    """Refuse NaN and infinity, naming the first row that holds one.

    Args:
        tensor: Of which only floating-point ones are looked at, a few rows at a time.
        where: How the error calls it.
        missing: Whether NaN is allowed.

    Raises:
        ValueError: if an entry is not finite.
    """
    tensor = tensor.values() if sparse.is_sparse(tensor) else tensor
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not tensor.numel():
        return
    bad = torch.isinf if missing else _is_not_finite
    rows = tensor if tensor.dim() else tensor.unsqueeze(0)
    size = max(1, _NUMBERS_AT_ONCE // max(1, rows[:1].numel()))
    wrong = [(first, bad(part)) for first, part in zip(range(0, len(rows), size), rows.split(size), strict=True)]
    wrong = [(first, part) for first, part in wrong if part.any()]
    if wrong:
        first, part = wrong[0]
        at = part.nonzero()[0].tolist()
        at[0] += first
        place = f"row {at[0]}" + (f", entry {at[1:]}" if len(at) > 1 else "") if tensor.dim() else "its only entry"
        count = sum(int(part.sum()) for _, part in wrong)
        raise ValueError(
            f"{where} is not finite: {rows[tuple(at)].item()} in {place} ({count} in all). "
            "Remove or impute these entries first"
        )


def _is_not_finite(tensor: Tensor) -> Tensor:
    return ~torch.isfinite(tensor)


class Data:
    """The positional data of a call: tensors, some of which have one entry per row.

    An argument has rows if its first dimension is that of the first argument; the others pass whole.

    Attributes:
        args: The tensors, in the order of the call.
        has_rows: Which of them have one entry per row.
        num_rows: N; None where no argument has rows.
        complete: Whether these are all rows, and not the first batch of a ``DataLoader``.

    Args:
        args: What the user passed.
        rows: Positions of the arguments that have rows, instead of the rule above.
        device: Where to put the tensors; where they are, if None.
        what: How errors call them.
        missing: Whether entries may be NaN, for missing.

    Raises:
        ValueError: for entries that are not finite, for row arguments of unequal length, and for no rows at all.
        TypeError: for arrays that hold no numbers, or a wrong ``rows``.
    """

    def __init__(
        self,
        args: Sequence[Any],
        rows: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        what: str = "data",
        missing: bool = False,
    ) -> None:
        tensors = [as_tensor(a, f"{what} argument {i}") for i, a in enumerate(args)]
        for i, tensor in enumerate(tensors):
            check_finite(tensor, f"{what} argument {i}", missing)
        if device is not None:
            tensors = [t.to(device) if isinstance(t, Tensor) else t for t in tensors]
        self.args: tuple[Any, ...] = tuple(tensors)
        self.complete = True
        lengths = [len(t) if isinstance(t, Tensor) and t.dim() else None for t in tensors]
        if rows is None:
            self.has_rows = tuple(n is not None and n == lengths[0] for n in lengths)
        else:
            self.has_rows = _row_arguments(rows, lengths)
        with_rows = [n for n, has in zip(lengths, self.has_rows, strict=True) if has and n is not None]
        self.num_rows: int | None = with_rows[0] if with_rows else None
        if self.num_rows == 0:
            raise ValueError("the data has no rows: its first dimension is 0")

    def take(self, index: Tensor | slice) -> tuple[Any, ...]:
        """The arguments with only the rows that ``index`` selects."""
        return tuple(rows_of(a, index) if has else a for a, has in zip(self.args, self.has_rows, strict=True))

    def count(self, args: Sequence[Any]) -> int | None:
        """How many rows some arguments have; None where no argument has rows."""
        return len(args[self.has_rows.index(True)]) if any(self.has_rows) else None

    def holds(self, args: tuple[Any, ...]) -> bool:
        """Whether these arguments are this data."""

        def same(a: Any, b: Any) -> bool:
            if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
                return a is b
            if sparse.is_sparse(a) and sparse.is_sparse(b):
                return a.shape == b.shape and all(map(torch.equal, sparse.parts(a), sparse.parts(b)))
            return a.dtype == b.dtype and a.layout == b.layout and torch.equal(a, b)

        return len(args) == len(self.args) and all(map(same, args, self.args))


def fingerprint(value: Any) -> str:
    """What a value is, as text that is the same in every process.

    A tensor or array is a hash of its shape, dtype and bytes, a container the text of what it holds, a function its
    name, and any other object its class with its plain settings and the ELBO that it wraps.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {fingerprint(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(fingerprint, value)) + "]"
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if sparse.is_sparse(value):
        return f"sparse {list(value.shape)} {fingerprint(sparse.parts(value))}"
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
    elif hasattr(value, "__qualname__"):
        return value.__qualname__
    elif hasattr(value, "__dict__"):
        public = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        settings = {k: v for k, v in public.items() if isinstance(v, int | float | str | Tensor | ELBO)}
        return f"{type(value).__name__} {fingerprint(settings)}"
    else:
        return str(value)
    return hashlib.sha256(f"{list(value.shape)} {value.dtype}".encode() + content).hexdigest()


def rows_of(tensor: Tensor, index: Tensor | slice) -> Tensor:
    """Rows of a tensor, wherever it lies; the index is drawn on the CPU."""
    index = index.to(tensor.device) if isinstance(index, Tensor) else index
    return sparse.take(tensor, index) if sparse.is_sparse(tensor) else tensor[index]


def joined_rows(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of several tensors.

    Raises:
        ValueError: if their rows differ in shape.
    """
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        shapes = [list(tensor.shape) for tensor in tensors[:3]]
        raise ValueError(f"batches must have rows of one shape, as of sequences padded to one length; got {shapes}")
    return sparse.concatenate(tensors) if sparse.is_sparse(tensors[0]) else torch.cat(list(tensors))


def _row_arguments(rows: Sequence[int], lengths: Sequence[int | None]) -> tuple[bool, ...]:
    if isinstance(rows, str) or not isinstance(rows, Sequence) or not all(type(i) is int for i in rows):
        raise TypeError(
            f"rows must list the positions of the data arguments that have rows, such as [0, 1]; got {rows!r}"
        )
    for i in rows:
        if not 0 <= i < len(lengths) or lengths[i] is None:
            raise ValueError(
                f"rows names position {i}, but there are {len(lengths)} data arguments, and it must be a tensor"
            )
    if len({lengths[i] for i in rows}) > 1:
        raise ValueError(f"the arguments named by rows differ in length: {[lengths[i] for i in rows]}")
    return tuple(i in rows for i in range(len(lengths)))


def check_weight(weight: Any, num_rows: int | None) -> Tensor | None:
    """A row weight as a tensor ``[N]``.

    Raises:
        ValueError: if its shape is not ``[N]`` or an entry is negative or not finite.
    """
    if weight is None:
        return None
    weight = as_tensor(np.asarray(weight) if isinstance(weight, list | tuple) else weight, "sample_weight")
    if not isinstance(weight, Tensor) or num_rows is None or weight.shape != (num_rows,):
        shape = list(weight.shape) if isinstance(weight, Tensor) else weight
        raise ValueError(f"sample_weight must have one entry per row, shape [{num_rows}]; got {shape}")
    weight = weight if weight.is_floating_point() else weight.to(torch.get_default_dtype())
    check_finite(weight, "sample_weight")
    if (weight < 0).any() or not weight.any():
        raise ValueError("sample_weight must be non-negative, with at least one positive entry")
    return weight


def check_num_rows(num_rows: int | None, given: int | None) -> None:
    """Refuse fewer rows in all than are given.

    Raises:
        ValueError: if N is smaller.
    """
    if num_rows is not None and given is not None and num_rows < given:
        raise ValueError(f"num_rows={num_rows} is the number of rows in all, but {given} rows are given")
