"""`fisher-step`: w^2 * (Sum g^2)^a, how much the loss would notice the dependency's absence.

The gradients are those of whole steps, so they are batch means: noise averages out of them, and the scores
are no unbiased estimate of the per-sample Fisher (see `fisher`). The factor 1/2 and the number of steps
change no order. With exponent=1 it is the diagonal Fisher's; what exponent and `per_row` do: `tempered`..
"""

from __future__ import annotations

from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.tempered import EXPONENT, check_tempering, tempered

__all__ = ["FISHER_STEP", "judge_fisher_step"]


def judge_fisher_step(study: Study, *, exponent: float = EXPONENT, per_row: bool = False) -> Judge:
    """Score = w^2 * grad_sumsq^exponent, in float64; `per_row`: grad_sumsq over its mean for that output."""
    check_tempering(exponent, per_row)

    def judge(name: str) -> Finding:
        return Finding(
            tempered(
                study.weight(name),
                study.total(name, "grad_sumsq"),
                exponent=exponent,
                per_row=per_row,
                outputs=study.axes(name)[0],
            )
        )

    return judge


FISHER_STEP = Criterion(
    name="fisher-step",
    kind="ledger",
    description="w^2 times the summed squared step gradients: what the loss would notice if it went",
    judging=judge_fisher_step,
    needs=("grad_sumsq",),
    whole=("per_row",),
    source="LeCun et al. 1990; Theis et al. 2018 (arXiv 1801.05787)",
)
