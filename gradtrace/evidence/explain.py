"""`explain`: for each dependency, whether it was learned, whether it matters, and so why it stays or goes.

Two questions, two answers, never one sold as the other:

- *Learned* is a matter of significance: the `test` (departure) is confirmed at the false discovery rate `q`.
- *Matters* is a matter of size: the score `by` (fisher-step) is among the best `density`; without a density,
  it is above zero.

What matters is kept, confirmed or not: "not distinguishable from noise" is not "expendable", and at
convergence the gradient of an important weight has no direction either. What does not matter is dropped,
learned or not. One thing is told for certain: a dependency without a single event got nothing from the data,
and is dropped even where the density would have room for it.

What becomes of the dropped is another question, which validation answers: zero, reset to the opening balance,
or keep (see `gradtrace.apply_mask_`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.answering import answered
from gradtrace.evidence.confirm import Method
from gradtrace.evidence.criterion import DEFAULT, criterion
from gradtrace.evidence.definition import Criterion
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.matching import study_of
from gradtrace.evidence.named_arrays import NamedArrays
from gradtrace.evidence.question import Question
from gradtrace.evidence.same_run import check_same_run
from gradtrace.evidence.score import check_ledger, score
from gradtrace.evidence.select import select
from gradtrace.evidence.weights import read_weights

if TYPE_CHECKING:
    from gradtrace.ledger.reader import Ledger

__all__ = ["Explanation", "Reason", "explain"]


class Reason(IntEnum):
    """Why a dependency is dropped (below 3) or kept, as the numbers in `Explanation.reasons`."""

    NEVER_SUPPORTED = 0
    NOT_LEARNED = 1
    LEARNED_BUT_MINOR = 2
    MATTERS_UNCONFIRMED = 3
    MATTERS_AND_LEARNED = 4
    KEPT_WITH_ITS_UNIT = 5

    @property
    def kept(self) -> bool:
        """Whether dependencies with this reason are kept."""
        return self >= Reason.MATTERS_UNCONFIRMED

    @property
    def words(self) -> str:
        """The reason for a reader."""
        return _WORDS[self]


_WORDS = {
    Reason.NEVER_SUPPORTED: "never supported by any step",
    Reason.NOT_LEARNED: "neither learned nor among what matters",
    Reason.LEARNED_BUT_MINOR: "learned, but others matter more",
    Reason.MATTERS_UNCONFIRMED: "matters, though no direction was confirmed",
    Reason.MATTERS_AND_LEARNED: "matters and was learned",
    Reason.KEPT_WITH_ITS_UNIT: "never supported, but its tile or row group is kept",
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """The mask, and under the same names the `Reason` of each dependency, uint8."""

    mask: Mask
    reasons: NamedArrays[np.uint8]

    def counts(self) -> dict[str, dict[Reason, int]]:
        """Parameter -> reason -> dependencies, every reason listed."""
        found = {}
        for name, codes in self.reasons.items():
            numbers = np.bincount(codes.ravel(), minlength=len(Reason))
            found[name] = {reason: int(numbers[reason]) for reason in Reason}
        return found

    def to_json(self) -> dict[str, Any]:
        """Counts per parameter, the words, and what was asked."""
        counts = {
            name: {reason.name.lower(): count for reason, count in each.items()}
            for name, each in self.counts().items()
        }
        words = {reason.name.lower(): {"kept": reason.kept, "why": reason.words} for reason in Reason}
        return {
            "density": self.mask.density,
            "reasons": words,
            "parameters": counts,
            "provenance": self.mask.provenance,
        }


def explain(
    ledger: Ledger,
    weights: object,
    density: float | None = None,
    *,
    by: str | Criterion = DEFAULT,
    options: Mapping[str, Any] | None = None,
    test: str | Criterion = "departure",
    method: Method = "local",
    q: float = 0.1,
    scope: Literal["layer", "row", "global"] = "layer",
    granularity: str = "element",
    executor: Executor | None = None,
    step: Callable[[str], object] | None = None,
) -> Explanation:
    """Say of every dependency whether it was learned and whether it matters, and keep or drop it for that.

    `by` with its `options`, `density`, `scope` and `granularity` are for what matters, as for `score` and
    `select`; `test`, `method` and `q` for what was learned, as for `confirm`, always one family a parameter.

    A ledger larger than memory is walked over, some parameters at a time, on `executor`: any of
    `concurrent.futures`, or one like them, as dask's `Client.get_executor()`. None: in this process, and from
    2^25 dependencies on in a few new ones. The result is the same bits. Weights are sent along with each
    task, unless `weights` is the path of a safetensors file that the processes can reach. With scope "global"
    all scores are compared, and so taken at once, in this process. `step` is called with the name of each
    parameter that is done.

    Raises what `score`, `select` and `confirm` raise, InvalidValueError without a ledger and for what is no
    executor, and StateError where the ledger's entries were merged or voided meanwhile.
    """
    if ledger is None:
        raise InvalidValueError(
            "ledger",
            expected="a ledger, which says what was supported and learned",
            got="None",
            remedy="open one with gradtrace.Ledger.open(path)",
        )
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise InvalidValueError(
            "executor",
            expected="a concurrent.futures.Executor",
            got=type(executor).__name__,
            remedy="pass e.g. concurrent.futures.ThreadPoolExecutor()",
        )
    check_ledger(ledger)
    study = study_of(ledger, read_weights(weights))
    question = Question(by, dict(options or {}), density, scope, granularity, test, method, q)
    question.check(study)
    if "ledger" in (criterion(by).kind, criterion(test).kind):
        check_same_run(study, ledger)
    together: Mask | None = None
    if scope == "global" and density is not None:
        together = select(score(ledger, weights, by, **question.options), density, None, scope, granularity)
    codes: dict[str, NDArray[np.uint8]] = {}
    for answer in answered(question, ledger, study, executor):
        shape = study.record(answer.name).shape
        matters, learned, supported = (_unpacked(bits, shape) for bits in answer[1:])
        if together is not None:
            matters = together[answer.name]
        codes[answer.name] = _reasons(matters, learned, supported, whole=granularity != "element")
        if step is not None:
            step(answer.name)
    mask = {name: one >= Reason.MATTERS_UNCONFIRMED for name, one in codes.items()}
    for one in mask.values():
        one.flags.writeable = False
    return Explanation(Mask(mask, question.provenance(ledger, list(codes))), NamedArrays(codes))


def _unpacked(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=math.prod(shape)).view(np.bool_).reshape(shape)


def _reasons(
    matters: NDArray[np.bool_], learned: NDArray[np.bool_], supported: NDArray[np.bool_], *, whole: bool
) -> NDArray[np.uint8]:
    # A unit stays whole: what is computed as one block gains nothing by a hole.
    without = Reason.KEPT_WITH_ITS_UNIT if whole else Reason.NEVER_SUPPORTED
    never = (Reason.NEVER_SUPPORTED, without)
    table = np.array(
        [
            *(*never, *never),
            *(Reason.NOT_LEARNED, Reason.MATTERS_UNCONFIRMED),
            *(Reason.LEARNED_BUT_MINOR, Reason.MATTERS_AND_LEARNED),
        ],
        np.uint8,
    )
    codes = np.empty(matters.shape, np.uint8)
    np.take(
        table, matters + 2 * learned.view(np.uint8) + 4 * supported.view(np.uint8), out=codes, mode="clip"
    )
    codes.flags.writeable = False
    return codes
