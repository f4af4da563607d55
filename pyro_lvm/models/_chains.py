"""Hidden Markov chains, many at once: forward-backward, and the most probable path."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_lvm.models._chain_cuts import messages, segments_of
from pyro_lvm.models._packing import Packing

_UNSAFE = 1e-30  # the chance of a row below which probabilities that were rounded to 0 may count
_RARE = 1e-100  # the chance of a move that may be too small to bring back a state whose probability was rounded to 0
_LOST = 1e-290  # a probability that has lost digits
_IMPOSSIBLE = -1e30  # nats


class Smoothed:
    """What chains of observations say about their states, in double precision.

    Probabilities are scaled at each time to sum to 1 (Rabiner 1989). Chains in which they would underflow are done
    again with their logarithms: if a row is improbable, or if a state is lost that rare moves do not bring back. A few
    long chains are cut, so that their segments go through time together, unless moves are rare.

    Attributes:
        log_prob: Log-density of each chain, ``[N]``; minus infinity where it is impossible.
        states: Posterior probabilities of the states in each row, ``[M, K]``; NaN where the chain is impossible.
        filtered: Those given the rows of the chain up to this one.

    Args:
        log_density: Of each row in each state, ``[M, K]``.
        lengths: Of the chains, ``[N]``; they sum to M.
        initial: Probabilities of the first state, ``[K]``.
        transition: Of the next state given the last, ``[K, K]``.
    """

    def __init__(self, log_density: Tensor, lengths: Tensor, initial: Tensor, transition: Tensor) -> None:
        log_density, initial, self._transition = log_density.double(), initial.double(), transition.double()
        self._starts, self._lengths = lengths.cumsum(0) - lengths, lengths
        self._chain = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        largest = log_density.amax(-1, keepdim=True)
        density = (log_density - largest).exp()
        rare = float(self._transition.min()) < _RARE
        segments, owner = (lengths, self._chain) if rare else segments_of(lengths, len(initial))
        packing = Packing(segments)
        density = density[packing.order]
        if len(segments) == len(lengths):
            first, last = initial.expand(len(lengths), -1), None
        else:
            first, last = messages(density, packing, owner, initial, self._transition)
        filtered, scale = _forward(density, packing.sizes, first, self._transition)
        later, ratio = _backward(density / scale, packing, last, self._transition)
        self.filtered, self.states = packing.unpack(filtered), packing.unpack(filtered * later)
        self._ratio, scale = packing.unpack(ratio), packing.unpack(scale)
        self.log_prob = self._by_chain((scale.log() + largest).squeeze(-1))
        unsafe = ~(scale.squeeze(-1) >= _UNSAFE)  # as NaN is too
        if rare:
            unsafe |= self._loses(log_density, initial) | ~self.states.isfinite().all(-1)
        self._unsafe = self._chain[unsafe].unique()
        self._moves = density.new_zeros(len(self._unsafe), *transition.shape)
        if len(self._unsafe):
            self._smooth_in_logs(log_density, initial)

    def _loses(self, log_density: Tensor, initial: Tensor) -> Tensor:
        """Whether some state that is possible in a row has lost its probability there, ``[M]``."""
        predicted = self.filtered.roll(1, 0) @ self._transition
        predicted[self._starts] = initial
        return ((self.filtered < _LOST) & (predicted > 0) & (log_density > -torch.inf)).any(-1)

    def transitions(self, weight: Tensor) -> Tensor:
        """How often each state is expected to follow each, ``[K, K]``, in all chains together.

        Args:
            weight: How often each chain counts, ``[N]``.
        """
        weight = weight.double()
        later = torch.ones_like(self._chain, dtype=torch.bool)
        later[self._starts] = False
        rows = later.nonzero().squeeze(-1)
        ratio = self._ratio[rows] * weight[self._chain[rows]].unsqueeze(-1)
        moves = (self._moves * weight[self._unsafe][:, None, None]).sum(0)
        return self._transition * (self.filtered[rows - 1].mT @ ratio) + moves

    def first(self) -> Tensor:
        """Posterior probabilities of the first states, ``[N, K]``."""
        return self.states[self._starts]

    def last(self) -> Tensor:
        """Posterior probabilities of the last states, ``[N, K]``."""
        return self.states[self._starts + self._lengths - 1]

    def per_row(self, weight: Tensor) -> Tensor:
        """What belongs to chains, ``[N]``, for each of their rows, ``[M, 1]``."""
        return weight.double()[self._chain].unsqueeze(-1)

    def _by_chain(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self._lengths)).index_add_(0, self._chain, values)

    def _smooth_in_logs(self, log_density: Tensor, initial: Tensor) -> None:
        """Do unsafe chains again: posterior probabilities are derivatives of the log-density."""
        rows, lengths = torch.isin(self._chain, self._unsafe), self._lengths[self._unsafe]
        with torch.enable_grad():
            density = log_density.detach()[rows].clamp(min=_IMPOSSIBLE).requires_grad_()
            moves = _logs(self._transition).expand(len(lengths), -1, -1).clone().requires_grad_()
            log_prob, filtered = _log_forward(density, Packing(lengths), _logs(initial), moves)
            states, pairs = torch.autograd.grad(log_prob.sum(), (density, moves), materialize_grads=True)
        possible, chain = log_prob.detach() > _IMPOSSIBLE / 2, torch.searchsorted(self._unsafe, self._chain[rows])
        self.log_prob[self._unsafe] = log_prob.detach().where(possible, -torch.inf)
        self._moves, self._ratio[rows] = pairs.where(possible[:, None, None], torch.nan), 0.0
        for target, found in ((self.states, states), (self.filtered, filtered.detach())):
            target[rows] = found.where(possible[chain].unsqueeze(-1), torch.nan)


def _forward(density: Tensor, sizes: list[int], first: Tensor, transition: Tensor) -> tuple[Tensor, Tensor]:
    """Filtered probabilities of packed rows, and the density of each row given those before it.

    Args:
        density: ``[M, K]``.
        sizes: Of the packing.
        first: Probabilities of the first states, ``[N, K]``.
        transition: ``[K, K]``.
    """
    filtered, scale = torch.empty_like(density), density.new_empty(len(density), 1)
    predicted = first
    for here, found, total in zip(density.split(sizes), filtered.split(sizes), scale.split(sizes), strict=True):
        torch.mul(predicted[: len(here)], here, out=found)
        torch.sum(found, -1, keepdim=True, out=total)
        found /= total
        predicted = found @ transition
    return filtered, scale


def _backward(ratio: Tensor, packing: Packing, last: Tensor | None, transition: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the rows after, and by how much these and the row itself, make each state more probable.

    Args:
        ratio: Densities of packed rows in each state, by those given the rows before, ``[M, K]``.
        packing: The packing.
        last: What to begin with, ``[N, K]``; ones, if None.
        transition: ``[K, K]``.
    """
    later = torch.ones_like(ratio)
    if last is not None:
        later[packing.ends] = last
    sizes, back = packing.sizes, transition.mT
    rows, after = ratio.split(sizes), later.split(sizes)
    found = torch.empty_like(ratio)
    product = found.split(sizes)
    for t in range(len(sizes) - 1, 0, -1):
        torch.mul(rows[t], after[t], out=product[t])
        torch.mm(product[t], back, out=after[t - 1][: sizes[t]])
    torch.mul(rows[0], after[0], out=product[0])
    return later, found


