"""`movement`: -Sum_t g_t w_t, whether training pushed the weight away from zero (positive) or towards it.

Sanh et al. 2020, Movement Pruning, arXiv 2005.07683, equation 3 with the learning rate left out: under plain
gradient descent it is the sum of the moves along the weight. Weight decay and momentum are not in it.
"""

from __future__ import annotations

from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["MOVEMENT", "judge_movement"]


def judge_movement(study: Study) -> Judge:
    """Score = -grad_weight, the sum over recorded steps of -g w."""
    return lambda name: Finding(0.0 - study.total(name, "grad_weight"))


MOVEMENT = Criterion(
    name="movement",
    kind="ledger",
    description="whether the gradients pushed the weight away from zero, summed over the run",
    judging=judge_movement,
    needs=("grad_weight",),
    recorded_with="movement=True",
    whole=(),
    source="Sanh et al. 2020 (arXiv 2005.07683)",
)
