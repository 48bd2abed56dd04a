"""`fisher-step`: w^2 * Sum g^2, how much the loss would notice the dependency's absence.

The diagonal Fisher approximation of the loss increase when w is set to zero, 1/2 w^2 E[g^2] (LeCun et al.
1990, Optimal Brain Damage, with the Fisher for the Hessian; Theis et al. 2018, arXiv 1801.05787), summed over
recorded steps. The gradients are those of whole steps, so they are batch means: noise averages out of them,
and the scores are no unbiased estimate of the per-sample Fisher. The factor 1/2 and the number of steps
change no order.
"""

from __future__ import annotations

import numpy as np

from gradtrace.evidence.definition import Criterion, Finding, Judge, Study

__all__ = ["FISHER_STEP", "judge_fisher_step"]


def judge_fisher_step(study: Study) -> Judge:
    """Score = w^2 * grad_sumsq, in float64."""

    def judge(name: str) -> Finding:
        weight = np.asarray(study.weights[name], np.float64)
        return Finding(weight**2 * np.asarray(study.record(name).grad_sumsq, np.float64))

    return judge


FISHER_STEP = Criterion(
    name="fisher-step",
    kind="ledger",
    description="w^2 times the summed squared step gradients: what the loss would notice if it went",
    judging=judge_fisher_step,
    needs=("grad_sumsq",),
)
