"""`displacement`: how far a weight ended from where weight decay alone would have taken it.

|w_T - D(w_0)|, paired per weight: w_0 is the ledger's opening balance, D the run's own optimizer and schedule
replayed on zero gradients (see `decay`). Adam moves a weight however small its gradient, so this says whether
a dependency was moved, not whether it matters. What rounding alone makes of the replay is part of it: some
1e-7 of the weight in float32, 4e-3 in bfloat16.
"""

from __future__ import annotations

import numpy as np

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.decay import decayed, recorded_history
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["DISPLACEMENT", "judge_displacement"]


def judge_displacement(study: Study, *, decay: bool = True) -> Judge:
    """Score = |w_T - D(w_0)|; with decay=False, |w_T - w_0|.

    Raises UnsupportedError for an optimizer whose decay is unknown, StateError for a ledger that does not
    tell it.
    """
    if not isinstance(decay, bool | np.bool_):
        raise InvalidValueError("decay", expected="True or False", got=repr(decay))

    def judge(name: str) -> Finding:
        record = study.record(name)
        expected = np.asarray(record.opening, np.float64)
        if decay:
            expected = decayed(expected, recorded_history(record), name=name)
        return Finding(np.abs(study.weight(name) - expected))

    return judge


DISPLACEMENT = Criterion(
    name="displacement",
    kind="ledger",
    description="distance from the opening balance as weight decay alone would have left it",
    judging=judge_displacement,
    source="decay: Loshchilov and Hutter 2019 (arXiv 1711.05101); Kingma and Ba 2015 (arXiv 1412.6980)",
)
