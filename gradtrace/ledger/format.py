"""The words of ledger format 1.0 in one place; docs/ledger-format.md says what they mean on disk."""

from __future__ import annotations

from gradtrace.ledger.entry import Entry
from gradtrace.ledger.header import ACCUMULATORS, BELOW, FORMAT, KNOWN, ON_REQUEST
from gradtrace.ledger.inputs import InputInfo
from gradtrace.ledger.layout import Layout
from gradtrace.ledger.parameter import ParameterInfo
from gradtrace.ledger.piece import Piece

__all__ = [
    "ACCUMULATORS",
    "BELOW",
    "FORMAT",
    "KNOWN",
    "ON_REQUEST",
    "Entry",
    "InputInfo",
    "Layout",
    "ParameterInfo",
    "Piece",
]
