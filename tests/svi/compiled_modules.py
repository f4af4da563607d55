"""Programs of torch's and Pyro's modules, and models of the package, on which compiled fits are compared."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from pyro_lvm.models import PPCA, VAE, BayesianLogisticRegression, GaussianMixture

from .compiled_programs import PROGRAMS, linear_data, normal, program

__all__ = ["PROGRAMS"]


class Autoencoder(nn.Module):
    """Of torch's modules, registered by ``pyro.module``."""

    def __init__(self, *between):
        super().__init__()
        bias = not between  # before a batch norm its gradient is but rounding
        self.encoder = nn.Sequential(nn.Linear(4, 6, bias), *between, nn.Tanh(), nn.Linear(6, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_width = self.encoder(x).chunk(2, -1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, log_width.exp()).to_event(1))


def bits():
    return ((normal(22, 4) + normal(22, 1, seed=1)) > 0).to(torch.get_default_dtype())


@program
def autoencoder():
    torch.manual_seed(1)
    parts = Autoencoder()
    return parts.model, parts.guide, (bits(),)


@program
def autoencoder_batch_norm():
    torch.manual_seed(1)
    parts = Autoencoder(nn.BatchNorm1d(6))
    return parts.model, parts.guide, (bits(),)


@program
def autoencoder_dropout():
    torch.manual_seed(1)
    parts = Autoencoder(nn.Dropout(0.3))
    return parts.model, parts.guide, (bits(),)


class PyroAutoencoder(PyroModule):
    """Of Pyro's modules, with a constrained parameter and a module that is shared by nobody but this."""

    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](2, 3)
        self.encoder = PyroModule[nn.Linear](3, 2)
        self.width = PyroParam(torch.full((2,), 0.4), constraint=constraints.positive)
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), self.width).to_event(1))


@program
def pyro_autoencoder():
    torch.manual_seed(1)
    parts = PyroAutoencoder()
    return parts, parts.guide, (linear_data(20)[0] + 1.0,)


class BayesianRegression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.noise = PyroSample(dist.LogNormal(0.0, 1.0))

    def forward(self, x, y):
        noise, mean = self.noise, self.linear(x).squeeze(-1)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)


@program
def pyro_sample():
    torch.manual_seed(1)
    model = BayesianRegression()
    return model, autoguide.AutoNormal(model), linear_data(20)


@program
def ppca():
    torch.manual_seed(1)
    x = normal(22, 2, seed=1) @ normal(2, 4, seed=2) + 0.3 * normal(22, 4)
    model = PPCA(2, 4).initialize(x)
    model.loc = model.loc.detach() + 0.5  # at the mean its gradient is but rounding
    return model, None, (x,)


@program
def vae():
    torch.manual_seed(1)
    return VAE(4, 2, hidden=(5,)), None, (bits(),)


@program
def gaussian_mixture():
    torch.manual_seed(1)
    return GaussianMixture(2, 2), None, (normal(24, 2) + torch.tensor([2.0, -2.0]).repeat(12)[:, None],)


@program
def logistic_classes():
    torch.manual_seed(1)
    x, y = linear_data(24)
    return BayesianLogisticRegression(3, num_classes=3), "mean_field", (x, (y > 0).long() + (y > 1))
