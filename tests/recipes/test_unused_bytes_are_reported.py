"""A byte-level LM on a text without some bytes: exactly their rows of the embedding are reported."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradtrace as gt
from gradtrace.recorder.budget import Budget

ROOT = Path(__file__).resolve().parents[2]
STEPS = 48
RARE = 7  # a byte that occurs in one step only
# Seconds of counting events, of adding up too, and from step to step, in place of the machine's: so that at
# overhead=0.01 sums are taken on one step of 32.
COSTS = (0.5, 10.0, 100.0)


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "recipes/byte_model.py"))


def text_of(step: int) -> torch.Tensor:
    """Tokens (4, 33) from the even bytes from 32 to 150, and RARE in step 20."""
    generator = torch.Generator().manual_seed(step)
    tokens = 32 + 2 * torch.randint(60, (4, 33), generator=generator)
    if step == 20:
        tokens[2, 5] = RARE
    return tokens


@pytest.fixture(scope="module", params=[None, 0.01], ids=["every step", "overhead=0.01"])
def run(
    request: pytest.FixtureRequest, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[gt.Ledger, set[int]]:
    """The ledger, and the bytes that were read as inputs."""
    torch.manual_seed(0)
    net = recipe["ByteModel"](width=16, layers=1, heads=2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)
    path = tmp_path_factory.mktemp("bytes") / "run.ledger.zarr"
    read: set[int] = set()
    told = {"window_steps": 4, "entry_steps": 8, "overhead": request.param}
    with pytest.MonkeyPatch.context() as patch, gt.Recorder(net, path, **told) as recorder:
        patch.setattr(Budget, "_measured", lambda self: COSTS)
        for step in range(STEPS):
            tokens = text_of(step)
            read |= set(tokens[:, :-1].flatten().tolist())
            recipe["loss_of"](net, tokens).backward()
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
    ledger = gt.Ledger.open(path)
    if request.param is not None:
        assert {entry.sampling.stride for entry in ledger.entries[2:]} == {32}
    return ledger, read


def test_exactly_the_bytes_that_never_occur_are_reported(run: tuple[gt.Ledger, set[int]]) -> None:
    ledger, read = run
    found = gt.undertrained(ledger, "bytes.weight", rare=0.05)
    assert set(np.flatnonzero(found.never).tolist()) == set(range(256)) - read
    assert 150 < len(set(range(256)) - read) < 256
    assert np.flatnonzero(found.rarely).tolist() == [RARE]
    assert (found.counted, found.steps, found.missed) == ("events", STEPS, 0)


def test_the_entry_of_the_only_use_is_told(run: tuple[gt.Ledger, set[int]]) -> None:
    ledger, read = run
    found = gt.undertrained(ledger, "bytes.weight")
    end = next(entry.end for entry in ledger.entries if entry.begin <= 20 < entry.end)
    assert (found.uses[RARE], found.first[RARE], found.last[RARE]) == (1, end, end)
    unused = sorted(set(range(256)) - read)
    assert (found.first[unused] == -1).all()
    assert (found.last[unused] == -1).all()
    assert not found.always
