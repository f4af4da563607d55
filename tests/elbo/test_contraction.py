"""Sums over enumerated sites, against brute force."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_lvm.elbo import log_einsum
from pyro_lvm.elbo.contraction import draw_enumerated, enumerate_model, log_density, responsibilities
from pyro_lvm.elbo.terms import by_row


@pytest.mark.parametrize("equation", ["ab->a", "ab,bc->ac", "a,a->", "ab,b,bc->c", "a,b->ab", "ab->ba", "ab,ab->ab"])
def test_log_einsum_is_the_log_of_einsum(equation):
    sizes = {"a": 2, "b": 3, "c": 4}
    operands = [
        3 * torch.randn([sizes[d] for d in dims], dtype=torch.float64) for dims in equation.split("->")[0].split(",")
    ]
    expected = torch.einsum(equation, *(o.exp() for o in operands)).log()
    torch.testing.assert_close(log_einsum.einsum(equation, *operands), expected)


def test_log_einsum_neither_overflows_nor_turns_zeros_into_nan():
    huge = torch.tensor([[1e4, 1e4 + 1], [-1e4, -torch.inf]], requires_grad=True)
    out = log_einsum.einsum("ab->a", huge)
    torch.testing.assert_close(out, huge.detach().logsumexp(1))
    (gradient,) = torch.autograd.grad(out.sum(), huge)
    torch.testing.assert_close(gradient, huge.detach().softmax(1))
    assert log_einsum.einsum("a->", torch.full((3,), -torch.inf)) == -torch.inf


TABLE = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.7, 0.3]])


def two_sites(x):
    """A component of three for each row, and a bit for each entry that depends on it."""
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])), infer={"enumerate": "parallel"})
        with pyro.plate("columns", x.shape[1], dim=-1):
            b = pyro.sample("b", dist.Categorical(TABLE[z]), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2.0 * b + z, 1.0), obs=x)


@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (3, 1), (1, 1)])
def test_nested_discrete_sites_against_all_configurations(shape):
    x = torch.randn(shape)
    trace = enumerate_model(two_sites, (x,), {}, 2, None)
    outside, rows = by_row(log_density(trace), ["rows"])
    marginals = responsibilities(enumerate_model(two_sites, (x,), {}, 2, None))
    exact_b = torch.zeros(*shape, 2)
    for i, row in enumerate(x):
        configurations = list(itertools.product(range(3), *[range(2)] * shape[1]))
        logs = []
        for z, *bits in configurations:
            terms = [
                TABLE[z, b].log() + dist.Normal(2.0 * b + z, 1.0).log_prob(v) for b, v in zip(bits, row, strict=True)
            ]
            logs.append(torch.tensor([0.2, 0.5, 0.3])[z].log() + sum(terms))
        logs = torch.stack(logs)
        torch.testing.assert_close(rows[i], logs.logsumexp(0))
        for probability, (_, *bits) in zip(logs.softmax(0), configurations, strict=True):
            for j, b in enumerate(bits):
                exact_b[i, j, b] += probability
    assert outside == 0
    torch.testing.assert_close(marginals["b"], exact_b)
    draws = torch.stack([draw_enumerated(enumerate_model(two_sites, (x,), {}, 2, None))["b"] for _ in range(600)])
    error = (exact_b[..., 1] * exact_b[..., 0] / 600).sqrt()
    assert ((draws.double().mean(0) - exact_b[..., 1]).abs() < 4 * error + 1e-3).all()


def test_masks_hold_and_scales_do_not():
    def model(x):
        with pyro.plate("rows", len(x)), poutine.scale(scale=7.0), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.randn(3)
    _, rows = by_row(log_density(enumerate_model(model, (x,), {}, 1, None)), ["rows"])
    expected = dist.Normal(0.0, 1.0).log_prob(x) * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("make", [lambda: dist.Bernoulli(0.3), lambda: dist.Categorical(torch.tensor([0.7, 0.3]))])
def test_draws_are_values_of_the_support(make):
    def model():
        with pyro.plate("rows", 500):
            pyro.sample("z", make(), infer={"enumerate": "parallel"})

    draws = draw_enumerated(enumerate_model(model, (), {}, 1, None))["z"]
    assert set(draws.tolist()) == {0, 1}
    assert abs(draws.double().mean() - 0.3) < 4 * (0.21 / 500) ** 0.5
