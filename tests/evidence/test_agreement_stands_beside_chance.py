from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from gradtrace.errors import MismatchError
from gradtrace.evidence.agreement import agreement, chance_jaccard


def every_mask(n: int, kept: int) -> list[set[int]]:
    return [set(one) for one in combinations(range(n), kept)]


@pytest.mark.parametrize(
    ("n", "a", "b"), [(1, 1, 1), (5, 2, 3), (6, 1, 1), (6, 6, 2), (7, 4, 5), (4, 0, 3), (8, 2, 2)]
)
def test_chance_is_the_average_over_every_pair_of_masks(n: int, a: int, b: int) -> None:
    pairs = [(left, right) for left in every_mask(n, a) for right in every_mask(n, b)]
    average = np.mean([len(left & right) / len(left | right) for left, right in pairs])
    assert chance_jaccard([(n, a, b)]) == pytest.approx(average, rel=1e-12)


def test_chance_over_several_parameters_is_the_average_over_all_their_masks() -> None:
    sizes = [(4, 1, 2), (3, 2, 2), (0, 0, 0), (2, 0, 1)]
    overlaps = [[len(x & y) for x in every_mask(n, a) for y in every_mask(n, b)] for n, a, b in sizes]
    total = sum(a + b for _, a, b in sizes)
    grids = np.meshgrid(*overlaps)
    shared = sum(grid.astype(np.float64) for grid in grids)
    assert chance_jaccard(sizes) == pytest.approx(np.mean(shared / (total - shared)), rel=1e-12)


@pytest.mark.parametrize("density", [0.003, 0.05, 0.5, 0.97, 1.0])
def test_chance_of_large_masks_is_close_to_the_ratio_of_expectations(density: float) -> None:
    n = 400_000
    kept = round(n * density)
    expected = kept * kept / n / (2 * kept - kept * kept / n)
    assert chance_jaccard([(n, kept, kept), (n, kept, kept)]) == pytest.approx(expected, rel=1e-3)


def test_chance_of_large_masks_is_what_random_draws_give() -> None:
    rng = np.random.default_rng(3)
    sizes = [(30_000, 9_000, 12_000), (50_000, 20_000, 25_000)]
    drawn = []
    for _ in range(200):
        shared = sum(int(rng.hypergeometric(a, n - a, b)) for n, a, b in sizes)
        drawn.append(shared / (sum(a + b for _, a, b in sizes) - shared))
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(chance_jaccard(sizes) - np.mean(drawn)) < 4 * error


def test_two_empty_masks_agree() -> None:
    empty = {"w": np.zeros((2, 3), np.bool_)}
    found = agreement({"a": empty, "b": empty})
    assert found.jaccard == found.chance == ((1.0, 1.0), (1.0, 1.0))


def test_agreement_counts_over_all_parameters_together() -> None:
    a = {"u": np.array([[True, True, False]]), "v": np.array([[True], [False]])}
    b = {"u": np.array([[False, True, True]]), "v": np.array([[True], [False]])}
    found = agreement({"a": a, "b": b})
    assert found.jaccard == ((1.0, 0.5), (0.5, 1.0))
    assert found.chance[0][1] == found.chance[1][0] == pytest.approx(chance_jaccard([(3, 2, 2), (2, 1, 1)]))
    assert json.loads(json.dumps(found.to_json()))["names"] == ["a", "b"]


@pytest.mark.parametrize(
    "other",
    [{"w": np.ones((3, 2), np.bool_)}, {"v": np.ones((2, 3), np.bool_)}, {}],
    ids=["shape", "name", "missing"],
)
def test_masks_of_different_parameters_are_not_compared(other: dict[str, NDArray[np.bool_]]) -> None:
    with pytest.raises(MismatchError, match="same parameters"):
        agreement({"a": {"w": np.ones((2, 3), np.bool_)}, "b": other})
