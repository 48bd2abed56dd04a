"""`magnitude`: |w|, the usual yardstick. Nothing but the final weights."""

from __future__ import annotations

import numpy as np

from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["MAGNITUDE", "judge_magnitude"]


def judge_magnitude(study: Study) -> Judge:
    """Score = |w|."""
    return lambda name: Finding(np.abs(study.weight(name)))


MAGNITUDE = Criterion(
    name="magnitude",
    kind="statistic",
    description="absolute value of the final weight",
    judging=judge_magnitude,
    whole=(),
    source="Han et al. 2015 (arXiv 1506.02626)",
)
