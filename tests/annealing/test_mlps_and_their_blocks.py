"""MLPs are found by make and by name; their blocks and neurons are what a plain search finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradtrace.annealing.blocks import blocks_of, component_labels, filled, squeezed
from gradtrace.annealing.cross_blocks import coclustered, pressures, spread
from gradtrace.annealing.mlp import Mlp, MlpNames, find_mlps
from gradtrace.annealing.neurons import best_neurons
from gradtrace.annealing.shrinking import shrink_
from gradtrace.errors import InvalidValueError


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)


class Conv1D(nn.Module):
    """As the one of Hugging Face lies: (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs)),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(8, 4), Conv1D(4, 8)


CHAIN = nn.Sequential(
    nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.1), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)
)
NORMED = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5))


def test_mlps_are_found_by_make_and_by_name() -> None:
    (chain,) = find_mlps(CHAIN)
    assert chain == Mlp((("0.weight",), ("3.weight",), ("5.weight",)), (4, 6, 6, 5))
    (gated,) = find_mlps(nn.ModuleDict({"mlp": Gated()}))
    assert gated.layers == (("mlp.gate_proj.weight", "mlp.up_proj.weight"), ("mlp.down_proj.weight",))
    (gpt,) = find_mlps(Gpt())
    assert (gpt.sizes, gpt.inputs_first) == ((4, 8, 4), frozenset({"c_fc.weight", "c_proj.weight"}))
    (named,) = find_mlps(NORMED, [("0", "2")])
    assert named.sizes == (4, 6, 5)


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (NORMED, None, "Name its layers"),
        (CHAIN, [("0", "5", "3")], "each taking"),
        (CHAIN, [("0",)], "at least two"),
        (CHAIN, [("0", "nine")], "'nine'"),
        (CHAIN, [("0", "3"), ("3", "5")], "each layer in one MLP"),
        (nn.LayerNorm(3), None, "MLP"),
    ],
)
def test_what_is_no_mlp_is_refused(model: nn.Module, given: list[MlpNames] | None, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        find_mlps(model, given)


def planted(
    blocks: int, cross: float, seed: int = 0
) -> tuple[Mlp, tuple[NDArray[Any], ...], dict[str, NDArray[np.float64]]]:
    """A gated MLP of ragged sizes with scores that are large inside hidden blocks."""
    draw = np.random.default_rng(seed)
    mlp = Mlp((("gate", "up"), ("down",)), (17, 23, 11), frozenset({"up"}))
    labels = tuple(draw.permutation(np.arange(size) % blocks) for size in mlp.sizes)
    scores = {}
    for level, layer in enumerate(mlp.layers):
        inside = labels[level + 1][:, None] == labels[level]
        for name in layer:
            score = np.where(inside, 1 + draw.random(inside.shape), cross * draw.random(inside.shape))
            scores[name] = score.T if name in mlp.inputs_first else score
    return mlp, labels, scores


def same(found: tuple[NDArray[Any], ...], labels: tuple[NDArray[Any], ...]) -> bool:
    pairs = set(zip(np.concatenate(found).tolist(), np.concatenate(labels).tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_squeezed_scores_fall_apart_into_the_planted_blocks(blocks: int) -> None:
    mlp, labels, scores = planted(blocks, 0.5)
    masks = squeezed(mlp, scores, 0.6 / blocks)
    found = blocks_of(mlp, masks, scores, blocks)
    assert found is not None
    assert same(found, labels)
    for name, kept in filled(mlp, found).items():
        assert (kept == (scores[name] >= 1)).all()


def test_blocks_that_hold_together_are_not_called_blocks() -> None:
    mlp, _, scores = planted(3, 0.5)
    assert blocks_of(mlp, squeezed(mlp, scores, 0.9), scores, 3) is None


def test_what_fell_off_a_block_goes_back_to_it() -> None:
    mlp, labels, scores = planted(3, 0.2)
    masks = filled(mlp, labels)
    masks["down"][:, 5] = masks["gate"][5] = masks["up"][:, 5] = False  # a hidden unit without an edge
    masks["down"][4] = False  # an output that nothing reaches
    assert len(np.unique(np.concatenate(component_labels(mlp, masks)))) == 5
    found = blocks_of(mlp, masks, scores, 3)
    assert found is not None
    assert same(found, labels)


def test_every_input_and_output_keeps_its_best_weight() -> None:
    mlp, _, scores = planted(3, 0.5)
    masks = squeezed(mlp, scores, 0.01)
    assert masks["gate"][scores["gate"].argmax(axis=0), np.arange(17)].all()
    assert masks["up"][np.arange(17), scores["up"].argmax(axis=1)].all()
    assert masks["down"][np.arange(11), scores["down"].argmax(axis=1)].all()


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_neurons_go_and_stay_whole(density: float) -> None:
    mlp, _, scores = planted(2, 0.5)
    masks = best_neurons(mlp, scores, density)
    live = masks["down"][0]
    assert live.sum() == max(1, round(density * 23))
    assert (masks["down"] == live).all()
    assert (live == masks["gate"].T).all()
    assert (masks["up"] == live).all()
    relative = {name: score / score.mean() for name, score in scores.items()}
    value = relative["gate"].sum(1) + relative["up"].sum(0) + relative["down"].sum(0)
    assert value[live].min() >= value[~live].max(initial=-np.inf)


def test_blocks_to_be_are_pressed_apart_only() -> None:
    mlp, labels, scores = planted(3, 0.3)
    found = coclustered(mlp, scores, 3)
    assert same(found, labels)
    pressure = spread(mlp, labels, pressures(mlp, labels, scores))
    for name, value in pressure.items():
        assert (value[scores[name] >= 1] == 0).all()
        assert (value[scores[name] < 1] > 0).all()
    lying = scores["down"]
    group = np.ix_(labels[2] == 0, labels[1] == 1)
    expected = np.sqrt(lying[group].size) / np.linalg.norm(lying[group])
    np.testing.assert_allclose(pressure["down"][group], expected)


def test_shrinking_is_a_soft_threshold_at_the_groups_own_rate() -> None:
    weight, other = (nn.Parameter(torch.tensor([[0.5, -0.02, 0.0, -3.0]])) for _ in range(2))
    factor = torch.tensor([[1.0, 0.0, 1.0, 20.0]])
    groups = [{"lr": 0.1, "params": [weight]}, {"lr": 1.0, "params": [other]}]
    shrink_(groups, {weight}, 0.5, {weight: factor})
    torch.testing.assert_close(weight.data, torch.tensor([[0.45 * 0.9, 0.0, 0.0, 0.0]]))
    assert other[0, 0] == 0.5
