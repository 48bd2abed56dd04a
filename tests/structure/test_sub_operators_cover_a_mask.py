"""Every kind of sub-operators computes exactly what its mask keeps, whatever the mask looks like."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError
from gradtrace.structure.components import components
from gradtrace.structure.plan import LayerPlan
from gradtrace.structure.row_groups import identical_rows, row_groups
from gradtrace.structure.sub_operator import SubOperator
from gradtrace.structure.trimmed import trimmed

Mask = NDArray[np.bool_]
Method = Callable[[Mask], tuple[SubOperator, ...]]

METHODS: dict[str, Method] = {
    "trimmed": trimmed,
    "components": components,
    "identical rows": identical_rows,
    "row groups of 1": partial(row_groups, size=1),
    "row groups of 3": partial(row_groups, size=3),
    "row groups of 64": partial(row_groups, size=64),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def apply(
    parts: tuple[SubOperator, ...], weight: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    y = np.zeros((len(x), len(weight)))
    for part in parts:
        y[:, part.outputs] += x[:, part.inputs] @ weight[np.ix_(part.outputs, part.inputs)].T
    return y


@every_method
@given(mask=masks)
def test_sub_operators_equal_the_masked_product(method: Method, mask: Mask) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(mask.shape) * mask
    x = generator.standard_normal((5, mask.shape[1]))
    np.testing.assert_allclose(apply(method(mask), weight, x), x @ weight.T, rtol=1e-12, atol=1e-12)


@every_method
@given(mask=masks)
def test_every_kept_dependency_is_covered_once(method: Method, mask: Mask) -> None:
    LayerPlan("row groups", method(mask), mask, 1.0, 1.0, None, "")  # refuses a lost or doubled one


@every_method
def test_an_empty_mask_needs_no_sub_operator(method: Method) -> None:
    assert method(np.zeros((4, 7), dtype=np.bool_)) == ()


def test_trimming_leaves_out_exactly_the_dead_rows_and_columns() -> None:
    mask = np.zeros((4, 5), dtype=np.bool_)
    mask[1, [0, 3]] = mask[3, 3] = True
    (part,) = trimmed(mask)
    assert part.inputs.tolist() == [0, 3]
    assert part.outputs.tolist() == [1, 3]


@given(mask=masks)
def test_components_are_the_classes_of_the_transitive_closure(mask: Mask) -> None:
    reach = mask.astype(np.int64) @ mask.T.astype(np.int64) > 0
    for _ in range(len(mask).bit_length()):
        reach = reach.astype(np.int64) @ reach.astype(np.int64) > 0
    expected = {
        (tuple(np.flatnonzero(row)), tuple(np.flatnonzero(mask[row].any(axis=0))))
        for row in reach
        if row.any()
    }
    found = [(tuple(part.outputs), tuple(part.inputs)) for part in components(mask)]
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("blocks", [2, 5, 16])
def test_planted_and_permuted_blocks_are_found_exactly(blocks: int) -> None:
    generator = np.random.default_rng(blocks)
    mask = np.kron(np.eye(blocks, dtype=np.bool_), np.ones((6, 9), dtype=np.bool_))
    rows, columns = generator.permutation(mask.shape[0]), generator.permutation(mask.shape[1])
    found = components(mask[rows][:, columns])
    assert [(len(part.outputs), len(part.inputs)) for part in found] == [(6, 9)] * blocks
    assert [part.outputs.min() for part in found] == sorted(part.outputs.min() for part in found)


def test_rows_with_identical_inputs_share_a_group_and_nothing_dropped_is_inside() -> None:
    generator = np.random.default_rng(0)
    supports = generator.random((5, 40)) < 0.4
    mask = supports[generator.integers(0, 5, 100)]
    parts = identical_rows(mask)
    assert len(parts) == 5
    assert sum(part.size for part in parts) == mask.sum()


@pytest.mark.parametrize(("live", "size", "expected"), [(64, 64, 1), (65, 64, 2), (300, 128, 3), (7, 256, 1)])
def test_row_groups_are_few_balanced_and_in_natural_order(live: int, size: int, expected: int) -> None:
    mask = np.zeros((live + 3, 11), dtype=np.bool_)
    mask[2 : 2 + live] = np.random.default_rng(1).random((live, 11)) < 0.5
    mask[2 : 2 + live, 0] = True
    parts = row_groups(mask, size)
    lengths = [len(part.outputs) for part in parts]
    assert len(parts) == expected
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert np.concatenate([part.outputs for part in parts]).tolist() == list(range(2, 2 + live))


@settings(max_examples=30)
@given(mask=masks, size=st.integers(1, 13))
def test_a_row_group_gathers_no_input_that_none_of_its_outputs_keeps(mask: Mask, size: int) -> None:
    assert all(mask[np.ix_(part.outputs, part.inputs)].any(axis=0).all() for part in row_groups(mask, size))


@pytest.mark.parametrize(
    "indices", [[], [[1]], [-1], [1, 1], [0.5], ["a"], [True], [2**63], [2**64], [[1], [2, 3]], None]
)
def test_indices_that_are_none_are_refused(indices: object) -> None:
    with pytest.raises(InvalidValueError, match="sub-operator inputs"):
        SubOperator(indices, np.array([0]))  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="sub-operator outputs"):
        SubOperator(np.array([0]), indices)  # type: ignore[arg-type]


def test_a_sub_operator_cannot_be_changed_from_outside() -> None:
    inputs = np.array([3, 1])
    part = SubOperator(inputs, np.array([0]))
    inputs[0] = 9
    assert part.inputs.tolist() == [3, 1]
    with pytest.raises(ValueError, match="read-only"):
        part.inputs[0] = 9
