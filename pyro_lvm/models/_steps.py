"""Steps of EM that a model brings along, where they can be faster than those that are found in any model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

Params = dict[str, Tensor]  # constrained values by name; of restarts at once, [R, ...]
Sums = dict[str, Tensor]


class Steps(ABC):
    """An E-step whose results add up over batches of rows, and the M-step that takes them."""

    objective_name = "log-likelihood"
    takes_restarts = False  # several at once, in a leading dimension of all parameters
    monotone = True  # whether the objective never falls

    @abstractmethod
    def expect(self, params: Params, args: tuple[Any, ...], weight: Tensor | None) -> Sums:
        """Expected statistics of these rows, in double precision, each row as often as it weighs.

        Args:
            params: The parameters.
            args: The arguments of the model, some rows of them.
            weight: ``[N]``, or None.

        Returns:
            Tensors that add up over batches; under "log_p" the rows' part of the objective, a number or ``[R]``.
        """

    @abstractmethod
    def maximize(self, sums: Sums, params: Params) -> Params:
        """The parameters at which the expected log-density is largest, in the dtype of those given."""

    def shares(self, sums: Sums, params: Params) -> Tensor | None:
        """How many rows belong to each component, ``[R, K]``, with infinity for one that is impossible.

        None for models without components, and for those in which an empty one has its place.
        """
        return None

    def refill(self, params: Params, empty: Sequence[tuple[int, int]], args: tuple[Any, ...]) -> Params:
        """Parameters at which empty components, each with the run that it belongs to, have rows.

        Args:
            params: The parameters.
            empty: Runs and components, counted from 0.
            args: Some rows.
        """
        raise NotImplementedError

    def component_axes(self, params: Params) -> dict[str, tuple[int, ...]]:
        """The dimensions of each parameter of one run that count components, where there are some."""
        return {}

    def remarks(self, params: Params) -> dict[str, str]:
        """What users should know of where parameters have ended, by name."""
        return {}

    def outside(self, params: Params) -> Tensor | float:
        """What the objective has beside the rows, such as the log-density of priors."""
        return 0.0
