"""What masks agree on, beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import hypergeom

from gradtrace.errors import MismatchError

__all__ = ["Agreement", "agreement", "chance_jaccard"]

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

    @classmethod
    def mean(cls, runs: Sequence[Agreement]) -> Agreement:
        """Agreement and chance averaged over runs in which the same criteria were asked."""
        if not runs or any(run.names != runs[0].names for run in runs):
            raise MismatchError("agreements", expected="at least one run, all of the same names")

        def averaged(matrices: list[Matrix]) -> Matrix:
            return tuple(tuple(float(x) for x in row) for row in np.mean(matrices, axis=0))

        return cls(
            runs[0].names, averaged([one.jaccard for one in runs]), averaged([one.chance for one in runs])
        )

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

    # Where each layer keeps its share, all masks have the same sizes, and chance is one number.
    chance_of = cache(chance_jaccard)

    def measure(left: str, right: str) -> tuple[float, float]:
        both = sum(int(np.sum(masks[left][k] & masks[right][k])) for k in first)
        either = sum(kept[left].values()) + sum(kept[right].values()) - both
        chance = chance_of(tuple((first[k].size, kept[left][k], kept[right][k]) for k in first))
        return (both / either if either else 1.0), chance

    pairs = {(a, b): measure(a, b) for i, a in enumerate(names) for b in names[i:]}
    cells = [[pairs.get((a, b)) or pairs[b, a] for b in names] for a in names]
    return Agreement(
        names,
        tuple(tuple(cell[0] for cell in row) for row in cells),
        tuple(tuple(cell[1] for cell in row) for row in cells),
    )
