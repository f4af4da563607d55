"""The distribution of sequences of a hidden Markov model, their states summed out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.models._chains import LogProb
from pyro_lvm.models._row_family import Family, log_densities
from pyro_lvm.models._sequences import inside
from pyro_lvm.models._steps import Params


class HiddenMarkov(TorchDistribution):
    """Sequences with hidden states, `[N, T, D]`, with the columns of all families side by side.

    Args:
        initial: Probabilities of the first state, `[K]`.
        transition: Of the next state given the last, `[K, K]`.
        families: Of the rows given the state.
        params: Their parameters.
        lengths: Of the sequences, `[N]`; what follows on their ends does not count.
        width: T.
    """

    arg_constraints: Mapping[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        initial: Tensor,
        transition: Tensor,
        families: Mapping[str, Family],
        params: Mapping[str, Params],
        lengths: Tensor,
        width: int,
    ) -> None:
        self.initial, self.transition, self.families, self.params = initial, transition, families, params
        self.lengths, self.width = lengths, width
        D = sum(family.num_features for family in families.values())
        super().__init__(lengths.shape, torch.Size([width, D]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each sequence, `[N]`."""
        rows = value[inside(self.lengths, self.width)]
        columns = rows.split([family.num_features for family in self.families.values()], -1)
        density = log_densities(self.families, self.params, dict(zip(self.families, columns, strict=True)))
        return LogProb.apply(density, self.lengths, self.initial, self.transition)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Sequences, with zeros behind their ends."""
        states = draw_states(self.initial, self.transition, torch.Size([*sample_shape, *self.batch_shape]), self.width)
        return self.emit(states) * inside(self.lengths, self.width).unsqueeze(-1)

    def emit(self, states: Tensor) -> Tensor:
        """Rows given their states."""
        return torch.cat(
            [
                family.draw({name: value[states] for name, value in self.params[part].items()})
                for part, family in self.families.items()
            ],
            -1,
        )


def draw_states(first: Tensor, transition: Tensor, shape: torch.Size, length: int) -> Tensor:
    """Paths of a Markov chain, `[*shape, length]`.

    Args:
        first: Probabilities of the first state, `[*shape, K]` or `[K]`.
        transition: `[K, K]`.
        shape: Of what is drawn.
        length: Of the paths.
    """
    probabilities = first.expand(*shape, -1)
    states = []
    for _ in range(length):
        states.append(torch.distributions.Categorical(probabilities, validate_args=False).sample())
        probabilities = transition[states[-1]]
    return torch.stack(states, -1)
