"""Ready-made models, each a `pyro.nn.PyroModule` that works with plain Pyro too."""

from pyro_lvm.models.gaussian_mixture import GaussianMixture
from pyro_lvm.models.logistic_regression import BayesianLogisticRegression
from pyro_lvm.models.ppca import PPCA
from pyro_lvm.models.vae import VAE

__all__ = ["PPCA", "VAE", "BayesianLogisticRegression", "GaussianMixture"]
