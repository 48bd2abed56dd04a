from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradtrace.evidence.selection import best_elements, nth_largest

LARGE = 200_003
DRAWS: dict[str, Callable[[np.random.Generator], Any]] = {
    "normal": lambda g: g.normal(size=LARGE),
    "heavy": lambda g: g.standard_cauchy(size=LARGE) ** 3,
    "counts": lambda g: g.poisson(2, LARGE).astype(np.float64),
    "sorted": lambda g: np.sort(g.normal(size=LARGE)),
    "mostly zero": lambda g: np.where(g.random(LARGE) < 0.9, 0, g.normal(size=LARGE)),
    # Every 12th value is far from all others: the sample's stride meets only those.
    "misleading": lambda g: np.where(np.arange(LARGE) % 12 == 0, 1e6, 0) + g.normal(size=LARGE),
}


@pytest.mark.parametrize("drawn", list(DRAWS))
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.05, 0.3, 0.5, 0.999, 1.0])
def test_the_nth_largest_is_that_of_the_sorted_values(drawn: str, share: float) -> None:
    values = DRAWS[drawn](np.random.default_rng(3))
    n = max(1, round(share * LARGE))
    assert nth_largest(values, n) == np.sort(values)[::-1][n - 1]


def by_sorting(values: Any, count: int) -> Any:
    shuffled = np.random.default_rng(0).permutation(values.size)
    kept = np.zeros(values.size, np.bool_)
    kept[shuffled[np.argsort(-values[shuffled], kind="stable")][:count]] = True
    return kept


@given(
    arrays(np.float64, st.integers(0, 40), elements=st.sampled_from([-2.0, -0.0, 0.0, 1.0, 1.5, 1e300])),
    st.integers(0, 41),
)
def test_the_best_are_those_a_stable_sort_of_a_fixed_shuffle_puts_first(values: Any, count: int) -> None:
    np.testing.assert_array_equal(best_elements(values, min(count, values.size)), by_sorting(values, count))


@pytest.mark.parametrize("drawn", list(DRAWS))
def test_many_elements_are_chosen_like_few(drawn: str) -> None:
    values = DRAWS[drawn](np.random.default_rng(4))
    count = round(0.3 * LARGE)
    np.testing.assert_array_equal(best_elements(values, count), by_sorting(values, count))
