"""Pyro's estimators of the ELBO as ours: the same meaning, all particles at a time."""

from __future__ import annotations

import copy

from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.infer import Trace_ELBO as PyroTrace_ELBO
from pyro.infer import TraceMeanField_ELBO as PyroTraceMeanField_ELBO

from pyro_lvm.elbo.estimator import Estimator
from pyro_lvm.elbo.linear import Trace_ELBO, TraceMeanField_ELBO

_OURS: dict[type[ELBO], type[Estimator]] = {
    PyroTrace_ELBO: Trace_ELBO,
    TraceEnum_ELBO: Trace_ELBO,
    PyroTraceMeanField_ELBO: TraceMeanField_ELBO,
}


def translate(elbo: ELBO) -> Estimator | None:
    """An estimator of ours with the meaning of the given one; None if there is none."""
    if isinstance(elbo, Estimator):
        return copy.copy(elbo)
    ours = _OURS.get(type(elbo))
    return None if ours is None else ours(elbo.num_particles)
