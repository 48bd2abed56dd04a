"""Co-clusters find planted blocks, keep their balance and seed, and cover any mask with their residual."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gradtrace.errors import InvalidValueError, MismatchError, UnknownNameError, UnsupportedError
from gradtrace.structure import hypergraph
from gradtrace.structure.balanced_blocks import room_for
from gradtrace.structure.coclusters import METHODS, CoClusters, coclusters
from gradtrace.structure.mlp_blocks import mlp_coclusters, mlp_components
from gradtrace.structure.plan import LayerPlan

Mask = NDArray[np.bool_]
Labels = NDArray[np.int64]
every_method = pytest.mark.parametrize("by", METHODS)
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9))


def planted(blocks: int, outputs: int, inputs: int, seed: int = 0) -> tuple[Labels, Labels]:
    """Hidden labels: `blocks` blocks of so many outputs and inputs each, permuted."""
    generator = np.random.default_rng(seed)
    return (
        generator.permutation(np.repeat(np.arange(blocks), outputs)),
        generator.permutation(np.repeat(np.arange(blocks), inputs)),
    )


def same_blocks(found: list[Labels], true: list[Labels]) -> bool:
    """Are these the same blocks, whatever their numbers?"""
    pairs = set(zip(np.concatenate(found).tolist(), np.concatenate(true).tolist(), strict=True))
    blocks = len(set(np.concatenate(true).tolist()))
    return len(pairs) == blocks == len({one for one, _ in pairs})


@every_method
@pytest.mark.parametrize("blocks", [2, 3, 4, 8, 16])
def test_planted_blocks_are_found_exactly(by: str, blocks: int) -> None:
    outputs, inputs = planted(blocks, 24, 17)
    found = coclusters(outputs[:, None] == inputs, blocks, by=by)
    assert same_blocks([found.outputs, found.inputs], [outputs, inputs])


@pytest.mark.parametrize("by", ["alternating", "hypergraph"])
@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_planted_blocks_are_found_in_dense_noise(by: str, blocks: int) -> None:
    outputs, inputs = planted(blocks, 32, 20)
    generator = np.random.default_rng(1)
    weights = np.abs(generator.standard_normal((len(outputs), len(inputs))))
    weights *= np.where(outputs[:, None] == inputs, 1.0, 0.15)
    found = coclusters(weights, blocks, by=by)
    assert same_blocks([found.outputs, found.inputs], [outputs, inputs])


@pytest.mark.parametrize("false_share", [0.001, 0.01, 0.1])
def test_false_edges_are_left_between_the_blocks(false_share: float) -> None:
    outputs, inputs = planted(4, 64, 48)
    true = outputs[:, None] == inputs
    mask = true | (np.random.default_rng(2).random(true.shape) < false_share)
    found = coclusters(mask, 4)
    assert np.array_equal(found.inside(mask), true)
    assert np.array_equal(found.residual(mask), mask & ~true)
    assert [part.size for part in found.sub_operators] == [64 * 48] * 4


@pytest.mark.parametrize("shape", [(6, 6), (5, 7), (8, 4)])
def test_no_other_balanced_halves_hold_more(shape: tuple[int, int]) -> None:
    weights = np.random.default_rng(5).random(shape) ** 8
    found = coclusters(weights, 2, imbalance=0.0)
    rooms = [room_for(size, 2, 0.0) for size in shape]
    everything = [np.array([code >> bit & 1 for bit in range(sum(shape))]) for code in range(1 << sum(shape))]
    best = max(
        float(weights[labels[: shape[0], None] == labels[shape[0] :]].sum())
        for labels in everything
        if all(
            max(part.sum(), len(part) - part.sum()) <= room
            for part, room in zip((labels[: shape[0]], labels[shape[0] :]), rooms, strict=True)
        )
    )
    inside = float(weights[found.outputs[:, None] == found.inputs].sum())
    assert 0.95 * best <= inside <= best * (1 + 1e-12)  # a heuristic, but a good one


@given(mask=masks, blocks=st.integers(1, 6), imbalance=st.sampled_from([0.0, 0.1, 1.0]))
def test_every_label_is_one_of_the_blocks_and_none_is_too_full(
    mask: Mask, blocks: int, imbalance: float
) -> None:
    found = coclusters(mask, blocks, imbalance=imbalance)
    for labels, count in zip((found.outputs, found.inputs), mask.shape, strict=True):
        assert labels.shape == (count,)
        assert np.isin(labels, np.arange(blocks)).all()
        assert np.bincount(labels, minlength=blocks).max() <= room_for(count, blocks, imbalance)


@given(mask=masks, blocks=st.integers(1, 6))
def test_blocks_and_residual_cover_any_mask_exactly_once(mask: Mask, blocks: int) -> None:
    found = coclusters(mask, blocks)
    LayerPlan("row groups", found.covering(mask), mask, 1.0, 1.0, None, "")  # refuses lost or doubled ones
    assert np.array_equal(found.inside(mask) ^ found.residual(mask), mask)


def test_what_is_in_no_block_is_covered_and_not_inside() -> None:
    mask = np.ones((3, 3), dtype=np.bool_)
    found = CoClusters(np.array([0, -1, 1]), np.array([-1, 0, 1]))
    assert found.inside(mask).sum() == 2
    LayerPlan("row groups", found.covering(mask), mask, 1.0, 1.0, None, "")


@every_method
def test_the_same_seed_gives_the_same_labels(by: str) -> None:
    weights = np.random.default_rng(0).random((90, 70))
    first, second = (coclusters(weights, 5, seed=3, by=by) for _ in range(2))
    assert np.array_equal(first.outputs, second.outputs)
    assert np.array_equal(first.inputs, second.inputs)


@pytest.mark.parametrize(("up", "blocks"), [(20, 4), (37, 8)])
def test_blocks_of_a_whole_mlp_are_found_under_noise(up: int, blocks: int) -> None:
    hidden, inputs = planted(blocks, up, 12, seed=1)
    outputs, _ = planted(blocks, 10, 1, seed=2)
    noise = np.random.default_rng(3)
    up_weights = np.where(hidden[:, None] == inputs, 1.0, 0.3) * noise.random((len(hidden), len(inputs)))
    down_weights = np.where(outputs[:, None] == hidden, 9.0, 3.0) * noise.random((len(outputs), len(hidden)))
    found = mlp_coclusters(up_weights, down_weights, blocks)
    assert same_blocks([found.inputs, found.hidden, found.outputs], [inputs, hidden, outputs])
    assert found.blocks == blocks
    assert [part.size for part in found.up.sub_operators] == [up * 12] * blocks
    assert [part.size for part in found.down.sub_operators] == [up * 10] * blocks


@settings(max_examples=60)
@given(data=st.data())
def test_components_of_an_mlp_are_the_classes_of_the_transitive_closure(data: st.DataObject) -> None:
    inputs, hidden, outputs = (data.draw(st.integers(0, 6)) for _ in range(3))
    up = data.draw(hnp.arrays(np.bool_, (hidden, inputs)))
    down = data.draw(hnp.arrays(np.bool_, (outputs, hidden)))
    size = inputs + hidden + outputs
    reach = np.zeros((size, size), dtype=np.bool_)
    reach[inputs : inputs + hidden, :inputs] = up
    reach[inputs + hidden :, inputs : inputs + hidden] = down
    touched = reach.any(axis=0) | reach.any(axis=1)
    reach |= reach.T | np.eye(size, dtype=np.bool_)
    for node in range(size):  # Warshall
        reach |= reach[:, [node]] & reach[[node]]
    found = mlp_components(up, down)
    labels = np.concatenate([found.inputs, found.hidden, found.outputs])
    assert np.array_equal(labels >= 0, touched)
    pairs = np.outer(touched, touched)
    assert np.array_equal(np.equal.outer(labels, labels) & pairs, reach & pairs)
    assert set(labels[touched].tolist()) == set(range(found.blocks))


def test_planted_components_of_an_mlp_are_two_lists_of_exact_blocks() -> None:
    hidden, inputs = planted(4, 9, 5)
    outputs, _ = planted(4, 3, 1, seed=7)
    up, down = hidden[:, None] == inputs, outputs[:, None] == hidden
    found = mlp_components(up, down)
    assert found.blocks == 4
    assert np.array_equal(found.up.inside(up), up)
    assert np.array_equal(found.down.inside(down), down)
    assert not found.up.residual(up).any()
    assert sum(part.size for part in found.up.sub_operators) == up.sum()


@pytest.mark.parametrize("blocks", [0, -1, 1.5, True, None])
def test_numbers_of_blocks_that_are_none_are_refused(blocks: object) -> None:
    with pytest.raises(InvalidValueError, match="blocks"):
        coclusters(np.ones((3, 3)), blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[1.0], [[-1.0]], [[np.nan]], [[np.inf]], "ab", [[1], [2, 3]]])
def test_weights_that_are_none_are_refused(weights: object) -> None:
    with pytest.raises(InvalidValueError, match="weights"):
        coclusters(weights, 2)  # type: ignore[arg-type]


def test_matrices_that_do_not_fit_and_unknown_methods_are_refused() -> None:
    with pytest.raises(MismatchError, match="do not fit"):
        mlp_coclusters(np.ones((4, 3)), np.ones((3, 5)), 2)
    with pytest.raises(MismatchError, match="do not fit"):
        mlp_components(np.ones((4, 3), np.bool_), np.ones((3, 5), np.bool_))
    with pytest.raises(UnknownNameError, match="no method 'magic'"):
        coclusters(np.ones((3, 3)), 2, by="magic")
    with pytest.raises(InvalidValueError, match="imbalance"):
        coclusters(np.ones((3, 3)), 2, imbalance=-0.1)
    with pytest.raises(InvalidValueError, match="labels of inputs"):
        CoClusters(np.array([0]), np.array([0.5]))


@pytest.mark.parametrize(("by", "package"), [("hypergraph", "mtkahypar"), ("spectral", "sklearn.cluster")])
def test_a_missing_package_is_named_with_its_extra(
    by: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    hypergraph.partitioner.cache_clear()
    with pytest.raises(UnsupportedError, match=r"gradtrace\[partition\]"):
        coclusters(np.ones((3, 3)), 2, by=by)
