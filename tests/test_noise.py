"""Numbers made beforehand have the distributions of those that torch draws, are taken once each, and obey the seed."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from pyro_lvm import noise
from pyro_lvm.noise import Given, Noise

aten = torch.ops.aten
N = 20_000
P = 1e-3
"""The level of every test of a distribution; seeds are fixed, so that none of them fails by chance."""


def numbers(seed=0, count=N, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        ("normal", dtype): torch.randn(count, generator=generator, dtype=dtype),
        ("uniform", dtype): torch.rand(count, generator=generator, dtype=dtype),
    }


def within(x, mean, sd, fourth=None):
    """Mean and variance within four standard errors of what they should be."""
    x = x.double()
    n = x.numel()
    assert abs(x.mean().item() - mean) < 4 * sd / math.sqrt(n)
    if fourth is not None:  # the fourth central moment
        assert abs(((x - mean) ** 2).mean().item() - sd**2) < 4 * math.sqrt((fourth - sd**4) / n)


def empty(dtype):
    return torch.empty(N, dtype=dtype)


CONTINUOUS = {
    "randn": (lambda t: torch.randn(N, dtype=t), stats.norm()),
    "randn of two dimensions": (lambda t: torch.randn(N // 4, 4, dtype=t), stats.norm()),
    "rand": (lambda t: torch.rand((N,), dtype=t), stats.uniform()),
    "randn_like": (lambda t: torch.randn_like(empty(t)), stats.norm()),
    "rand_like": (lambda t: torch.rand_like(empty(t)), stats.uniform()),
    "normal, two tensors": (
        lambda t: torch.normal(torch.full((N,), 2.0, dtype=t), torch.tensor(3.0, dtype=t)),
        stats.norm(2, 3),
    ),
    "normal, two tensors that broadcast": (
        lambda t: torch.normal(torch.full((N // 4, 1), 2.0, dtype=t), torch.full((4,), 3.0, dtype=t)),
        stats.norm(2, 3),
    ),
    "normal, a tensor and a number": (lambda t: torch.normal(torch.full((N,), 2.0, dtype=t), 3.0), stats.norm(2, 3)),
    "normal, a number and a tensor": (lambda t: torch.normal(2.0, torch.full((N,), 3.0, dtype=t)), stats.norm(2, 3)),
    "normal, two numbers": (lambda t: torch.normal(2.0, 3.0, (N,), dtype=t), stats.norm(2, 3)),
    "normal_": (lambda t: empty(t).normal_(), stats.norm()),
    "normal_ moved": (lambda t: empty(t).normal_(-1.0, 0.5), stats.norm(-1, 0.5)),
    "normal_ by name": (lambda t: empty(t).normal_(std=2.0), stats.norm(0, 2)),
    "log_normal_": (lambda t: empty(t).log_normal_(0.5, 0.3), stats.lognorm(0.3, scale=math.exp(0.5))),
    "log_normal_ by default": (lambda t: empty(t).log_normal_(), stats.lognorm(2.0, scale=math.exp(1.0))),
    "uniform_": (lambda t: empty(t).uniform_(), stats.uniform()),
    "uniform_ moved": (lambda t: empty(t).uniform_(-2.0, 3.0), stats.uniform(-2, 5)),
    "exponential_": (lambda t: empty(t).exponential_(), stats.expon()),
    "exponential_ of a rate": (lambda t: empty(t).exponential_(4.0), stats.expon(scale=0.25)),
    "cauchy_": (lambda t: empty(t).cauchy_(), stats.cauchy()),
    "cauchy_ moved": (lambda t: empty(t).cauchy_(1.0, 2.0), stats.cauchy(1, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_continuous_draw_has_its_distribution(name, dtype):
    draw, law = CONTINUOUS[name]
    with Given(numbers(1, dtype=dtype)) as given:
        x = draw(dtype)
    assert sum(given.taken.values()) == N == x.numel()
    assert not given.others
    assert x.dtype == dtype
    assert torch.isfinite(x).all()
    assert stats.kstest(x.flatten().double().numpy(), law.cdf).pvalue > P
    if math.isfinite(law.var()):
        fourth = law.stats("k")[()] * law.var() ** 2 + 3 * law.var() ** 2 if "log" not in name else None
        within(x, law.mean(), law.std(), None if fourth is None else float(fourth))


DISCRETE = {
    "bernoulli": (lambda t: torch.bernoulli(torch.full((N,), 0.3, dtype=t)), stats.bernoulli(0.3)),
    "bernoulli of a number": (lambda t: torch.bernoulli(empty(t), 0.3), stats.bernoulli(0.3)),
    "bernoulli_ by default": (lambda t: empty(t).bernoulli_(), stats.bernoulli(0.5)),
    "bernoulli_": (lambda t: empty(t).bernoulli_(0.9), stats.bernoulli(0.9)),
    "bernoulli_ of a tensor": (lambda t: empty(t).bernoulli_(torch.full((N,), 0.2, dtype=t)), stats.bernoulli(0.2)),
    "geometric_": (lambda t: empty(t).geometric_(0.3), stats.geom(0.3)),
    "multinomial": (lambda t: multinomial(t).squeeze(-1), stats.rv_discrete(values=([0, 1, 2], [0.2, 0.5, 0.3]))),
    "dropout": (lambda t: (torch.native_dropout(torch.ones(N, dtype=t), 0.25, True)[0] > 0) * 1, stats.bernoulli(0.75)),
}


def multinomial(dtype):
    return torch.multinomial(torch.tensor([0.4, 1.0, 0.6], dtype=dtype).expand(N, 3), 1)


def fits(x, law):
    """The p-value of chi-square, all values that are expected fewer than ten times in one class."""
    x = x.flatten().double().numpy()
    values = [v for v in range(100) if law.pmf(v) * len(x) >= 10]
    found = np.array([(x == v).sum() for v in values], float)
    expected = np.array([law.pmf(v) for v in values]) * len(x)
    rest = len(x) - expected.sum()
    if rest < 1e-6:
        assert found.sum() == len(x)
        return stats.chisquare(found, expected * len(x) / expected.sum()).pvalue
    return stats.chisquare([*found, len(x) - found.sum()], [*expected, rest]).pvalue


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", DISCRETE)
def test_a_discrete_draw_has_its_distribution(name, dtype):
    draw, law = DISCRETE[name]
    with Given(numbers(2, 3 * N, dtype)) as given:
        x = draw(dtype)
    assert not given.others
    assert list(given.taken) == [("uniform", dtype)]
    assert fits(x, law) > P
    within(x, law.mean(), law.std())


def test_every_operation_is_tried_here():
    """Those for which this file has no draw would go untested."""
    seen = set()

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func)
            return func(*args, **(kwargs or {}))

    for draw, _ in [*CONTINUOUS.values(), *DISCRETE.values()]:
        with Given(None), Seen():
            draw(torch.float32)
    assert set(noise._DRAWS) <= seen


@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_the_same_numbers_give_the_same_draws(name):
    draw, _ = (CONTINUOUS | DISCRETE)[name]
    drawn = []
    for seed in (3, 3, 4):
        with Given(numbers(seed, 3 * N)):
            drawn.append(draw(torch.float32))
        torch.randn(7)  # torch's own state does not matter
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_torchs_own_state_stays(name):
    draw, _ = (CONTINUOUS | DISCRETE)[name]
    before = torch.get_rng_state()
    with Given(numbers(3, 3 * N)):
        draw(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_normal_takes_one_for_the_scale_it_is_not_told():
    with Given(numbers()):
        x = torch.normal(torch.full((N,), 2.0))
    assert stats.kstest(x.numpy(), stats.norm(2, 1).cdf).pvalue > P


def test_each_element_has_its_own_parameters():
    mean, scale, p = torch.tensor([0.0, 10.0]), torch.tensor([1.0, 0.1]), torch.tensor([0.1, 0.8])
    with Given(numbers(5, 2 * N)):
        normal = torch.normal(mean.expand(N, 2), scale.expand(N, 2))
        bernoulli = torch.bernoulli(p.expand(N, 2))
    for i in range(2):
        assert stats.kstest(normal[:, i].numpy(), stats.norm(mean[i], scale[i]).cdf).pvalue > P
        within(bernoulli[:, i], p[i].item(), math.sqrt(p[i] * (1 - p[i])))
    assert abs(np.corrcoef(normal.T.numpy())[0, 1]) < 4 / math.sqrt(N)


def test_integers_can_hold_what_is_discrete():
    with Given(numbers(6, 3 * N)) as given:
        coin, waiting = torch.empty(N, dtype=torch.int64), torch.empty(N, dtype=torch.int64)
        assert coin.bernoulli_(0.3) is coin
        assert waiting.geometric_(0.4) is waiting
    assert coin.dtype == waiting.dtype == torch.int64
    assert fits(coin, stats.bernoulli(0.3)) > P
    assert fits(waiting, stats.geom(0.4)) > P
    assert given.taken == {("uniform", torch.float32): 2 * N}


def test_certain_outcomes_are_certain():
    ends = torch.tensor([0.0, 0.5, torch.finfo(torch.float32).eps, 1 - 2**-24])
    with Given({("uniform", torch.float32): ends}):
        assert torch.bernoulli(torch.zeros(4)).sum() == 0
        assert torch.bernoulli(torch.ones(4)).sum() == 4


def test_a_uniform_number_of_zero_is_no_infinity():
    for dtype in (torch.float32, torch.float64):
        ends = {("uniform", dtype): torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)}
        for draw in (
            lambda x: x.exponential_(),
            lambda x: x.exponential_(3.0),
            lambda x: x.cauchy_(),
            lambda x: x.geometric_(0.5),
            lambda x: x.uniform_(2.0, 3.0),
        ):
            with Given(ends):
                assert torch.isfinite(draw(torch.empty(2, dtype=dtype))).all()
        with Given(ends):
            assert (torch.empty(2, dtype=dtype).exponential_() > 0).all()
            assert (torch.empty(2, dtype=dtype).exponential_().log() > -math.inf).all()
            assert (torch.empty(2, dtype=dtype).geometric_(0.5) >= 1).all()


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_categories_without_probability_are_never_drawn(num_samples, replacement):
    probs = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0]).expand(4_000, 5)
    with Given(numbers(7, 4_000 * 5 * 2)):
        x = torch.multinomial(probs, num_samples, replacement)
    assert x.shape == (4_000, num_samples)
    assert set(x.unique().tolist()) == {1, 3}
    if num_samples == 2 and not replacement:
        assert (x[:, 0] != x[:, 1]).all()


def test_categories_without_probability_are_never_drawn_at_the_ends_of_the_uniform_numbers():
    ends = torch.tensor([0.0, 1 - 2**-24])
    for first in (0, 1):
        for other in (0, 1):
            given = {("uniform", torch.float32): ends[torch.tensor([first, other, first])]}
            with Given(given):
                assert torch.multinomial(torch.tensor([0.0, 1.0, 0.0]), 1).item() == 1
            with Given(given):
                assert torch.multinomial(torch.tensor([0.0, 1e-30, 0.0]), 1).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_replacement_nothing_repeats_and_the_order_has_its_law(dtype):
    """The law of successive draws: P(i, j) = p_i p_j / (1 - p_i)."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=dtype)
    with Given(numbers(8, 4 * N, dtype)):
        x = torch.multinomial(p.expand(N, 4), 2)
        whole = torch.multinomial(p, 4)
    assert sorted(whole.tolist()) == [0, 1, 2, 3]
    found, expected = [], []
    for i in range(4):
        for j in set(range(4)) - {i}:
            found.append(((x[:, 0] == i) & (x[:, 1] == j)).sum().item())
            expected.append(N * (p[i] * p[j] / (1 - p[i])).item())
    assert sum(found) == N
    assert stats.chisquare(found, np.array(expected) * N / sum(expected)).pvalue > P


