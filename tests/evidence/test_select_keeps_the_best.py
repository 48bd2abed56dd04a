"""Masks hold the promised number of the best-scored dependencies, and ties fall the documented way."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradtrace.errors import InvalidValueError
from gradtrace.evidence.score import Scores, score
from gradtrace.evidence.select import select

# Few distinct values on purpose: ties everywhere.
ARRAYS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9),
    elements=st.sampled_from([0, 1, 2.5, -3]),
)
DENSITIES = st.floats(0, 1, exclude_min=True)


def best(values: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Oracle: a plain sort by (score descending, place in the fixed shuffle)."""
    place = {int(index): at for at, index in enumerate(np.random.default_rng(0).permutation(values.size))}
    order = sorted(range(values.size), key=lambda index: (-values.ravel()[index], place[index]))
    kept = np.zeros(values.size, bool)
    kept[order[:count]] = True
    return kept.reshape(values.shape)


@given(st.lists(ARRAYS, min_size=1, max_size=4), DENSITIES)
def test_each_layer_keeps_exactly_its_share_and_a_fixed_shuffle_decides_ties(
    arrays: list[np.ndarray[Any, Any]], density: float
) -> None:
    mask = select({str(i): array for i, array in enumerate(arrays)}, density=density)
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(mask[str(i)], best(array, round(density * array.size)))


@given(st.lists(ARRAYS, min_size=1, max_size=4), DENSITIES)
def test_global_keeps_exactly_the_share_of_all_and_a_fixed_shuffle_decides_ties(
    arrays: list[np.ndarray[Any, Any]], density: float
) -> None:
    mask = select({str(i): array for i, array in enumerate(arrays)}, density=density, scope="global")
    together = np.concatenate([array.ravel() for array in arrays])
    expected = best(together, round(density * together.size))
    np.testing.assert_array_equal(
        np.concatenate([mask[str(i)].ravel() for i in range(len(arrays))]), expected
    )


def test_ties_favour_no_row_and_masks_are_nested_over_densities() -> None:
    equal = {"w": np.ones((200, 50))}
    masks = [select(equal, density=density)["w"] for density in (0.2, 0.5, 0.8)]
    for small, large in pairwise(masks):
        assert not (small & ~large).any()
    # Half of 50 per row: binomial, five standard deviations are 17.7.
    assert np.abs(masks[1].sum(axis=1) - 25).max() < 18
    np.testing.assert_array_equal(masks[1], select(equal, density=0.5)["w"])


@given(ARRAYS, DENSITIES)
def test_each_row_keeps_its_own_share_with_the_same_ties(array: np.ndarray[Any, Any], density: float) -> None:
    kept = select({"w": array}, density=density, scope="row")["w"]
    place = {int(index): at for at, index in enumerate(np.random.default_rng(0).permutation(array.size))}
    wide = array.size // array.shape[0] if array.shape[0] else 0
    for row in range(array.shape[0] if wide else 0):
        numbers = range(row * wide, (row + 1) * wide)
        order = sorted(numbers, key=lambda index: (-array.ravel()[index], place[index]))
        assert set(np.flatnonzero(kept.ravel())) & set(numbers) == set(order[: round(density * wide)])


UNITS = {"tile": (16, 16), "rows": (64, 1)}


def units_of(array: np.ndarray[Any, Any], granularity: str) -> list[tuple[slice, slice]]:
    tall, wide = UNITS[granularity]
    rows, columns = array.shape
    return [
        (slice(i, min(i + tall, rows)), slice(j, min(j + wide, columns)))
        for i in range(0, rows, tall)
        for j in range(0, columns, wide)
    ]


