"""Whatever the ranks hold, every element is recorded once, by a rank that holds it, and all record alike."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtrace.errors import InvalidValueError
from gradtrace.ledger.format import Layout, ParameterInfo
from gradtrace.recorder.shares import Box, shared_out

SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6)


def infos(shapes: list[tuple[int, ...]]) -> list[ParameterInfo]:
    return [
        ParameterInfo(
            name=f"p{index}",
            shape=shape,
            dtype="float32",
            module="",
            module_class="Linear",
            role="other",
            orientation="" if len(shape) < 2 else "out,in",
        )
        for index, shape in enumerate(shapes)
    ]


def whole(shape: tuple[int, ...]) -> Box:
    return Box((0,) * len(shape), shape)


def chunk(shape: tuple[int, ...], ranks: int, rank: int) -> Box:
    """As torch.chunk cuts the first dimension: ragged, and empty for the last ranks where it is short."""
    step = -(-shape[0] // ranks)
    first, last = min(rank * step, shape[0]), min((rank + 1) * step, shape[0])
    return Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))


@given(shapes=SHAPES)
def test_one_rank_records_everything_in_order(shapes: list[tuple[int, ...]]) -> None:
    parameters = infos(shapes)
    assert shared_out(parameters, [[whole(shape) for shape in shapes]]) == Layout.whole(parameters)


@given(shapes=SHAPES, ranks=st.integers(1, 7))
def test_what_all_hold_is_shared_to_within_one_row(shapes: list[tuple[int, ...]], ranks: int) -> None:
    layout = shared_out(infos(shapes), [[whole(shape) for shape in shapes]] * ranks)  # tiles, or it raises
    fair = sum(math.prod(shape) for shape in shapes) / ranks
    row = max(math.prod(shape[1:]) if shape else 1 for shape in shapes)
    assert all(abs(layout.size(rank) - fair) <= row + 1 for rank in range(ranks))


@given(shapes=SHAPES, ranks=st.integers(1, 5), data=st.data())
def test_shards_stay_where_they_are_and_what_is_replicated_evens_them_out(
    shapes: list[tuple[int, ...]], ranks: int, data: st.DataObject
) -> None:
    sharded = [bool(shape) and data.draw(st.booleans()) for shape in shapes]
    held = [
        [
            chunk(shape, ranks, rank) if split else whole(shape)
            for shape, split in zip(shapes, sharded, strict=True)
        ]
        for rank in range(ranks)
    ]
    layout = shared_out(infos(shapes), held)
    for rank, pieces in enumerate(layout.ranks):
        for piece in pieces:
            box = held[rank][piece.parameter]
            assert all(
                start <= first and first + side <= start + full
                for first, side, start, full in zip(
                    piece.start, piece.shape, box.start, box.shape, strict=True
                )
            ), "a rank records what it does not hold"
    forced = [
        sum(box.size for box, split in zip(held[rank], sharded, strict=True) if split)
        for rank in range(ranks)
    ]
    free = sum(math.prod(shape) for shape, split in zip(shapes, sharded, strict=True) if not split)
    row = max(math.prod(shape[1:]) if shape else 1 for shape in shapes)
    level = max(max(forced), (sum(forced) + free) / ranks)
    assert all(layout.size(rank) <= level + row + 1 for rank in range(ranks))


@pytest.mark.parametrize("replicas", [(0, 2), (0, 1)])
def test_two_replicas_of_a_sharded_model_share_each_shard(replicas: tuple[int, int]) -> None:
    # Four ranks, two shards, each on two ranks: HSDP, in either order of the mesh.
    first = [rank in replicas for rank in range(4)]
    held = [[Box((0 if mine else 5, 0), (5, 3))] for mine in first]
    layout = shared_out(infos([(10, 3)]), held)
    assert sorted(layout.size(rank) for rank in range(4)) == [6, 6, 9, 9]


def test_boxes_that_overlap_without_being_alike_are_refused_with_the_name() -> None:
    # What strided sharding leaves: rows 0 and 2 here, 1 and 3 there.
    with pytest.raises(InvalidValueError, match="'p0'"):
        shared_out(infos([(4, 2)]), [[Box((0, 0), (2, 2))], [Box((1, 0), (2, 2))]])
