"""What the arguments of ``fit_em`` may be."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from pyro_lvm.batches import LoaderRows
from pyro_lvm.checks import check_choice, check_count

E_STEPS = {  # what is said of an enumerated latent
    "auto": "enumerated",
    "exact": "enumerated",
    "hard": "its best state",
    "monte_carlo": "ten draws of its state",
    "variational": "enumerated",
}
M_STEPS = ("auto", "numeric")


def check_steps(e_step: Any, m_step: Any, guide: Any, tol: Any) -> None:
    """Refuse unknown steps, steps that contradict each other, and what is no tolerance.

    Raises:
        ValueError: that says what was given.
    """
    check_choice("e_step", e_step, E_STEPS)
    check_choice("m_step", m_step, M_STEPS)
    if guide is not None and e_step not in ("auto", "variational"):
        raise ValueError(f"a guide makes EM variational, and e_step={e_step!r} takes none")
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not tol >= 0:
        raise ValueError(f"tol must be a number that is not negative, in nats a row; got {tol!r}")


def check_rows(loader: LoaderRows | None, num_rows: Any, sample_weight: Any, rows: Any) -> None:
    """Refuse what a ``DataLoader`` makes by itself, and a number of rows where it is known.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: that names the argument.
    """
    if num_rows is not None:
        check_count("num_rows", num_rows)
        if loader is None:
            raise ValueError("num_rows= says how many rows a DataLoader has; these data have their own number")
    for name, value in {"sample_weight": sample_weight, "rows": rows}.items():
        if loader is not None and value is not None:
            raise ValueError(f"{name} cannot be given with a DataLoader, which makes the batches itself")
    if loader is not None and loader.loader.drop_last:
        raise ValueError("EM sweeps over all rows, and this DataLoader leaves some out: make it without drop_last=True")


def check_online(
    online: Any, batch_size: int | None, e_step: str, guide: Any, num_restarts: int, data: tuple[Any, ...]
) -> None:
    """Refuse what stepwise EM cannot do.

    Raises:
        ValueError: that says what it needs.
    """
    if online is None:
        return
    if isinstance(online, bool) or not isinstance(online, int | float) or not 0.5 < online <= 1:
        raise ValueError(f"online must be an exponent above 0.5 and at most 1; got {online!r}")
    if batch_size is None or any(isinstance(d, DataLoader) for d in data):
        raise ValueError("online EM takes the data themselves and batch_size=, the rows of a minibatch")
    if e_step not in ("auto", "exact") or guide is not None or num_restarts > 1:
        raise ValueError("online EM has the exact E-step and one start")
