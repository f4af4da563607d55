"""Reading what ``result.save(path)`` wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_lvm import files
from pyro_lvm.em import result as em
from pyro_lvm.result import Result
from pyro_lvm.svi import result as svi


def load(
    path: files.FilePath,
    model: Callable,
    guide: Any,
    *data: Any,
    plate: str | None = None,
    rows: Sequence[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Result:
    """Read a result that ``result.save(path)`` wrote. The file is read as tensors and numbers; nothing is unpickled.

    As after the fit, the user's modules hold the final values.

    Args:
        path: The file.
        model: The model of the fit. It is not started from the data: what it makes in ``initialize`` must be there.
        guide: The guide of the fit; None for one that had none.
        data: The data of the fit; any rows, if the fit took its own from a ``DataLoader``.
        plate: As in the fit.
        rows: As in the fit.
        model_kwargs: As in the fit.

    Returns:
        An :class:`SVIResult` or an :class:`EMResult`, as it was.

    Raises:
        ValueError: if the file holds no result, or one of other data, or its parameters are not those of the model and
            guide.
    """
    state = files.read(path, "result", ["data", "params"])
    if "objective" not in state:
        return svi.load(path, model, guide, *data, plate=plate, rows=rows, model_kwargs=model_kwargs)
    return em.load(path, model, guide, *data, plate=plate, rows=rows, model_kwargs=model_kwargs)