def test_with_replacement_draws_are_independent_and_follow_unnormalised_weights():
    weights = torch.tensor([[1.0, 3.0], [30.0, 10.0]])
    with Given(numbers(9, 2 * 2 * N)):
        x = torch.multinomial(weights, N, replacement=True)
    assert x.shape == (2, N)
    for row, p in zip(x, (0.75, 0.25), strict=True):
        assert fits(row, stats.bernoulli(p)) > P
    assert abs(np.corrcoef(x.numpy())[0, 1]) < 4 / math.sqrt(N)
    assert abs(np.corrcoef(x[0, 1:].numpy(), x[0, :-1].numpy())[0, 1]) < 4 / math.sqrt(N)


def test_torchs_distributions_are_answered():
    one = torch.distributions
    laws = {
        "Normal": (one.Normal(1.0, 2.0), stats.norm(1, 2)),
        "Laplace": (one.Laplace(1.0, 2.0), stats.laplace(1, 2)),
        "Exponential": (one.Exponential(2.0), stats.expon(scale=0.5)),
        "Cauchy": (one.Cauchy(1.0, 2.0), stats.cauchy(1, 2)),
        "Gumbel": (one.Gumbel(1.0, 2.0), stats.gumbel_r(1, 2)),
        "Uniform": (one.Uniform(1.0, 2.0), stats.uniform(1, 1)),
        "LogNormal": (one.LogNormal(1.0, 0.5), stats.lognorm(0.5, scale=math.e)),
        "HalfNormal": (one.HalfNormal(2.0), stats.halfnorm(scale=2)),
        "Weibull": (one.Weibull(2.0, 1.5), stats.weibull_min(1.5, scale=2)),
        "Kumaraswamy": (one.Kumaraswamy(2.0, 1.0), stats.beta(2, 1)),
    }
    for name, (law, expected) in laws.items():
        with Given(numbers(10, 2 * N)) as given:
            x = law.sample((N,))
        assert not given.others, name
        assert stats.kstest(x.double().numpy(), expected.cdf).pvalue > P, name
    discrete = {
        "Bernoulli": (one.Bernoulli(0.3), stats.bernoulli(0.3)),
        "Geometric": (one.Geometric(0.3), stats.geom(0.3, loc=-1)),
        "Categorical": (one.Categorical(torch.tensor([0.7, 0.3])), stats.bernoulli(0.3)),
    }
    for name, (law, expected) in discrete.items():
        with Given(numbers(11, 2 * N)) as given:
            x = law.sample((N,))
        assert not given.others, name
        assert fits(x, expected) > P, name


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_scales_what_it_keeps(p):
    x = torch.full((N,), 2.0)
    with Given(numbers(12)):
        y = nn.functional.dropout(x, p)
    kept = y != 0
    assert torch.equal(y[kept], torch.full((int(kept.sum()),), 2.0 / (1 - p if p < 1 else 1)))
    within(kept, 1 - p, math.sqrt(p * (1 - p)) + 1e-12)


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_dropout_with_its_mask_scales_what_it_keeps(p):
    x = torch.full((N,), 2.0)
    with Given(numbers(12)):
        y, kept = torch.native_dropout(x, p, True)
    assert torch.equal(y, torch.where(kept, 2.0 / (1 - p if p < 1 else 1), 0.0))
    within(kept, 1 - p, math.sqrt(p * (1 - p)) + 1e-12)
    with Given({}):
        same, all_of_them = torch.native_dropout(x, p, False)
    assert torch.equal(same, x)
    assert all_of_them.all()


