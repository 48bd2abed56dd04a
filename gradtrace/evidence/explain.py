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

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.confirm import Method, confirm
from gradtrace.evidence.criterion import DEFAULT
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.named_arrays import NamedArrays
from gradtrace.evidence.score import score
from gradtrace.evidence.select import select

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
    by: str = DEFAULT,
    options: Mapping[str, Any] | None = None,
    test: str = "departure",
    method: Method = "local",
    q: float = 0.1,
    scope: Literal["layer", "global"] = "layer",
    granularity: str = "element",
) -> Explanation:
    """Say of every dependency whether it was learned and whether it matters, and keep or drop it for that.

    `by` with its `options`, `density`, `scope` and `granularity` are for what matters, as for `score` and
    `select`; `test`, `method` and `q` for what was learned, as for `confirm`, always one family a parameter.

    Raises what `score`, `select` and `confirm` raise, and InvalidValueError without a ledger.
    """
    if ledger is None:
        raise InvalidValueError(
            "ledger",
            expected="a ledger, which says what was supported and learned",
            got="None",
            remedy="open one with gradtrace.Ledger.open(path)",
        )
    scores = score(ledger, weights, by, **dict(options or {}))
    if density is None:
        matters = Mask({name: one > 0 for name, one in scores.items()}, scores.provenance)
    else:
        matters = select(scores, density, scope=scope, granularity=granularity)
    learned = confirm(score(ledger, weights, test), method, q)
    reasons = {}
    for name, kept in matters.items():
        supported = np.asarray(ledger[name].events) > 0
        reasons[name] = _reasons(kept, learned[name], supported, whole=granularity != "element")
    mask = Mask(
        {name: codes >= Reason.MATTERS_UNCONFIRMED for name, codes in reasons.items()},
        {**matters.provenance, "test": learned.provenance},
    )
    return Explanation(mask, NamedArrays(reasons))


def _reasons(
    matters: NDArray[np.bool_], learned: NDArray[np.bool_], supported: NDArray[np.bool_], *, whole: bool
) -> NDArray[np.uint8]:
    codes = np.where(
        matters,
        np.where(learned, Reason.MATTERS_AND_LEARNED, Reason.MATTERS_UNCONFIRMED),
        np.where(learned, Reason.LEARNED_BUT_MINOR, Reason.NOT_LEARNED),
    )
    # A unit stays whole: what is computed as one block gains nothing by a hole.
    without = np.where(matters & whole, Reason.KEPT_WITH_ITS_UNIT, Reason.NEVER_SUPPORTED)
    return np.where(supported, codes, without).astype(np.uint8)
