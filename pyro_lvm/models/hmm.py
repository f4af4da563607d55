"""Hidden Markov models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from numpy.typing import NDArray
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm import randomness
from pyro_lvm.checks import check_count, check_seed
from pyro_lvm.data import as_tensor
from pyro_lvm.models._base import check_rows
from pyro_lvm.models._chain_start import counts, labelings, probabilities
from pyro_lvm.models._chains import Smoothed, most_probable
from pyro_lvm.models._family_module import FamilyModule
from pyro_lvm.models._hidden_markov import HiddenMarkov, draw_states
from pyro_lvm.models._row_family import Family
from pyro_lvm.models._sequences import (
    check_lengths,
    inside,
    is_list_of_sequences,
    one_table,
    pad,
    without_nan_behind,
)
from pyro_lvm.models.hmm_em import HMMSteps, Rows

__all__ = ["HMM"]

_TAKEN = ("rows", "initial", "transition", "lengths")


class HMM(FamilyModule):
    r"""A hidden Markov model with :math:`K` states and emissions of any family.

    .. math::

        z_{n1} &\sim \mathrm{Categorical}(\pi) \\
        z_{nt} \mid z_{n, t-1} = j &\sim \mathrm{Categorical}(A_j), \qquad n = 1, \dots, N \\
        x_{nt} \mid z_{nt} = k &\sim F(\theta_k), \qquad t = 1, \dots, T_n

    Its data is a list of sequences, tables `[T_n, D]` of any lengths; or one table, a single sequence; or a tensor
    `[N, T, D]`, with the lengths `[N]` as another argument where sequences are shorter than :math:`T`. What stands
    behind their ends does not count.

    The emission is a family of :class:`pyro_lvm.models.Mixture` or a dictionary of several, which share their state:
    see there for their names, parameters and data arguments.

    The states are summed out. Sites: `x` `[N, T, D]`, observed, with the columns of all families side by side.
    Parameters: `initial` `[K]`, the probabilities :math:`\pi`; `transition` `[K, K]`, the matrix :math:`A` with a row
    for each state that is left; and those of the emission. They can be read and assigned; an assignment is checked.
    Zeros among probabilities stay zero in EM. A new model has equal probabilities and random emissions;
    :meth:`initialize` gives it a start from data.

    Args:
        num_states: Number of states, :math:`K`.
        emission: A family, the name of one, or a dictionary of families.
        sizes: Arguments of a family that is given by its name, as for :class:`pyro_lvm.models.Mixture`.

    Raises:
        TypeError: If a number is not an integer, or `emission` no family.
        ValueError: If a number is not positive, or `emission` an unknown name, an empty dictionary or one with names
            that cannot be used.

    References:
        L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition" (1989).

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> _ = torch.manual_seed(1)
        >>> calm, wild = torch.randn(300, 1), 5 * torch.randn(300, 1)
        >>> hmm = lvm.models.HMM(2, "gaussian", num_features=1)
        >>> em = lvm.fit_em(hmm, torch.cat([calm, wild]), progress=False)
        >>> [round(s) for s in hmm.scale_tril.flatten().sort().values.tolist()]
        [1, 5]
        >>> hmm.viterbi(torch.cat([calm, wild])).diff().abs().sum().item()  # how often the state changes
        1
    """

    initial: Tensor
    transition: Tensor

    def __init__(self, num_states: int, emission: str | Family | Mapping[str, Family], **sizes: Any) -> None:
        super().__init__()
        self.num_states = K = check_count("num_states", num_states)
        self._add_param("initial", torch.full((K,), 1 / K), constraints.simplex)
        self._add_param("transition", torch.full((K, K), 1 / K), constraints.simplex)
        self._add_families(K, emission, sizes, _TAKEN, "emission")

    def as_data(self, *data: Any) -> tuple[Any, ...]:
        """Lists of sequences as padded tensors and their lengths, a table as one sequence; what is padded as it is.

        Args:
            data: An argument for each family, and the lengths if the sequences are padded and differ in length.

        Raises:
            ValueError: If a sequence has another shape than `[T, D]` or no rows, or those of several families differ in
                length.
        """
        parts = [self._padded(part, given) for part, given in zip(self.families, data, strict=False)]
        found = [lengths for _, lengths in parts if lengths is not None]
        if found and len(data) > len(parts):
            raise ValueError("lengths: expected only with padded sequences, for those of a list are known")
        if any(not torch.equal(lengths, found[0]) for lengths in found):
            raise ValueError(f"{', '.join(self.families)}: expected sequences of the same lengths")
        padded = [without_nan_behind(x, data[-1]) if len(data) > len(parts) else x for x, _ in parts]
        return (*padded, *(found[:1] or data[len(parts) :]))

    def _padded(self, part: str, given: Any) -> tuple[Any, Tensor | None]:
        size = self.families[part].num_features
        if is_list_of_sequences(given):
            return pad(given, size, part)
        x = as_tensor(given)
        return (one_table(x, size, part).unsqueeze(0) if isinstance(x, Tensor) and x.dim() < 3 else x), None

    def forward(self, *data: Tensor) -> None:
        """The model.

        Args:
            data: Padded sequences `[N, T, D]`, of as many arguments as there are families, and perhaps lengths `[N]`.

        Raises:
            TypeError: If the number of arguments is wrong, or one is not a tensor.
            ValueError: If a tensor has another shape, a floating dtype that is not that of the parameters, or (with
                Pyro's validation on) entries that the family cannot have.
        """
        rows, lengths = self._rows(*data)
        if is_validation_enabled():
            self._check_entries(rows)
        N, width = data[0].shape[:2]
        x = torch.cat([x.to(self.initial.dtype) for x in data[: len(rows)]], -1)
        with pyro.plate("rows", N):
            pyro.sample("x", self._distribution(lengths, width), obs=x)

    def em_steps(self, *data: Tensor) -> HMMSteps:
        """The E-step and M-step of EM: the algorithm of Baum and Welch.

        Args:
            data: The arguments of the model, or a part of their sequences.
        """
        rows, _ = self._rows(*data)
        floors = {part: family.floor(rows[part]) for part, family in self.families.items()}
        return HMMSteps(self.families, self._attributes, self._rows, floors)

    def initialize(self, *data: Any, seed: int = 0) -> HMM:
        r"""Start from k-means clusters, as :class:`pyro_lvm.models.Mixture` does, of rows or of stretches of time.

        Stretches of 8 and of 32 rows are told apart by the mean and the spread of their rows, for states may differ in
        either. Of the clusters of the rows and of both stretches, the likeliest are taken. The transitions are those
        between the clusters of successive rows; every one of them, and every first state, is counted once more than it
        was seen. States are in the order of the mean time at which they are seen, and first states and moves that have
        no probability get none: assign these zeros before, as of a chain that goes from left to right.

        Args:
            data: The arguments of the model, or what :meth:`as_data` makes them of.
            seed: Fixes the random choices. Other seeds give other starts.

        Returns:
            The model itself.

        Raises:
            TypeError: If the number of arguments is wrong, or one is not a tensor.
            ValueError: If the data has another shape or dtype, entries that the family cannot have, or fewer rows than
                states.
        """
        given, lengths, _ = self._checked_rows(*data)
        rows = {part: x.detach().cpu().double() for part, x in given.items()}
        features = torch.cat([self.families[part].features(x) for part, x in rows.items()], -1)
        M, K = len(features), self.num_states
        if M < K:
            raise ValueError(f"{next(iter(rows))}: expected at least as many rows as states, {K}, got {M}")
        found = []
        for labels in labelings(features, lengths.cpu(), K, seed):
            self._start(rows, lengths.cpu(), labels)
            value = float(self.log_prob(*data).double().sum())
            found.append((value, {name: getattr(self, name).detach().clone() for name in self._pyro_params}))
        for name, start in max(found, key=lambda pair: pair[0])[1].items():
            setattr(self, name, start)
        return self

    def _start(self, rows: Mapping[str, Tensor], lengths: Tensor, labels: NDArray) -> None:
        """Set the parameters to what clusters of the rows say."""
        K = self.num_states
        first, moves = counts(labels, lengths, K)
        self.initial, self.transition = probabilities(first, self.initial), probabilities(moves, self.transition)
        membership = torch.eye(K, dtype=torch.float64)[torch.as_tensor(labels)]
        for part, x in rows.items():
            for name, value in self.families[part].start(x, membership).items():
                setattr(self, self._attributes[part][name], value)

    def log_prob(self, *data: Any) -> Tensor:
        """Log-density of each sequence, its states summed out.

        Args:
            data: The arguments of the model, or what :meth:`as_data` makes them of.

        Returns:
            Nats, `[N]`.
        """
        return self._smoothed(*data)[0].log_prob.to(self.initial.dtype)

    def state_probs(self, *data: Any) -> Tensor:
        """Posterior probabilities of the states given the whole sequence, by the forward-backward algorithm.

        Args:
            data: The arguments of the model, or what :meth:`as_data` makes them of.

        Returns:
            Probabilities, `[N, T, K]`; zeros behind the ends of sequences, NaN where a sequence is impossible.
        """
        smoothed, there = self._smoothed(*data)
        found = smoothed.states.new_zeros(*there.shape, self.num_states)
        found[there] = smoothed.states
        return found.to(self.initial.dtype)

    @torch.no_grad()
    def viterbi(self, *data: Any) -> Tensor:
        """The most probable path of states of each sequence.

        Args:
            data: The arguments of the model, or what :meth:`as_data` makes them of.

        Returns:
            Numbers from 0 to K - 1, `[N, T]`; -1 behind the ends of sequences.

        References:
            A. J. Viterbi, "Error bounds for convolutional codes and an asymptotically optimum decoding algorithm"
            (1967).
        """
        rows, lengths, there = self._checked_rows(*data)
        states = most_probable(self._densities(rows), lengths, self.initial, self.transition)
        found = torch.full(there.shape, -1, device=states.device)
        found[there] = states
        return found

    @torch.no_grad()
    def sample(self, num_sequences: int, length: int, seed: int = 0) -> tuple[Any, Tensor]:
        """Draw sequences.

        Args:
            num_sequences: N.
            length: Of all of them, T.
            seed: Fixes the draws.

        Returns:
            `x`, `[N, T, D]`, a dictionary by name where there are several families; and the states, `[N, T]`.
        """
        shape = torch.Size([check_count("num_sequences", num_sequences)])
        length = check_count("length", length)
        with randomness.seeded(check_seed(seed)):
            states = draw_states(self.initial, self.transition, shape, length)
            return self._emit(states), states

    @torch.no_grad()
    def forecast(self, *data: Any, num_steps: int, num_draws: int = 1000, seed: int = 0) -> Any:
        """Draw what comes after the ends of sequences.

        Args:
            data: The arguments of the model, or what :meth:`as_data` makes them of.
            num_steps: How many rows, H.
            num_draws: How many times, S.
            seed: Fixes the draws.

        Returns:
            `[S, N, H, D]`; a dictionary by name where there are several families.

        Raises:
            ValueError: If a sequence is impossible.
        """
        num_steps, num_draws = check_count("num_steps", num_steps), check_count("num_draws", num_draws)
        smoothed, _ = self._smoothed(*data)
        if (impossible := smoothed.log_prob == -torch.inf).any():
            raise ValueError(
                f"sequence {int(impossible.nonzero()[0])} is impossible, so that nothing can come after it"
            )
        now = smoothed.last().to(self.initial.dtype) @ self.transition
        with randomness.seeded(check_seed(seed)):
            return self._emit(draw_states(now, self.transition, torch.Size([num_draws, len(now)]), num_steps))

    def _emit(self, states: Tensor) -> Any:
        lengths = torch.tensor([states.shape[-1]])
        rows = self._distribution(lengths, states.shape[-1]).emit(states)
        parts = rows.split([family.num_features for family in self.families.values()], -1)
        return parts[0] if list(self.families) == ["x"] else dict(zip(self.families, parts, strict=True))

    def _distribution(self, lengths: Tensor, width: int) -> HiddenMarkov:
        params = {part: self._params(part) for part in self.families}
        return HiddenMarkov(self.initial, self.transition, self.families, params, lengths, width)

    @torch.no_grad()
    def _smoothed(self, *data: Any) -> tuple[Smoothed, Tensor]:
        """What the data says of the states, and where there are rows, `[N, T]`."""
        rows, lengths, there = self._checked_rows(*data)
        return Smoothed(self._densities(rows), lengths, self.initial, self.transition), there

    def _checked_rows(self, *data: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The rows, the lengths, and where there are rows, `[N, T]`."""
        padded = self.as_data(*data)
        rows, lengths = self._rows(*padded)
        self._check_entries(rows)
        return rows, lengths, inside(lengths, padded[0].shape[1])

    def _rows(self, *data: Any) -> Rows:
        """The rows of all sequences by part, `[M, D]`, in the dtype of the parameters, and the lengths, `[N]`."""
        names = list(self.families)
        if not len(names) <= len(data) <= len(names) + 1:
            raise TypeError(
                f"data: expected {len(names)} arguments ({', '.join(names)}) and perhaps lengths, got {len(data)}"
            )
        for part, x in zip(names, data, strict=False):
            D = self.families[part].num_features
            if not isinstance(x, Tensor):
                raise TypeError(f"{part}: expected a tensor of shape [N, T, {D}], got {type(x).__name__}")
            if x.dim() != 3 or x.shape[-1] != D or 0 in x.shape[:2]:
                raise ValueError(f"{part}: expected shape [N, T, {D}], got {list(x.shape)}")
            if x.shape[:2] != data[0].shape[:2]:
                raise ValueError(f"{part}: expected {list(data[0].shape[:2])} rows, got {list(x.shape[:2])}")
        N, T = data[0].shape[:2]
        lengths = check_lengths(as_tensor(data[-1]), N, T) if len(data) > len(names) else torch.full((N,), T)
        lengths = lengths.to(data[0].device)
        there = inside(lengths, T)
        dtype = self.initial.dtype
        return {
            part: check_rows(part, x[there], self.families[part].num_features, dtype)
            for part, x in zip(names, data, strict=False)
        }, lengths