def _log_forward(density: Tensor, packing: Packing, initial: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Log-densities of chains and filtered probabilities of their rows, from logarithms alone.

    Args:
        density: Of the rows, ``[M, K]``.
        packing: The packing.
        initial: ``[K]``.
        moves: Each chain's own, ``[N, K, K]``.
    """
    moves = moves[packing.chains]
    found = [initial.expand(len(moves), -1)]
    for t, here in enumerate(density[packing.order].split(packing.sizes)):
        came = found[-1][: len(here)]
        found.append((came if t == 0 else (came.unsqueeze(-1) + moves[: len(here)]).logsumexp(1)) + here)
    joint = torch.cat(found[1:])
    log_prob = packing.by_chain(joint[packing.ends].logsumexp(-1))
    return log_prob, packing.unpack(joint.detach().softmax(-1))


def most_probable(log_density: Tensor, lengths: Tensor, initial: Tensor, transition: Tensor) -> Tensor:
    """The most probable path of each chain (Viterbi 1967).

    Args:
        log_density: Of each row in each state, ``[M, K]``.
        lengths: Of the chains, ``[N]``.
        initial: Probabilities of the first state, ``[K]``.
        transition: Of the next state given the last, ``[K, K]``.

    Returns:
        The states of the rows, ``[M]``.
    """
    packing = Packing(lengths)
    moves = transition.double().log()
    best = initial.double().log().expand(len(lengths), -1)
    joint, came = [], []
    for t, here in enumerate(log_density.double()[packing.order].split(packing.sizes)):
        best = best[: len(here)]
        if t:
            best, origin = (best.unsqueeze(-1) + moves).max(1)
            came.append(origin)
        best = best + here
        joint.append(best)
    state = torch.cat(joint)[packing.ends].argmax(-1)
    path = [state[: packing.sizes[-1]]]
    for origin, size in zip(reversed(came), reversed(packing.sizes[:-1]), strict=True):
        before = origin.gather(1, path[-1].unsqueeze(-1)).squeeze(-1)
        path.append(torch.cat([before, state[len(before) : size]]))
    return packing.unpack(torch.cat(path[::-1]))


def _logs(probabilities: Tensor) -> Tensor:
    return probabilities.log().clamp(min=_IMPOSSIBLE)


class LogProb(torch.autograd.Function):
    """The log-density of chains, with expected statistics for derivatives; probabilities of zero have none."""

    @staticmethod
    def forward(ctx, log_density, lengths, initial, transition):  # noqa: ANN001, ANN205
        ctx.smoothed = Smoothed(log_density, lengths, initial, transition)
        ctx.save_for_backward(initial, transition)
        return ctx.smoothed.log_prob.to(log_density.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        smoothed, (initial, transition) = ctx.smoothed, ctx.saved_tensors
        first = (smoothed.first() * grad.double().unsqueeze(-1)).sum(0)
        found = (
            smoothed.states * smoothed.per_row(grad),
            first / initial.where(initial > 0, torch.inf),
            smoothed.transitions(grad) / transition.where(transition > 0, torch.inf),
        )
        rows, initial, transition = (value.to(grad.dtype) for value in found)
        return rows, None, initial, transition
