"""Adapters that put the recorder into training frameworks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradtrace.callbacks.huggingface import HFGradientLedger
    from gradtrace.callbacks.lightning import GradientLedger
    from gradtrace.callbacks.structural_annealing import StructuralAnnealing

__all__ = ["GradientLedger", "HFGradientLedger", "StructuralAnnealing"]


def __getattr__(name: str) -> object:
    # Each framework is imported when its adapter is asked for, so that none is needed for another's.
    if name == "GradientLedger":
        from gradtrace.callbacks.lightning import GradientLedger

        return GradientLedger
    if name == "HFGradientLedger":
        from gradtrace.callbacks.huggingface import HFGradientLedger

        return HFGradientLedger
    if name == "StructuralAnnealing":
        from gradtrace.callbacks.structural_annealing import StructuralAnnealing

        return StructuralAnnealing
    raise AttributeError(f"module 'gradtrace.callbacks' has no attribute {name!r}")
