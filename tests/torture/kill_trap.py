"""Kills the process it lives in at a chosen one of its operations on the disk, whichever thread does it."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["Trap"]

_OPERATIONS = ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")


class Trap:
    """Counts the operations since `phase` was first entered; the one numbered `operation` is never done."""

    def __init__(self, phase: str, operation: int) -> None:
        self._phase, self._operation = phase, operation
        self._armed = False
        # Two threads never draw the same number from it.
        self._numbers = itertools.count()
        for name in _OPERATIONS:
            setattr(os, name, self._deadly(getattr(os, name)))

    def enter(self, phase: str) -> None:
        """Say what the training begins to do now."""
        self._armed |= phase == self._phase

    def _deadly(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            if self._armed and next(self._numbers) == self._operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return operation
