"""`support`: in how many recorded steps a dependency had a nonzero gradient. Zero means never supported."""

from __future__ import annotations

from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["SUPPORT", "judge_support"]


def judge_support(study: Study) -> Judge:
    """Score = events, the number of steps with |g| > threshold."""
    return lambda name: Finding(study.total(name, "events"))


SUPPORT = Criterion(
    name="support",
    kind="ledger",
    description="recorded steps in which the gradient was nonzero; zero means never supported",
    judging=judge_support,
    needs=("events",),
    whole=(),
)