def test_operations_in_one_run_never_share_numbers():
    held = {("normal", torch.float32): torch.arange(10.0), ("uniform", torch.float32): torch.arange(10.0) / 20}
    with Given(held) as given:
        normal = [torch.randn(2), torch.zeros(1).normal_(), torch.randn_like(torch.zeros(2, 2)).flatten()]
        uniform = [torch.rand(3), torch.zeros(4).uniform_()]
        normal.append(torch.normal(torch.zeros(3), torch.ones(3)))
    torch.testing.assert_close(torch.cat(normal), torch.arange(10.0))
    torch.testing.assert_close(torch.cat(uniform), torch.arange(7.0) / 20)
    assert given.taken == {("normal", torch.float32): 10, ("uniform", torch.float32): 7}


def test_dtypes_have_numbers_of_their_own():
    held = numbers(13, 4) | numbers(14, 4, torch.float64)
    with Given(held) as given:
        single, double = torch.randn(4), torch.randn(4, dtype=torch.float64)
    assert torch.equal(single, held["normal", torch.float32])
    assert torch.equal(double, held["normal", torch.float64])
    assert given.taken == {("normal", torch.float32): 4, ("normal", torch.float64): 4}


def test_when_all_are_used_up_they_start_again():
    with Given({("normal", torch.float32): torch.arange(5.0)}):
        runs = [(torch.randn(2), torch.randn(3)) for _ in range(3)]
    for first, second in runs:
        assert first.tolist() == [0.0, 1.0]
        assert second.tolist() == [2.0, 3.0, 4.0]


