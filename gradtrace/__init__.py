"""Records which weights the training data really supported, and runs what was supported, faster.

The whole public surface is here and loads on first use: importing this package imports neither lightning nor
triton, and torch only once something that needs it is named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gradtrace.errors import GradtraceError

if TYPE_CHECKING:
    from gradtrace.assessment.assess import assess
    from gradtrace.assessment.assessment import Assessment
    from gradtrace.comparison.compare import compare
    from gradtrace.comparison.comparison import Comparison
    from gradtrace.convert.anneal import anneal
    from gradtrace.convert.compensate import compensate_, compensation
    from gradtrace.convert.folding import folding
    from gradtrace.convert.measured_moments import input_moments
    from gradtrace.convert.placed import place_
    from gradtrace.convert.planning import plan
    from gradtrace.convert.routed_linear import RoutedLinear
    from gradtrace.convert.saving import load, save
    from gradtrace.convert.surgery import apply_mask_, convert_
    from gradtrace.convert.to_dense import to_dense_
    from gradtrace.convert.verify import verify
    from gradtrace.estimation.estimate import estimate
    from gradtrace.estimation.estimated import Estimate
    from gradtrace.estimation.traffic import Traffic
    from gradtrace.evidence.confirm import confirm
    from gradtrace.evidence.criterion import criteria
    from gradtrace.evidence.explain import explain
    from gradtrace.evidence.mask import Mask
    from gradtrace.evidence.score import Scores, score
    from gradtrace.evidence.select import select
    from gradtrace.evidence.undertrained import undertrained
    from gradtrace.ledger.reader import Ledger
    from gradtrace.recorder.recorder import Recorder
    from gradtrace.structure.placement import Placement, placement
    from gradtrace.structure.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "Assessment",
    "Comparison",
    "Estimate",
    "GradtraceError",
    "Ledger",
    "Mask",
    "Placement",
    "Plan",
    "Recorder",
    "RoutedLinear",
    "Scores",
    "Traffic",
    "anneal",
    "apply_mask_",
    "assess",
    "compare",
    "compensate_",
    "compensation",
    "confirm",
    "convert_",
    "criteria",
    "estimate",
    "explain",
    "folding",
    "input_moments",
    "load",
    "place_",
    "placement",
    "plan",
    "save",
    "score",
    "select",
    "to_dense_",
    "undertrained",
    "verify",
]

_HOME = {
    "Assessment": "assessment.assessment",
    "Comparison": "comparison.comparison",
    "Estimate": "estimation.estimated",
    "Ledger": "ledger.reader",
    "Mask": "evidence.mask",
    "Placement": "structure.placement",
    "Plan": "structure.plan",
    "Recorder": "recorder.recorder",
    "RoutedLinear": "convert.routed_linear",
    "Scores": "evidence.score",
    "Traffic": "estimation.traffic",
    "anneal": "convert.anneal",
    "apply_mask_": "convert.surgery",
    "assess": "assessment.assess",
    "compare": "comparison.compare",
    "compensate_": "convert.compensate",
    "compensation": "convert.compensate",
    "confirm": "evidence.confirm",
    "convert_": "convert.surgery",
    "criteria": "evidence.criterion",
    "estimate": "estimation.estimate",
    "explain": "evidence.explain",
    "folding": "convert.folding",
    "input_moments": "convert.measured_moments",
    "load": "convert.saving",
    "place_": "convert.placed",
    "placement": "structure.placement",
    "plan": "convert.planning",
    "save": "convert.saving",
    "score": "evidence.score",
    "select": "evidence.select",
    "to_dense_": "convert.to_dense",
    "undertrained": "evidence.undertrained",
    "verify": "convert.verify",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gradtrace' has no attribute {name!r}")
    value: object = getattr(import_module(f"gradtrace.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
