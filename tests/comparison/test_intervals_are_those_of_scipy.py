from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradtrace.comparison.comparison import area
from gradtrace.comparison.interval import t_interval
from gradtrace.comparison.summary import area_lines, best_lines, control_lines, summary


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-6))
def test_the_interval_is_that_of_the_one_sample_t_test(values: list[float]) -> None:
    found = t_interval(values)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert found.mean == pytest.approx(np.mean(values))


def test_equal_runs_have_an_interval_without_width_and_one_run_has_none() -> None:
    same, one = t_interval([0.5, 0.5, 0.5]), t_interval([0.5])
    assert (same.low, same.mean, same.high, same.half) == (0.5, 0.5, 0.5, 0.0)
    assert (one.mean, one.low, one.high, one.half, one.above_zero, one.below_zero) == (0.5, *[None] * 5)


def test_an_area_is_the_trapezoid_over_the_logarithm_of_the_density() -> None:
    # From 0.1 to 0.2 and from 0.2 to 0.8 the logarithm grows by one and by two doublings.
    assert area((3.0, 1.0, 6.0), (0.2, 0.1, 0.8)) == pytest.approx(((1 + 3) / 2 * 1 + (3 + 6) / 2 * 2) / 3)
    assert area((0.7,), (0.3,)) == 0.7
    assert area((1.0, 1.0), (1.0, 0.001)) == pytest.approx(1.0)


VALUES = {
    "fisher": [(0.8, 0.7), (0.9, 0.6), (0.9, 0.9)],
    "support": [(0.5, 0.3), (0.6, 0.1), (0.5, 0.2)],
    "wanda": [(0.7, 0.2), (0.8, 0.4), (0.6, 0.2)],
    "magnitude": [(0.7, 0.3), (0.8, 0.5), (0.7, 0.3)],
    "random": [(0.4, 0.2), (0.5, 0.3), (0.5, 0.2)],
    "shuffled": [(0.5, 0.1), (0.4, 0.2), (0.4, 0.1)],
}


def test_areas_between_curves_are_paired_over_the_runs(make: Any) -> None:
    found = make((0.4, 0.1), VALUES)
    assert found.reference == "magnitude"
    by_hand = [np.mean(a) - np.mean(b) for a, b in zip(VALUES["fisher"], VALUES["magnitude"], strict=True)]
    low, high = stats.ttest_rel(
        *(np.mean(VALUES[n], axis=1) for n in ("fisher", "magnitude"))
    ).confidence_interval()
    gap = found.between("fisher", "magnitude")
    assert gap.mean == pytest.approx(np.mean(by_hand))
    assert (gap.low, gap.high) == (pytest.approx(low), pytest.approx(high))
    above = found.above_controls("support")
    rivals = [np.mean(VALUES["support"], axis=1) - np.mean(VALUES[n], axis=1) for n in ("random", "shuffled")]
    assert above.mean == pytest.approx(min(np.mean(one) for one in rivals))
    assert found.above_controls("random") is None


def test_at_each_density_the_control_that_is_best_there_is_the_one_to_beat(make: Any) -> None:
    values = {"fisher": [(0.5, 0.5)], "random": [(0.1, 0.4)], "shuffled": [(0.3, 0.2)]}
    at = make((0.5, 0.1), values).above_controls_at("fisher")
    assert [one.mean for one in at] == pytest.approx([0.2, 0.1])
    assert [one.low for one in at] == [None, None]


def test_what_beats_the_controls_by_less_than_the_interval_is_said(make: Any) -> None:
    lines = control_lines(make((0.4, 0.1), VALUES))
    assert [line.split()[0] for line in lines] == ["support", "wanda"]
    assert lines[0].startswith("support beats the controls by less than the interval: +0.0")
    worse = VALUES | {"support": [(0.1, 0.1), (0.2, 0.1), (0.1, 0.0)]}
    assert control_lines(make((0.4, 0.1), worse))[0].startswith("support does not beat the controls: -0.")


def test_of_one_run_no_interval_is_shown_and_that_is_said(make: Any) -> None:
    one = make((0.4, 0.1), {name: runs[:1] for name, runs in VALUES.items()})
    assert all(at.low is None and at.high is None for name in one.names for at in one.quality(name))
    assert control_lines(one) == ("One run: what another seed would say is not known.",)
    assert "fisher lies 0.250 above it in this run; one run, no interval." in area_lines(one)
    assert summary(one)["quality"]["area"]["fisher"]["above_reference"]["low"] is None


def test_the_verdict_on_an_area_follows_its_interval(make: Any) -> None:
    def line(fisher: list[tuple[float]]) -> str:
        rest = {name: [(0.5,)] * 3 for name in ("magnitude", "random", "shuffled")}
        return area_lines(make((0.1,), {"fisher": fisher} | rest))[1]

    assert line([(0.7,), (0.71,), (0.69,)]).startswith("fisher lies above it by +0.200")
    assert line([(0.3,), (0.31,), (0.29,)]).startswith("fisher lies below it by -0.200")
    assert line([(0.75,), (0.25,), (0.625,)]).startswith("fisher cannot be told from it: +0.042")


def test_without_a_statistic_there_is_no_reference(make: Any) -> None:
    found = make((0.4,), {name: [(0.5,)] for name in ("fisher", "random")})
    assert found.reference == ""
    assert "no" in area_lines(found)[0].lower()
    assert summary(found)["quality"]["area"]["fisher"]["above_reference"] is None
    assert math.isclose(found.dense.mean, 1.0)


PM = "\N{PLUS-MINUS SIGN}"


def test_the_best_at_each_density_is_said_with_the_interval_of_its_lead(make: Any) -> None:
    even = {"fisher": [(0.9, 0.5)] * 3, "magnitude": [(0.5, 0.5), (0.6, 0.9), (0.7, 0.1)]}
    first, second = best_lines(make((0.5, 0.1), even))
    assert first == f"At density 0.5: fisher wins with 0.900, +0.300 {PM} 0.248 above magnitude."
    assert second.startswith("At density 0.1: no clear winner: ")
    same = {name: [(0.5,)] * 2 for name in ("fisher", "magnitude")}
    both = "At density 0.5: fisher and magnitude (equal in every run), 0.500."
    assert best_lines(make((0.5,), same)) == (both,)
    assert best_lines(make((1.0,), same)) == ()


def test_of_one_run_there_is_no_clear_winner(make: Any) -> None:
    (line,) = best_lines(make((0.5,), {"fisher": [(0.9,)], "magnitude": [(0.1,)]}))
    assert line == "At density 0.5: no clear winner: fisher 0.900, +0.800 above magnitude."
