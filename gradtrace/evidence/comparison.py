"""What criteria agree on, what each is worth, and how many never-supported dependencies each one finds.

Numbers only: tables, plots and words about them live in `gradtrace.report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import fftconvolve
from scipy.stats import hypergeom

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.select import select
from gradtrace.ledger.reader import Ledger

__all__ = [
    "Agreement",
    "Curves",
    "Detection",
    "NeverSupported",
    "Verdict",
    "agreement",
    "chance_jaccard",
    "never_supported",
    "quality_at_density",
    "smallest",
    "tied_share",
]

Matrix: TypeAlias = tuple[tuple[float, ...], ...]
# Up to this many values an overlap's distribution is summed whole; beyond it, ten standard deviations either
# side of the mean, outside of which less than 1e-20 of it lies.
WHOLE_SUPPORT = 4096


@dataclass(frozen=True)
class Agreement:
    """Pairwise agreement of masks. `jaccard[i][j]` = |kept by both| / |kept by either| over all parameters.

    `chance[i][j]` is what two masks of the same sizes, drawn at random within each parameter, would reach.
    """

    names: tuple[str, ...]
    jaccard: Matrix
    chance: Matrix

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)


def chance_jaccard(sizes: Sequence[tuple[int, int, int]]) -> float:
    """Expected Jaccard index of two random masks; `sizes`: (elements, kept by A, kept by B) per parameter.

    Within a parameter of n elements of which a and b are kept, uniformly and independently, the overlap K is
    hypergeometric(n, a, b). The sum over the parameters has the convolution of their distributions, and

        E[J] = Sum_k P(K = k) * k / (Sum a + Sum b - k),

    which is exact; the usual ab / (n(a + b) - ab) only puts E[K] into that fraction. Two empty masks: 1.
    """
    total = sum(a + b for _, a, b in sizes)
    if total == 0:
        return 1.0
    start, overlap = 0, np.ones(1)
    for n, a, b in sizes:
        if n == 0:
            continue
        low, high = max(0, a + b - n), min(a, b)
        if high - low > WHOLE_SUPPORT:
            mean = a * b / n
            reach = 10 * np.sqrt(mean * (1 - a / n) * (1 - b / n) * n / (n - 1)) + 10
            low, high = max(low, int(mean - reach)), min(high, int(mean + reach) + 1)
        part = hypergeom(n, a, b).pmf(np.arange(low, high + 1))
        start, overlap = start + low, np.clip(fftconvolve(overlap, part / part.sum()), 0, None)
    k = start + np.arange(len(overlap))
    return float(np.sum(overlap * k / (total - k)) / overlap.sum())


def agreement(masks: Mapping[str, Mapping[str, NDArray[np.bool_]]]) -> Agreement:
    """Compare masks by name; each maps parameter name -> bool array. They must cover the same parameters."""
    names = tuple(masks)
    first = masks[names[0]] if names else {}
    for name in names:
        if {k: v.shape for k, v in masks[name].items()} != {k: v.shape for k, v in first.items()}:
            raise MismatchError(
                f"masks {names[0]!r} and {name!r} do not cover the same parameters",
                expected=", ".join(f"{k} {v.shape}" for k, v in first.items()),
                got=", ".join(f"{k} {v.shape}" for k, v in masks[name].items()),
            )
    kept = {name: {k: int(v.sum()) for k, v in masks[name].items()} for name in names}

    def measure(left: str, right: str) -> tuple[float, float]:
        both = sum(int(np.sum(masks[left][k] & masks[right][k])) for k in first)
        either = sum(kept[left].values()) + sum(kept[right].values()) - both
        chance = chance_jaccard([(first[k].size, kept[left][k], kept[right][k]) for k in first])
        return (both / either if either else 1.0), chance

    pairs = {(a, b): measure(a, b) for i, a in enumerate(names) for b in names[i:]}
    cells = [[pairs.get((a, b)) or pairs[b, a] for b in names] for a in names]
    return Agreement(
        names,
        tuple(tuple(cell[0] for cell in row) for row in cells),
        tuple(tuple(cell[1] for cell in row) for row in cells),
    )


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
    values: Mapping[str, Matrix]

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


def tied_share(
    scores: Mapping[str, NDArray[np.floating[Any]]], masks: Mapping[str, NDArray[np.bool_]]
) -> float:
    """Share of the kept dependencies whose score equals that of a dropped one of the same parameter.

    Between those the order of the indices decided, not the criterion: counts tie often, weights hardly ever.
    """
    tied = total = 0
    for name, kept in masks.items():
        values = np.asarray(scores[name])
        tied += int(np.isin(values[kept], values[~kept]).sum())
        total += int(kept.sum())
    return tied / total if total else 0.0


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
