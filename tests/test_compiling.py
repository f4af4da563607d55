"""A scan equals the loop it stands for, or says which line of the user's keeps it from being compiled."""

import inspect
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor import config

from pyro_lvm import compiling
from pyro_lvm.compiling import Scan
from pyro_lvm.noise import Given, Noise
from pyro_lvm.tracing import NotCompilable

NONE = torch.zeros(())


def compiled(step, carry, x, fixed):
    scan = Scan(step, carry, x, fixed)
    scan.compile()
    return scan


def loop(step, carry, xs, fixed):
    """What a scan stands for."""
    ys = []
    count = len(xs) if isinstance(xs, torch.Tensor) else len(next(iter(xs.values())))
    for i in range(count):
        carry, y = step(carry, xs[i] if isinstance(xs, torch.Tensor) else {k: v[i] for k, v in xs.items()}, fixed)
        ys.append(y)
    return carry, torch.stack(ys) if isinstance(ys[0], torch.Tensor) else ys


def responsibilities(rows, fixed):
    logits = fixed["weights"].log() - 0.5 * (rows[:, None] - fixed["locs"]).square()
    return logits.softmax(-1), logits.logsumexp(-1) - 0.5 * math.log(2 * math.pi)


def e_step(carry, x, fixed):
    rows, counts = fixed["rows"][x["index"]], x["counts"]
    r, score = responsibilities(rows, fixed)
    r = r * counts[:, None]
    new = {
        "n": carry["n"] + r.sum(0),
        "x": carry["x"] + r.T @ rows,
        "xx": carry["xx"] + r.T @ rows.square(),
        "chunks": carry["chunks"] + 1,
    }
    return new, (score * counts).sum()


EM_FIXED = {
    "rows": torch.linspace(-4, 4, 1_003),
    "locs": torch.tensor([-1.0, 2.0]),
    "weights": torch.tensor([0.3, 0.7]),
}
EM_ZERO = {"n": torch.zeros(2), "x": torch.zeros(2), "xx": torch.zeros(2), "chunks": torch.tensor(0)}


