"""A comparison of criteria over one or several runs, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np

from gradtrace.comparison.contender import Contender
from gradtrace.comparison.interval import Interval, t_interval
from gradtrace.comparison.run import Run
from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.evidence.agreement import Agreement

__all__ = ["Comparison", "area"]


def area(values: Sequence[float], densities: Sequence[float]) -> float:
    """Mean of a curve over the logarithm of the density, by the trapezoid rule; of one density its value.

    The logarithm gives halving from 0.1 to 0.05 the weight of halving from 1 to 0.5. The difference of two
    such means is the area between their curves over its width.
    """
    order = np.argsort(densities)
    x, y = np.log(np.asarray(densities, np.float64)[order]), np.asarray(values, np.float64)[order]
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, in one run or, after `together`, in several. Larger quality = better.

    `scope` and `granularity` are those of `select`; `densities` in the order asked for; `contenders` in the
    order of the criteria, controls last.

    Raises MismatchError where a run does not speak of all contenders at all densities, or two runs do not
    have the same layers or are one and the same; InvalidValueError for no run at all.
    """

    densities: tuple[float, ...]
    scope: str
    granularity: str
    contenders: tuple[Contender, ...]
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise InvalidValueError("comparison", expected="at least one run", got="none")
        for run in self.runs:
            run.check(self.names, len(self.densities))
        if len({run.dense is None for run in self.runs}) > 1:
            raise MismatchError("comparison", expected="a quality in every run, or in none")
        if len({tuple(self._sizes(run)) for run in self.runs}) > 1:
            raise MismatchError("comparison", expected="runs of one model: the same layers of the same sizes")
        known = [(run.run_id, run.steps) for run in self.runs if run.run_id]
        twice = next((one for one in known if known.count(one) > 1), None)
        if twice is not None:
            raise MismatchError(
                "comparison",
                expected="a run once: it would pass for another seed",
                got=f"run {twice[0]} twice",
                remedy="pass the ledgers of different trainings",
            )

    @classmethod
    def together(cls, comparisons: Sequence[Comparison]) -> Comparison:
        """Several runs as one comparison; all must have been asked the same."""
        asked = {(c.densities, c.scope, c.granularity, c.contenders) for c in comparisons}
        if len(asked) != 1:
            raise MismatchError(
                "comparisons",
                expected="at least one, all with the same densities, scope, granularity and criteria",
                got="none" if not asked else "; ".join(sorted({", ".join(c.names) for c in comparisons})),
                remedy="pass the same by= and densities= for every run",
            )
        return cls(*asked.pop(), tuple(run for c in comparisons for run in c.runs))

    @property
    def names(self) -> tuple[str, ...]:
        """The contenders' names."""
        return tuple(one.name for one in self.contenders)

    @property
    def has_quality(self) -> bool:
        """Whether a validation was asked for."""
        return self.runs[0].dense is not None

    @property
    def dense(self) -> Interval:
        """Quality of the weights as they are. Raises InvalidValueError without a validation."""
        self._need_quality()
        return t_interval([run.dense for run in self.runs if run.dense is not None])

    def quality(self, name: str) -> tuple[Interval, ...]:
        """Mean quality of a contender's masks at each density."""
        self._need_quality()
        return tuple(t_interval(at) for at in zip(*(run.quality[name] for run in self.runs), strict=True))

    def areas(self, name: str) -> tuple[float, ...]:
        """`area` of a contender's curve in every run."""
        self._need_quality()
        return tuple(area(run.quality[name], self.densities) for run in self.runs)

    @property
    def reference(self) -> str:
        """The statistic-based criterion with the largest mean area, "" where there is none.

        It is chosen on the runs it is then compared in, so it is rather too good than too bad a rival.
        """
        rivals = [one.name for one in self.contenders if one.kind == "statistic"]
        return max(rivals, key=lambda name: float(np.mean(self.areas(name))), default="")

    def between(self, name: str, other: str) -> Interval:
        """Area between two curves, `name` above `other` counting positive, paired run by run."""
        return t_interval(np.subtract(self.areas(name), self.areas(other)).tolist())

    def controls(self, name: str) -> tuple[str, ...]:
        """The controls that a contender has to beat; () for a control."""
        if next(one for one in self.contenders if one.name == name).kind == "control":
            return ()
        return tuple(
            one.name for one in self.contenders if one.kind == "control" and one.control_of in ("", name)
        )

    def above_controls(self, name: str) -> Interval | None:
        """Area above the best control, paired run by run; None for a control."""
        rivals = self.controls(name)
        return min((self.between(name, one) for one in rivals), key=lambda one: one.mean, default=None)

    def above_controls_at(self, name: str) -> tuple[Interval | None, ...]:
        """The same at each density: quality above that of the control which is best there."""
        rivals = self.controls(name)
        found = []
        for k in range(len(self.densities)):
            gains = (
                t_interval([run.quality[name][k] - run.quality[one][k] for run in self.runs])
                for one in rivals
            )
            found.append(min(gains, key=lambda one: one.mean, default=None))
        return tuple(found)

    def equals(self, name: str) -> tuple[str, ...]:
        """The contenders whose masks are worth the same as this one's in every run and at every density."""
        self._need_quality()
        return tuple(
            one for one in self.names if all(run.quality[one] == run.quality[name] for run in self.runs)
        )

    def best_at(self, k: int) -> tuple[tuple[str, ...], str, Interval | None]:
        """(winners, runner-up, winners' mean quality above it, paired by run) at the k-th density.

        Several win where they are equal in every run, as criteria that rank alike are; the runner-up is the
        best mean of the others, "" and None where there is none.
        """
        self._need_quality()
        at = {name: [run.quality[name][k] for run in self.runs] for name in self.names}
        ranked = sorted(at, key=lambda name: -float(np.mean(at[name])))
        winners = tuple(name for name in ranked if at[name] == at[ranked[0]])
        others = [name for name in ranked if name not in winners]
        if not others:
            return winners, "", None
        return winners, others[0], t_interval(np.subtract(at[winners[0]], at[others[0]]).tolist())

    def agreement(self, k: int) -> Agreement:
        """Agreement of all masks at the k-th density, and chance's, averaged over the runs."""
        return Agreement.mean([run.agreement[k] for run in self.runs])

    def save(self, path: str | PathLike[str]) -> None:
        """Write one JSON file, whole or not at all; a file that is there is replaced."""
        from gradtrace.comparison.comparison_file import write_comparison

        write_comparison(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote, checked like a stranger's.

        Raises UnreadableFileError for a file that cannot be read or holds something else,
        UnsupportedFormatError for one of a newer format.
        """
        from gradtrace.comparison.comparison_file import read_comparison

        return read_comparison(path, cls)

    def to_json(self) -> dict[str, Any]:
        """Everything found, as plain lists and numbers, with the summary that follows from it."""
        from gradtrace.comparison.comparison_file import as_json

        return as_json(self)

    def _need_quality(self) -> None:
        if not self.has_quality:
            raise InvalidValueError(
                "comparison",
                expected="a quality of every mask",
                got="none: no validation was asked for",
                remedy="pass validate= to compare",
            )

    def _sizes(self, run: Run) -> list[tuple[str, int]]:
        first = run.layers[self.names[0]][0] if self.densities else {}
        return [(name, shape.size) for name, shape in first.items()]
