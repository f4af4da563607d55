"""Which estimator of the ELBO a program gets."""

from __future__ import annotations

import copy
import math
from typing import Any

from pyro.infer import ELBO, RenyiELBO, ReweightedWakeSleep, TraceEnum_ELBO
from pyro.infer.tracetmc_elbo import TraceTMC_ELBO

from pyro_lvm.elbo.estimator import Estimator
from pyro_lvm.elbo.linear import Trace_ELBO
from pyro_lvm.elbo.translate import translate
from pyro_lvm.program import Program


def resolve_elbo(given: ELBO | None, program: Program, weighted: bool) -> ELBO:
    """The estimator that a program gets: that of :mod:`pyro_lvm.elbo` where there is one, else Pyro's, made ready.

    Args:
        given: What the user asked for, if anything.
        program: Model and guide.
        weighted: Whether rows have weights.

    Raises:
        ValueError: for an estimator that has no right form for the program.
    """
    elbo = Trace_ELBO() if given is None else given
    ours = None if program.guide_enumerates and type(elbo) in (Trace_ELBO, TraceEnum_ELBO) else translate(elbo)
    if program.sites.enumerated and not isinstance(elbo, TraceEnum_ELBO | TraceTMC_ELBO | Estimator):
        raise ValueError(
            f"the sites {list(program.sites.enumerated)} are marked for enumeration, which "
            f"{type(elbo).__name__} does not do: use TraceEnum_ELBO"
        )
    if ours is not None:
        return ours
    if type(elbo) is Trace_ELBO:  # of ours; a guide that enumerates is Pyro's affair
        elbo = TraceEnum_ELBO(elbo.num_particles)
    if weighted and isinstance(elbo, TraceEnum_ELBO):
        raise ValueError(
            "sample_weight with a guide that enumerates sites has no estimator: leave the sites to the model"
        )
    if weighted and isinstance(elbo, RenyiELBO | ReweightedWakeSleep):
        raise ValueError(
            f"{type(elbo).__name__} would take the weights of rows as powers of their density, inside the "
            "logarithm of an average over particles: use pyro_lvm.elbo.TraceRenyi_ELBO or TraceWakePhi"
        )
    elbo = copy.copy(elbo)
    if math.isinf(elbo.max_plate_nesting):
        elbo.max_plate_nesting = program.max_plate_nesting + (elbo.vectorize_particles and elbo.num_particles > 1)
    return elbo


def check_elbo(elbo: Any, name: str = "elbo") -> None:
    """Refuse what is no ELBO.

    Raises:
        TypeError: that says what was given under this name.
    """
    if not isinstance(elbo, ELBO):
        hint = f"; write {elbo.__name__}()" if isinstance(elbo, type) else ""
        raise TypeError(f"{name} must be a pyro.infer.ELBO; got {elbo!r}{hint}")
