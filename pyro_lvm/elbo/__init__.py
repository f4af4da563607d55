"""Estimators of the evidence lower bound and its relatives."""

from pyro_lvm.elbo.bounds import TraceIWAE_ELBO, TraceRenyi_ELBO, TraceVIMCO_ELBO
from pyro_lvm.elbo.inclusive import TraceCUBO, TraceWakePhi
from pyro_lvm.elbo.linear import Trace_ELBO, TraceMeanField_ELBO, TraceScore_ELBO, TraceSTL_ELBO
from pyro_lvm.elbo.wrappers import Beta, FreeBits

__all__ = [
    "Beta",
    "FreeBits",
    "TraceCUBO",
    "TraceIWAE_ELBO",
    "TraceMeanField_ELBO",
    "TraceRenyi_ELBO",
    "TraceSTL_ELBO",
    "TraceScore_ELBO",
    "TraceVIMCO_ELBO",
    "TraceWakePhi",
    "Trace_ELBO",
]
