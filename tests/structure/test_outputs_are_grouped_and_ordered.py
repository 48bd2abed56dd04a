"""Block-triangular order is that of a brute-force search; groups of similar rows find what is planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, UnknownNameError
from gradtrace.structure.block_triangular import block_triangular, strong_components
from gradtrace.structure.plan import LayerPlan
from gradtrace.structure.row_groups import row_groups
from gradtrace.structure.similar_rows import METHODS, similar_row_groups
from gradtrace.structure.sub_operator import SubOperator

Mask = NDArray[np.bool_]
every_method = pytest.mark.parametrize("by", METHODS)
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9))
squares = st.integers(0, 8).flatmap(lambda side: hnp.arrays(np.bool_, (side, side)))


def covers(parts: tuple[SubOperator, ...], mask: Mask) -> None:
    LayerPlan("row groups", parts, mask, 1.0, 1.0, None, "")  # refuses a lost or doubled dependency


@given(mask=squares)
def test_strong_components_are_those_of_a_search_and_come_after_what_they_read(mask: Mask) -> None:
    reach = mask | np.eye(len(mask), dtype=np.bool_)
    for node in range(len(mask)):  # Warshall
        reach |= reach[:, [node]] & reach[[node]]
    both = reach & reach.T
    expected = {tuple(np.flatnonzero(row).tolist()) for row in both}
    found = [tuple(part.tolist()) for part in strong_components(mask)]
    assert set(found) == expected
    assert len(found) == len(expected)
    place = {index: number for number, part in enumerate(found) for index in part}
    assert all(place[int(source)] <= place[int(output)] for output, source in np.argwhere(mask))


@given(mask=squares, least=st.integers(1, 9))
def test_a_block_triangular_order_covers_the_mask(mask: Mask, least: int) -> None:
    parts = block_triangular(mask, least)
    covers(parts, mask)
    outputs = [index for part in parts for index in part.outputs.tolist()]
    assert sorted(outputs) == np.flatnonzero(mask.any(axis=1)).tolist()


def test_a_planted_and_permuted_block_triangle_is_found_exactly() -> None:
    generator = np.random.default_rng(0)
    blocks = np.tril(np.ones((5, 5), dtype=np.bool_))
    place = generator.permutation(50)
    mask = np.kron(blocks, np.ones((10, 10), dtype=np.bool_))[place][:, place]
    parts = block_triangular(mask)
    assert [(len(part.outputs), len(part.inputs)) for part in parts] == [
        (10, 10 * number) for number in range(1, 6)
    ]
    assert sum(part.size for part in parts) == mask.sum()


def test_single_rows_of_a_triangle_are_joined_to_blocks() -> None:
    place = np.random.default_rng(1).permutation(96)
    mask = np.tril(np.ones((96, 96), dtype=np.bool_))[place][:, place]
    parts = block_triangular(mask, 32)
    assert [(len(part.outputs), len(part.inputs)) for part in parts] == [(32, 32), (32, 64), (32, 96)]


def test_a_chain_of_thousands_is_ordered() -> None:
    place = np.random.default_rng(2).permutation(2000)
    mask = np.eye(2000, k=-1, dtype=np.bool_)[place][:, place]
    order = np.concatenate(strong_components(mask))
    assert place[order].tolist() == list(range(2000))


def test_what_is_not_square_has_no_triangular_order() -> None:
    with pytest.raises(InvalidValueError, match="as many outputs as inputs"):
        strong_components(np.ones((3, 4), dtype=np.bool_))
    with pytest.raises(InvalidValueError, match="least outputs"):
        block_triangular(np.ones((3, 3), dtype=np.bool_), 0)


@pytest.mark.parametrize("by", ["greedy", "fiedler"])
@given(mask=masks, size=st.integers(1, 10))
def test_groups_of_similar_rows_cover_any_mask(by: str, mask: Mask, size: int) -> None:
    parts = similar_row_groups(mask, size, by=by)
    covers(parts, mask)
    lengths = [len(part.outputs) for part in parts]
    assert max(lengths, default=0) <= size
    assert max(lengths, default=0) - min(lengths, default=0) <= 1


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (0, 3), (40, 30), (65, 3)])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_a_hypergraph_partition_covers_any_mask(shape: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(0).random(shape) < density
    covers(similar_row_groups(mask, 16, by="hypergraph"), mask)


@pytest.mark.parametrize("by", ["greedy", "hypergraph"])
@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_permuted_groups_are_found_exactly(by: str, noise: float) -> None:
    generator = np.random.default_rng(3)
    supports = generator.random((6, 120)) < 0.3
    group = generator.permutation(np.repeat(np.arange(6), 32))
    mask = supports[group] | (generator.random((192, 120)) < noise)
    found = {tuple(part.outputs.tolist()) for part in similar_row_groups(mask, 32, by=by)}
    assert found == {tuple(np.flatnonzero(group == number).tolist()) for number in range(6)}


def test_a_band_is_put_in_order_again() -> None:
    distance = np.abs(np.subtract.outer(np.arange(256), np.arange(256)))
    place = np.random.default_rng(4).permutation(256)
    mask = (distance < 20)[place]
    natural = sum(part.size for part in row_groups(mask, 32))
    assert sum(part.size for part in similar_row_groups(mask, 32, by="fiedler")) < 0.4 * natural
    assert sum(part.size for part in similar_row_groups(mask, 32, by="greedy")) < 0.5 * natural


@every_method
def test_the_same_seed_gives_the_same_groups(by: str) -> None:
    mask = np.random.default_rng(5).random((130, 70)) < 0.1
    first, second = (similar_row_groups(mask, 32, by=by, seed=2) for _ in range(2))
    assert [part.to_json() for part in first] == [part.to_json() for part in second]


def test_sizes_and_methods_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="row group size"):
        similar_row_groups(np.ones((3, 3), dtype=np.bool_), 0)
    with pytest.raises(UnknownNameError, match="no method 'magic'"):
        similar_row_groups(np.ones((3, 3), dtype=np.bool_), 2, by="magic")