def chunks(num_rows, size):
    """Indices of rows in chunks, the last filled up with rows that do not count."""
    number = -(-num_rows // size)
    index = torch.arange(number * size)
    counts = (index < num_rows).float()
    return {"index": (index % num_rows).view(number, size), "counts": counts.view(number, size)}


@pytest.fixture(scope="module")
def em():
    first = {k: v[0] for k, v in chunks(1_003, 50).items()}
    return compiled(e_step, EM_ZERO, first, EM_FIXED)


def test_sufficient_statistics_add_up_over_chunks_of_rows(em):
    total, scores = em(EM_ZERO, chunks(1_003, 50), EM_FIXED)
    r, score = responsibilities(EM_FIXED["rows"].double(), {k: v.double() for k, v in EM_FIXED.items()})
    rows = EM_FIXED["rows"].double()
    direct = {"n": r.sum(0), "x": r.T @ rows, "xx": r.T @ rows.square()}
    for name, value in direct.items():
        torch.testing.assert_close(total[name].double(), value, rtol=1e-5, atol=1e-4)
    assert total["chunks"] == 21
    assert total["chunks"].dtype == torch.int64
    assert scores.shape == (21,)
    by_chunk = torch.stack([part.sum() for part in score.split(50)])
    torch.testing.assert_close(scores.double(), by_chunk, rtol=1e-5, atol=1e-4)


def test_iterations_of_em_increase_the_likelihood_to_its_maximum(em):
    torch.manual_seed(1)
    rows = torch.cat([torch.randn(501) - 2, torch.randn(502) + 2])
    fixed = {"rows": rows, "locs": torch.tensor([-0.5, 0.5]), "weights": torch.tensor([0.5, 0.5])}
    likelihoods = []
    for _ in range(40):
        total, scores = em(EM_ZERO, chunks(1_003, 50), fixed)
        likelihoods.append(scores.sum().item())
        fixed |= {"locs": total["x"] / total["n"], "weights": total["n"] / total["n"].sum()}
    assert all(b > a - 1e-2 for a, b in pairwise(likelihoods))
    r, _ = responsibilities(rows, fixed)
    torch.testing.assert_close(r.T @ rows / r.sum(0), fixed["locs"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fixed["locs"], torch.tensor([-2.0, 2.0]), rtol=0, atol=0.2)


@pytest.mark.parametrize("steps", [1, 2, 3, 1_000])
def test_any_number_of_steps(em, steps):
    xs = {k: v.repeat(50, 1)[:steps] for k, v in chunks(1_003, 50).items()}
    (total, scores), (direct, by_chunk) = em(EM_ZERO, xs, EM_FIXED), loop(e_step, EM_ZERO, xs, EM_FIXED)
    assert scores.shape == (steps,)
    torch.testing.assert_close(scores, by_chunk, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total, direct, rtol=1e-4, atol=1e-3)


def test_steps_in_parts_are_the_steps_at_once_bit_for_bit(em):
    xs = {k: v.repeat(10, 1)[:200] for k, v in chunks(1_003, 50).items()}
    whole, scores = em(EM_ZERO, xs, EM_FIXED)
    carry, parts = EM_ZERO, []
    for start, stop in [(0, 1), (1, 8), (8, 107), (107, 200)]:
        carry, ys = em(carry, {k: v[start:stop] for k, v in xs.items()}, EM_FIXED)
        parts.append(ys)
    assert torch.equal(torch.cat(parts), scores)
    assert all(torch.equal(v, whole[k]) for k, v in carry.items())


def test_nothing_given_is_changed_or_returned(em):
    xs = chunks(1_003, 50)
    before = {k: v.clone() for k, v in (EM_ZERO | EM_FIXED | xs).items()}
    total, _ = em(EM_ZERO, xs, EM_FIXED)
    again, _ = em(EM_ZERO, xs, EM_FIXED)
    assert all(torch.equal(v, before[k]) for k, v in (EM_ZERO | EM_FIXED | xs).items())
    assert all(torch.equal(v, again[k]) for k, v in total.items())
    given = {t.data_ptr() for t in (EM_ZERO | EM_FIXED | xs).values()}
    assert not given & {t.data_ptr() for t in total.values()}
    kept = total["n"].clone()
    em(total, xs, EM_FIXED)
    assert torch.equal(total["n"], kept)


def test_size_counts_operations(em):
    assert em.size == sum(n.op == "call_function" for n in em.graph.graph.nodes)
    assert 15 < em.size < 60
    assert "sum" in em.graph.code


def test_draws_come_from_given_numbers():
    counts = {("normal", torch.float32): 4, ("uniform", torch.float32): 3}
    noise = Noise(5, counts, torch.device("cpu"))

    def step(carry, x, fixed):
        with Given(x):
            z = torch.randn(2) * fixed["scale"]
            u = torch.rand(3)
            last = torch.distributions.Normal(1.0, 2.0).rsample((2,))
        return carry + z, torch.cat([z, u, last])

    fixed = {"scale": torch.tensor(3.0)}
    scan = compiled(step, torch.zeros(2), {k: v[0] for k, v in noise.between(0, 1).items()}, fixed)
    numbers = noise.between(0, 1_000)
    total, ys = scan(torch.zeros(2), numbers, fixed)
    normal, uniform = numbers["normal", torch.float32], numbers["uniform", torch.float32]
    torch.testing.assert_close(ys, torch.cat([normal[:, :2] * 3, uniform, normal[:, 2:] * 2 + 1], 1))
    torch.testing.assert_close(total, (normal[:, :2].double() * 3).sum(0).float(), rtol=1e-4, atol=1e-3)
    state = torch.get_rng_state()
    again = scan(torch.zeros(2), numbers, fixed)[1]
    assert torch.equal(again, ys)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "table", [(600, 3), (600, 16), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((16, 15), (15, 3)))]
)
@pytest.mark.parametrize("picks", [False, True])
def test_the_layout_of_tables_does_not_matter(table, picks):
    def step(carry, x, fixed):
        rows = fixed["rows"][x["index"]] if picks else fixed["rows"]
        ahead = rows.reshape(-1).cumsum(0).view(rows.shape)
        return {"loc": carry["loc"] + 0.1 * (rows - carry["loc"]).tanh().mean(0)}, (ahead @ carry["loc"]).sum()

    rows = torch.randn(table, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    carry, xs = {"loc": torch.zeros(table[1], dtype=torch.float64)}, {"index": torch.arange(30).view(5, 6) % table[0]}
    expected = loop(step, carry, xs, {"rows": rows})
    for given in (rows, rows.t().contiguous().t()):
        fixed = {"rows": given}
        scan = compiled(step, carry, {"index": xs["index"][0]}, fixed)
        found = scan(carry, xs, fixed)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(scan(carry, xs, {"rows": rows}), expected, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_given_is_drawn_anew_in_each_step_from_torchs_stream():
    def step(carry, x, fixed):
        g = torch._standard_gamma(fixed.expand(3))
        return carry + 1, torch.cat([g, torch.poisson(fixed.expand(1))])

    fixed = torch.tensor(2.0)
    scan = compiled(step, NONE, NONE, fixed)
    torch.manual_seed(3)
    _, ys = scan(NONE, torch.zeros(4_000), fixed)
    torch.manual_seed(3)
    assert torch.equal(scan(NONE, torch.zeros(4_000), fixed)[1], ys)
    assert not torch.equal(scan(NONE, torch.zeros(4_000), fixed)[1], ys)
    torch.manual_seed(3)
    parts = [scan(NONE, torch.zeros(n), fixed)[1] for n in (1, 999, 3_000)]
    assert torch.equal(torch.cat(parts), ys)
    assert ys[:, :3].unique().numel() > 11_900
    assert abs(ys[:, :3].mean() - 2) < 4 * math.sqrt(2 / 12_000)
    assert abs(ys[:, 3].mean() - 2) < 4 * math.sqrt(2 / 4_000)
    assert abs(np.corrcoef(ys[1:, 0].numpy(), ys[:-1, 0].numpy())[0, 1]) < 4 / math.sqrt(4_000)


DTYPES = [torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8]


@pytest.fixture(scope="module")
def odd():
    """A step with a carry of many dtypes, inputs that nothing uses, and a tensor from outside."""
    held = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    calls = []

    def step(carry, x, fixed):
        calls.append(1)
        new = {"list": [v + 1 if v.dtype != torch.bool else ~v for v in carry["list"]]}
        first, second = carry["pair"]
        new["pair"] = (first + x["a"], second - x["b"])
        new["row"] = held[x["z"]] + fixed["one"]
        new["kept"] = carry["kept"]  # returned as it came
        new["swapped"] = carry["kept"]
        return new, {"held": held.sum() + fixed["other"], "kept": carry["kept"]}

    carry = {
        "list": [torch.zeros(2).to(t) for t in DTYPES],
        "pair": (torch.zeros(3), torch.zeros(3)),
        "row": torch.zeros(3),
        "kept": torch.zeros(3),
        "swapped": torch.zeros(3),
    }
    x = {"a": torch.zeros(3), "b": torch.zeros(3), "unused": torch.zeros(4), "z": torch.tensor(0)}
    fixed = {"one": torch.tensor(0.0), "unused": torch.zeros(2), "other": torch.tensor(0.0)}
    return compiled(step, carry, x, fixed), carry, held


def odd_xs(steps, **changes):
    xs = {"a": torch.ones(steps, 3), "b": torch.full((steps, 3), 2.0), "unused": torch.rand(steps, 4)}
    return xs | {"z": torch.arange(steps) % 2} | changes


ODD_FIXED = {"one": torch.tensor(10.0), "unused": torch.zeros(2), "other": torch.tensor(0.5)}


def test_a_carry_of_several_dtypes(odd):
    scan, carry, _ = odd
    new, _ = scan(carry, odd_xs(5), ODD_FIXED)
    assert [v.dtype for v in new["list"]] == DTYPES
    assert [v.tolist() for v in new["list"]] == [[5, 5]] * 4 + [[True, True]] + [[5, 5]]


def two_of_a_kind(carry, x, fixed):
    return {"a": carry["a"] + x["a"], "b": carry["b"] - x["b"] + fixed["b"]}, fixed["a"] + 0


ZERO = torch.zeros(3)
TWINS = {"a": ZERO, "b": ZERO}
"""One tensor under two names, as examples are where parameters start alike."""


def test_examples_that_are_one_tensor_are_told_apart():
    scan = Scan(two_of_a_kind, TWINS, TWINS, TWINS)
    ones = {"a": torch.ones(3), "b": torch.full((3,), 2.0)}
    a, b, y = scan.graph(*TWINS.values(), *ones.values(), torch.full((3,), 5.0), torch.full((3,), 7.0))
    assert [a[0], b[0], y[0]] == [1.0, 5.0, 5.0]


def test_examples_that_are_one_tensor_compile():
    scan = compiled(two_of_a_kind, TWINS, TWINS, TWINS)
    xs = {"a": torch.ones(4, 3), "b": torch.full((4, 3), 2.0)}
    new, y = scan(TWINS, xs, {"a": torch.full((3,), 5.0), "b": ZERO})
    assert new["a"].tolist() == [4.0] * 3
    assert new["b"].tolist() == [-8.0] * 3
    assert y.unique().tolist() == [5.0]


def test_draws_may_be_changed_in_place():
    def step(carry, x, fixed):
        with Given(x):
            return carry + 1, torch.randn(3).mul_(2.0)

    kind = ("normal", torch.float32)
    scan = compiled(step, NONE, {kind: torch.zeros(3)}, NONE)
    assert scan(NONE, {kind: torch.ones(4, 3)}, NONE)[1].unique().tolist() == [2.0]


def test_inputs_that_look_alike_are_told_apart(odd):
    scan, carry, _ = odd
    new, _ = scan(carry, odd_xs(5), ODD_FIXED)
    assert new["pair"][0].tolist() == [5.0] * 3
    assert new["pair"][1].tolist() == [-10.0] * 3
    assert new["swapped"].tolist() == [0.0] * 3
    new, ys = scan(carry | {"kept": torch.full((3,), 7.0)}, odd_xs(1), ODD_FIXED)
    assert new["kept"].tolist() == new["swapped"].tolist() == [7.0] * 3
    assert ys["kept"].tolist() == [[7.0] * 3]


def test_inputs_that_nothing_uses_do_not_matter(odd):
    scan, carry, _ = odd
    one = scan(carry, odd_xs(5), ODD_FIXED)
    other = scan(carry, odd_xs(5, unused=torch.full((5, 4), math.nan)), ODD_FIXED | {"unused": torch.ones(2)})
    assert torch.equal(one[0]["row"], other[0]["row"])
    assert torch.equal(one[1]["held"], other[1]["held"])


def test_a_tensor_from_outside_that_changes_in_place_is_seen(odd):
    scan, carry, held = odd
    assert scan(carry, odd_xs(2), ODD_FIXED)[1]["held"].tolist() == [21.5, 21.5]
    held.add_(1.0)
    try:
        new, ys = scan(carry, odd_xs(2), ODD_FIXED)
    finally:
        held.sub_(1.0)
    assert ys["held"].tolist() == [27.5, 27.5]
    assert new["row"].tolist() == [15.0, 16.0, 17.0]


def test_a_number_that_is_a_tensor_indexes_another(odd):
    scan, carry, _ = odd
    for z, row in ((0, [11.0, 12.0, 13.0]), (1, [14.0, 15.0, 16.0]), (-1, [14.0, 15.0, 16.0])):
        assert scan(carry, odd_xs(1, z=torch.tensor([z])), ODD_FIXED)[0]["row"].tolist() == row


X = torch.arange(24.0).view(2, 3, 4)
INDICES = {
    "x[z]": lambda x, z: x[z],
    "x[z, z]": lambda x, z: x[z, z],
    "x[z, 1:]": lambda x, z: x[z, 1:],
    "x[z, ..., 0]": lambda x, z: x[z, ..., 0],
    "x[z, None]": lambda x, z: x[z, None],
    "x[z.int()]": lambda x, z: x[z.int()],
    "x[z.view(1)]": lambda x, z: x[z.view(1)],
    "x[z > 0]": lambda x, z: torch.where(z > 0, x[1], x[0]),
}


@pytest.mark.parametrize("name", INDICES)
def test_numbers_that_are_tensors_index_as_numbers_do(name):
    def step(carry, x, fixed):
        return carry, INDICES[name](fixed, x)

    scan = Scan(step, NONE, torch.tensor(0), X)
    for z in (0, 1):
        _, y = scan.graph(NONE, torch.tensor(z), X)
        expected = INDICES[name](X, torch.tensor(z))
        assert y.shape == expected.shape
        assert torch.equal(y, expected)


BEHIND = {
    "x[:, z]": lambda x, z: x[:, z],
    "x[..., z]": lambda x, z: x[..., z],
    "x[0, z]": lambda x, z: x[0, z],
    "x[z, 1, z]": lambda x, z: x[z, 1, z],
    "x[z, y]": lambda x, z: x[z, torch.tensor([0, 2])],
    "x[z] = 1": lambda x, z: x.clone().__setitem__(z, 1.0) or x,
}


@pytest.mark.parametrize("name", BEHIND)
def test_elsewhere_they_are_refused_or_mean_the_same(name):
    def step(carry, x, fixed):
        return carry, BEHIND[name](fixed, x)

    try:
        scan = Scan(step, NONE, torch.tensor(0), X)
    except NotCompilable:
        with pytest.raises(NotCompilable, match=r"test_compiling\.py, line .*reads the value of a tensor"):
            Scan(step, NONE, torch.tensor(0), X)
        return
    for z in (0, 1):
        assert torch.equal(scan.graph(NONE, torch.tensor(z), X)[1], BEHIND[name](X, torch.tensor(z)))


MASKED = {
    "x[mask]": lambda x: x[x > 0].sum(),
    "nonzero": lambda x: x.sum() * len(torch.nonzero(x > 0)),
    "unique": lambda x: x.sum() * len(torch.unique(x)),
    "masked_select": lambda x: torch.masked_select(x, x > 0).sum(),
}


@pytest.mark.parametrize("name", MASKED)
def test_shapes_that_follow_from_values_are_refused_with_their_line(name):
    def step(carry, x, fixed):
        return carry + MASKED[name](x), NONE

    with pytest.raises(NotCompilable, match=r"test_compiling\.py, line .*shape of a tensor follows from values"):
        Scan(step, NONE, torch.tensor([1.0, 2.0]), NONE)


def test_programs_that_differ_in_a_number_alone_are_told_apart():
    """Torch keeps compiled programs: by the text of a step, and not by the form of its inputs."""

    def doubled(carry, x, fixed):
        return carry * 2.0 + x, carry

    def tripled(carry, x, fixed):
        return carry * 3.0 + x, carry

    ends = []
    for step in (doubled, tripled):
        scan = Scan(step, torch.ones(3), torch.ones(3), {})
        scan.compile()
        ends.append(scan(torch.ones(3), torch.ones(2, 3), {})[0])
    assert ends[0].tolist() == [7.0] * 3
    assert ends[1].tolist() == [13.0] * 3


@pytest.mark.parametrize("shape", [(3, 3), (4, 3, 3), (2, 4, 3, 3)])
def test_a_cholesky_factor_that_does_not_exist_is_nan(shape):
    def step(carry, x, fixed):
        factor = torch.linalg.cholesky(x)
        return carry, factor

    good = torch.eye(3).expand(shape).clone() * 4
    scan = Scan(step, NONE, good, NONE)
    _, factor = scan.graph(NONE, good)
    torch.testing.assert_close(factor, good / 2)
    bad = good.clone()
    bad.view(-1, 3, 3)[-1, 0, 0] = -1.0
    factor = scan.graph(NONE, bad)[1].view(-1, 3, 3)
    assert factor[-1].isnan().any()
    torch.testing.assert_close(factor[:-1], good.view(-1, 3, 3)[:-1] / 2)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(bad)


def test_a_cholesky_factor_that_does_not_exist_is_nan_in_machine_code_too():
    def step(carry, x, fixed):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            factor = torch.linalg.cholesky(x)
            (grad,) = torch.autograd.grad(factor.diagonal().log().sum(), x)
        return carry + 1, (factor.diagonal().log().sum(), grad)

    scan = compiled(step, NONE, torch.eye(2), NONE)
    xs = torch.stack([torch.eye(2) * 4, -torch.eye(2), torch.eye(2)])
    carry, (logs, grads) = scan(NONE, xs, NONE)
    assert carry == 3
    assert logs.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(logs[[0, 2]], torch.tensor([2 * math.log(2), 0.0]))
    torch.testing.assert_close(grads[0], torch.eye(2) / 8)
    assert grads[1].isnan().any()


HELD = torch.tensor([1.0, 2.0])


def reads_item(x):
    return x * x.sum().item()


def reads_float(x):
    return x * float(x[0])


def reads_int(x):
    return x * int(x[0])


def reads_if(x):
    if x.sum() > 0:
        return x
    return -x


def reads_and(x):
    return x if (x > 0).all() and x.numel() else -x


def reads_tolist(x):
    return x * x.tolist()[0]


def reads_numpy(x):
    return x * float(x.numpy()[0])


def reads_array(x):
    return x * float(np.asarray(x)[0])


def reads_equal(x):
    return x if torch.equal(x, x + 1) else -x


def reads_allclose(x):
    return x if torch.allclose(x, x + 1) else -x


def reads_format(x):
    return x * len(f"{x[0]:.3f}")


def reads_loop(x):
    total = x * 0
    for value in x.long():
        for _ in range(value):
            total = total + 1
    return total


def held_item(x):
    return x * HELD[0].item()


def held_float(x):
    return x * float(HELD.sum())


def held_if(x):
    return x if HELD[0] > 0 else -x


def held_tolist(x):
    return x * HELD.tolist()[0]


def held_numpy(x):
    return x * float(HELD.numpy()[0])


def held_array(x):
    return x * float(np.asarray(HELD)[0])


READS = [reads_item, reads_float, reads_int, reads_if, reads_and, reads_tolist, reads_numpy, reads_array, reads_equal]
READS += [reads_allclose, reads_format, reads_loop]
READS += [held_item, held_float, held_if, held_tolist, held_numpy, held_array]


@pytest.mark.parametrize("reads", READS, ids=lambda f: f.__name__)
def test_a_read_is_refused_with_its_line(reads):
    def step(carry, x, fixed):
        return carry + reads(x).sum(), NONE

    lines, first = inspect.getsourcelines(reads)
    words = {"if": "if ", "loop": "for _", "and": " and "}
    kind = reads.__name__.split("_")[1]
    wanted = {
        "item": ".item()",
        "float": "float(",
        "int": "int(",
        "tolist": "tolist(",
        "numpy": "numpy(",
        "array": "asarray(",
        "equal": "equal(",
        "allclose": "allclose(",
        "format": ":.3f",
    } | words
    number = next(i for i, line in enumerate(lines) if wanted[kind] in line and not line.startswith("def"))
    with pytest.raises(NotCompilable) as caught:
        Scan(step, NONE, torch.tensor([1.0, 2.0]), NONE)
    told = str(caught.value)
    assert told.startswith(f"{__file__}, line {first + number}, {lines[number].strip()!r}: "), told
    assert "reads the value of a tensor into Python" in told
    assert "\n" not in told


def test_an_error_of_the_users_own_is_told_with_its_line():
    def step(carry, x, fixed):
        return carry + (x @ torch.ones(3)).sum(), NONE  # the shapes do not fit

    with pytest.raises(NotCompilable, match=r"test_compiling\.py, line \d+, .*the shapes do not fit.*RuntimeError"):
        Scan(step, NONE, torch.ones(2), NONE)


class Counter:
    count = 0


def counting(x):
    Counter.count += 1
    return x * Counter.count


CHANGING = {
    "random": lambda x: x * random.random(),
    "numpy": lambda x: x * np.random.rand(),
    "numpy array": lambda x: x * torch.from_numpy(np.random.rand(2)).float(),
    "numpy generator": lambda x: x + GENERATOR.normal(),
    "counter": counting,
    "set": lambda x: x + torch.tensor([random.random(), 1.0]),
    "one number": lambda x: x + torch.tensor(random.random()),
    "branch": lambda x: x * 2 if next(COIN) else x.exp(),
}
GENERATOR = np.random.default_rng(0)
COIN = iter([True, False] * 10)


@pytest.mark.parametrize("name", CHANGING)
def test_python_numbers_that_change_are_refused(name):
    def step(carry, x, fixed):
        return carry + CHANGING[name](x).sum(), NONE

    with pytest.raises(NotCompilable, match=r"changes from run to run.*draw random numbers by torch or Pyro"):
        Scan(step, NONE, torch.ones(2), NONE)


def test_python_numbers_that_stay_are_taken():
    factor, held, missing = 3.0, torch.tensor([1.0, math.nan]), torch.tensor(math.nan)

    def step(carry, x, fixed):
        return carry + (x * factor).sum() + torch.tensor(2.0), held * torch.tensor([2.0, 1.0]) + missing * 0

    total, y = Scan(step, NONE, torch.ones(2), NONE).graph(NONE, torch.ones(2), held, torch.tensor([2.0, 1.0]), missing)
    assert total == 8.0
    assert y.isnan().all()


WRONG = {
    "shape": (lambda c: c.sum(), NONE),
    "dtype": (lambda c: c.double(), NONE),
    "structure": (lambda c: {"c": c}, NONE),
    "one more": (lambda c: [c, c], NONE),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_carry_of_another_form_is_refused(name):
    with pytest.raises(NotCompilable, match=r"a step returns .* but was given"):
        Scan(lambda c, x, f: (WRONG[name][0](c), x), torch.ones(2), NONE, NONE)


def test_what_was_not_compiled_does_not_run():
    scan = Scan(lambda c, x, f: (c + x, x * 2), NONE, NONE, NONE)
    with pytest.raises(RuntimeError, match="not compiled"):
        scan(NONE, torch.zeros(2), NONE)


NO_COMPILER = r"compiler.*found: install g\+\+ or clang, or name one by CXX"


@pytest.fixture
def plain():
    return Scan(lambda c, x, f: (c + x, x * 2), NONE, NONE, NONE)


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "no-such-compiler"])
def test_without_the_compiler_that_was_named(plain, compiler):
    for refused in (compiling.check_support, plain.compile):
        with config.patch({"cpp.cxx": (compiler,)}), pytest.raises(NotCompilable, match=NO_COMPILER):
            refused()


def test_without_any_compiler(plain, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with config.patch({"cpp.cxx": (None, "g++")}), pytest.raises(NotCompilable, match=NO_COMPILER):
        plain.compile()


def test_a_compiler_that_fails_is_no_crash(tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    factor = random.random()  # in no cache yet
    step = Scan(lambda c, x, f: (c + x * factor, x * 5.4321), NONE, NONE, NONE)
    with config.patch({"cpp.cxx": (str(broken),)}), pytest.raises(NotCompilable):
        step.compile()


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0+cpu", "3.0.0", "2.1.3"])
def test_other_versions_of_torch_are_refused(plain, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        NotCompilable, match=rf"tested with torch 2\.13 alone; this is {version[: version.rindex('.')]}"
    ):
        plain.compile()


def test_this_machine_is_supported():
    compiling.check_support()


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_the_number_of_threads_stays(em, monkeypatch, threads):
    em(EM_ZERO, chunks(1_003, 50), EM_FIXED)
    assert torch.get_num_threads() == threads
    with pytest.raises((RuntimeError, AssertionError, TypeError, IndexError)):
        em(EM_ZERO | {"n": torch.zeros(7)}, chunks(1_003, 50), EM_FIXED)
    assert torch.get_num_threads() == threads
    with pytest.raises(NotCompilable):
        Scan(lambda c, x, f: (c * c.item(), x), NONE, NONE, NONE)
    assert torch.get_num_threads() == threads
    scan = Scan(lambda c, x, f: (c + x, x * 2), NONE, NONE, NONE)
    monkeypatch.setattr(compiling, "_compile_scan", fail)
    with pytest.raises(NotCompilable, match=r"torch's compiler refuses the step: RuntimeError: broken"):
        scan.compile()
    assert torch.get_num_threads() == threads


def fail(*_):
    raise RuntimeError("broken\nand more")


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_large_tensors_may_use_more_threads(threads):
    small = Scan(lambda c, x, f: (c + (f * x).sum(), x * 2), NONE, NONE, torch.zeros(1_000))
    large = Scan(lambda c, x, f: (c + (f * x).sum(), x * 2), NONE, NONE, torch.zeros(200_000))
    assert (small.num_threads, large.num_threads) == (1, threads)


def test_the_flag_of_torchs_compiler_is_put_back():
    before = torch.compiler._is_compiling_flag
    with compiling.as_if_compiling():
        assert torch.compiler.is_compiling()
    assert not torch.compiler.is_compiling()
    with pytest.raises(KeyError), compiling.as_if_compiling():
        raise KeyError
    assert torch.compiler._is_compiling_flag is before
    assert not torch.compiler.is_compiling()


def test_a_step_may_train_a_network():
    """Values, gradients and updates by hand, for 200 steps, against a loop of torch's."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    rows = torch.randn(200, 5, 2)

    def step(params, x, fixed):
        with torch.enable_grad():
            leaves = {n: v.detach().requires_grad_() for n, v in params.items()}
            loss = (torch.func.functional_call(net, leaves, x)[:, 0] - x.prod(-1)).square().mean()
            grads = torch.autograd.grad(loss, list(leaves.values()))
        return {n: v - fixed * g for (n, v), g in zip(params.items(), grads, strict=True)}, loss.detach()

    rate = torch.tensor(0.05)
    scan = compiled(step, start, rows[0], rate)
    params, losses = scan(start, rows, rate)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    expected = []
    for x in rows:
        optimizer.zero_grad()
        loss = (net(x)[:, 0] - x.prod(-1)).square().mean()
        loss.backward()
        optimizer.step()
        expected.append(loss.detach())
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(params, dict(net.named_parameters()), rtol=1e-4, atol=1e-5)
    assert all(v.grad is None and not v.requires_grad for v in params.values())
