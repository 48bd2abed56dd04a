"""In a loop of one's own: a gated MLP gets its structure; a group lasso empties what lies between blocks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.annealing.annealing import Annealing
from gradtrace.annealing.cross_blocks import coclustered
from gradtrace.annealing.schedule import Schedule
from gradtrace.annealing.target import Target


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = (nn.Linear(8, 13, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(13, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return gated


def annealed(model: nn.Module, steps: int, **target: Any) -> Annealing:
    """Trained on random targets in plain torch."""
    annealing = Annealing(model, Target(**target), Schedule(5, 35, 6, Target(**target).final))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    annealing.hold([optimizer])
    draw = torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        x = torch.randn(16, 8, generator=draw)
        nn.functional.mse_loss(model(x), x.flip(1)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        annealing.step(step)
    annealing.release()
    return annealing


@pytest.mark.parametrize(
    "target", [{"structure": "neuron", "density": 0.4}, {"structure": "blocks", "blocks": 2}]
)
def test_a_gated_mlp_gets_its_structure_and_is_converted(target: dict[str, Any]) -> None:
    model = Gated()
    annealing = annealed(model, 60, **target)
    assert annealing.progress.done
    mask = annealing.mask
    assert mask is not None
    assert (mask["gate_proj.weight"] == mask["up_proj.weight"]).all()
    for name, kept in mask.items():
        assert (model.get_parameter(name)[torch.from_numpy(~kept)] == 0).all()
    converted = gt.convert_(copy.deepcopy(model), gt.plan(model, mask, tokens=4, refuse=False))
    x = torch.randn(9, 8)
    torch.testing.assert_close(converted(x), model(x))
    if target["structure"] == "neuron":
        assert mask["down_proj.weight"].all(axis=0).sum() == round(0.4 * 13)
        assert not mask["down_proj.weight"][:, ~mask["down_proj.weight"].any(axis=0)].any()
    else:
        pair = mask["down_proj.weight"].astype(int) @ mask["gate_proj.weight"]
        assert len({tuple(row > 0) for row in pair}) == 2  # outputs see one of two sets of inputs


def between(model: nn.Module, annealing: Annealing) -> float:
    """Share of the absolute weight that lies between two blocks-to-be."""
    (mlp,) = annealing.progress.mlps
    weights = {name: np.abs(model.get_parameter(name).detach().double().numpy()) for name in mlp.names}
    labels = coclustered(mlp, weights, 2)
    found = [
        weights[name][labels[level + 1][:, None] != labels[level]].sum()
        for level, layer in enumerate(mlp.layers)
        for name in layer
    ]
    return float(sum(found) / sum(value.sum() for value in weights.values()))


def test_a_group_lasso_empties_what_lies_between_blocks() -> None:
    shares = {}
    for strength in (0.0, 0.5):
        model = Gated()
        target = {"structure": "blocks", "blocks": 2, "density": 0.9, "l1": 0.0}
        # Before the last stage, while the mask still holds nearly everything.
        annealing = annealed(model, 34, **target, group_lasso=strength)
        assert not annealing.progress.done
        shares[strength] = between(model, annealing)
    assert shares[0.5] < 0.7 * shares[0.0]
