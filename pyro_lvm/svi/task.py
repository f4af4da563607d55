"""What a climb fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pyro_lvm.data import Data
from pyro_lvm.elbo import Trace_ELBO
from pyro_lvm.params import Values
from pyro_lvm.svi.objective import Objective


class Task(NamedTuple):
    """What is to be fitted, and how.

    Attributes:
        model: The model.
        data: All of it.
        plate: See :func:`pyro_lvm.fit`.
        model_kwargs: See :func:`pyro_lvm.fit`.
        compile: See :func:`pyro_lvm.fit`.
        seed: Of every random choice.
    """

    model: Callable
    data: Data
    plate: str | None
    model_kwargs: Mapping[str, Any] | None
    compile: bool | str
    seed: int

    def objective(self, guide: Any) -> Objective:
        """Made ready for a guide."""
        made = Objective(self.model, guide, Trace_ELBO(), plate=self.plate, model_kwargs=self.model_kwargs)
        made.prepare(self.data)
        return made


def parted(values: Values, guide: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The guide's own, by its own names, and the model's."""
    prefix = f"{guide._pyro_name}."
    own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return own, {name: value for name, value in values.items() if not name.startswith(prefix)}
