"""Random numbers made beforehand: given its numbers, a program that draws is a function like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

Kind = tuple[str, torch.dtype]  # "normal" or "uniform", and of which dtype
Numbers = dict[Kind, Tensor]

_NUMBERS_AT_ONCE = 1_000_000
_MOST_STEPS = 1_024


class Noise:
    """Standard normal and uniform numbers for each step of a run, a pure function of seed and step.

    Args:
        seed: Of the run.
        counts: How many numbers of each kind a step takes.
        device: Where they are to be.

    Attributes:
        chunk: How many steps get their numbers at a time: those from a multiple of it to the next.
    """

    def __init__(self, seed: int, counts: dict[Kind, int], device: torch.device) -> None:
        self.seed, self.counts, self.device = seed, counts, device
        self.chunk = min(_MOST_STEPS, max(1, _NUMBERS_AT_ONCE // max(1, sum(counts.values()))))
        self._index = -1
        self._numbers: Numbers = {}

    def between(self, start: int, stop: int) -> Numbers:
        """The numbers of the steps from ``start`` to ``stop``, which belong to one chunk, ``[stop - start, count]``."""
        index, first = divmod(start, self.chunk)
        if index != self._index:
            self._numbers = {kind: self._draw(i, index, kind) for i, kind in enumerate(self.counts)}
            self._index = index
        return {kind: numbers[first : first + stop - start] for kind, numbers in self._numbers.items()}

    def _draw(self, i: int, index: int, kind: Kind) -> Tensor:
        draw = torch.randn if kind[0] == "normal" else torch.rand
        stream = int(np.random.SeedSequence([self.seed, index, i, 1]).generate_state(1)[0])
        generator = torch.Generator(self.device).manual_seed(stream)
        return draw(self.chunk, self.counts[kind], generator=generator, dtype=kind[1], device=self.device)


class Given(TorchDispatchMode):
    """Random operations inside take given numbers, in order, and start again when all are used up.

    Draws that are no simple function of normal or uniform numbers (gamma, Poisson, binomial, permutations) are made as
    ever.

    Args:
        numbers: A vector of each kind. None: make numbers as ever, and count them.

    Attributes:
        taken: How many numbers of each kind have been taken.
        others: The random operations that made numbers of their own.
    """

    def __init__(self, numbers: Numbers | None) -> None:
        super().__init__()
        self.numbers = numbers
        self.taken: dict[Kind, int] = {}
        self.others: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draw = _DRAWS.get(func)
        if draw is None or kwargs.get("generator") is not None:
            if torch.Tag.nondeterministic_seeded in func.tags:
                self.others[func.overloadpacket.__name__] = None
            return func(*args, **kwargs)
        return draw(self._take, *args, **kwargs)

    def _take(self, name: str, like: Tensor) -> Tensor:
        kind, count = (name, like.dtype), like.numel()
        first = self.taken.get(kind, 0)
        self.taken[kind] = first + count
        if self.numbers is None:
            return torch.randn_like(like) if name == "normal" else torch.rand_like(like)
        held = self.numbers[kind]
        first %= len(held)
        if first + count > len(held):  # a run that broke off in the middle was followed by another
            first, held = 0, held.repeat(-(-count // len(held)))
        return held[first : first + count].view(like.shape)


Take = Callable[[str, Tensor], Tensor]


def _randn(take: Take, size: Any, **options: Any) -> Tensor:
    return take("normal", torch.empty(size, **options)).clone()


def _rand(take: Take, size: Any, **options: Any) -> Tensor:
    return take("uniform", torch.empty(size, **options)).clone()


def _randn_like(take: Take, like: Tensor, **options: Any) -> Tensor:
    return take("normal", torch.empty_like(like, **options)).clone()


def _rand_like(take: Take, like: Tensor, **options: Any) -> Tensor:
    return take("uniform", torch.empty_like(like, **options)).clone()


def _normal(take: Take, mean: Any, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor:
    like = torch.empty(size, **options) if size is not None else torch.empty_like(mean + std)
    return take("normal", like) * std + mean


def _normal_(take: Take, out: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    z = take("normal", out)
    return out.copy_(z if (mean, std) == (0.0, 1.0) else z * std + mean)


def _log_normal_(take: Take, out: Tensor, mean: float = 1.0, std: float = 2.0, **_: Any) -> Tensor:
    return out.copy_((take("normal", out) * std + mean).exp())


def _uniform_(take: Take, out: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return out.copy_(take("uniform", out) * (high - low) + low)


def _exponential_(take: Take, out: Tensor, rate: float = 1.0, **_: Any) -> Tensor:
    return out.copy_(_exponential(take, out) / rate)


def _exponential(take: Take, like: Tensor) -> Tensor:
    return -torch.log1p(-take("uniform", like)).clamp(max=-torch.finfo(like.dtype).tiny)


def _cauchy_(take: Take, out: Tensor, median: float = 0.0, sigma: float = 1.0, **_: Any) -> Tensor:
    return out.copy_(torch.tan(torch.pi * (take("uniform", out) - 0.5)) * sigma + median)


def _geometric_(take: Take, out: Tensor, p: float, **_: Any) -> Tensor:
    like = out if out.is_floating_point() else torch.empty_like(out, dtype=torch.get_default_dtype())
    return out.copy_((torch.log1p(-take("uniform", like)) / np.log1p(-p)).floor() + 1)


def _bernoulli(take: Take, p: Tensor, **_: Any) -> Tensor:
    return (take("uniform", p) < p).to(p.dtype)


def _bernoulli_p(take: Take, like: Tensor, p: float, **_: Any) -> Tensor:
    return (take("uniform", like) < p).to(like.dtype)


def _bernoulli_(take: Take, out: Tensor, p: float | Tensor = 0.5, **_: Any) -> Tensor:
    like = out if out.is_floating_point() else torch.empty_like(out, dtype=torch.get_default_dtype())
    return out.copy_(take("uniform", like) < p)


def _dropout(take: Take, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = take("uniform", x) >= p
    return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept


def _multinomial(take: Take, probs: Tensor, num_samples: int, replacement: bool = False, **_: Any) -> Tensor:
    """The first to arrive of independent exponential times with these rates (torch draws one sample in this way)."""
    if replacement and num_samples > 1:
        rates = probs.unsqueeze(-2).expand(*probs.shape[:-1], num_samples, probs.shape[-1])
        return (rates / _exponential(take, torch.empty_like(rates))).argmax(-1)
    race = probs / _exponential(take, probs)
    return race.argmax(-1, keepdim=True) if num_samples == 1 else race.topk(num_samples, -1).indices


_DRAWS: dict[Any, Callable[..., Any]] = {
    aten.randn.default: _randn,
    aten.rand.default: _rand,
    aten.randn_like.default: _randn_like,
    aten.rand_like.default: _rand_like,
    aten.normal.Tensor_Tensor: _normal,
    aten.normal.Tensor_float: _normal,
    aten.normal.float_Tensor: _normal,
    aten.normal.float_float: _normal,
    aten.normal_.default: _normal_,
    aten.log_normal_.default: _log_normal_,
    aten.uniform_.default: _uniform_,
    aten.exponential_.default: _exponential_,
    aten.cauchy_.default: _cauchy_,
    aten.geometric_.default: _geometric_,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli_p,
    aten.bernoulli_.float: _bernoulli_,
    aten.bernoulli_.Tensor: _bernoulli_,
    aten.native_dropout.default: _dropout,
    aten.multinomial.default: _multinomial,
}
