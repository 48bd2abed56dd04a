"""What each criterion's masks are worth over a range of densities, and which does best at each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtrace.errors import MismatchError
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.select import select

__all__ = ["Curves", "Verdict", "quality_at_density"]


@dataclass(frozen=True)
class Verdict:
    """Which criterion does best at one density, and whether that holds in every run.

    `winners` has several names where criteria are equal in every run (as criteria that rank alike are); the
    runner-up is the best of the others, "" when there is none. `ahead`: runs in which the winners beat it.
    """

    density: float
    winners: tuple[str, ...]
    value: float
    runner_up: str
    runner_up_value: float
    ahead: int
    runs: int

    @property
    def clear(self) -> bool:
        """True when the winners beat the runner-up in every run, and there were at least three of them."""
        return self.runs >= 3 and self.ahead == self.runs and bool(self.runner_up)


@dataclass(frozen=True)
class Curves:
    """Quality of each criterion's masks: `values[criterion][run][k]` belongs to `densities[k]`."""

    densities: tuple[float, ...]
    values: Mapping[str, tuple[tuple[float, ...], ...]]

    def __post_init__(self) -> None:
        lengths = {len(runs) for runs in self.values.values()}
        widths = {len(run) for runs in self.values.values() for run in runs}
        if len(lengths) != 1 or 0 in lengths or widths != {len(self.densities)}:
            raise MismatchError(
                "quality curves", expected="as many runs, and as many values a run, for every criterion"
            )

    @classmethod
    def together(cls, runs: Sequence[Curves]) -> Curves:
        """The curves of several runs (seeds) as one; they must share densities and criteria."""
        if not runs or any(
            run.densities != runs[0].densities or set(run.values) != set(runs[0].values) for run in runs
        ):
            raise MismatchError(
                "quality curves", expected="at least one run, all with the same densities and criteria"
            )
        values = {name: tuple(row for run in runs for row in run.values[name]) for name in runs[0].values}
        return cls(runs[0].densities, values)

    def spread(self, criterion: str) -> tuple[tuple[float, float, float], ...]:
        """(lowest, median, highest) over the runs, per density."""
        return tuple((min(at), median(at), max(at)) for at in zip(*self.values[criterion], strict=True))

    def verdicts(self) -> tuple[Verdict, ...]:
        """The best median at each density below 1, beside the best of the criteria that differ from it."""
        found = []
        for k, density in enumerate(self.densities):
            if density >= 1 or len(self.values) < 2:
                continue
            at = {name: tuple(run[k] for run in runs) for name, runs in self.values.items()}
            ranked = sorted(at, key=lambda name: -median(at[name]))
            winners = tuple(name for name in ranked if at[name] == at[ranked[0]])
            best = at[ranked[0]]
            others = [name for name in ranked if name not in winners]
            second = at[others[0]] if others else best
            ahead = sum(a > b for a, b in zip(best, second, strict=True))
            runner_up = others[0] if others else ""
            found.append(Verdict(density, winners, median(best), runner_up, median(second), ahead, len(best)))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, with (lowest, median, highest) per density and the verdicts."""
        spread = {name: self.spread(name) for name in self.values}
        verdicts = [asdict(verdict) | {"clear": verdict.clear} for verdict in self.verdicts()]
        return {
            "densities": self.densities,
            "spread": spread,
            "values": dict(self.values),
            "verdicts": verdicts,
        }


def quality_at_density(
    scores: Mapping[str, Mapping[str, NDArray[np.floating[Any]]]],
    evaluate: Callable[[Mask], float],
    densities: Sequence[float],
    *,
    scope: str = "layer",
    granularity: str = "element",
) -> Curves:
    """One run's curves: keep the best-scored share of the dependencies and ask `evaluate` what that is worth.

    `scores` maps criterion -> parameter -> array; `evaluate` returns a number for a mask, larger = better.
    """
    values = {}
    for criterion, by in scores.items():
        masks = (select(by, density=d, scope=scope, granularity=granularity) for d in densities)
        values[criterion] = (tuple(float(evaluate(mask)) for mask in masks),)
    return Curves(tuple(densities), values)
