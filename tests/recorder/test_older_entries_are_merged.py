from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, StateError, StorageError
from gradtrace.ledger.format import ACCUMULATORS
from gradtrace.ledger.merging import merge_ledger
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder import stream


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under back-pressure entries grow longer by design; here the machine's load must decide nothing."""
    monkeypatch.setattr(stream, "_GRACE", 3600.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def train(
    path: Path, steps: range, *, checkpoints: tuple[int, ...] = (), close: bool = True, **options: Any
) -> gt.Recorder:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recorder = gt.Recorder(model, path, window_steps=1, entry_steps=1, **options)
    for step in steps:
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        recorder.observe(optimizer)
        if step + 1 in checkpoints:
            recorder.commit()
    if close:
        recorder.close()
    return recorder


def ends(path: Path) -> list[int]:
    return [entry.end for entry in gt.Ledger.open(path).entries]


def test_a_run_keeps_logarithmically_many_entries(tmp_path: Path) -> None:
    train(tmp_path / "l", range(60))
    assert len(ends(tmp_path / "l")) < 25
    assert ends(tmp_path / "l")[-4:] == [57, 58, 59, 60]


def test_with_merge_off_every_entry_stays_and_the_totals_are_the_same(tmp_path: Path) -> None:
    train(tmp_path / "merged", range(30))
    train(tmp_path / "whole", range(30), merge=False)
    assert ends(tmp_path / "whole") == list(range(1, 31))
    merged, whole = gt.Ledger.open(tmp_path / "merged"), gt.Ledger.open(tmp_path / "whole")
    for name in whole:
        assert merged[name].history == whole[name].history
        for total in ACCUMULATORS:
            # Each merge rounds a float32 sum once.
            np.testing.assert_allclose(getattr(merged[name], total), getattr(whole[name], total), rtol=1e-6)


def test_every_step_where_commit_was_called_stays_resumable(tmp_path: Path) -> None:
    path = tmp_path / "l"
    train(path, range(40), checkpoints=(3, 17, 21))
    assert {3, 17, 21} <= set(ends(path))
    train(path, range(17, 40), mode="append", resume_at=17)
    assert {3, 17, 40} <= set(ends(path))


def test_a_later_life_and_the_command_line_know_the_checkpoints_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "l"
    train(path, range(20), checkpoints=(3, 13), merge=False)
    train(path, range(20, 50), mode="append")
    merge_ledger(path)
    assert {3, 13, 20} <= set(ends(path))
    merge_ledger(path, keep_steps=[13])
    assert {3, 13} & set(ends(path)) == {13}


def test_a_run_that_was_resumed_merges_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    train(tmp_path / "whole", range(45), checkpoints=(11, 22))
    train(tmp_path / "l", range(38), checkpoints=(11, 22))
    train(tmp_path / "l", range(11, 34), checkpoints=(22,), mode="append", resume_at=11)
    train(tmp_path / "l", range(22, 45), mode="append", resume_at=22)
    mine, whole = gt.Ledger.open(tmp_path / "l"), gt.Ledger.open(tmp_path / "whole")
    assert ends(tmp_path / "l") == ends(tmp_path / "whole")
    assert [entry.details for entry in mine.entries] == [entry.details for entry in whole.entries]
    for name in whole:
        for total in ACCUMULATORS:
            assert getattr(mine[name], total).tobytes() == getattr(whole[name], total).tobytes()


def test_resuming_where_no_entry_ends_any_more_names_the_nearest_step_that_is_possible(
    tmp_path: Path,
) -> None:
    path = tmp_path / "l"
    train(path, range(45), checkpoints=(17,))
    with pytest.raises(InvalidValueError, match=r"entry ends.*nearest one is 17"):
        train(path, range(18, 45), mode="append", resume_at=18, close=False)


def test_entries_that_a_kill_left_unmerged_are_merged_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l"
    train(path, range(30), merge=False)
    train(path, range(30, 31), mode="append")
    assert len(ends(path)) < 20


def test_a_commit_does_not_wait_for_the_merge_that_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    real = LedgerWriter.merge

    def slow(self: LedgerWriter) -> int:
        if self.end == 30:
            assert going_on.wait(60)
        return real(self)

    monkeypatch.setattr(LedgerWriter, "merge", slow)
    recorder = train(tmp_path / "l", range(30), close=False)
    assert recorder.commit() == 30  # waits forever if it waits for the merge
    going_on.set()
    recorder.close()


def test_entries_that_cannot_be_merged_are_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def merge(self: LedgerWriter) -> int:
        raise StateError("a sum does not fit")

    monkeypatch.setattr(LedgerWriter, "merge", merge)
    train(tmp_path / "l", range(30))
    assert ends(tmp_path / "l") == list(range(1, 31))
    assert caplog.text.count("not merged any more: a sum does not fit") == 1


def test_a_disk_that_fails_while_merging_is_an_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(self: LedgerWriter) -> int:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(LedgerWriter, "merge", merge)
    with pytest.raises(StorageError, match="the disk is gone"):
        train(tmp_path / "l", range(30))
