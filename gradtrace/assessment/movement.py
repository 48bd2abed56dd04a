"""How far a parameter ended from where weight decay alone would have taken it, beside its own size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import StateError, UnsupportedError
from gradtrace.evidence.decay import decayed, recorded_history

if TYPE_CHECKING:
    from gradtrace.ledger.reader import ParameterRecord

__all__ = ["moved"]

_BLOCK = 2**20  # elements in float64 at once


def moved(record: ParameterRecord, weight: NDArray[Any]) -> float | None:
    """||w_T - D(w_0)|| / ||w_0||, D as in `displacement`; None where w_0 is all zero.

    Where the decay is not recorded or cannot be replayed, w_0 is taken as it was. Float64, in blocks.
    """
    opening, final = np.asarray(record.opening).reshape(-1), np.asarray(weight).reshape(-1)
    try:
        history = recorded_history(record)
        decayed(np.zeros(1), history, name=record.name)
    except (StateError, UnsupportedError):
        history = ()
    way = size = 0.0
    for begin in range(0, opening.size, _BLOCK):
        start = opening[begin : begin + _BLOCK].astype(np.float64)
        step = final[begin : begin + _BLOCK] - decayed(start, history, name=record.name)
        way, size = way + float(step @ step), size + float(start @ start)
    return float(np.sqrt(way / size)) if size else None
