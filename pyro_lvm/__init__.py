"""Latent variable models on Pyro and PyTorch."""

from pyro_lvm import elbo, flows, guides, models, plots, transforms
from pyro_lvm.diagnostics.against import against
from pyro_lvm.diagnostics.agreement import Agreement
from pyro_lvm.diagnostics.calibrate import calibrate
from pyro_lvm.diagnostics.calibration import Calibration
from pyro_lvm.diagnostics.compare_elbos import compare_elbos
from pyro_lvm.diagnostics.compare_models import compare_models
from pyro_lvm.diagnostics.diagnose import diagnose
from pyro_lvm.diagnostics.diagnosis import Diagnosis
from pyro_lvm.diagnostics.elbo_comparison import ELBOComparison
from pyro_lvm.diagnostics.mixtures import posterior_similarity
from pyro_lvm.diagnostics.model_comparison import ModelComparison
from pyro_lvm.diagnostics.relabelling import Relabelled, relabel
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
    "Calibration",
    "Diagnosis",
    "ELBOComparison",
    "EMResult",
    "EMState",
    "Estimate",
    "Evidence",
    "FitState",
    "ModelComparison",
    "NonFiniteError",
    "NotMonotoneError",
    "Objective",
    "Relabelled",
    "Result",
    "SVIResult",
    "StopWhenFlat",
    "against",
    "calibrate",
    "compare_elbos",
    "compare_models",
    "diagnose",
    "elbo",
    "fit",
    "fit_em",
    "flows",
    "guides",
    "load",
    "models",
    "plots",
    "posterior_similarity",
    "prior_predictive",
    "relabel",
    "to_arviz",
    "transforms",
]
