from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from search.measuring import DENSE, DENSITIES, Measure
from search.regret import cells_of, increases_of, records_of

KINDS = {"ours": "ledger", "near": "statistic", "far": "statistic"}
SHARED = np.array([0.0, 1.0, 2.0, 3.0, 4.0])  # what makes a seed easy or hard, for every setting alike
OFFSETS = {
    "ours": np.array([0.1, -0.2, 0.0, 0.3, -0.1]),
    "near": np.zeros(5),
    "far": np.full(5, 1.0),
}


def runs(seeds: int = 5, dense: float = 0.5) -> list[list[Measure]]:
    return [
        [Measure(DENSE, DENSE, 1.0, dense * seed, None)]
        + [
            Measure(name, KINDS[name], density, dense * seed + SHARED[seed] + OFFSETS[name][seed], None)
            for name in KINDS
            for density in DENSITIES
        ]
        for seed in range(seeds)
    ]


def test_increases_are_over_each_seeds_own_dense_model() -> None:
    np.testing.assert_allclose(increases_of(runs())["far", 0.3], SHARED + 1.0)


def test_a_bound_sees_the_differences_within_seeds_not_those_between_them() -> None:
    cell = next(
        one
        for one in cells_of("t", increases_of(runs()), KINDS, 0.1)
        if (one.setting, one.density) == ("ours", 0.2)
    )
    test = stats.ttest_rel(SHARED + OFFSETS["ours"], SHARED, alternative="less")
    assert (cell.best, cell.seeds) == ("near", 5)
    assert cell.best_increase == pytest.approx(2.0)
    assert cell.regret == pytest.approx(0.02)
    assert cell.bound == pytest.approx(test.confidence_interval(0.95).high)
    assert cell.relative == pytest.approx(0.01)


def test_one_seed_bounds_nothing() -> None:
    cells = cells_of("t", increases_of(runs(seeds=1)), KINDS, 0.1)
    assert all(math.isinf(cell.bound) and not cell.holds for cell in cells)


@pytest.mark.parametrize(("ours", "holds"), [(0.0, True), (0.04, True), (0.06, False), (-1.0, True)])
def test_what_holds_is_within_a_twentieth_of_the_bests_increase(ours: float, holds: bool) -> None:
    increases = {("ours", 0.3): np.full(5, 1 + ours), ("near", 0.3): np.ones(5)}
    (cell,) = (one for one in cells_of("t", increases, KINDS, 0.1) if one.setting == "ours")
    assert cell.holds is holds


def test_a_setting_that_lacks_a_task_has_no_record() -> None:
    whole = cells_of("a", increases_of(runs()), KINDS, 0.1)
    part = [cell for cell in cells_of("b", increases_of(runs()), KINDS, 0.1) if cell.setting != "ours"]
    assert {record.setting for record in records_of(whole, KINDS)} == set(KINDS)
    assert {record.setting for record in records_of(whole + part, KINDS)} == {"near", "far"}


def test_records_begin_with_the_smallest_worst_regret() -> None:
    records = records_of(cells_of("a", increases_of(runs()), KINDS, 0.1), KINDS)
    assert [record.setting for record in records] == ["near", "ours", "far"]
    assert [record.worst for record in records] == pytest.approx([0.0, 0.01, 0.5])


def test_what_was_not_measured_in_every_run_is_not_compared() -> None:
    some = runs()
    some[2] = [one for one in some[2] if one.setting != "far"]
    assert {name for name, _ in increases_of(some)} == {DENSE, "ours", "near"}


def test_a_ratio_to_noise_is_a_ratio_to_a_hundredth_of_the_dense_loss() -> None:
    increases = {("ours", 0.5): np.full(5, 0.01), ("near", 0.5): np.full(5, -0.01)}
    (cell,) = (one for one in cells_of("t", increases, KINDS, 4.0) if one.setting == "ours")
    assert cell.relative == pytest.approx(0.02 / 0.04)
    assert not cell.holds
