"""Ready-made models, each a `pyro.nn.PyroModule` that works with plain Pyro too."""

from pyro_lvm.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from pyro_lvm.models.factor_analysis import FactorAnalysis
from pyro_lvm.models.flow_density import FlowDensity
from pyro_lvm.models.gaussian_mixture import GaussianMixture
from pyro_lvm.models.hmm import HMM
from pyro_lvm.models.lda import LDA
from pyro_lvm.models.logistic_regression import BayesianLogisticRegression
from pyro_lvm.models.mixture import Mixture
from pyro_lvm.models.ppca import PPCA
from pyro_lvm.models.rotation import varimax
from pyro_lvm.models.vae import VAE

__all__ = [
    "HMM",
    "LDA",
    "PPCA",
    "VAE",
    "BayesianGaussianMixture",
    "BayesianLogisticRegression",
    "FactorAnalysis",
    "FlowDensity",
    "GaussianMixture",
    "Mixture",
    "varimax",
]
