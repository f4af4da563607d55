"""Which steps of EM a model has that brings none along."""

from __future__ import annotations

from pyro_lvm.em.batch import AllRows
from pyro_lvm.em.generic import GenericSteps
from pyro_lvm.em.linear_gaussian import LinearGaussianSteps
from pyro_lvm.em.program import EMProgram
from pyro_lvm.em.run import Theta
from pyro_lvm.em.variational import VariationalSteps


def derived_steps(
    em: EMProgram, theta: Theta, rows: AllRows, e_step: str, m_step: str, online: float | None, seed: int
) -> GenericSteps | VariationalSteps:
    """The steps that follow from a model, of the kind that its latents ask for.

    Args:
        em: The model.
        theta: Where EM starts.
        rows: All of them.
        e_step: As in ``fit_em``.
        m_step: As in ``fit_em``.
        online: As in ``fit_em``.
        seed: Of what is random in an E-step.

    Raises:
        ValueError: for steps that the latents do not have.
    """
    numeric = "m_step='numeric'" if m_step == "numeric" else ""
    if em.gaussian is not None:
        if e_step not in ("auto", "exact") or online is not None:
            names = ", ".join(em.gaussian.names)
            raise ValueError(f"Gaussian latents ({names}) have the exact E-step of all rows, or take guide=")
        return LinearGaussianSteps(em, theta, rows, numeric=numeric)
    if em.objective is not None:
        return VariationalSteps(em, theta, rows, seed, numeric)
    if e_step == "variational":
        raise ValueError("e_step='variational' needs guide=, and every latent of this model can be summed out")
    kind = "exact" if e_step == "auto" else e_step
    return GenericSteps(em, theta, rows, kind, patient=online is not None, numeric=numeric)
