"""The joint density over unconstrained latents, against the distributions' own formulas."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints

import pyro_lvm as lvm
from pyro_lvm.verdict.unconstrained import Unconstrained

Y = torch.tensor([0.3, -1.2, 2.0])


def model(y):
    sd = pyro.sample("sd", dist.Gamma(2.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(locs[z], sd), obs=y)


def by_hand(point):
    u_sd, u_weights, locs = point[0], point[1:3], point[3:]
    to_simplex = biject_to(constraints.simplex)
    sd, weights = u_sd.exp(), to_simplex(u_weights)
    parts = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, sd))
    return (
        dist.Gamma(2.0, 1.0).log_prob(sd)
        + u_sd
        + dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])).log_prob(weights)
        + to_simplex.log_abs_det_jacobian(u_weights, weights)
        + dist.Normal(0.0, 2.0).log_prob(locs).sum()
        + parts.log_prob(Y).sum()
    )


@pytest.fixture(scope="module")
def target():
    return Unconstrained(lvm.fit(model, "mean_field", Y, num_steps=1, progress=False))


def points(count=5):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


def test_density_and_gradient_are_those_of_the_formula(target):
    x = points()
    expected = torch.func.vmap(torch.func.grad_and_value(by_hand))(x)
    for compute in (target.value_and_gradient, target.traced(x)):
        value, gradient = compute(x)
        torch.testing.assert_close(value, expected[1])
        torch.testing.assert_close(gradient, expected[0])


def test_points_and_draws_are_each_others_inverse(target):
    x = points().reshape(1, 5, 6)
    draws = target.draws(x)
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        "sd": (1, 5),
        "weights": (1, 5, 3),
        "locs": (1, 5, 3),
    }
    torch.testing.assert_close(target.points({name: v[0] for name, v in draws.items()}), x[0], atol=1e-5, rtol=1e-5)


def test_the_largest_tensor_is_that_of_the_sum_over_states(target):
    assert target.numbers(points()[0]) >= len(Y) * 3


def test_discrete_latents_have_no_such_density():
    def counted(y):
        n = pyro.sample("n", dist.Poisson(3.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(n, 1.0), obs=y)

    def guide(y):
        pyro.sample("n", dist.Poisson(pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)))

    with pytest.raises(ValueError, match="'n' is discrete"):
        Unconstrained(lvm.fit(counted, guide, Y, num_steps=1, progress=False))
