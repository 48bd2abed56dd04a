"""What `drift` says of tests without taking their p-values is what the p-values say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gradtrace.evidence.cells import cells_of
from gradtrace.evidence.drift_tail import DriftTail, drift_pvalue
from gradtrace.evidence.local_fdr import local_discoveries
from gradtrace.evidence.multiplicity import discoveries

SHAPE = (301, 500)


def tail(windows: int, inflation: float, rare: bool) -> DriftTail:
    generator = np.random.default_rng(windows)
    sums = generator.normal(size=(windows, 1000)) + np.linspace(0, 3, 1000)
    ratio = np.abs(sums.sum(axis=0)) / np.sqrt((sums**2).sum(axis=0))
    ratio = np.resize(ratio, SHAPE) * generator.uniform(0.5, 1, SHAPE)
    ratio[0], ratio[1] = 0.0, np.sqrt(windows)
    ratio[2] = ratio[1] * (1 - 1e-15 * np.arange(SHAPE[1]))
    events = generator.integers(0, windows + 2 if rare else 3, SHAPE)
    events = (np.where(events == 0, 0, events) if rare else events + windows).astype(np.uint16)
    return DriftTail(np.where(events, ratio, 0), events, windows=windows, steps=windows, inflation=inflation)


CASES = pytest.mark.parametrize(
    ("windows", "inflation", "rare"),
    [(2, 1.0, True), (3, 1.7, False), (12, 1.0, True), (60, 1.2, False), (400, 1.0, True), (3000, 2.0, True)],
)


@CASES
def test_cells_are_those_of_the_pvalues(windows: int, inflation: float, rare: bool) -> None:
    tests = tail(windows, inflation, rare)
    by_ratio, by_pvalue = tests.cells(), cells_of(np.asarray(tests))
    # At a cell's very edge rounding may decide.
    assert np.count_nonzero(by_ratio != by_pvalue) <= 5
    assert np.abs(by_ratio.astype(int) - by_pvalue.astype(int)).max() <= 1
    assert ((by_ratio == 0) == (np.asarray(tests) == 1)).all()


@CASES
@pytest.mark.parametrize("level", [1e-9, 1e-3, 0.1, 0.9, 1.0])
def test_few_pvalues_are_enough_for_those_up_to_a_level(
    windows: int, inflation: float, rare: bool, level: float
) -> None:
    tests = tail(windows, inflation, rare)
    places, pvalues = tests.upto(level)
    every = np.asarray(tests).ravel()
    np.testing.assert_array_equal(places, np.flatnonzero(every <= level))
    np.testing.assert_array_equal(pvalues, every[places])


@CASES
def test_what_is_found_is_the_same(windows: int, inflation: float, rare: bool) -> None:
    tests = tail(windows, inflation, rare)
    every = np.asarray(tests)
    np.testing.assert_array_equal(discoveries(tests, 0.1), discoveries(every, 0.1))
    found, expected = local_discoveries(tests, 0.1), local_discoveries(every, 0.1)
    assert np.count_nonzero(found != expected) <= 5


def test_pvalues_are_students() -> None:
    ratio, events = np.linspace(0, 3, 50), np.full(50, 10**6)
    t = ratio * np.sqrt(29 / (30 - ratio**2))
    np.testing.assert_allclose(
        drift_pvalue(ratio, windows=30, steps=960, events=events), 2 * stats.t.sf(t, 29), rtol=1e-12
    )
