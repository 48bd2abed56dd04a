"""Density by stage, and stage by step; shares and steps; what cannot be is refused with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from gradtrace.annealing.schedule import Schedule, step_of
from gradtrace.annealing.target import Target
from gradtrace.errors import InvalidValueError, UnknownNameError


def test_the_cubic_schedule_is_that_of_its_source() -> None:
    schedule = Schedule(100, 300, 4, 0.2)
    assert [schedule.density_of(stage) for stage in (0, 1, 2, 3, 4, 5)] == pytest.approx(
        [1.0, 0.2 + 0.8 * 0.75**3, 0.2 + 0.8 / 8, 0.2 + 0.8 / 64, 0.2, 0.2]
    )


def test_the_linear_schedule_is_a_straight_line() -> None:
    schedule = Schedule(0, 10, 5, 0.5, "linear")
    assert [schedule.density_of(stage) for stage in range(6)] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5])


@pytest.mark.parametrize(
    ("step", "stage"), [(0, 0), (100, 0), (149, 0), (150, 1), (299, 3), (300, 4), (350, 5)]
)
def test_a_stage_is_due_at_a_step(step: int, stage: int) -> None:
    assert Schedule(100, 300, 4, 0.2).stage_at(step) == stage


@pytest.mark.parametrize(("value", "steps", "found"), [(0.5, 300, 150), (7, None, 7), (1.0, 9, 9), (0, 9, 0)])
def test_shares_and_steps(value: float, steps: int | None, found: int) -> None:
    assert step_of("begin", value, steps) == found


@pytest.mark.parametrize(("value", "steps"), [(0.5, None), (1.5, 10), (-1, 10), (True, 10), ("a", 10)])
def test_what_is_no_step_is_refused(value: Any, steps: int | None) -> None:
    with pytest.raises(InvalidValueError, match="begin"):
        step_of("begin", value, steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"begin": 5, "end": 5},
        {"begin": -1},
        {"stages": 0},
        {"stages": 11},
        {"stages": True},
        {"density": 0.0},
        {"shape": "round"},
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError):
        Schedule(**{"begin": 0, "end": 10, "stages": 5, "density": 0.5} | settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"structure": "stripes"}, "structure"),
        ({"structure": "blocks"}, "blocks"),
        ({"structure": "blocks", "blocks": 1}, "blocks"),
        ({"structure": "rows"}, r"pass e\.g\. density=0\.3|Pass e\.g\. density=0\.3"),
        ({"density": 0.3, "blocks": 4}, "structure='blocks'"),
        ({"density": 1.5}, "density"),
        ({"density": 0.3, "l1": -1}, "l1"),
        ({"density": 0.3, "group_lasso": 1.0}, "group_lasso"),
    ],
)
def test_a_target_that_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Target(**settings)


def test_a_criterion_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="magnitude"):
        Target(density=0.3, by="magnitud")


def test_blocks_are_squeezed_past_their_density() -> None:
    assert Target("blocks", blocks=8).final == 0.5 / 8
