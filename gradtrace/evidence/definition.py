"""What a criterion is: a named function that looks at a study and judges its parameters one at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.evidence.named_arrays import unknown_name
from gradtrace.evidence.stored_weights import StoredWeights
from gradtrace.evidence.tail import Tail

if TYPE_CHECKING:
    from gradtrace.ledger.reader import ParameterRecord

__all__ = ["Array", "Criterion", "Finding", "Gathering", "Judge", "Study"]

Array: TypeAlias = NDArray[np.float64]


class Finding(NamedTuple):
    """What a criterion says of one parameter: float64 arrays of the parameter's shape.

    `score`: larger = better supported. `pvalue`: in [0, 1], None where the criterion is no test. `evalue`: at
    least 0 and of mean at most 1 under the null, None where the criterion gives none.
    """

    score: Array
    pvalue: Array | Tail | None = None
    evalue: Array | None = None


Judge: TypeAlias = Callable[[str], Finding]


class Gathering(Protocol):
    """A parameter judged from totals that come block by block, so that they are never all in memory."""

    def add(self, part: slice, totals: Mapping[str, NDArray[Any]]) -> None:
        """Take the totals of the elements `part`, flat, of all of the criterion's `needs`."""

    def finding(self) -> Finding:
        """The finding once all are there: the same as the judge's, bit for bit."""


@dataclass(frozen=True)
class Study:
    """What is looked at: final weights by name, and for each what the ledger and the model say of it.

    `weights` are float32 or float64 arrays of at least two dimensions, all finite. `records` has the same
    names, or is None without a ledger. `classes` maps a name to its module's class names, most specific
    first; `rounding` to the relative precision of the stored weight (2^-7 for bfloat16). `accumulators` are
    the names of what the ledger recorded, `inputs` its records of modules' inputs by the module's name.
    """

    weights: Mapping[str, NDArray[np.floating[Any]]]
    records: Mapping[str, ParameterRecord] | None
    classes: Mapping[str, tuple[str, ...]]
    rounding: Mapping[str, float]
    accumulators: frozenset[str] = frozenset()
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        if isinstance(self.weights, StoredWeights):
            return self.weights.shapes
        return {name: weight.shape for name, weight in self.weights.items()}

    def only(self, names: Collection[str]) -> Study:
        """The part of it that these parameters are."""
        weights: Mapping[str, NDArray[np.floating[Any]]]
        if isinstance(self.weights, StoredWeights):
            weights = self.weights.chosen({name: name for name in names})
        else:
            weights = {name: self.weights[name] for name in names}
        records = self.records
        return replace(
            self,
            weights=weights,
            records=None if records is None else {name: records[name] for name in names},
            classes={name: self.classes[name] for name in names if name in self.classes},
            rounding={name: self.rounding[name] for name in names if name in self.rounding},
        )

    def record(self, name: str) -> ParameterRecord:
        """The ledger's record of a parameter; only criteria of kind "ledger" may ask."""
        assert self.records is not None
        return self.records[name]

    def total(self, name: str, accumulator: str) -> Array:
        """A recorded sum of a parameter, float64; only criteria whose `needs` name it may ask."""
        return np.asarray(getattr(self.record(name), accumulator), np.float64)

    def offers(self, name: str, accumulator: str) -> bool:
        """Whether a sum was recorded, and of this parameter too: evidence below the step not always is."""
        asked = getattr(self.record(name), "offers", None)
        return accumulator in self.accumulators and (asked is None or bool(asked(accumulator)))

    def input_squares(self, name: str) -> Array:
        """Sum of the squares of what a parameter is multiplied with, flat, from the ledger.

        Raises UnknownNameError where the inputs of its module were not recorded.
        """
        module = self.record(name).info.module
        if module not in self.inputs:
            raise UnknownNameError(
                f"moments of the inputs of {name!r}",
                expected="them in the ledger",
                got="none recorded of its module",
                remedy="pass inputs= with those of every parameter",
            )
        return np.asarray(self.inputs[module].sumsq, np.float64)

    def weight(self, name: str) -> Array:
        """The final weight in float64."""
        return np.asarray(self.weights[name], np.float64)

    def axes(self, name: str) -> tuple[int, int]:
        """Which dimension of a parameter counts its outputs and which its inputs: (0, 1) but for (in, out).

        An Embedding's inputs are its rows: a token picks one, and the columns are what comes out.
        """
        info = None if self.records is None else self.records[name].info
        if getattr(info, "orientation", "") == "in,out":
            return 1, 0
        flipped = {"Conv1D", "Embedding", "EmbeddingBag"}.intersection(self.classes.get(name, ()))
        return (1, 0) if flipped else (0, 1)


