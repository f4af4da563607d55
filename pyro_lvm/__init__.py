"""Latent variable models on Pyro and PyTorch."""

from pyro_lvm import elbo, flows, guides, models, plots, transforms
from pyro_lvm.diagnostics.against import against
from pyro_lvm.diagnostics.agreement import Agreement
from pyro_lvm.diagnostics.compare_elbos import compare_elbos
from pyro_lvm.diagnostics.diagnose import diagnose
from pyro_lvm.diagnostics.diagnosis import Diagnosis
from pyro_lvm.diagnostics.elbo_comparison import ELBOComparison
from pyro_lvm.diagnostics.to_arviz import to_arviz
from pyro_lvm.em.fit_em import fit_em
from pyro_lvm.em.result import EMResult
from pyro_lvm.em.run import EMState, NotMonotoneError
from pyro_lvm.importance import Estimate, Evidence
from pyro_lvm.load import load
from pyro_lvm.result import Result, prior_predictive
from pyro_lvm.svi.fit import fit
from pyro_lvm.svi.nonfinite import NonFiniteError
from pyro_lvm.svi.objective import Objective
from pyro_lvm.svi.result import SVIResult
from pyro_lvm.svi.stopping import FitState, StopWhenFlat
from pyro_lvm.version import __version__ as __version__

__all__ = [
    "Agreement",
    "Diagnosis",
    "ELBOComparison",
    "EMResult",
    "EMState",
    "Estimate",
    "Evidence",
    "FitState",
    "NonFiniteError",
    "NotMonotoneError",
    "Objective",
    "Result",
    "SVIResult",
    "StopWhenFlat",
    "against",
    "compare_elbos",
    "diagnose",
    "elbo",
    "fit",
    "fit_em",
    "flows",
    "guides",
    "load",
    "models",
    "plots",
    "prior_predictive",
    "to_arviz",
    "transforms",
]
