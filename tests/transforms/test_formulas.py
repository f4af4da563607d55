"""The papers' formulas, computed number by number."""

import math

import numpy as np
import pytest
import torch

from pyro_lvm.transforms import Affine, Monotone, Planar, Shift, Spline, Sylvester
from tests.transforms.registry import LAYERS


def reflection(v):
    return np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v)


def numbers(layer):
    return {name: value.detach().numpy() for name, value in layer.named_parameters()}


def test_planar():
    """Rezende and Mohamed (2015), equations 10 to 12, and appendix A.1."""
    layer = Planar(2).double()
    layer.u.data, layer.w.data, layer.b.data = (torch.tensor(v).double() for v in ([1.0, -2.0], [0.5, 1.5], [0.25]))
    x = np.array([0.3, -0.7])
    w, dot = np.array([0.5, 1.5]), 0.5 * 1.0 - 1.5 * 2.0
    u = np.array([1.0, -2.0]) + (-1 + math.log(1 + math.exp(dot)) - dot) * w / (0.25 + 2.25)
    bent = math.tanh(0.5 * 0.3 - 1.5 * 0.7 + 0.25)
    y, log_det = layer().forward_and_log_det(torch.tensor(x))
    np.testing.assert_allclose(y.detach(), x + u * bent, rtol=1e-12)
    assert log_det.item() == pytest.approx(math.log(abs(1 + u @ ((1 - bent**2) * w))), rel=1e-12)


def test_sylvester():
    """Van den Berg et al. (2018), equations 8 to 13, with their matrix A of 3 features and 2 columns."""
    layer = Sylvester(3, num_planes=2).double()
    torch.manual_seed(3)
    for value in layer.parameters():
        value.data = torch.randn_like(value)
    p = numbers(layer)
    Q = (reflection(p["reflections"][0]) @ reflection(p["reflections"][1]))[:, :2]
    first, second = (0.999 * np.tanh(p[name]) for name in ("diagonal1", "diagonal2"))
    R = np.array([[first[0], p["r1"][0, 1]], [0.0, first[1]]])
    R_tilde = np.array([[second[0], p["r2"][0, 1]], [0.0, second[1]]])
    x = np.array([0.3, -0.7, 1.1])
    bent = np.tanh(R_tilde @ Q.T @ x + p["b"])
    y, log_det = layer().forward_and_log_det(torch.tensor(x))
    np.testing.assert_allclose(y.detach(), x + Q @ R @ bent, rtol=1e-12)
    expected = np.linalg.slogdet(np.eye(2) + np.diag(1 - bent**2) @ R_tilde @ R).logabsdet
    assert log_det.item() == pytest.approx(expected, rel=1e-10)


def test_spline():
    """Durkan et al. (2019), equations 4 and 5: three bins in the box from -2 to 2, with the numbers of its knots."""
    widths, heights, slopes = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.1, 0.5]), np.array([0.7, 1.9])

    def raw(shares):  # what softmax and the least bin of a thousandth make of it
        return np.log((shares - 1e-3) / (1 - 3e-3))

    def raw_slopes(slopes):
        return np.log(np.expm1(slopes - 1e-3)) - np.log(np.expm1(1 - 1e-3))

    params = torch.tensor(np.concatenate([raw(widths), raw(heights), raw_slopes(slopes)]))
    x_knots, y_knots = (np.array([-2, *(-2 + 4 * np.cumsum(s))]) for s in (widths, heights))
    delta = [1.0, *slopes, 1.0]
    spline = Spline(3, bound=2.0)
    for x in (-1.9, -1.3, -1.1, 0.4, 0.9, 1.99):
        k = np.searchsorted(x_knots, x) - 1
        xi = (x - x_knots[k]) / (x_knots[k + 1] - x_knots[k])
        s = (y_knots[k + 1] - y_knots[k]) / (x_knots[k + 1] - x_knots[k])
        below = s + (delta[k + 1] + delta[k] - 2 * s) * xi * (1 - xi)
        y = y_knots[k] + (y_knots[k + 1] - y_knots[k]) * (s * xi**2 + delta[k] * xi * (1 - xi)) / below
        slope = s**2 * (delta[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + delta[k] * (1 - xi) ** 2) / below**2
        found, log_slope = spline.forward(torch.tensor(x, dtype=torch.float64), params)
        assert found.item() == pytest.approx(y, rel=1e-12)
        assert log_slope.item() == pytest.approx(math.log(slope), rel=1e-10)
        back, log_back = spline.inverse(found, params)
        assert back.item() == pytest.approx(x, rel=1e-12)
        assert log_back.item() == pytest.approx(-math.log(slope), rel=1e-10)
    for x in (-5.0, -2.0, 2.0, 1e4):
        assert spline.forward(torch.tensor(x), params.float()) == (x, 0)


def test_splines_pass_their_knots_smoothly():
    spline, params = Spline(3, bound=2.0), torch.randn(8, generator=torch.Generator().manual_seed(0)).double()
    left, _ = spline._edges(params[:3])
    for knot in [*left.tolist(), 2.0]:
        around = torch.tensor([knot - 1e-9, knot + 1e-9]).double()
        y, log_slope = spline.forward(around, params.expand(2, -1))
        assert (y[1] - y[0]).abs() < 1e-7
        assert (log_slope[1] - log_slope[0]).abs() < 1e-6


def test_monotone():
    """A line and two units, written out."""
    params = torch.tensor([0.3, -0.2, 4.0, 5.5, 0.1, -0.4, 0.7, 0.2], dtype=torch.float64)

    def softplus(a):
        return math.log1p(math.exp(a))

    x, one = 0.6, math.log(math.e - 1)
    y = math.exp(0.3 / math.sqrt(1 + (0.3 / 8) ** 2)) * x - 0.2
    for height, steepness, place in ((4.0, 0.1, 0.7 - 2), (5.5, -0.4, 0.2 + 2)):
        y += softplus(height - 5) * math.tanh(softplus(steepness + one) * x + place)
    assert Monotone(2).forward(torch.tensor(x, dtype=torch.float64), params)[0].item() == pytest.approx(y, rel=1e-12)


def test_affine_and_shift():
    x = torch.tensor(1.5).double()
    y, log_slope = Affine().forward(x, torch.tensor([0.5, 0.8], dtype=torch.float64))
    log_scale = 0.8 / math.sqrt(1 + 0.1**2)
    assert y.item() == pytest.approx(1.5 * math.exp(log_scale) + 0.5, rel=1e-12)
    assert log_slope.item() == pytest.approx(log_scale, rel=1e-12)
    assert Shift().forward(x, torch.tensor([0.5]).double()) == (2.0, 0.0)


@pytest.mark.parametrize("univariate", [Shift(), Affine(), Spline(5, 2.0), Monotone(3)], ids=lambda u: type(u).__name__)
def test_functions_of_one_number_increase_and_tell_their_slope(univariate):
    generator = torch.Generator().manual_seed(0)
    params = 2 * torch.randn(univariate.num_params, generator=generator).double()
    x = torch.linspace(-6, 6, 1_001).double().requires_grad_()
    y, log_slope = univariate.forward(x, params.expand(len(x), -1))
    assert (y.diff() > 0).all()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0].log(), log_slope)


