"""Rewrites of graphs leave what they mean: each is run before and after, on the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from pyro_lvm.compiling import Scan

torch.manual_seed(0)
A, B, W, V = torch.randn(4, 3), torch.randn(128, 200), torch.randn(200, 256), torch.randn(256)
P = torch.rand(3) + 0.5


def overwritten(x):
    wide = x.expand(5, 3).exp().clone()
    wide[0] = 1.0
    return wide.log1p()


PROGRAMS = {
    "a scale for each row": lambda: (A - P.expand(4, 3)) / P.expand(4, 3).exp() - P.expand(4, 3).log(),
    "a view of copies": lambda: P.unsqueeze(-1).expand(3, 13).exp().reshape(39),
    "copies in a batch of products": lambda: torch.matmul(P.expand(4, 5, 1, 3).exp(), A.t()),
    "copies that are overwritten": lambda: overwritten(P),
    "a comparison of copies": lambda: torch.where(P.expand(4, 3) > 0.9, A, P.expand(4, 3).sqrt()),
    "numbers of another dtype": lambda: P.expand(4, 3) * torch.tensor(2.0, dtype=torch.float64).expand(4, 1).exp(),
    "a vector from the left": lambda: P.view(1, 3) @ A.t(),
    "a vector from the right": lambda: A @ P.view(3, 1),
    "with a bias": lambda: F.linear(A, P.view(1, 3), P[:1]),
    "factors of addmm": lambda: torch.addmm(P[:1], A, P.view(3, 1), beta=0.5, alpha=2.0),
    "integers": lambda: torch.ones(1, 3, dtype=torch.int32) @ torch.ones(3, 4, dtype=torch.int32),
    "a large product": lambda: B @ W,
    "a large product, turned": lambda: W.t() @ B.t(),
    "a large product with a bias": lambda: F.linear(B, W.t(), V),
    "a bias of strides": lambda: F.linear(B, W.t(), torch.stack([V, V], 1)[:, 0]),
    "a bias of copies": lambda: F.linear(B, W.t(), P[:1].expand(256)),
    "a bias that is a number": lambda: torch.addmm(P[0], B, W),
    "a bias for each row": lambda: torch.addmm(B[:, :1], B, W),
    "a number for a large tensor": lambda: B * torch.log1p(P[0]).exp(),
    "a factor": lambda: torch.linalg.cholesky(torch.eye(3) + P.outer(P)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_rewritten_graph_means_what_it_meant(name):
    scan = Scan(lambda carry, x, fixed: (carry, PROGRAMS[name]()), torch.zeros(1), torch.zeros(1), {})
    _, *inputs = scan._used(torch.zeros(1), torch.zeros(1), {})
    got = scan.graph(torch.zeros(1), *inputs[0], *inputs[1])[1]
    expected = PROGRAMS[name]()
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4 if expected.numel() > 1_000 else 1e-6)


def test_what_a_row_shares_is_computed_once():
    def step(carry, x, fixed):
        return carry, (fixed["x"] - carry.expand(500, 3).log()).exp().sum()

    scan = Scan(step, torch.ones(3), torch.zeros(1), {"x": torch.randn(500, 3)})
    log = next(node for node in scan.graph.graph.nodes if "log" in str(node.target))
    assert log.meta["val"].shape == (3,)