def test_given_numbers_are_never_changed():
    held = numbers(15, 6)
    before = {kind: v.clone() for kind, v in held.items()}
    with Given(held):
        torch.randn(3).mul_(0.0)
        torch.rand(3).mul_(0.0)
        torch.randn_like(torch.zeros(3)).zero_()
    assert all(torch.equal(v, before[kind]) for kind, v in held.items())


def test_a_generator_of_the_users_is_left_alone():
    for draw in (
        lambda g: torch.randn(5, generator=g),
        lambda g: torch.rand(5, generator=g),
        lambda g: torch.empty(5).normal_(generator=g),
        lambda g: torch.empty(5).uniform_(generator=g),
        lambda g: torch.bernoulli(torch.full((5,), 0.5), generator=g),
        lambda g: torch.multinomial(torch.ones(5), 3, generator=g),
    ):
        expected = draw(torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        with Given(numbers(16, 20)) as given:
            assert torch.equal(draw(generator), expected)
            assert not torch.equal(draw(generator), expected) or expected.dtype == torch.int64 or len(set(expected)) < 5
        assert not given.taken


def test_what_cannot_be_given_is_drawn_as_ever_and_reported():
    draws = {
        "gamma": lambda: torch.distributions.Gamma(2.0, 1.0).sample((5,)),
        "dirichlet": lambda: torch.distributions.Dirichlet(torch.ones(3)).sample((5,)),
        "poisson": lambda: torch.poisson(torch.full((5,), 3.0)),
        "binomial": lambda: torch.binomial(torch.full((5,), 9.0), torch.full((5,), 0.5)),
        "randperm": lambda: torch.randperm(20),
        "randint": lambda: torch.randint(100, (5,)),
    }
    for name, draw in draws.items():
        torch.manual_seed(1)
        expected = draw()
        torch.manual_seed(1)
        with Given(numbers(17, 20)) as given:
            assert torch.equal(draw(), expected), name
        assert any(name in other for other in given.others), (name, given.others)
        assert not given.taken


def test_without_numbers_they_are_made_and_counted():
    with Given(None) as given:
        x = torch.randn(N), torch.rand(N), torch.randn(3, dtype=torch.float64)
    assert given.taken == {("normal", torch.float32): N, ("uniform", torch.float32): N, ("normal", torch.float64): 3}
    assert stats.kstest(x[0].numpy(), "norm").pvalue > P
    assert stats.kstest(x[1].numpy(), "uniform").pvalue > P
    with Given(None):
        assert not torch.equal(torch.randn(N), x[0])


def test_under_vmap_each_call_has_its_own():
    def draw(i):
        out = torch.zeros(3) + torch.zeros_like(i, dtype=torch.float32)
        return i, torch.randn(2), torch.rand(2), out.clone().normal_(), out.clone().exponential_(2.0)

    def run(seed):
        with Given(numbers(seed, 12 * 2_000)) as given:
            out = torch.func.vmap(draw, randomness="different")(torch.arange(2_000))
        assert not given.others
        assert given.taken == {("normal", torch.float32): 10_000, ("uniform", torch.float32): 10_000}
        return out[1:]

    drawn, again, other = run(18), run(18), run(19)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn, other, strict=True))
    laws = (stats.norm(), stats.uniform(), stats.norm(), stats.expon(scale=0.5))
    for x, law in zip(drawn, laws, strict=True):
        assert x.shape[0] == 2_000
        assert x.flatten().unique().numel() > 0.999 * x.numel()
        assert stats.kstest(x.flatten().numpy(), law.cdf).pvalue > P
    assert torch.cat([drawn[0].flatten(), drawn[2].flatten()]).unique().numel() > 9_900