# Which features see which -------------------------------------------------------------------------------------------


def jacobian(layer, x):
    found = torch.autograd.functional.jacobian(layer(), x)
    return found.reshape(x.numel(), x.numel())


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("autoregressive")])
def test_autoregressive_jacobians_are_lower_triangular(name):
    case = LAYERS[name]
    J = jacobian(case.layer(), torch.randn(*case.shape, generator=torch.Generator().manual_seed(0)).double())
    if name == "autoregressive-ordered":
        assert not torch.equal(J, J.tril())
        J = J[[2, 0, 1, 4, 3]][:, [2, 0, 1, 4, 3]]
    assert torch.equal(J, J.tril())
    if name not in ("autoregressive-1", "autoregressive-2", "autoregressive-narrow"):
        below = J[torch.tril_indices(len(J), len(J), -1).unbind()]
        assert (below != 0).float().mean() > 0.5


@pytest.mark.parametrize("name, kept", [("coupling-affine", [0, 1]), ("coupling-odd", [1, 3])])
def test_coupling_jacobians_are_block_triangular(name, kept):
    J = jacobian(LAYERS[name].layer(), torch.randn(5, generator=torch.Generator().manual_seed(0)).double())
    moved = [d for d in range(5) if d not in kept]
    assert torch.equal(J[kept][:, kept], torch.eye(len(kept)).double())
    assert not J[kept][:, moved].any()
    assert J[moved][:, kept].all()
    block = J[moved][:, moved]
    assert torch.equal(block, block.diag().diag())


@pytest.mark.parametrize("name", ["image-coupling-checkerboard", "image-coupling-channels"])
def test_image_couplings_keep_what_the_mask_says(name):
    case = LAYERS[name]
    layer = case.layer()
    kept = layer.mask.flatten()
    J = jacobian(layer, torch.randn(*case.shape, generator=torch.Generator().manual_seed(0)).double())
    assert torch.equal(J[kept][:, kept], torch.eye(int(kept.sum())).double())
    assert not J[kept][:, ~kept].any()
    block = J[~kept][:, ~kept]
    assert torch.equal(block, block.diag().diag())


def test_emerging_convolutions_are_two_triangular_matrices():
    case = LAYERS["emerging"]
    layer = case.layer()
    C, H, W = case.shape
    x = torch.randn(*case.shape, generator=torch.Generator().manual_seed(0)).double()
    J = jacobian(layer, x)
    order = torch.arange(C * H * W).reshape(C, H, W).permute(1, 2, 0).flatten()
    layer.after.data.zero_()
    L = jacobian(layer, x)[order][:, order]
    torch.testing.assert_close(L, L.tril())
    assert (L.tril(-1) != 0).any()
    scale = layer.log_diagonals[1].exp().repeat(H * W)
    U = J[order][:, order] @ torch.linalg.inv(L / scale.unsqueeze(-1))
    torch.testing.assert_close(U, U.triu(), atol=1e-10, rtol=0)


def test_conv1x1_is_a_matrix_of_channels():
    case = LAYERS["conv1x1"]
    layer = case.layer()
    p = numbers(layer)
    W = (np.tril(p["lower"], -1) + np.eye(3)) @ (np.triu(p["upper"], 1) + np.diag(np.exp(p["log_diagonal"])))
    x = torch.randn(7, *case.shape, generator=torch.Generator().manual_seed(0)).double()
    expected = np.einsum("dc,nchw->ndhw", W, x.numpy()) + p["loc"][:, None, None]
    np.testing.assert_allclose(layer()(x).detach(), expected, rtol=1e-12)


def test_qr_is_orthogonal_times_triangular():
    layer = LAYERS["qr"].layer()
    p = numbers(layer)
    Q = np.linalg.multi_dot([reflection(v) for v in p["reflections"]])
    R = np.triu(p["upper"], 1) + np.diag(np.exp(p["log_diagonal"]))
    np.testing.assert_allclose(jacobian(layer, torch.zeros(5).double()), Q @ R, atol=1e-12)
