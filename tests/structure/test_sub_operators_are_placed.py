"""A placement runs every sub-operator once, splits no block of an MLP, and is as balanced as can be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradtrace as gt
from gradtrace.errors import InvalidValueError, MismatchError, UnknownNameError
from gradtrace.structure.components import components
from gradtrace.structure.placement import hidden_blocks
from gradtrace.structure.plan import LayerPlan
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.sub_operator import SubOperator


def layer(
    parts: tuple[SubOperator, ...], shape: tuple[int, int], predicted: float = 1.0, choice: str = "components"
) -> LayerPlan:
    mask = np.zeros(shape, np.bool_)
    for part in parts:
        mask[np.ix_(part.outputs, part.inputs)] = True
    return LayerPlan(choice, parts, mask, predicted, 2.0, None, "")


def stacked(sizes: list[int], predicted: float = 1.0) -> LayerPlan:
    """One output a sub-operator, and disjoint inputs: sub-operator number s costs sizes[s]."""
    ends = np.cumsum(sizes)
    parts = tuple(
        SubOperator(np.arange(end - size, end), np.array([row]))
        for row, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )
    return layer(parts, (len(sizes), int(ends[-1])), predicted)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 3))
def test_no_placement_is_done_earlier(sizes: list[int], ranks: int) -> None:
    placed = gt.placement(gt.Plan({"a": stacked(sizes, float(sum(sizes)))}), ranks)
    every = product(range(ranks), repeat=len(sizes))
    best = min(np.bincount(chosen, weights=sizes, minlength=ranks).max() for chosen in every)
    assert placed.slowest == pytest.approx(best, rel=0.006)
    loads = [sum(sizes[number] for number in numbers) for numbers in placed.layers["a"]]
    assert placed.seconds == pytest.approx(loads)
    assert placed.balance == pytest.approx(sum(sizes) / ranks / placed.slowest)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_sub_operator_runs_on_one_rank(ranks: int) -> None:
    mask = np.random.default_rng(0).random((96, 41)) < 0.3
    plan = gt.Plan({"a": layer(row_groups(mask, 7), mask.shape), "b": stacked([5, 3, 2, 2])})
    placed = gt.placement(plan, ranks)
    for name, on_ranks in placed.layers.items():
        assert len(on_ranks) == ranks
        assert sorted(sum(on_ranks, ())) == list(range(len(plan[name].sub_operators)))
    assert placed == gt.placement(plan, ranks)


def test_what_a_layer_leaves_unbalanced_the_next_evens_out() -> None:
    plan = gt.Plan({"a": stacked([3, 1]), "b": stacked([3, 1])})
    placed = gt.placement(plan, 2)
    assert placed.seconds == pytest.approx([1.0, 1.0])
    assert placed.slowest == pytest.approx(1.5)
    assert placed.balance == pytest.approx(2 / 3)


@pytest.mark.parametrize("gated", [False, True])
def test_no_hidden_unit_of_an_mlp_is_on_two_ranks(gated: bool) -> None:
    draw = np.random.default_rng(1)
    wide, hidden = (draw.integers(5, size=size) for size in (33, 80))
    up = np.asarray((hidden[:, None] == wide) & (draw.random((80, 33)) < 0.9))
    down = np.asarray(wide[:, None] == hidden)
    layers = {"up": layer(components(up), up.shape), "down": layer(components(down), down.shape)}
    names: tuple[str, ...] = ("up", "down")
    if gated:
        layers["gate"] = layers["up"]
        names = ("gate", "up", "down")
    plan = gt.Plan(layers)
    placed = gt.placement(plan, 3, mlps=[names])
    assert placed.mlps == (names,)
    rank_of: dict[int, set[int]] = {}
    for name in names:
        for rank, numbers in enumerate(placed.layers[name]):
            for number in numbers:
                part = plan[name].sub_operators[number]
                for unit in part.inputs if name == "down" else part.outputs:
                    rank_of.setdefault(int(unit), set()).add(rank)
    assert all(len(ranks) == 1 for ranks in rank_of.values())
    assert set.union(*rank_of.values()) == {0, 1, 2}
    assert sum(placed.seconds) == pytest.approx(sum(plan[name].predicted for name in names))


def part(inputs: list[int], outputs: list[int]) -> SubOperator:
    return SubOperator(np.array(inputs), np.array(outputs))


def test_blocks_are_joined_by_any_hidden_unit() -> None:
    up = [part([0], [0, 1]), part([0], [2]), part([1], [3])]
    down = [part([1, 2], [0]), part([4], [1]), part([3], [0])]
    assert hidden_blocks([up], down, 5).tolist() == [0, 0, 1, 0, 2, 1]
    assert hidden_blocks([], [], 5).tolist() == []


def test_a_dense_layer_is_not_placed() -> None:
    dense = LayerPlan("dense", (), np.ones((3, 3), np.bool_), 1.0, 1.0, None, "stays dense")
    assert list(gt.placement(gt.Plan({"a": dense, "b": stacked([1, 1])}), 2).layers) == ["b"]
    nothing = gt.placement(gt.Plan({"a": dense}), 2)
    assert (dict(nothing.layers), nothing.seconds, nothing.balance) == ({}, (0.0, 0.0), 1.0)


def test_a_plan_that_predicts_nothing_is_balanced_by_weights() -> None:
    placed = gt.placement(gt.Plan({"a": stacked([4, 3, 1], predicted=0.0)}), 2)
    assert placed.layers["a"] == ((0,), (1, 2))
    assert placed.seconds == (0.0, 0.0)


def test_a_layer_without_sub_operators_is_placed_nowhere() -> None:
    empty = LayerPlan("trimmed", (), np.zeros((3, 4), np.bool_), 0.0, 1.0, None, "")
    assert gt.placement(gt.Plan({"a": empty}), 2).layers["a"] == ((), ())


@pytest.mark.parametrize("ranks", [0, -1, 1.5, True, "2"])
def test_ranks_that_are_no_number_of_processes_are_refused(ranks: int) -> None:
    with pytest.raises(InvalidValueError, match=r"ranks: expected an integer of at least 1.*world size"):
        gt.placement(gt.Plan({}), ranks)


@pytest.mark.parametrize(
    ("mlps", "error", "words"),
    [
        ([("up",)], InvalidValueError, "at least two layer names"),
        (["up"], InvalidValueError, "at least two layer names"),
        ([("up", 3)], InvalidValueError, "at least two layer names"),
        ([("up", "sideways")], UnknownNameError, "no layer 'sideways'"),
        ([("up", "dense")], InvalidValueError, "'dense', which stays dense"),
        ([("up", "down"), ("up", "down")], InvalidValueError, "'up' twice"),
        ([("down", "up")], MismatchError, r"'down' does not lead to 'up': expected 7 outputs"),
    ],
)
def test_what_is_no_mlp_of_the_plan_is_refused(mlps: object, error: type[Exception], words: str) -> None:
    plan = gt.Plan(
        {
            "up": stacked([3, 4]),
            "down": layer((part([0, 1], [0]),), (5, 2)),
            "dense": LayerPlan("dense", (), np.ones((3, 2), np.bool_), 1.0, 1.0, None, ""),
        }
    )
    with pytest.raises(error, match=words):
        gt.placement(plan, 2, mlps=mlps)  # type: ignore[arg-type]


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="plan: expected a Plan"):
        gt.placement({}, 2)  # type: ignore[arg-type]