def test_under_vmap_discrete_draws_are_answered():
    def draw(i, p):
        coin = torch.bernoulli(p.expand(3))
        return coin, torch.multinomial(torch.stack([1 - p, p]), 1)

    p = torch.full((4_000,), 0.3)
    with Given(numbers(20, 20 * 4_000)) as given:
        coin, category = torch.func.vmap(draw, randomness="different")(torch.arange(4_000), p)
    assert not given.others
    assert fits(coin, stats.bernoulli(0.3)) > P
    assert fits(category, stats.bernoulli(0.3)) > P
    assert abs(np.corrcoef(coin[:, :2].T.numpy())[0, 1]) < 4 / math.sqrt(4_000)


COUNTS = {("normal", torch.float32): 3, ("uniform", torch.float32): 2, ("normal", torch.float64): 4}


def made(seed=0, counts=None):
    return Noise(seed, counts or COUNTS, torch.device("cpu"))


def test_numbers_of_a_step_have_their_kind_dtype_and_shape():
    found = made().between(5, 9)
    assert list(found) == list(COUNTS)
    for (name, dtype), values in found.items():
        assert values.shape == (4, COUNTS[name, dtype])
        assert values.dtype == dtype
        assert name == "normal" or (values.min() >= 0 and values.max() < 1)
    assert made(counts={}).__class__ is Noise
    assert Noise(0, {}, torch.device("cpu")).between(3, 9) == {}


