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


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C between steps instead of within one; a second Ctrl-C acts at once.

    Where one call is made within another, both are told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = _Asked(signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, asked)
    try:
        yield lambda: asked.yes
    finally:
        if not (asked.yes and isinstance(asked.before, _Asked)):  # which a second Ctrl-C is not to meet again
            signal.signal(signal.SIGINT, asked.before)
