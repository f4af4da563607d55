"""A low point of many numbers and their scales, against quadratic functions."""

import torch

from pyro_lvm.svi.low_point import curvatures, descend, deviations

SCALES = torch.logspace(-2, 2, 200)
CENTRE = torch.linspace(-1, 1, 201)


def coupled(x):
    """Minus the log-density of z_i = s_i (u + e_i), u and e_i standard normal, about a centre."""
    x = x - CENTRE
    return 0.5 * (x[0].square() + (x[1:] / SCALES - x[0]).square().sum())


def test_the_lowest_point_is_found_in_units_of_the_scales():
    units = torch.cat([torch.ones(1), SCALES])
    low = descend(coupled, torch.zeros(201), units)
    assert ((low - CENTRE) / units).abs().max() < 1e-3


def test_signs_leave_a_diagonal_as_it_is():
    found = curvatures(lambda x: 0.5 * (x / SCALES).square().sum(), torch.zeros(200), 2 * SCALES, seed=0)
    torch.testing.assert_close(found, torch.full((200,), 4.0))


def test_scales_are_found_beside_others_ten_thousand_times_as_large():
    """The precision has 1 + 200 and 1 / s_i^2 on its diagonal."""
    found = deviations(coupled, torch.zeros(201), seed=0)
    exact = torch.cat([torch.tensor([201.0]).rsqrt(), SCALES])
    assert (found / exact).log().abs().max() < 0.3


def test_where_there_is_no_second_derivative_scales_are_one():
    assert deviations(torch.sum, torch.zeros(3), seed=0).eq(1).all()
