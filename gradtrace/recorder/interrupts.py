"""Ctrl-C comes between any two instructions of the main thread: held back where that would lose data."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["held_back"]


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Handle an interrupt that comes in the block only at its end, or where what this gives is called.

    The handler that is in place then does what it always does, such as raising KeyboardInterrupt. Other
    threads are never interrupted, and nothing happens there.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield lambda: None
        return
    came: list[FrameType | None] = []

    def handle() -> None:
        if came:
            usual(signal.SIGINT, came.pop())

    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield handle
    finally:
        signal.signal(signal.SIGINT, usual)
        handle()
