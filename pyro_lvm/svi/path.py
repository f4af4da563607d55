"""Where the parameters of a fit have been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.verdict.table import number_name

MOST_COORDINATES = 1_000
_MOST_POINTS = 100


class ParameterPath:
    """Unconstrained parameters at some steps of a fit, at most a hundred of them, evenly spaced.

    When there are too many, every other one is dropped, and the next are twice as far apart. Of more than a thousand
    coordinates, a thousand are kept.

    Args:
        num_steps: Of the whole fit, if nothing stops it.
        every: The widest spacing to begin with.

    """

    def __init__(self, num_steps: int, every: int) -> None:
        self.spacing = max(1, min(every, num_steps // _MOST_POINTS))
        self._seen: dict[int, Tensor] = {}
        self._shapes: dict[str, list[int]] = {}

    @property
    def steps(self) -> Tensor:
        """Steps taken at each point, ``[M]``."""
        return torch.tensor(list(self._seen))

    @property
    def points(self) -> Tensor:
        """The parameters, ``[M, P]``."""
        return torch.stack(list(self._seen.values())) if self._seen else torch.empty(0, 0)

    @property
    def complete(self) -> bool:
        """Whether the points have all coordinates of the parameters."""
        return sum(map(_size, self._shapes.values())) <= MOST_COORDINATES

    @property
    def names(self) -> list[str]:
        """Of the coordinates, such as ``"loc[0, 2]"``, P of them."""
        return [
            number_name(name, np.unravel_index(i, shape))
            for name, shape in self._shapes.items()
            for i in self._kept()[name].tolist()
        ]

    def next(self, step: int) -> int:
        """The step of the point after this step."""
        return (step // self.spacing + 1) * self.spacing

    def is_due(self, step: int) -> bool:
        """Whether a point is to be kept after this step."""
        return step % self.spacing == 0

    def see(self, step: int, params: Mapping[str, Tensor]) -> None:
        """Keep the parameters."""
        if not self._shapes:
            self._shapes = {name: list(v.shape) for name, v in params.items()}
        kept = self._kept()
        parts = [v.detach().flatten()[kept[name]] for name, v in params.items()]
        self._seen[step] = torch.cat(parts).cpu() if parts else torch.empty(0)
        if len(self._seen) > _MOST_POINTS:
            self.spacing *= 2
            self._seen = {step: point for step, point in self._seen.items() if step % self.spacing == 0}

    @property
    def tail(self) -> Tensor:
        """The points of the second half of the steps taken, ``[T, P]``."""
        steps = self.steps
        return self.points[2 * steps >= steps.max()] if len(steps) else self.points

    def unflattened(self, point: Tensor) -> dict[str, Tensor]:
        """A point ``[P]`` as parameters by name; only of a path that is complete."""
        parts = point.split([_size(shape) for shape in self._shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """What has been seen."""
        return {"spacing": self.spacing, "seen": self._seen, "shapes": self._shapes}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> ParameterPath:
        """A path that was saved."""
        path = cls(_MOST_POINTS, 1)
        path.load_state_dict(state)
        return path

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.spacing, self._seen, self._shapes = state["spacing"], dict(state["seen"]), dict(state["shapes"])

    def _kept(self) -> dict[str, Tensor]:
        """The places of the coordinates kept, in each flattened parameter."""
        sizes = list(map(_size, self._shapes.values()))
        total = sum(sizes)
        chosen = torch.arange(total)
        if total > MOST_COORDINATES:
            chosen = torch.linspace(0, total - 1, MOST_COORDINATES, dtype=torch.float64).long()
        found, start = {}, 0
        for name, size in zip(self._shapes, sizes, strict=True):
            found[name] = chosen[(chosen >= start) & (chosen < start + size)] - start
            start += size
        return found


def _size(shape: list[int]) -> int:
    return int(np.prod(shape))