@dataclass(frozen=True)
class Criterion:
    """A way to score dependencies: its name, what it needs, and one line that says what it measures.

    `kind` is "ledger" (needs a ledger), "statistic" (final weights are enough) or "control". `needs` lists
    the ledger's accumulators it reads, of which `needs_one_of` lists those where any one will do; a value for
    the option `instead` takes their place, and `recorded_with` is the recorder's option for them. `source` is
    where the formula comes from. `judging(study, **options)` checks the options and returns the judge.

    For parameters that come in blocks: `gathering(study, **options)` judges them so, from blocks of the
    opening balance too where `opening` is set; else, where `whole` is
    not None, the judge can be asked block by block unless one of those options is set. `across` are the
    options that speak of several parameters.
    """

    name: str
    kind: Literal["ledger", "statistic", "control"]
    description: str
    judging: Callable[..., Judge]
    needs: tuple[str, ...] = ()
    needs_one_of: tuple[str, ...] = ()
    instead: str = ""
    recorded_with: str = ""
    source: str = ""
    has_pvalues: bool = False
    has_evalues: bool = False
    gathering: Callable[..., Callable[[str], Gathering]] | None = None
    opening: bool = False
    whole: tuple[str, ...] | None = None
    across: tuple[str, ...] = ()

    @property
    def options(self) -> Mapping[str, Any]:
        """Option name -> its default."""
        parameters = list(inspect.signature(self.judging).parameters.values())
        return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}

    def missing(self, accumulators: Container[str]) -> tuple[str, ...]:
        """What it needs and cannot find among these accumulators."""
        lacking = tuple(need for need in self.needs if need not in accumulators)
        if self.needs_one_of and not any(need in accumulators for need in self.needs_one_of):
            lacking += (" or ".join(self.needs_one_of),)
        return lacking

    def judge(self, study: Study, options: Mapping[str, Any]) -> Judge:
        """The judge for a study.

        Raises UnknownNameError for an option that the criterion does not have and for an accumulator that it
        needs and the ledger lacks, InvalidValueError where it needs a ledger and there is none.
        """
        for option in options:
            if option not in self.options:
                raise unknown_name(f"option of criterion {self.name!r}:", option, self.options)
        if self.instead and options.get(self.instead) is not None:
            return self.judging(study, **options)
        if self.kind == "ledger" and study.records is None:
            raise InvalidValueError(
                "ledger",
                expected=f"a ledger for criterion {self.name!r}",
                got="None",
                remedy="open one with gradtrace.Ledger.open(path), or use e.g. by='magnitude'",
            )
        for need in self.missing(study.accumulators):
            how = f", or record it in the next run with {self.recorded_with}" if self.recorded_with else ""
            instead = f", or pass {self.instead}=" if self.instead else ""
            raise UnknownNameError(
                f"criterion {self.name!r} needs the accumulator {' or '.join(map(repr, need.split(' or ')))}",
                expected="it in the ledger",
                got=", ".join(sorted(study.accumulators)) or "no ledger",
                remedy=f"use a criterion that does without it{instead}{how}",
            )
        return self.judging(study, **options)
