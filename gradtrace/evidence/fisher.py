"""`fisher`: w^2 * (second moment below the step)^a, how much the loss would notice the absence.

As `fisher-step`, with the squares taken position by position (tokens, pixels) or sample by sample before
they are summed: the empirical Fisher's diagonal (Theis et al. 2018, arXiv 1801.05787; Singh and Alistarh
2020, arXiv 2004.14340), in which noise does not average out. Recorded on sampled steps only; the number of
steps changes no order within a parameter. A parameter that was recorded at the level of steps only, because
its module could not be watched, is scored by its squared step gradients as `fisher-step` does; compare such
scores with those of other parameters (scope "global") with care.
"""

from __future__ import annotations

from typing import Literal

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.definition import Criterion, Finding, Judge, Study
from gradtrace.evidence.tempered import EXPONENT, check_tempering, tempered

__all__ = ["FISHER", "judge_fisher"]

UNITS = {"position": "position_sumsq", "sample": "sample_sumsq"}


def judge_fisher(
    study: Study,
    *,
    unit: Literal["position", "sample"] | None = None,
    exponent: float = EXPONENT,
    per_row: bool = False,
) -> Judge:
    """Score = w^2 * (Sum of squares)^exponent, in float64.

    `unit`: what one square is of; None takes positions where they were recorded, else samples. `per_row`: the
    sum of squares over its mean for that output. Raises UnknownNameError for a unit that was not recorded.
    """
    check_tempering(exponent, per_row)
    if unit is not None and unit not in tuple(UNITS):
        raise InvalidValueError("unit", expected="'position', 'sample' or None", got=repr(unit))
    recorded = [one for one, accumulator in UNITS.items() if accumulator in study.accumulators]
    if unit is not None and unit not in recorded:
        raise UnknownNameError(
            f"sums of squares of each {unit}",
            expected=f"the accumulator {UNITS[unit]!r} in the ledger",
            got=", ".join(sorted(study.accumulators)),
            remedy=f"pass unit={recorded[0]!r}",
        )
    accumulator = UNITS[unit or recorded[0]]

    def judge(name: str) -> Finding:
        own = accumulator if study.offers(name, accumulator) else "grad_sumsq"
        return Finding(
            tempered(
                study.weight(name),
                study.total(name, own),
                exponent=exponent,
                per_row=per_row,
                outputs=study.axes(name)[0],
            )
        )

    return judge


FISHER = Criterion(
    name="fisher",
    kind="ledger",
    description="w^2 times the summed squared gradients of single positions or samples",
    judging=judge_fisher,
    needs_one_of=tuple(UNITS.values()),
    recorded_with='below="positions" or "samples"',
    source="Theis et al. 2018 (arXiv 1801.05787); Singh and Alistarh 2020 (arXiv 2004.14340)",
)
