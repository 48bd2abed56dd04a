from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradtrace.comparison.layer_shape import LayerShape, edges, layer_shape, together
from gradtrace.comparison.summary import collapsed, decomposition
from gradtrace.structure.halves import cross_edges, halves


def by_hand(graph: NDArray[np.bool_]) -> list[tuple[set[int], set[int]]]:
    """Connected components by walking from every output."""
    found: list[tuple[set[int], set[int]]] = []
    for start in range(graph.shape[0]):
        if graph[start].any() and not any(start in rows for rows, _ in found):
            rows, columns, ahead = {start}, set[int](), [start]
            while ahead:
                for column in np.flatnonzero(graph[ahead.pop()]):
                    columns.add(int(column))
                    new = {int(row) for row in np.flatnonzero(graph[:, column])} - rows
                    rows |= new
                    ahead.extend(new)
            found.append((rows, columns))
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(1, 5), (7, 4), (12, 15)])
def test_counts_are_those_of_a_walk_over_the_graph(seed: int, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(seed).random(shape) < 1.2 / max(shape)
    parts = by_hand(mask)
    found = layer_shape(mask)
    assert found.components == len(parts)
    assert found.largest == max((int(mask[sorted(rows)].sum()) for rows, _ in parts), default=0)
    assert found.inside == sum(len(rows) * len(columns) for rows, columns in parts)
    assert (found.size, found.kept, found.edges) == (mask.size, mask.sum(), mask.sum())
    assert (found.outputs, found.inputs) == (mask.any(1).sum(), mask.any(0).sum())
    assert found.density == mask.mean()


def test_a_layer_without_a_connection_has_collapsed() -> None:
    found = layer_shape(np.zeros((3, 4), np.bool_))
    assert (found.collapsed, found.components, found.largest, found.cross) == (True, 0, 0, 0)
    assert not layer_shape(np.eye(3, dtype=np.bool_)).collapsed
    assert not layer_shape(np.zeros((0, 4), np.bool_)).collapsed


def test_channels_are_joined_by_any_tap_and_groups_share_nothing() -> None:
    mask = np.zeros((4, 1, 3, 3), np.bool_)
    mask[:, 0, 1, 2] = True
    assert layer_shape(mask).components == 1  # four outputs on one input
    grouped = layer_shape(mask, groups=4)
    assert (grouped.components, grouped.kept, grouped.edges, grouped.all_pairs) == (4, 4, 4, 16)
    np.testing.assert_array_equal(edges(mask, groups=4), np.eye(4, dtype=np.bool_))
    # A transposed convolution counts its inputs first, and within a group its outputs.
    np.testing.assert_array_equal(edges(np.ones((4, 2, 1), np.bool_), flipped=True, groups=2)[:2, 2:], False)


def test_layers_add_up() -> None:
    both = together(
        {"a": layer_shape(np.eye(3, dtype=np.bool_)), "b": layer_shape(np.ones((2, 2), np.bool_))}
    )
    assert both == LayerShape(13, 7, 7, 5, 5, 4, 5, 7, 13, both.cross)


@pytest.mark.parametrize("sides", [((6, 9), (6, 9)), ((80, 90), (80, 90)), ((5, 4), (5, 4))])
def test_two_blocks_are_cut_apart_whatever_their_order(
    sides: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    rng = np.random.default_rng(3)
    (a, b), (c, d) = sides
    mask = np.zeros((a + c, b + d), np.bool_)
    mask[:a, :b] = mask[a:, b:] = True
    mask[0, b] = True  # one false edge glues them
    rows, columns = rng.permutation(a + c), rng.permutation(b + d)
    shuffled = mask[np.ix_(rows, columns)]
    assert layer_shape(shuffled).components == 1
    assert cross_edges(shuffled) == 1
    outputs, _ = halves(shuffled)
    assert len(set(outputs[np.argsort(rows)][:a])) == 1


@pytest.mark.parametrize("shape", [(6, 8), (100, 70)])
def test_where_nothing_tells_the_halves_apart_half_of_the_edges_cross(shape: tuple[int, int]) -> None:
    assert cross_edges(np.ones(shape, np.bool_)) == shape[0] * shape[1] / 2


@pytest.mark.parametrize("mask", [np.zeros((3, 3)), np.ones((1, 4)), np.ones((4, 1)), np.zeros((0, 3))])
def test_what_has_no_halves_has_no_cross_edges(mask: NDArray[np.float64]) -> None:
    assert cross_edges(mask.astype(np.bool_)) == 0


def test_the_summary_averages_shares_and_counts_collapses(make: Any) -> None:
    shapes = {
        "fisher": (layer_shape(np.eye(4, dtype=np.bool_)), layer_shape(np.zeros((4, 4), np.bool_))),
        "random": (layer_shape(np.ones((4, 4), np.bool_)),) * 2,
    }
    found = make((0.5, 0.1), {"fisher": [(1, 1), (1, 1)], "random": [(0, 0), (0, 0)]}, shapes)
    first, second = decomposition(found, "fisher")
    assert (first["components"], first["largest"], first["inside"]) == (4.0, 0.25, 0.25)
    assert (second["components"], second["largest"], second["inside"]) == (0.0, 0.0, 0.0)
    assert decomposition(found, "random")[0]["across"] == 0.5
    assert collapsed(found, "fisher") == [{}, {"w": 2}]
    assert collapsed(found, "random") == [{}, {}]
