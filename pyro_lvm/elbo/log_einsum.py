"""Sums of products in log space: the operations that opt_einsum asks of a backend.

Pyro's own backend rests on an autograd function of the old style, which neither ``torch.func`` nor tracing accepts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.ops.einsum.util import Tensordot
from torch import Tensor


def transpose(operand: Tensor, axes: Sequence[int]) -> Tensor:
    """Permute the dimensions."""
    return operand.permute(tuple(axes))


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """``torch.einsum`` of the exponentials, in logs, with the maxima taken out first."""
    inputs, output = equation.split("->")
    if inputs == output:
        return operands[0][...]
    terms = inputs.split(",")
    whole = max(terms, key=len)
    if len(terms) > 1 and all(set(dims) <= set(whole) for dims in terms):  # no matrix product, which could save work
        aligned = [_align(operand, dims, whole) for dims, operand in zip(terms, operands, strict=True)]
        return einsum(f"{whole}->{output}", sum(aligned))  # type: ignore[arg-type]
    shifts, scaled = [], []
    for dims, operand in zip(terms, operands, strict=True):
        summed = [i for i, d in enumerate(dims) if d not in output]
        shift = operand.detach()
        if summed:
            shift = shift.amax(summed, keepdim=True)
        shift = shift.clamp(min=torch.finfo(shift.dtype).min)  # -inf less -inf would be NaN
        scaled.append((operand - shift).exp())
        kept = "".join(d for d in dims if d in output)
        shifts.append(_align(shift.squeeze(summed) if summed else shift, kept, output))
    total = torch.einsum(equation, *scaled)
    positive = total > 0
    log = torch.where(positive, torch.where(positive, total, 1.0).log(), -torch.inf)
    return log + sum(shifts)


def _align(operand: Tensor, dims: str, order: str) -> Tensor:
    """An operand with its dimensions in this order, those that it lacks of size 1."""
    permuted = operand.permute([dims.index(d) for d in order if d in dims])
    return permuted.reshape([operand.shape[dims.index(d)] if d in dims else 1 for d in order])


tensordot = Tensordot(einsum)
