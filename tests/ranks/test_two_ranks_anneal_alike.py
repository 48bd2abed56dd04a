"""Annealing on two ranks, by DDP and by FSDP2: one mask, held on what each rank has of weights and state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradtrace.evidence.mask import Mask


@pytest.mark.parametrize(
    ("strategy", "structure"),
    [("ddp", "element"), ("ddp", "blocks"), ("fsdp", "element"), ("fsdp", "blocks")],
)
def test_two_ranks_anneal_alike(
    launch: Callable[..., list[str]], tmp_path: Path, strategy: str, structure: str
) -> None:
    launch(
        tmp_path,
        strategy,
        structure,
        ranks=2,
        script="annealing_training.py",
        modules=["lightning.pytorch", "gradtrace.callbacks"],
    )
    masks = [Mask.load(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1)]
    assert masks[0] == masks[1] == Mask.load(tmp_path / "mask.safetensors")
    assert masks[0].density == pytest.approx(0.5 if structure == "blocks" else 0.4, abs=0.1)
