from __future__ import annotations

import json
from itertools import combinations
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, MismatchError
from gradtrace.evidence.comparison import (
    Curves,
    NeverSupported,
    agreement,
    chance_jaccard,
    never_supported,
    quality_at_density,
    smallest,
    tied_share,
)
from gradtrace.evidence.mask import Mask
from gradtrace.ledger.reader import Ledger


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


def test_quality_is_asked_of_each_mask_at_its_density() -> None:
    scores = {"up": {"w": np.arange(20.0).reshape(4, 5)}, "down": {"w": -np.arange(20.0).reshape(4, 5)}}

    def evaluate(mask: Mask) -> float:
        return float(np.arange(20.0).reshape(4, 5)[mask["w"]].sum())

    curves = quality_at_density(scores, evaluate, (1.0, 0.25))
    assert curves.values == {"up": ((190.0, 85.0),), "down": ((190.0, 10.0),)}


def curves_of(**values: list[float]) -> Curves:
    return Curves((0.5,), {name: tuple((value,) for value in runs) for name, runs in values.items()})


def test_a_winner_is_clear_only_when_ahead_in_every_run() -> None:
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.8, 0.7, 0.6], c=[0.1, 0.1, 0.1]).verdicts()
    assert (verdict.winners, verdict.runner_up, verdict.ahead, verdict.clear) == (("a",), "b", 3, True)
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.8, 0.7, 0.75]).verdicts()
    assert (verdict.winners, verdict.ahead, verdict.clear) == (("a",), 2, False)


def test_two_runs_are_too_few_for_a_clear_winner() -> None:
    (verdict,) = curves_of(a=[0.9, 0.8], b=[0.1, 0.1]).verdicts()
    assert (verdict.ahead, verdict.clear) == (2, False)


def test_criteria_that_are_equal_in_every_run_win_together() -> None:
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.5, 0.5, 0.5], c=[0.9, 0.8, 0.7]).verdicts()
    assert (verdict.winners, verdict.runner_up, verdict.clear) == (("a", "c"), "b", True)
    (verdict,) = curves_of(a=[0.9, 0.8, 0.7], b=[0.9, 0.8, 0.7]).verdicts()
    assert (verdict.winners, verdict.runner_up, verdict.clear) == (("a", "b"), "", False)


def test_density_one_has_no_winner() -> None:
    assert Curves((1.0,), {"a": ((1.0,),), "b": ((0.5,),)}).verdicts() == ()


def test_spread_is_lowest_median_highest_per_density() -> None:
    curves = Curves((1.0, 0.5), {"a": ((0.9, 0.3), (0.8, 0.5), (0.7, 0.4))})
    assert curves.spread("a") == ((0.7, 0.8, 0.9), (0.3, 0.4, 0.5))
    assert json.loads(json.dumps(curves.to_json()))["spread"]["a"] == [[0.7, 0.8, 0.9], [0.3, 0.4, 0.5]]


def test_runs_are_put_together_in_order() -> None:
    one, two = Curves((0.5,), {"a": ((0.1,),)}), Curves((0.5,), {"a": ((0.2,),)})
    assert Curves.together([one, two]).values == {"a": ((0.1,), (0.2,))}
    with pytest.raises(MismatchError):
        Curves.together([one, Curves((0.4,), {"a": ((0.2,),)})])
    with pytest.raises(MismatchError):
        Curves.together([])


@pytest.mark.parametrize("values", [{}, {"a": ()}, {"a": ((1.0, 2.0),)}, {"a": ((1.0,),), "b": ()}])
def test_ragged_curves_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(MismatchError):
        Curves((0.5,), values)


def ledger_of(**events: list[list[int]]) -> Ledger:
    return cast(Ledger, {name: SimpleNamespace(events=np.array(e)) for name, e in events.items()})


def test_recall_and_precision_count_over_all_parameters() -> None:
    ledger = ledger_of(u=[[0, 1, 5], [0, 0, 2]], v=[[0, 9]])
    calls = {"u": np.array([[1, 1, 0], [1, 0, 0]], np.bool_), "v": np.array([[1, 1]], np.bool_)}
    found = never_supported(ledger, ("u", "v"), {"guess": calls})
    assert (found.dependencies, found.never, found.layers) == (8, 4, {"u": (3, 6), "v": (1, 2)})
    (guess,) = found.detections
    assert (guess.found, guess.right, guess.recall, guess.precision) == (5, 3, 3 / 4, 3 / 5)


def test_without_calls_or_without_truth_there_is_no_ratio() -> None:
    none = {"u": np.zeros((1, 2), np.bool_)}
    (silent,) = never_supported(ledger_of(u=[[0, 1]]), ("u",), {"silent": none}).detections
    assert (silent.recall, silent.precision) == (0.0, None)
    full = {"u": np.ones((1, 2), np.bool_)}
    (loud,) = never_supported(ledger_of(u=[[3, 1]]), ("u",), {"loud": full}).detections
    assert (loud.recall, loud.precision) == (None, 0.0)


def test_counts_of_several_runs_add_up() -> None:
    first = NeverSupported.of({"u": (1, 4)}, {"guess": (2, 1)})
    second = NeverSupported.of({"u": (3, 4)}, {"guess": (4, 2)})
    both = NeverSupported.together([first, second])
    assert both == NeverSupported.of({"u": (4, 8)}, {"guess": (6, 3)})
    assert json.loads(json.dumps(both.to_json(), allow_nan=False))["share"] == 0.5


def test_a_candidate_of_another_shape_or_no_parameters_is_refused() -> None:
    with pytest.raises(MismatchError, match="guess"):
        never_supported(ledger_of(u=[[0, 1]]), ("u",), {"guess": {"u": np.zeros((2, 1), np.bool_)}})
    with pytest.raises(InvalidValueError):
        never_supported(ledger_of(u=[[0, 1]]), (), {})


def test_smallest_takes_exactly_as_many_and_the_first_of_equals() -> None:
    found = smallest({"u": np.array([[3.0, 1.0], [1.0, 0.0]]), "v": np.ones((1, 2))}, {"u": 2, "v": 0})
    np.testing.assert_array_equal(found["u"], [[False, True], [False, True]])
    assert not found["v"].any()


def test_ties_between_kept_and_dropped_are_counted_within_each_parameter() -> None:
    scores = {"u": np.array([[3.0, 1.0, 1.0, 1.0]]), "v": np.array([[1.0, 2.0]])}
    masks = {"u": np.array([[True, True, True, False]]), "v": np.array([[False, True]])}
    assert tied_share(scores, masks) == 2 / 4
    assert tied_share({"v": scores["v"]}, {"v": np.zeros((1, 2), np.bool_)}) == 0.0
