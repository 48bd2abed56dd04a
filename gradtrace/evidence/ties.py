"""How much of a mask was decided by lot, because scores were equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["tied_share"]


def tied_share(
    scores: Mapping[str, NDArray[np.floating[Any]]], masks: Mapping[str, NDArray[np.bool_]]
) -> float:
    """Share of the kept dependencies whose score equals that of a dropped one of the same parameter.

    Between those the lot decided, not the criterion: counts tie often, weights hardly ever.
    """
    tied = total = 0
    for name, kept in masks.items():
        values = np.asarray(scores[name])
        tied += int(np.isin(values[kept], values[~kept]).sum())
        total += int(kept.sum())
    return tied / total if total else 0.0
