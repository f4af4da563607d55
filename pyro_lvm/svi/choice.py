"""Whether a fit runs eagerly or as a compiled program, decided once, before its first step."""

from __future__ import annotations

import logging

from pyro_lvm import randomness
from pyro_lvm.svi.compiled import CompiledLoop
from pyro_lvm.svi.loop import EagerLoop
from pyro_lvm.tracing import NotCompilable
from pyro_lvm.warn import warn

_log = logging.getLogger(__name__)

# Measured on two cores: what an eager step takes for each operation of the traced step, and what compiling takes.
_SECONDS_AN_OPERATION = 5e-6
_SECONDS_TO_COMPILE = 5.0
_SECONDS_TO_COMPILE_AN_OPERATION = 10e-3
FEWEST_STEPS = 2_001  # with fewer, no step is large enough for compiling to pay, so that it is not even traced


def choose_loop(
    loop: EagerLoop, compile: bool | str, num_steps: int, seed: int, watched: bool, recorded: bool | None = None
) -> EagerLoop | CompiledLoop:
    """The loop in which a fit is to run.

    Args:
        loop: The eager loop, which a compiled one contains.
        compile: Of the user.
        num_steps: Of the fit.
        seed: Of the fit.
        watched: Whether callbacks or schedulers run between the blocks.
        recorded: What was chosen for the same fit before.

    Raises:
        ValueError: if compiling is required and fails; it says why.
    """
    if compile is False or recorded is False:
        return loop
    automatic = compile == "auto" and recorded is None
    if automatic and num_steps < FEWEST_STEPS:
        _log.info("compile='auto': eager, since compiling would not pay within %d steps", num_steps)
        return loop
    if automatic and any(v.device.type != "cpu" for v in loop.params.values()):
        _log.info("compile='auto': eager, since compiled steps were measured on CPUs alone")
        return loop
    random_state = randomness.get_state()
    try:
        made = CompiledLoop(loop, seed, compile is True, watched)
        pays = num_steps * made.scan.size * _SECONDS_AN_OPERATION
        costs = _SECONDS_TO_COMPILE + made.scan.size * _SECONDS_TO_COMPILE_AN_OPERATION
        told = f"{num_steps} steps of {made.scan.size} operations"
        if automatic and pays < costs:
            _log.info("compile='auto': eager, since compiling would not pay for %s", told)
            return loop
        made.scan.compile()
    except Exception as error:  # what is wrong with the fit itself, the eager loop tells better
        if compile is True:
            raise ValueError(f"compile=True: {_reason(error)}") from error
        warn(f"the fit runs eagerly, for it cannot be compiled: {_reason(error)}")
        return loop
    finally:
        randomness.set_state(random_state)
    _log.info("compile=%r: compiled, %s", compile, told)
    return made


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, NotCompilable) else f"{type(error).__name__}: {error}"
