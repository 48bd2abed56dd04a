"""How many dependencies had no event at all, and how many of them each criterion finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.ledger.reader import Ledger

__all__ = ["Detection", "NeverSupported", "never_supported", "smallest"]


@dataclass(frozen=True)
class Detection:
    """What one criterion calls unsupported, beside what the ledger knows to be."""

    criterion: str
    found: int
    right: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class NeverSupported:
    """Dependencies with no event at all, per parameter and together, and who finds them.

    `share` is also the precision of pointing at random.
    """

    dependencies: int
    never: int
    share: float
    layers: Mapping[str, tuple[int, int]]
    detections: tuple[Detection, ...]

    @classmethod
    def of(
        cls, layers: Mapping[str, tuple[int, int]], calls: Mapping[str, tuple[int, int]]
    ) -> NeverSupported:
        """From counts: parameter -> (never supported, dependencies), criterion -> (calls, right calls)."""
        never, size = (sum(column) for column in zip(*layers.values(), strict=True))
        detections = tuple(
            Detection(name, found, right, right / never if never else None, right / found if found else None)
            for name, (found, right) in calls.items()
        )
        return cls(size, never, never / size, dict(layers), detections)

    @classmethod
    def together(cls, runs: Sequence[NeverSupported]) -> NeverSupported:
        """The counts of several runs of one model, added up."""

        def added(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
            return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

        first = runs[0]
        layers = {name: added([run.layers[name] for run in runs]) for name in first.layers}
        by_run = [{d.criterion: (d.found, d.right) for d in run.detections} for run in runs]
        return cls.of(
            layers, {d.criterion: added([by[d.criterion] for by in by_run]) for d in first.detections}
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)


def smallest(
    scores: Mapping[str, NDArray[np.floating[Any]]], counts: Mapping[str, int]
) -> dict[str, NDArray[np.bool_]]:
    """True at the `counts[name]` smallest scores of each parameter; of equal scores, the first."""
    found = {}
    for name, values in scores.items():
        flat = np.zeros(values.size, dtype=np.bool_)
        flat[np.argsort(values, axis=None, kind="stable")[: counts[name]]] = True
        found[name] = flat.reshape(values.shape)
    return found


def never_supported(
    ledger: Ledger, names: Sequence[str], candidates: Mapping[str, Mapping[str, ArrayLike]]
) -> NeverSupported:
    """Count dependencies with `events == 0` in the parameters `names`, and judge each candidate's answer.

    `candidates` maps a label ("init, not rejected at fdr 0.05") to parameter -> bool array, True where that
    criterion calls the dependency unsupported. Recall: share of the truly unsupported that it calls so;
    precision: share of its calls that are right; None where there is nothing to divide by.

    Raises:
        MismatchError: a candidate's array has another shape than the parameter.
    """
    if not names:
        raise InvalidValueError("names", expected="at least one parameter", got="none")
    truth = {name: ledger[name].events == 0 for name in names}
    layers = {name: (int(never.sum()), never.size) for name, never in truth.items()}
    counts = {}
    for label, calls in candidates.items():
        found = right = 0
        for name in names:
            called = np.asarray(calls[name], dtype=np.bool_)
            if called.shape != truth[name].shape:
                raise MismatchError(
                    f"candidate {label!r}, parameter {name!r}",
                    expected=f"shape {truth[name].shape}",
                    got=f"{called.shape}",
                )
            found += int(called.sum())
            right += int(np.sum(called & truth[name]))
        counts[label] = (found, right)
    return NeverSupported.of(layers, counts)
