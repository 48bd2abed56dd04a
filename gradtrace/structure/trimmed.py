"""Dead rows and columns removed: one sub-operator over the outputs and inputs that keep any dependency."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradtrace.structure.sub_operator import SubOperator

__all__ = ["trimmed"]


def trimmed(mask: NDArray[np.bool_]) -> tuple[SubOperator, ...]:
    """The one sub-operator that covers all that `mask` (outputs, inputs) keeps; none where all is dropped."""
    if not mask.any():
        return ()
    return (SubOperator(np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))),)
