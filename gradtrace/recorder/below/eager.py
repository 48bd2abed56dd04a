"""Compiled modules run eagerly in sampled steps: compiled code does not call hooks that came later."""

from __future__ import annotations

import sys
import weakref

import torch

__all__ = ["EagerSteps"]


class EagerSteps:
    """Between `begin` and `end` torch.compile is set aside; nothing happens where it was never imported."""

    def __init__(self) -> None:
        self._back: weakref.finalize[[None, None, None], EagerSteps] | None = None

    def begin(self) -> None:
        """Run what is compiled eagerly from here on; its compiled code is kept."""
        if self._back is None and "torch._dynamo" in sys.modules:
            stance = torch.compiler.set_stance("force_eager")
            # The stance is the whole process's, also after a training that was let go of within a step.
            self._back = weakref.finalize(self, stance.__exit__, None, None, None)
            self._back.atexit = False

    def end(self) -> None:
        """Go back to what was in force before `begin`."""
        if self._back is not None:
            self._back()
            self._back = None
