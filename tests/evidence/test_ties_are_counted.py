from __future__ import annotations

import numpy as np

from gradtrace.evidence.ties import tied_share


def test_ties_between_kept_and_dropped_are_counted_within_each_parameter() -> None:
    scores = {"u": np.array([[3.0, 1.0, 1.0, 1.0]]), "v": np.array([[1.0, 2.0]])}
    masks = {"u": np.array([[True, True, True, False]]), "v": np.array([[False, True]])}
    assert tied_share(scores, masks) == 2 / 4
    assert tied_share({"v": scores["v"]}, {"v": np.zeros((1, 2), np.bool_)}) == 0.0
