"""Compiled modules run eagerly in sampled steps: compiled code does not call hooks that came later."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable

import torch

__all__ = ["EagerSteps"]


class _Stance:
    """The process's one stance of torch.compile, set aside while any step is being sampled.

    Steps may end in another order than they began: one that was let go of ends whenever its memory is
    reclaimed, within another's step too. So the first saves what was in force and the last brings it back.
    """

    def __init__(self) -> None:
        # Reclaiming memory may end a step in the midst of another's begin, on the same thread.
        self._lock = threading.RLock()
        self._steps = 0
        self._restore: Callable[[None, None, None], object] | None = None

    def set_aside(self) -> None:
        with self._lock:
            self._steps += 1
            if self._steps == 1:
                self._restore = torch.compiler.set_stance("force_eager").__exit__

    def bring_back(self) -> None:
        with self._lock:
            self._steps -= 1
            if self._steps == 0 and self._restore is not None:
                self._restore(None, None, None)
                self._restore = None


_stance = _Stance()


class EagerSteps:
    """Between `begin` and `end` torch.compile is set aside; nothing happens where it was never imported."""

    def __init__(self) -> None:
        self._back: weakref.finalize[[], EagerSteps] | None = None

    def begin(self) -> None:
        """Run what is compiled eagerly from here on; its compiled code is kept."""
        if self._back is None and "torch._dynamo" in sys.modules:
            _stance.set_aside()
            # The stance is the whole process's, also after a training that was let go of within a step.
            self._back = weakref.finalize(self, _stance.bring_back)
            self._back.atexit = False

    def end(self) -> None:
        """Go back to what was in force before any step began."""
        if self._back is not None:
            self._back()
            self._back = None
