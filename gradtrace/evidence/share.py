"""The parameters of one task, judged in one walk over their totals: three bits a dependency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import GradtraceError
from gradtrace.evidence.confirm import METHODS
from gradtrace.evidence.criterion import criterion
from gradtrace.evidence.definition import Array, Finding, Study
from gradtrace.evidence.gathering import gathering_of
from gradtrace.evidence.kept_weights import KeptWeights
from gradtrace.evidence.question import Question
from gradtrace.evidence.score import check_scores
from gradtrace.evidence.select import best_of
from gradtrace.evidence.stored_weights import StoredWeights
from gradtrace.evidence.total_blocks import total_blocks

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["Answer", "Share", "answers"]


class Answer(NamedTuple):
    """Of one parameter, flat and packed into bits: what matters, what was learned, what was supported."""

    name: str
    matters: NDArray[np.uint8]
    learned: NDArray[np.uint8]
    supported: NDArray[np.uint8]


@dataclass(frozen=True)
class Share:
    """A task that can be sent to another process: some parameters, whose weights and records `study` names.

    `study` has no records: the ledger, which opens itself again over there, has them.
    """

    question: Question
    ledger: Ledger
    study: Study

    @classmethod
    def of(cls, question: Question, ledger: Ledger, study: Study, names: Sequence[str]) -> Share:
        """These parameters of the study."""
        return cls(question, ledger, replace(study.only(names), records=None, inputs={}))


def answers(share: Share) -> list[Answer]:
    """Judge the parameters of a share in one walk over their totals."""
    return list(_answers(share))


def _answers(share: Share) -> Iterator[Answer]:
    asked, ledger = share.question, share.ledger
    weights = share.study.weights
    names = list(weights)
    kept = KeptWeights(weights.places) if isinstance(weights, StoredWeights) else weights
    records = {name: ledger[name] for name in names}
    study = replace(share.study, weights=kept, records=records, inputs=ledger.inputs)
    by, test = criterion(asked.by), criterion(asked.test)
    score_needs, score_of = gathering_of(by, study, asked.options)
    test_needs, test_of = gathering_of(test, study, {})
    needs = tuple(dict.fromkeys((*test_needs, *score_needs, "events")))
    blocks = total_blocks(ledger, names, needs)
    try:
        for name, part, totals in blocks:
            size = math.prod(study.record(name).shape)
            if part.start == 0:
                scoring, testing = score_of(name), test_of(name)
                supported = np.empty(size, np.bool_)
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below, by name
                scoring.add(part, totals)
                testing.add(part, totals)
            np.greater(totals["events"], 0, out=supported[part])
            if part.stop == size:
                with np.errstate(over="ignore", invalid="ignore"):
                    # What is done with is let go: of a large parameter each is a good part of the memory.
                    learned = _learned(asked, name, testing.finding())
                    del testing
                    matters = _matters(asked, name, scoring.finding().score)
                    del scoring
                yield Answer(name, matters, learned, np.packbits(supported))
                del supported
    except GradtraceError:
        # That a chunk is damaged is seen at its end: then nothing of what was made of it is worth a word.
        for _ in blocks:
            pass
        raise


def _learned(asked: Question, name: str, tested: Finding) -> NDArray[np.uint8]:
    check_scores(name, tested.score, criterion(asked.test).name)
    evidence: Any = tested.evalue if asked.method == "e-bh" else tested.pvalue
    return np.packbits(METHODS[asked.method](evidence, asked.q))


def _matters(asked: Question, name: str, scores: Array) -> NDArray[np.uint8]:
    check_scores(name, scores, criterion(asked.by).name)
    if asked.density is None or asked.scope == "global":
        return np.packbits(scores > 0)
    return np.packbits(best_of(scores, asked.density, asked.scope, asked.granularity))
