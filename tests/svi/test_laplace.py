"""Modes by damped Newton steps, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_lvm.data import Data
from pyro_lvm.svi.coordinates import Coordinates
from pyro_lvm.svi.laplace import find_mode
from pyro_lvm.svi.low_point import descend
from pyro_lvm.svi.modes import find_modes
from pyro_lvm.svi.objective import Objective

SCALES = torch.tensor([1e-4, 1.0, 1e5])


def quadratic(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(3, 3, generator=generator).to(dtype) / SCALES.to(dtype)
    centre = torch.tensor([2e-3, -1.0, 3e4], dtype=dtype)
    return root.T @ root + torch.diag(SCALES.to(dtype) ** -2), centre


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gaussian_of_very_different_scales_is_found_with_its_mass(dtype):
    precision, centre = quadratic(dtype)

    def loss(x):
        return 0.5 * (x - centre) @ precision @ (x - centre) + 4.0

    mode = find_mode(loss, torch.zeros(3, dtype=dtype))
    assert mode.distance(centre) < 1e-2
    torch.testing.assert_close(mode.precision, precision.double(), rtol=1e-4, atol=0.0)
    exact = 1.5 * math.log(2 * math.pi) - 0.5 * torch.logdet(precision.double()).item() - 4.0
    assert mode.log_mass == pytest.approx(exact, abs=1e-2)


def test_a_start_where_the_loss_curves_the_wrong_way_comes_to_a_minimum():
    mode = find_mode(lambda x: (x.square() - 4).square().sum() / 10, torch.tensor([0.1, -0.2]))
    torch.testing.assert_close(mode.loc, torch.tensor([2.0, -2.0]), atol=1e-3, rtol=0)


def test_where_a_loss_raises_it_is_infinite():
    """The minimum of -3 log x + x is at 3; a Newton step from 7 goes to -2.3, where there is no Cholesky factor."""

    def loss(x):
        return (x - 6 * torch.linalg.cholesky(x.reshape(1, 1)).log().flatten()).sum()

    start = torch.tensor([7.0])
    with pytest.raises(RuntimeError, match="cholesky"):
        loss(torch.tensor([7 - (1 - 3 / 7) / (3 / 7**2)]))
    torch.testing.assert_close(find_mode(loss, start).loc, torch.tensor([3.0]), atol=1e-3, rtol=0)
    assert loss(descend(loss, start, torch.ones(1))) < loss(start)
    assert find_mode(loss, torch.tensor([-1.0])) is None


@pytest.mark.parametrize("loss", [lambda x: -x.sum(), lambda x: -x.square().sum(), lambda x: (x * torch.nan).sum()])
def test_where_there_is_no_minimum_there_is_no_mode(loss):
    assert find_mode(loss, torch.zeros(2)) is None


def test_coordinates_of_a_covariance_and_of_a_gaussian_in_coordinates():
    generator = torch.Generator().manual_seed(0)
    root, inner = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    loc = torch.randn(4, generator=generator, dtype=torch.float64)
    at = Coordinates.of_covariance(loc, root @ root.T)
    torch.testing.assert_close(at.root @ at.root.T, root @ root.T)
    torch.testing.assert_close(at.root, at.root.tril())
    shift = torch.ones(4, dtype=torch.float64)
    moved = at.after(shift, inner)
    torch.testing.assert_close(moved.loc, loc + at.root @ shift)
    torch.testing.assert_close(moved.root @ moved.root.T, at.root @ inner @ inner.T @ at.root.T)
    alone = at.independent()
    torch.testing.assert_close(alone.scale, torch.linalg.inv(root @ root.T).diagonal().rsqrt())
    assert alone.tril is None


@pytest.mark.parametrize("kind", ["diagonal", "tril", "wide"])
def test_gradients_are_pulled_back_by_the_transposed_map(kind):
    generator = torch.Generator().manual_seed(0)
    matrix, gradients = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    scale, wide = matrix[0].exp(), torch.linalg.qr(matrix[:, :2]).Q * torch.tensor([2.0, 0.5]).double()
    tril = matrix.tril(-1) + torch.eye(4)
    forms = {
        "diagonal": (Coordinates(scale, scale), torch.eye(4).double()),
        "tril": (Coordinates(scale, scale, tril), tril),
        "wide": (Coordinates(scale, scale, wide=wide), torch.eye(4) + wide @ wide.T),
    }
    at, form = forms[kind]
    torch.testing.assert_close(at.pulled(gradients), gradients @ torch.diag(scale) @ form)
    if kind == "wide":  # the covariance S L L^T S by its factor
        torch.testing.assert_close(torch.eye(4) + at.factor @ at.factor.T, form @ form.T)


def modes_of(model, *data):
    def prepare(guide):
        objective = Objective(model, guide)
        objective.prepare(Data(data))
        return objective

    return find_modes(prepare, model, seed=0)


def test_two_modes_have_their_shares():
    """Of 0.7 Normal(-5, 1) + 0.3 Normal(5, 2)."""

    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        parts = dist.Normal(torch.tensor([-5.0, 5.0]), torch.tensor([1.0, 2.0]))
        pyro.factor("p", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), parts).log_prob(x))

    modes = modes_of(model)
    assert modes.places[0].loc.item() == pytest.approx(-5.0, abs=0.01)
    assert modes.places[0].scale.item() == pytest.approx(1.0, abs=0.01)
    assert modes.elsewhere == pytest.approx(0.3, abs=0.01)
    assert "70% of the mass of 2 modes" in str(modes)


def test_a_funnel_has_no_mode_and_starts_at_the_median():
    def model():
        log_scale = pyro.sample("log_scale", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(9), (2 * log_scale).exp()).to_event(1))

    modes = modes_of(model)
    assert modes.found == []
    assert modes.elsewhere == 0.0
    assert "no maximum was found from 8 starts" in str(modes)
    assert modes.places[0].scale.eq(1).all()


def test_many_latents_start_at_a_low_point_or_as_guides_by_name_do():
    scales = torch.logspace(-1.4, 1.4, 1_001)

    def model():
        pyro.sample("x", dist.Normal(scales, scales).to_event(1))

    modes = modes_of(model)
    low, named = modes.places
    torch.testing.assert_close(low.loc / scales, torch.ones(1_001), atol=0.01, rtol=0)
    torch.testing.assert_close(low.scale, scales)
    assert named.scale.eq(0.1).all()
    assert "more latents than can be looked through" in str(modes)