@pytest.mark.parametrize("shape", [(64, 48), (65, 17), (130, 5), (10, 784), (1, 1), (3, 100), (200, 33)])
@pytest.mark.parametrize("granularity", ["tile", "rows"])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.97, 1.0])
def test_units_are_kept_whole_best_mean_first_and_nearest_to_the_share(
    shape: tuple[int, int], granularity: str, density: float
) -> None:
    array = np.random.default_rng(shape).exponential(size=shape)
    kept = select({"w": array}, density=density, granularity=granularity)["w"]
    units = units_of(array, granularity)
    inside = [kept[unit] for unit in units]
    assert all(unit.all() or not unit.any() for unit in inside)
    means = np.array([array[unit].mean() for unit in units])
    chosen = np.array([unit.any() for unit in inside])
    if round(density * array.size) == 0:
        assert not kept.any()
        return
    if not chosen.all():
        assert means[chosen].min() >= means[~chosen].max()
        smaller = kept.sum() - inside[int(np.argmin(np.where(chosen, means, np.inf)))].size
        larger = kept.sum() + inside[int(np.argmax(np.where(chosen, -np.inf, means)))].size
        target = round(density * array.size)
        assert abs(kept.sum() - target) <= abs(larger - target)
        assert abs(kept.sum() - target) < abs(smaller - target) or chosen.sum() == 1
    assert chosen.any()


def test_rows_share_their_inputs_within_groups_of_64_outputs() -> None:
    array = np.random.default_rng(0).exponential(size=(150, 40))
    kept = select({"w": array}, density=0.4, granularity="rows")["w"]
    for group in (kept[:64], kept[64:128], kept[128:]):
        assert (group == group[0]).all()


def test_convolutions_are_seen_as_outputs_by_everything_else() -> None:
    array = np.random.default_rng(0).exponential(size=(70, 3, 5, 5))
    kept = select({"w": array}, density=0.5, granularity="rows")["w"]
    flat = select({"w": array.reshape(70, 75)}, density=0.5, granularity="rows")["w"]
    np.testing.assert_array_equal(kept, flat.reshape(array.shape))


def test_units_compete_across_layers_when_global() -> None:
    mask = select(
        {"a": np.ones((32, 32)), "b": np.full((32, 32), 2.0)}, density=0.5, scope="global", granularity="tile"
    )
    assert mask["b"].all()
    assert not mask["a"].any()


def test_a_negative_score_ranks_below_zero_and_tensors_serve_as_scores() -> None:
    mask = select({"w": torch.tensor([[-1.0, 0.0], [3.0, -2.0]])}, density=0.5)
    np.testing.assert_array_equal(mask["w"], [[False, True], [True, False]])


def bh(pvalues: np.ndarray[Any, Any], fdr: float) -> np.ndarray[Any, Any]:
    """Oracle: the step-up procedure as Benjamini and Hochberg (1995) state it."""
    ordered = np.sort(pvalues.ravel())
    below = np.flatnonzero(ordered <= fdr * np.arange(1, ordered.size + 1) / ordered.size)
    kept: np.ndarray[Any, Any] = pvalues <= (ordered[below[-1]] if below.size else -1.0)
    return kept


def scores_with_pvalues(seed: int = 0) -> Scores:
    generator = np.random.default_rng(seed)
    pvalues = {
        "a": generator.random((40, 30)),
        "b": generator.random((20, 50)) ** 4,
        "c": generator.random((3, 0)),
    }
    return Scores({name: -p for name, p in pvalues.items()}, pvalues, {"criterion": "init"})


@pytest.mark.parametrize("fdr", [0.001, 0.05, 0.3, 1.0])
def test_fdr_is_benjamini_hochberg_per_layer(fdr: float) -> None:
    scores = scores_with_pvalues()
    mask = select(scores, fdr=fdr)
    assert scores.pvalues is not None
    for name in scores:
        np.testing.assert_array_equal(mask[name], bh(scores.pvalues[name], fdr))


@pytest.mark.parametrize("fdr", [0.001, 0.05, 0.3])
def test_global_fdr_is_one_family_of_tests(fdr: float) -> None:
    scores = scores_with_pvalues()
    assert scores.pvalues is not None
    mask = select(scores, fdr=fdr, scope="global")
    expected = bh(np.concatenate([p.ravel() for p in scores.pvalues.values()]), fdr)
    np.testing.assert_array_equal(np.concatenate([kept.ravel() for kept in mask.values()]), expected)


