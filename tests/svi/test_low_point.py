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
    away = (found / exact).log()
    assert away.abs().max() < 0.7
    assert away.abs().mean() < 0.1


def test_scales_are_found_where_each_number_is_coupled_with_all_others():
    """The precision is I + 0.1 in each of 1,100 by 1,100 places: the noise of a curvature has a deviation of 0.4."""
    found = deviations(lambda x: 0.5 * (x.square().sum() + 0.1 * x.sum().square()), torch.zeros(1_100), seed=0)
    away = (found * 1.1**0.5).log()
    assert away.abs().max() < 1.1
    assert away.abs().mean() < 0.2


def test_numbers_whose_second_derivative_is_none_have_the_scale_of_the_others():
    found = deviations(lambda x: 2.0 * x.square().sum() + (x[:2] - x[:2].detach()).norm(), torch.ones(5), seed=0)
    torch.testing.assert_close(found, torch.full((5,), 0.5))


def test_where_there_is_no_second_derivative_scales_are_one():
    assert deviations(torch.sum, torch.zeros(3), seed=0).eq(1).all()
