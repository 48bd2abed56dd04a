"""What a criterion is: a named function that looks at a study and judges its parameters one at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.evidence.named_arrays import unknown_name

if TYPE_CHECKING:
    from gradtrace.ledger.reader import ParameterRecord

__all__ = ["Array", "Criterion", "Finding", "Judge", "Study"]

Array: TypeAlias = NDArray[np.float64]


class Finding(NamedTuple):
    """What a criterion says of one parameter: float64 arrays of the parameter's shape.

    `score`: larger = better supported. `pvalue`: in [0, 1], None where the criterion is no test.
    """

    score: Array
    pvalue: Array | None = None


Judge: TypeAlias = Callable[[str], Finding]


@dataclass(frozen=True)
class Study:
    """What is looked at: final weights by name, and for each what the ledger and the model say of it.

    `weights` are float32 or float64 arrays of at least two dimensions, all finite. `records` has the same
    names, or is None without a ledger. `classes` maps a name to its module's class names, most specific
    first; `rounding` to the relative precision of the stored weight (2^-7 for bfloat16).
    """

    weights: Mapping[str, NDArray[np.floating[Any]]]
    records: Mapping[str, ParameterRecord] | None
    classes: Mapping[str, tuple[str, ...]]
    rounding: Mapping[str, float]

    def record(self, name: str) -> ParameterRecord:
        """The ledger's record of a parameter; only criteria of kind "ledger" may ask."""
        assert self.records is not None
        return self.records[name]


@dataclass(frozen=True)
class Criterion:
    """A way to score dependencies: its name, what it needs, and one line that says what it measures.

    `kind` is "ledger" (needs a ledger), "statistic" (final weights are enough) or "control". `needs` lists
    the ledger's accumulators it reads. `judging(study, **options)` checks the options and returns the judge.
    """

    name: str
    kind: Literal["ledger", "statistic", "control"]
    description: str
    judging: Callable[..., Judge]
    needs: tuple[str, ...] = ()
    has_pvalues: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """Option name -> its default."""
        parameters = list(inspect.signature(self.judging).parameters.values())
        return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}

    def judge(self, study: Study, options: Mapping[str, Any]) -> Judge:
        """The judge for a study. Raises UnknownNameError for an option that the criterion does not have."""
        for option in options:
            if option not in self.options:
                raise unknown_name(f"option of criterion {self.name!r}:", option, self.options)
        return self.judging(study, **options)