def test_the_false_discovery_rate_holds_for_the_init_test() -> None:
    shares = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        learned = generator.random((40, 50)) < 0.2
        bound = 1 / np.sqrt(50)
        # Learned weights lie closer to the bound than chance has them, and some beyond it.
        far = (
            bound * (0.98 + 0.04 * generator.random(learned.shape)) * generator.choice([-1, 1], learned.shape)
        )
        weights = np.where(learned, far, generator.uniform(-bound, bound, learned.shape))
        kept = select(score(None, {"w": weights}, "init"), fdr=0.1)["w"]
        shares.append((kept & ~learned).sum() / max(kept.sum(), 1))
        assert kept.sum() > 50
    assert np.mean(shares) <= 0.12


def test_the_mask_says_what_was_asked() -> None:
    mask = select(score(None, {"w": np.eye(4)}, "magnitude"), density=0.25, scope="global")
    assert mask.provenance["criterion"] == "magnitude"
    assert mask.provenance["selection"] == {
        "density": 0.25,
        "fdr": None,
        "scope": "global",
        "granularity": "element",
    }
    assert mask.density == 0.25


SCORES = {"w": np.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize("name", ["density", "fdr"])
@pytest.mark.parametrize("bad", [0, 0.0, -0.1, 1.0001, 30, float("nan"), float("inf"), "0.3", True, [0.3]])
def test_a_share_is_a_number_in_the_half_open_unit_interval(name: str, bad: Any) -> None:
    with pytest.raises(
        InvalidValueError, match=rf"{name}: expected a number in \(0, 1\], got .*\. Pass e\.g\. {name}="
    ):
        select(SCORES, **{name: bad})


@pytest.mark.parametrize(
    ("scores", "options", "match"),
    [
        (SCORES, {}, "expected exactly one of them, got neither"),
        (SCORES, {"density": 0.3, "fdr": 0.1}, "expected exactly one of them, got both"),
        (SCORES, {"fdr": 0.1}, "fdr: expected scores with p-values.*by='init'"),
        (
            SCORES,
            {"density": 0.3, "scope": "layers"},
            "scope: expected one of layer, row, global, got 'layers'",
        ),
        (SCORES, {"density": 0.3, "granularity": "row"}, "granularity: expected one of element, tile, rows"),
        (SCORES, {"density": 0.3, "granularity": None}, "granularity: expected one of"),
        (SCORES, {"density": 0.3, "granularity": ["rows"]}, "granularity: expected one of"),
        (Scores(SCORES, {"v": SCORES["w"] / 6}), {"fdr": 0.1}, "pvalues: expected the names and shapes"),
        (Scores(SCORES, {"w": SCORES["w"].T / 6}), {"fdr": 0.1}, "pvalues: expected the names and shapes"),
        (Scores(SCORES, SCORES), {"fdr": 0.1}, r"pvalues\['w'\]: expected numbers in \[0, 1\], got 0 to 5"),
        (
            Scores(SCORES, {"w": SCORES["w"] * np.nan}),
            {"fdr": 0.1},
            r"pvalues\['w'\]: expected finite numbers",
        ),
        (
            scores_with_pvalues(),
            {"fdr": 0.1, "granularity": "tile"},
            "'element' with fdr, got 'tile'.*by density",
        ),
        (scores_with_pvalues(), {"fdr": 0.1, "scope": "row"}, "'layer' or 'global' with fdr, got 'row'"),
        (SCORES, {"density": 0.3, "scope": "row", "granularity": "tile"}, "'element' with scope='row'"),
        ({}, {"density": 0.3}, "scores: expected at least one parameter"),
        ([1.0], {"density": 0.3}, "a mapping from name to array, got list"),
        (
            {"w": np.array([1.0, np.nan])},
            {"density": 0.3},
            r"scores\['w'\]: expected finite numbers, got 1 of 2",
        ),
        ({"w": np.array([1.0, np.inf])}, {"density": 0.3}, "expected finite numbers"),
        ({"w": ["a", "b"]}, {"density": 0.3}, "real numbers"),
    ],
)
def test_what_cannot_be_selected_is_one_clear_error(scores: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidValueError, match=match):
        select(scores, **options)