def test_numbers_are_a_pure_function_of_seed_and_step():
    one = made(7)
    wanted = [0, 1, 500, one.chunk - 1, one.chunk, one.chunk + 1, 3 * one.chunk + 5, 10_000_000]
    alone = {step: made(7).between(step, step + 1) for step in wanted}
    torch.manual_seed(99)  # torch's own state does not matter
    for step in [*reversed(wanted), *wanted]:  # nor does what was asked before
        found = one.between(step, step + 1)
        assert all(torch.equal(found[kind], alone[step][kind]) for kind in COUNTS)
    block = one.between(one.chunk, one.chunk + 10)
    for kind in COUNTS:
        assert torch.equal(block[kind][:2], torch.cat([alone[one.chunk][kind], alone[one.chunk + 1][kind]]))


def test_drawing_leaves_torchs_own_state():
    before = torch.get_rng_state()
    made().between(0, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_many_numbers_make_short_chunks():
    for count in (1, 1_000, 999_999, 1_000_000, 3_000_000):
        one = made(0, {("normal", torch.float32): count})
        assert 1 <= one.chunk <= 1_024
        assert one.chunk == 1 or one.chunk * count <= 1_000_000


def flat(seed, steps, kind=("normal", torch.float32)):
    one = made(seed, {("normal", torch.float32): 10, ("uniform", torch.float32): 10})
    found, step = [], 0
    while step < steps:
        stop = min(steps, (step // one.chunk + 1) * one.chunk)
        found.append(one.between(step, stop)[kind])
        step = stop
    return torch.cat(found)


def correlation(x, y):
    return np.corrcoef(x.flatten().numpy(), y.flatten().numpy())[0, 1]


def test_over_steps_they_are_normal_and_uniform():
    normal, uniform = flat(0, 4_000), flat(0, 4_000, ("uniform", torch.float32))
    assert normal.shape == uniform.shape == (4_000, 10)
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > P
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > P
    within(normal, 0.0, 1.0, 3.0)
    within(uniform, 0.5, math.sqrt(1 / 12), 1 / 80)


def test_steps_seeds_kinds_and_chunks_are_uncorrelated():
    normal, uniform = flat(0, 4_096), flat(0, 4_096, ("uniform", torch.float32))
    limit = 4 / math.sqrt(normal.numel() - 20_000)
    for lag in (1, 2, 1_023, 1_024):
        assert abs(correlation(normal[lag:], normal[:-lag])) < limit
    assert abs(correlation(normal[:, 1:], normal[:, :-1])) < limit
    assert abs(correlation(normal, uniform)) < limit
    for seed in (1, 2, 1_000):
        other = flat(seed, 4_096)
        assert abs(correlation(normal, other)) < limit
        for lag in (1, 1_024):  # nor is a seed another's later steps
            assert abs(correlation(normal[lag:], other[:-lag])) < limit
            assert abs(correlation(normal[:-lag], other[lag:])) < limit
    assert normal.unique().numel() > 0.99 * normal.numel()
