"""A question put to all parameters, share by share: here, on processes of our own, or on any executor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from gradtrace.evidence.definition import Study
from gradtrace.evidence.executing import on_processes, processors, results_in_order
from gradtrace.evidence.question import Question
from gradtrace.evidence.share import Answer, Share, answers

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["answered"]

SHARE = 2**23  # dependencies of a task: a second of work, and few chunks that two tasks must read
PAYS = 2**25  # from so many on, processes save more than the second that they take to start
MOST = 4  # processes: each holds a chunk of every accumulator and the scores of a parameter
_BYTES = 2**30  # within which they stay


def answered(question: Question, ledger: Ledger, study: Study, executor: Executor | None) -> Iterator[Answer]:
    """Yield the answers of all parameters, in order: the same bits wherever they were found."""
    sizes = {name: math.prod(shape) for name, shape in study.shapes.items()}
    shares = [Share.of(question, ledger, study, names) for names in _parted(sizes, question.across)]
    if executor is None and sum(sizes.values()) >= PAYS and _can_be_sent(question, ledger):
        most = min(MOST, processors(), max(1, _BYTES // (2**28 + 24 * max(sizes.values()))))
        found = on_processes(answers, shares, most) if min(most, len(shares)) > 1 else map(answers, shares)
    else:
        found = results_in_order(answers, shares, executor)
    for some in found:
        yield from some


def _parted(sizes: dict[str, int], together: bool) -> list[list[str]]:
    """Names in order, in runs of `SHARE` dependencies or one parameter more."""
    runs: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if room <= 0:
            runs.append([])
            room = sum(sizes.values()) + 1 if together else SHARE
        runs[-1].append(name)
        room -= size
    return runs


def _can_be_sent(question: Question, ledger: Ledger) -> bool:
    # A criterion of the user's own may be of the script, and a ledger in memory is in this process only.
    named = isinstance(question.by, str) and isinstance(question.test, str)
    return named and not getattr(ledger, "path", "memory://").startswith("memory://")
