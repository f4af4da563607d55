"""A warning that points at the user's call, however deep it is given."""

from __future__ import annotations

import sys
import warnings


def warn(message: str) -> None:
    """Warn at the first line outside the package."""
    package, level = __name__.partition(".")[0], 1
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] == package:
        level += 1
    warnings.warn(message, RuntimeWarning, stacklevel=level + 1)
