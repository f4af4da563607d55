"""Sharp splines in single precision, where rounding leaves the bins."""

import pytest
import torch

from pyro_lvm.transforms import Spline

SPREAD = 5.0  # of the raw parameters: bins of all widths, and slopes from 0.001 to 20


def raw(num, seed=0):
    return SPREAD * torch.randn(num, 23, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_round_trips_of_random_points_are_finite(seed):
    spline, params = Spline(8), raw(300_000, seed)
    x = 10 * torch.rand(300_000, generator=torch.Generator().manual_seed(seed)) - 5
    y, log_slope = spline.forward(x, params)
    back, other = spline.inverse(y, params)
    for found in (y, log_slope, back, other):
        assert found.isfinite().all()
    assert ((y.abs() <= 5 + 1e-5) & (back.abs() <= 5 + 1e-5)).all()
    again = spline.forward(back, params)[0]
    rounding = (y - spline.forward(x.double(), params.double())[0]).abs()
    assert (again - y).abs().quantile(0.999) < rounding.quantile(0.999)  # where slopes reach a hundred


def test_gradients_on_the_knots_and_beside_them_are_finite():
    spline, params = Spline(8), raw(20_000)
    left, width = spline._edges(params[:, :8])
    bottom, height = spline._edges(params[:, 8:16])
    for inverse, edges in ((False, left + width), (True, bottom + height)):
        for at in (edges, torch.nextafter(edges, torch.tensor(9.0)), torch.nextafter(edges, torch.tensor(-9.0))):
            at = at.clone().requires_grad_()
            given = params.clone().requires_grad_()
            call = spline.inverse if inverse else spline.forward
            found, log_slope = call(at, given.unsqueeze(1).expand(-1, 8, -1))
            assert found.isfinite().all()
            assert log_slope.isfinite().all()
            (found.sum() + log_slope.sum()).backward()
            assert at.grad.isfinite().all()
            assert given.grad.isfinite().all()
