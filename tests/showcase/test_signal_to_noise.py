"""How clear the gradients of the importance-weighted bound are, against what Rainforth et al. (2018) have proved.

Their toy: z_i ~ N(mu, 1), x_i ~ N(z_i, 1) in 20 dimensions, q(z_i) = N(A x_i + b, 2/3), with mu, A and b at their
optimum but for errors of 0.01. The signal-to-noise ratio of a gradient g is |E g| / sqrt(tr Cov g). For the guide it
falls like 1 / sqrt(K), or rises like sqrt(K) if the gradient is doubly reparametrised (Tucker et al. 2019); for the
model it rises like sqrt(K).
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.vectorize import repeat

D = 20
VARIANCE = 2 / 3  # of the guide; that of the posterior is 1/2
BLOCKS = 24  # of repeats, for standard errors by the jackknife
FAR = D + 4 * math.sqrt(2 * D)  # for a chi-square number with D degrees of freedom


class Toy:
    """The toy near its optimum."""

    def __init__(self, num_rows):
        noise = torch.randn(2, num_rows, D)
        self.x = torch.randn(D) + noise.sum(0)
        mu = self.x.mean(0)
        optimum = {"mu": mu, "A": torch.eye(D) / 2, "b": mu / 2}
        self.start = {name: value + 0.01 * torch.randn_like(value) for name, value in optimum.items()}

    def model(self, x):
        mu = pyro.param("mu", self.start["mu"])
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        A, b = pyro.param("A", self.start["A"]), pyro.param("b", self.start["b"])
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x @ A.mT + b, math.sqrt(VARIANCE)).to_event(1))

    def gradients(self, num_particles, gradient, num_repeats):
        """Of the bound with respect to the guide's b and the model's mu: ``[R, D]`` each."""
        elbo = lvm.elbo.TraceIWAE_ELBO(num_particles, gradient=gradient)
        objective = lvm.Objective(self.model, self.guide, elbo)
        params = {name: value.detach() for name, value in objective.init(self.x).items()}
        of_loss = torch.func.grad(lambda params: objective(params, self.x))
        return {name: -value for name, value in repeat(lambda: of_loss(params), num_repeats).items()}

    def limit_of_b(self):
        """What K times the expected gradient for b tends to: minus that of half the chi-square divergence of q from p.

        E log mean w = log p(x) - chi2 / (2 K) + O(1 / K^2), where 1 + chi2 = E_p [p / q] of two normals is in closed
        form.
        """
        b = self.start["b"].clone().requires_grad_()
        p, q = 2.0, 1 / VARIANCE  # precisions
        distance = self.x @ self.start["A"].mT + b - (self.x + self.start["mu"]) / 2
        log_mean = 0.5 * math.log(p**2 / (q * (2 * p - q))) + p * q / (2 * p - q) * distance.square()
        return torch.autograd.grad(-0.5 * log_mean.sum(1).exp().sum(), b)[0]


def squared_signal(g):
    """|E g|^2, without the bias that noise adds to a squared mean."""
    return g.mean(0).square().sum() - squared_noise(g) / len(g)


def squared_noise(g):
    return g.var(0).sum()


def slope_of_ratio(num_particles, signal, gradients):
    """The slope of the log signal-to-noise ratio in log K, and its standard error by a jackknife over repeats.

    Args:
        num_particles: Each K.
        signal: Repeats of a gradient with the mean in question, ``[R, D]`` for each K.
        gradients: Repeats of the gradient itself.
    """
    log_num = torch.tensor(num_particles).log()
    log_num = log_num - log_num.mean()

    def slope(kept):
        squares = [squared_signal(kept(s)) / squared_noise(kept(g)) for s, g in zip(signal, gradients, strict=True)]
        return (log_num @ torch.stack(squares).log() / log_num.square().sum()).item() / 2

    fewer = [slope(lambda g, out=block: g[torch.arange(len(g)) % BLOCKS != out]) for block in range(BLOCKS)]
    return slope(lambda g: g), (BLOCKS - 1) / math.sqrt(BLOCKS) * torch.tensor(fewer).std().item()


def distance_of_means(g, mean):
    """Chi-square distributed, if ``mean`` is E g."""
    return ((g.mean(0) - mean).square() / g.var(0)).sum().item() * len(g)


@pytest.mark.parametrize(
    "num_rows, num_particles, num_draws",
    [
        (64, [64, 512], 8_192),
        pytest.param(64, [128, 512, 2_048], 65_536, marks=pytest.mark.slow),
    ],
    ids=["short", "long"],
)
def test_the_signal_to_noise_ratio_has_its_slopes(num_rows, num_particles, num_draws):
    """The laws hold as K grows. From K = 64 on, the next order in 1 / K still bends this toy's slopes by up to 0.04."""
    toy = Toy(num_rows)
    found = {
        gradient: [toy.gradients(K, gradient, max(BLOCKS, num_draws // K)) for K in num_particles]
        for gradient in ("total", "dreg")
    }
    of_b = {gradient: [g["b"] for g in gradients] for gradient, gradients in found.items()}
    of_mu = [torch.cat([total["mu"], dreg["mu"]]) for total, dreg in zip(*found.values(), strict=True)]

    for K, total, dreg in zip(num_particles, of_b["total"], of_b["dreg"], strict=True):
        distance = distance_of_means(total, dreg.mean(0))
        print(f"K = {K}: means of both gradients for b, chi-square {distance:.1f} with {D} degrees of freedom")
        assert distance < FAR
    limit = toy.limit_of_b()
    away = (num_particles[-1] * of_b["dreg"][-1].mean(0) - limit).norm() / limit.norm()
    of_log_likelihood = (toy.x - toy.start["mu"]).sum(0) / 2
    distance = distance_of_means(of_mu[-1], of_log_likelihood)
    print(f"at the last K: gradient for b {away:.1%} from its limit; for mu, chi-square {distance:.1f} from its own")
    assert away < 0.05
    assert distance < FAR

    # The mean of the total gradient drowns in its noise. The doubly reparametrised gradient has the same mean.
    for name, signal, gradients, expected in [
        ("guide, total", of_b["dreg"], of_b["total"], -0.5),
        ("guide, doubly reparametrised", of_b["dreg"], of_b["dreg"], 0.5),
        ("model", of_mu, of_mu, 0.5),
    ]:
        estimate, error = slope_of_ratio(num_particles, signal, gradients)
        print(f"{name}: slope {estimate:.3f} +- {error:.3f}, in the limit {expected}")
        assert error < 0.03
        assert estimate == pytest.approx(expected, abs=4 * error + 0.04)
