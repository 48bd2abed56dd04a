"""Are these the weights of the run that the ledger recorded? Told by what no gradient ever moved.

A weight without a single event is where decay alone takes it (see `decay`), or on the way there from where it
began. Weights of another run are not, but for a quarter, or half of them where decay was strong. Names and
shapes cannot tell: another seed has the same. Adam with L2 is left out, for it swings around zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gradtrace.errors import MismatchError, UnsupportedError
from gradtrace.evidence.decay import decayed, rules_of
from gradtrace.evidence.definition import Array, Study
from gradtrace.evidence.total_blocks import total_blocks
from gradtrace.ledger.walk import OPENING

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["check_same_run"]

ENOUGH = 64
PRESENT = 0.75  # of another run's half may have the right sign; three quarters of 64 do once in 10^4 runs
EXAMINED = 8_000_000  # elements: a model in which everything has events is not read whole for this
ROUNDING = 0.02  # of the weight; what bfloat16 and a long decay leave is well below it


def check_same_run(study: Study, ledger: Ledger) -> None:
    """Raise MismatchError where many weights without an event are not where this run left them.

    Of a part of the steps nothing is asked: gradients outside of it may have moved them. The first parameter
    with at least 64 of them decides; without one, and with an event threshold above 0, nothing is known.
    Zeros are on the way: a mask may have put them there.
    """
    if getattr(ledger, "partial", False):
        return
    if "events" not in ledger.accumulators or getattr(ledger, "settings", {}).get("threshold") != 0:
        return
    examined = 0
    for name, shape in study.shapes.items():
        examined += math.prod(shape)
        if examined > EXAMINED:
            return
        try:
            rules = rules_of(study.record(name).history, name)
        except UnsupportedError:
            continue
        if any(rule.kind == "adam" for rule in rules):
            continue
        opening, now = _never_supported(study, ledger, name)
        if opening.size < ENOUGH:
            continue
        along, size = now * np.sign(opening), np.abs(opening)
        decayed_to = decayed(opening, study.record(name).history, name=name)
        between = (along >= -ROUNDING * size) & (along <= (1 + ROUNDING) * size)
        in_place = between | (np.abs(now - decayed_to) <= ROUNDING * size)
        if in_place.mean() < PRESENT:
            raise MismatchError(
                f"weights of {name!r} are not those of the run that the ledger recorded",
                expected=f"its {in_place.size} weights without an event where they began",
                got=f"{in_place.size - int(in_place.sum())} of them elsewhere",
                remedy="pass the weights that this run ended with",
            )
        return


def _never_supported(study: Study, ledger: Ledger, name: str) -> tuple[Array, Array]:
    """Opening balance and final weight of the dependencies without an event, flat float64."""
    weight = study.weights[name].reshape(-1)
    opening, now = [np.empty(0)], [np.empty(0)]
    for _, part, totals in total_blocks(ledger, [name], ("events", OPENING)):
        never = totals["events"] == 0
        opening.append(np.asarray(totals[OPENING][never], np.float64))
        now.append(np.asarray(weight[part][never], np.float64))
    return np.concatenate(opening), np.concatenate(now)
