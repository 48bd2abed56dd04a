"""The planner takes the cheapest form by the table it is given, and says why where that is the dense one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradtrace.structure.cost import CostTable
from gradtrace.structure.plan import DENSE, LayerPlan
from gradtrace.structure.planner import MARGIN, Candidate, candidates, plan_layer

Mask = NDArray[np.bool_]
SIZES = (1, 4096)


def table(**fixed: Any) -> CostTable:
    """A device whose products cost exactly their weights (1 ns each); all else is free unless given."""
    return CostTable(512, SIZES, SIZES, tuple(tuple(1e-9 * k * n for n in SIZES) for k in SIZES), **fixed)


def random_mask(
    density: float, shape: tuple[int, int] = (512, 384)
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    return np.random.default_rng(0).random(shape) < density


def blocks() -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    generator = np.random.default_rng(0)
    mask = np.kron(np.eye(4, dtype=np.bool_), np.ones((128, 96), dtype=np.bool_))
    return mask[generator.permutation(512)][:, generator.permutation(384)]


def test_dead_rows_and_columns_are_trimmed() -> None:
    mask = np.zeros((512, 384), dtype=np.bool_)
    mask[100:300, :100] = True
    planned = plan_layer(mask, table())
    assert planned.choice == "trimmed"
    assert planned.weights == 200 * 100


def test_exact_blocks_become_components() -> None:
    planned = plan_layer(blocks(), table())
    assert planned.choice == "components"
    assert len(planned.sub_operators) == 4
    assert planned.dense / planned.predicted == pytest.approx(4, rel=1e-3)


def test_groups_of_identical_rows_are_found_where_natural_order_hides_them() -> None:
    generator = np.random.default_rng(0)
    supports = random_mask(0.3, (8, 384))
    supports[:, 0] = True  # one component
    mask = supports[generator.permutation(np.repeat(np.arange(8), 64))]
    planned = plan_layer(mask, table())
    assert planned.choice == "row groups"
    assert len(planned.sub_operators) == 8
    assert planned.weights == mask.sum()


def test_an_unstructured_mask_stays_dense_and_the_reason_has_the_numbers() -> None:
    planned = plan_layer(random_mask(0.3), table())
    assert planned.choice == DENSE
    assert planned.sub_operators == ()
    assert planned.predicted == planned.dense
    assert planned.reason == (
        "stays dense: the best candidate is dead rows and columns removed: predicted 1.00x dense "
        "(0.197 ms against 0.197 ms), needed 1.1x"
    )


@pytest.mark.parametrize(("kept", "choice"), [(1 / MARGIN - 0.01, "trimmed"), (1 / MARGIN + 0.01, DENSE)])
def test_a_prediction_has_to_beat_dense_by_the_margin(kept: float, choice: str) -> None:
    mask = np.zeros((1000, 1000), dtype=np.bool_)
    mask[: round(1000 * kept)] = True
    assert plan_layer(mask, table()).choice == choice


def test_fixed_costs_keep_a_small_layer_dense() -> None:
    assert plan_layer(blocks(), table(per_sub_operator=1e-3)).choice == DENSE


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_refuse_false_plans_the_best_candidate_even_where_it_is_slower(density: float) -> None:
    planned = plan_layer(random_mask(density), table(per_call=1.0), refuse=False)
    assert planned.choice != DENSE
    assert planned.predicted > planned.dense


def test_a_candidate_measured_slower_than_dense_is_refused_with_both_numbers() -> None:
    planned = plan_layer(blocks(), table(), confirm=lambda candidate: (2e-3, 3e-3))
    assert planned.choice == DENSE
    assert planned.measured is None
    assert "predicted 4.00x dense" in planned.reason
    assert "measured 0.67x dense (3 ms against 2 ms)" in planned.reason


def test_a_candidate_measured_faster_is_taken_and_its_speed_kept() -> None:
    seen: list[Candidate] = []

    def confirm(candidate: Candidate) -> tuple[float, float]:
        seen.append(candidate)
        return 3e-3, 2e-3

    planned = plan_layer(blocks(), table(), confirm=confirm)
    assert planned.choice == "components"
    assert planned.measured == 1.5
    assert seen[0].sub_operators == planned.sub_operators


def test_measurements_decide_between_candidates_whose_predictions_are_close() -> None:
    mask = random_mask(0.02)

    def confirm(candidate: Candidate) -> tuple[float, float]:
        return 3e-3, 1e-3 if candidate.words == "row groups of 16" else 2e-3

    slow = table(per_sub_operator=5e-7)
    first = plan_layer(mask, slow)
    assert "row groups of 16 by similarity" in first.reason
    planned = plan_layer(mask, slow, confirm=confirm)
    assert planned.reason.startswith("row groups of 16: predicted")
    assert planned.measured == 3
    assert first.predicted < planned.predicted < 1.25 * first.predicted


def sizes(mask: Mask) -> dict[str, int]:
    """Weights of the candidates, by the words for them."""
    return {
        one.words: LayerPlan(one.choice, one.sub_operators, mask, 0.0, 0.0, None, "").weights
        for one in candidates(mask)
    }


def test_a_hidden_triangle_is_a_candidate() -> None:
    place = np.random.default_rng(0).permutation(512)
    mask = np.tril(random_mask(0.2, (512, 512))) | np.eye(512, dtype=np.bool_)
    found = sizes(mask[place][:, place])
    assert found["a triangle of 8 blocks"] < 0.6 * mask.size
    assert found["row groups of 64"] > 0.9 * mask.size


def test_blocks_that_a_few_outputs_glue_together_are_candidates_with_what_lies_between() -> None:
    mask = blocks() & random_mask(0.5)
    mask[7] = True
    found = sizes(mask)
    assert "4 exact blocks" not in found
    assert found["4 blocks and what lies between them"] == mask.size // 4 + 384 - 96
    assert found["row groups of 64"] == mask.size


def test_groups_of_similar_rows_are_candidates_where_natural_order_hides_them() -> None:
    generator = np.random.default_rng(0)
    supports = random_mask(0.3, (8, 384))
    mask = supports[generator.permutation(np.repeat(np.arange(8), 64))]
    mask |= generator.random(mask.shape) < 0.002  # and hardly two rows alike
    found = sizes(mask)
    assert found["row groups of 64 by similarity"] < 0.5 * found["row groups of 64"]


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_where_nothing_is_to_be_found_searches_find_nothing(density: float) -> None:
    assert not any("similarity" in words and "64" in words for words in sizes(random_mask(density)))
    assert not any("between" in words for words in sizes(random_mask(density)))


def test_a_candidate_predicted_a_little_slower_is_measured_and_the_measurement_decides() -> None:
    mask = np.ones((1000, 1000), dtype=np.bool_)
    mask[950:] = False
    slow = table(per_call=2e-4)
    assert (
        0.7 < plan_layer(mask, slow, refuse=False).dense / plan_layer(mask, slow, refuse=False).predicted < 1
    )
    assert plan_layer(mask, slow).choice == DENSE
    assert plan_layer(mask, slow, confirm=lambda candidate: (3e-3, 2e-3)).choice == "trimmed"
    refused = plan_layer(mask, slow, confirm=lambda candidate: (2.04e-3, 2e-3))
    assert refused.choice == DENSE
    assert "needed 1.05x" in refused.reason


def test_refuse_false_keeps_what_was_measured_slower_and_says_so() -> None:
    planned = plan_layer(blocks(), table(), refuse=False, confirm=lambda candidate: (2e-3, 4e-3))
    assert planned.choice == "components"
    assert planned.measured == 0.5
    assert "measured 0.50x dense" in planned.reason


def test_nothing_is_measured_where_the_prediction_already_refuses() -> None:
    def confirm(candidate: Candidate) -> tuple[float, float]:
        raise AssertionError("measured in vain")

    assert plan_layer(random_mask(0.3), table(per_call=1e-3), confirm=confirm).choice == DENSE
    assert plan_layer(np.ones((512, 384), dtype=np.bool_), table(), confirm=confirm).choice == DENSE


@pytest.mark.parametrize(("speed", "choice"), [(1.08, DENSE), (1.12, "trimmed")])
def test_as_much_work_as_dense_has_to_be_measured_faster_by_the_margin(speed: float, choice: str) -> None:
    assert plan_layer(random_mask(0.3), table(), confirm=lambda candidate: (speed, 1.0)).choice == choice


def test_the_least_work_is_measured_too_where_its_prediction_is_not_far_behind() -> None:
    mask = random_mask(0.1)
    seen: list[str] = []

    def confirm(candidate: Candidate) -> tuple[float, float]:
        seen.append(candidate.words)
        return 3e-3, 1e-3 if candidate.words == "row groups of 16 by similarity" else 2e-3

    slow = table(per_sub_operator=3e-6)
    planned = plan_layer(mask, slow, confirm=confirm)
    assert planned.reason.startswith("row groups of 16 by similarity: predicted")
    assert seen == [
        "dead rows and columns removed",
        "row groups of 256",
        "row groups of 128",
        "row groups of 16 by similarity",
    ]


def test_natural_groups_of_identical_rows_are_one_candidate() -> None:
    mask = np.repeat(random_mask(0.3, (8, 384)), 64, axis=0)
    assert "8 groups of identical rows" in sizes(mask)
    assert "row groups of 64" not in sizes(mask)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (257, 130)])
def test_every_candidate_covers_the_mask_exactly_once(density: float, shape: tuple[int, int]) -> None:
    mask = random_mask(density, shape)
    plans = [LayerPlan(c.choice, c.sub_operators, mask, 0.0, 0.0, None, c.words) for c in candidates(mask)]
    assert plans


def test_an_empty_mask_is_a_layer_that_only_adds_its_bias() -> None:
    planned = plan_layer(np.zeros((512, 384), dtype=np.bool_), table(fill=1e-12))
    assert (planned.choice, planned.sub_operators) == ("trimmed", ())
