"""One rank of a converted model: `placed_model.py STORE RANK RANKS CASE FOLDER`."""

from __future__ import annotations

import re
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import distributed, nn

import gradtrace as gt
from gradtrace.structure.components import components
from gradtrace.structure.plan import LayerPlan
from gradtrace.structure.row_groups import row_groups

WIDE, HIDDEN, TOKENS = 37, 83, 11


class Gated(nn.Module):
    """A SwiGLU, as Llama has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDE, HIDDEN), nn.Linear(WIDE, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


class Attending(nn.Module):
    """Self-attention, whose four projections are layers of the plan."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDE, 1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


def blocks(count: int, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of an up and a down layer in blocks, with dead hidden units and a hidden unit of one side."""
    draw = np.random.default_rng(seed)
    wide, hidden = (draw.integers(count, size=size) for size in (WIDE, HIDDEN))
    up, down = hidden[:, None] == wide, wide[:, None] == hidden
    up[:3], down[:, 2:5] = False, False  # 0 and 1 are read alone, 2 not at all, 3 and 4 written alone
    down[:2] = False  # dead outputs
    return up, down


def components_of(mask: NDArray[np.bool_]) -> LayerPlan:
    return LayerPlan("components", components(mask), mask, 1.0, 2.0, None, "")


def groups_of(mask: NDArray[np.bool_], size: int) -> LayerPlan:
    return LayerPlan("row groups", row_groups(mask, size), mask, 1.0, 2.0, None, "")


def overlapping(mask: NDArray[np.bool_]) -> LayerPlan:
    """Row groups of each third of the inputs: every output is in three sub-operators."""
    from gradtrace.structure.sub_operator import SubOperator

    parts = []
    for columns in np.array_split(np.arange(mask.shape[1]), 3):
        inside = np.zeros_like(mask)
        inside[:, columns] = mask[:, columns]
        parts += [SubOperator(part.inputs, part.outputs) for part in row_groups(inside, 20)]
    return LayerPlan("row groups", tuple(parts), mask, 1.0, 2.0, None, "")


def made(case: str) -> tuple[nn.Module, gt.Plan, list[tuple[str, ...]]]:
    """A dense model, a plan for it, and its MLPs that share blocks."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDE), nn.Tanh())
    up, down = blocks(1 if case == "one block" else 5)
    joint: list[tuple[str, ...]] = [("0", "2")] if case in ("blocks", "one block") else []
    if case == "gated":
        plan = {"gate": components_of(up), "up": components_of(up), "down": components_of(down)}
        return Gated(), gt.Plan(plan), [("gate", "up", "down")]
    if case == "attention":
        draw = np.random.default_rng(2)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        kept = {f"attention.{name}": draw.random((WIDE, WIDE)) < 0.4 for name in names}
        return Attending(), gt.Plan({name: groups_of(mask, 8) for name, mask in kept.items()}), joint
    if case == "scattered":
        draw = np.random.default_rng(1)
        up, down = (draw.random(mask.shape) < 0.3 for mask in (up, down))
        up[:5] = False
        return mlp, gt.Plan({"0": groups_of(up, 9), "2": overlapping(down)}), joint
    if case == "frozen":
        mlp[0].weight.requires_grad_(False)
    return mlp, gt.Plan({"0": components_of(up), "2": components_of(down)}), joint


def check(case: str, dtype: torch.dtype, rank: int, ranks: int) -> None:
    """Output and gradients of the placed model are those of the converted one in this process."""
    dense, plan, joint = made(case)
    one = gt.convert_(dense, plan).to(dtype)
    placement = gt.placement(plan, ranks, mlps=joint)
    placed = gt.place_(deepcopy(one), placement)
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, TOKENS, WIDE, generator=draw, dtype=dtype)
    goal = torch.randn(2, TOKENS, WIDE, generator=draw, dtype=dtype)
    close: dict[str, Any] = (
        {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    )
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [model(one_input) for model, one_input in zip((one, placed), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], **close)
    for output in outputs:
        (output * goal).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **close)
    held = 0
    for name, on_ranks in placement.layers.items():
        whole: Any
        mine: Any
        whole, mine = one.get_submodule(name), placed.get_submodule(name)
        held += mine.local.weight.numel()
        if whole.weight.grad is None:
            assert mine.local.weight.grad is None
            continue
        grads = whole.blocks(whole.weight.grad)
        own = [grads[number].reshape(-1) for number in on_ranks[rank]]
        expected = torch.cat(own) if own else torch.zeros(0, dtype=dtype)
        torch.testing.assert_close(mine.local.weight.grad, expected, **close)
        if getattr(mine, "bias", None) is not None:
            torch.testing.assert_close(mine.bias.grad, whole.bias.grad, **close)
    with torch.no_grad():
        torch.testing.assert_close(placed.eval()(x), one.eval()(x), **close)
    total = torch.tensor([held])
    distributed.all_reduce(total)
    assert int(total) == sum(plan[name].weights for name in plan.converted)
    print(f"held {held}")


def refuse(rank: int) -> None:
    """What cannot be placed is refused on every rank, and nothing is changed."""
    from gradtrace.errors import MismatchError, StateError

    dense, plan, joint = made("blocks")
    model = gt.convert_(deepcopy(dense), plan)
    before = list(model.modules())
    placement = gt.placement(plan, 2, mlps=joint)

    def fails(error: type[Exception], words: str, wrong: nn.Module, other: gt.Placement) -> None:
        with pytest.raises(error, match=re.escape(words)):
            gt.place_(wrong, other)

    fails(MismatchError, "gt.placement(plan, 2)", model, gt.placement(plan, 3))
    fails(StateError, "gt.convert_ first", dense, placement)
    fails(MismatchError, "there is no layer '0'", nn.Sequential(nn.ReLU()), placement)
    other = gt.placement(gt.Plan({"0": plan["0"], "2": groups_of(plan["2"].mask, 4)}), 2)
    fails(MismatchError, "another plan: layer '2'", model, other)
    mixed = gt.Placement(
        2, dict(placement.layers) | {"2": placement.layers["2"][::-1]}, placement.mlps, (0.0, 0.0), 0
    )
    fails(MismatchError, "each hidden unit on one rank", model, mixed)
    apart = gt.placement(plan, 2, mlps=joint if rank else [])
    fails(MismatchError, "another placement or other weights", model, apart)
    third = gt.placement(plan, 2 if rank else 3, mlps=joint)
    fails(MismatchError, "an error there" if rank else "gt.placement(plan, 2)", model, third)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))
    gt.place_(model, placement)
    fails(StateError, "placed already", model, placement)


def main() -> None:
    store, rank, ranks, case = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{Path(store)}", rank=rank, world_size=ranks)
    if case == "refusals":
        refuse(rank)
    else:
        for dtype in (torch.float64, torch.float32):
            check(case, dtype, rank, ranks)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
