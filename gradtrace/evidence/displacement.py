"""`displacement`: how far a weight ended from where weight decay alone would have taken it.

|w_T - D(w_0)|, paired per weight: w_0 is the ledger's opening balance, D the run's own optimizer and schedule
replayed on zero gradients (see `decay`). Adam moves a weight however small its gradient, so this says whether
a dependency was moved, not whether it matters.
"""

from __future__ import annotations

import numpy as np

from gradtrace.evidence.decay import decayed
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["DISPLACEMENT", "judge_displacement"]


def judge_displacement(study: Study) -> Judge:
    """Score = |w_T - D(w_0)|. Raises UnsupportedError for an optimizer whose decay is unknown."""

    def judge(name: str) -> Finding:
        record = study.record(name)
        expected = decayed(np.asarray(record.opening, np.float64), record.history, name=name)
        return Finding(np.abs(np.asarray(study.weights[name], np.float64) - expected))

    return judge


DISPLACEMENT = Criterion(
    name="displacement",
    kind="ledger",
    description="distance from the opening balance as weight decay alone would have left it",
    judging=judge_displacement,
)
