"""Ctrl-C at a good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Asked:
    """A handler that remembers, tells one around it, and leaves a second Ctrl-C to what was there before."""

    def __init__(self, before: Any) -> None:
        self.before, self.yes = before, False

    def __call__(self, number: int, frame: Any) -> None:
        self.yes = True
        signal.signal(signal.SIGINT, self.before)
        if isinstance(self.before, _Asked):
            self.before(number, frame)


_active: list[_Asked] = []  # the innermost last


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C between steps instead of within one; a second Ctrl-C acts at once.

    Where one call is made within another, one Ctrl-C is told to both, whenever it comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    if _active and _active[-1].yes:
        yield lambda: True
        return
    asked = _Asked(signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, asked)
    _active.append(asked)
    try:
        yield lambda: asked.yes
    finally:
        _active.pop()
        if not (asked.yes and isinstance(asked.before, _Asked)):  # which a second Ctrl-C is not to meet again
            signal.signal(signal.SIGINT, asked.before)
