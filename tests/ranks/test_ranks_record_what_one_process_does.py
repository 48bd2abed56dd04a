"""DDP, FSDP2 and tensor parallelism with two processes each, and one process, on the same data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradtrace.ledger.layout_store import read_layout
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.reader import Ledger

KINDS = ("ddp", "fsdp", "tp")


@pytest.mark.parametrize("ledger", ["still", "scaled"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_weights_held_fixed_the_totals_are_equal(
    recorded: Callable[..., Path], check: Callable[..., None], kind: str, ledger: str
) -> None:
    one = Ledger.open(recorded("one", 1) / ledger)
    check(one, Ledger.open(recorded(kind, 2) / ledger))
    # The cases that the data were made for: a step of zeros, one with events on a single rank, a skipped one.
    record = one["wide.weight"]
    assert record.zero == 1
    assert record.skipped == (1 if ledger == "scaled" else 0)
    assert (record.events[1:].max(), record.events[0].max()) == (record.steps - 2, record.steps - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_along_a_trajectory_counts_differ_in_at_most_one_of_ten_thousand_weights(
    recorded: Callable[..., Path], kind: str
) -> None:
    one, two = (Ledger.open(recorded(name, ranks) / "moving") for name, ranks in (("one", 1), (kind, 2)))
    weights = sum(record.info.size for record in one.values())
    assert weights > 10_000
    for count in ("events", "votes"):
        differing = sum(
            np.count_nonzero(getattr(record, count) != getattr(two[name], count))
            for name, record in one.items()
        )
        assert differing <= 1e-4 * weights, count


@pytest.mark.parametrize("kind", KINDS)
def test_each_rank_writes_its_share_and_they_are_alike(recorded: Callable[..., Path], kind: str) -> None:
    path = recorded(kind, 2) / "still"
    commit = json.loads(sorted(path.glob("commits/*.json"))[0].read_text())
    layout = read_layout(LocalStorage(path), commit["layout"], commit["layout_digest"]).layout
    sizes = [layout.size(rank) for rank in range(2)]
    rows = max(int(np.prod(info.shape[1:])) for info in layout.parameters)
    assert abs(sizes[0] - sizes[1]) <= 2 * rows
    for rank in range(2):
        assert (path / "layouts/0000" / f"rank-{rank:04d}" / "opening" / "zarr.json").exists()
    held = {
        rank for rank, _ in layout.pieces([info.name for info in layout.parameters].index("narrow.weight"))
    }
    assert len(held) == (2 if kind == "tp" else 1), "a row cannot be cut, a shard by columns can"


@pytest.mark.parametrize(
    ("kind", "ranks", "other"), [("ddp", 1, "one"), ("fsdp", 1, "one"), ("one", 2, "ddp"), ("one", 2, "fsdp")]
)
def test_a_ledger_goes_on_with_another_number_of_ranks(
    launch: Callable[..., Any],
    recorded: Callable[..., Path],
    check: Callable[..., None],
    tmp_path: Path,
    kind: str,
    ranks: int,
    other: str,
) -> None:
    began = recorded(kind, 3 - ranks) / "still"
    shutil.copytree(began, tmp_path / "run")
    launch(other, tmp_path / "run", "resume", ranks=ranks)
    check(Ledger.open(began), Ledger.open(tmp_path / "run"))
