"""Two real gloo processes run a converted model together: outputs and gradients are those of one process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, StateError

Launch = Callable[..., list[str]]


@pytest.mark.parametrize(
    "case", ["blocks", "gated", "disjoint", "scattered", "one block", "frozen", "attention"]
)
def test_outputs_and_gradients_are_those_of_one_process(launch: Launch, case: str) -> None:
    first, second = launch(case, ranks=2, script="placed_model.py")
    held = [[int(line.split()[1]) for line in told.splitlines()] for told in (first, second)]
    if case == "one block":
        assert held[1] == [0, 0] or held[0] == [0, 0]
    else:
        assert min(min(held)) > 0.3 * max(max(held)), "the weights are shared out"


def test_what_does_not_belong_together_is_refused_on_every_rank(launch: Launch) -> None:
    launch("refusals", ranks=2, script="placed_model.py")


def test_without_a_process_group_it_is_said_how_to_start_one() -> None:
    placement = gt.placement(gt.Plan({}), 2)
    with pytest.raises(StateError, match="init_process_group"):
        gt.place_(nn.Sequential(), placement)
    with pytest.raises(InvalidValueError, match="placement: expected a Placement"):
        gt.place_(nn.Sequential(), {})  # type: ignore[arg-type]
