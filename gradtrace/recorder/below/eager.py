"""Compiled modules run eagerly in sampled steps: compiled code does not call hooks that came later."""

from __future__ import annotations

import sys

import torch

__all__ = ["EagerSteps"]


class EagerSteps:
    """Between `begin` and `end` torch.compile is set aside; nothing happens where it was never imported."""

    def __init__(self) -> None:
        self._stance: torch._dynamo.decorators.set_stance | None = None

    def begin(self) -> None:
        """Run what is compiled eagerly from here on; its compiled code is kept."""
        if self._stance is None and "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")

    def end(self) -> None:
        """Go back to what was in force before `begin`."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
