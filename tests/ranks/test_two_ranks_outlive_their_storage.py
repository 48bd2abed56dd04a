"""Two ranks, here threads that meet in one store, and storage that fails one of them for a while."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._C._distributed_c10d import HashStore

import gradtrace as gt
from gradtrace.errors import StorageError
from gradtrace.ledger import writer
from gradtrace.ledger.part import PartWriter
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder import meeting, recorder, stream
from gradtrace.recorder.meeting import StoreMeeting

STEPS = 16


class TwoRanks:
    """A model that two ranks train alike, every gradient being one, each entry of one step."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.fails = False
        self._patch = patch
        self._rank = threading.local()
        self._together = threading.Barrier(2)
        store = HashStore()
        patch.setattr(recorder, "meeting_for", lambda *_: StoreMeeting(store, self._rank.number, 2))
        patch.setattr(meeting, "PATIENCE", 60.0)
        patch.setattr(stream, "_GRACE", 3600.0)
        patch.setattr(os, "fsync", lambda descriptor: None)

    def failing(self, owner: Any, name: str, *, rank: int = 0) -> None:
        """Have a function fail while `fails` is set; a PartWriter's on that rank only."""
        real: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            others = isinstance(arguments[0], PartWriter) and arguments[0]._rank != f"rank-{rank:04}"
            if self.fails and not others:
                raise StorageError("no space left")
            return real(*arguments)

        self._patch.setattr(owner, name, call)

    def train(self, fails_at: range, meanwhile: Callable[[], None] = lambda: None) -> None:
        errors: list[BaseException] = []

        def live(number: int) -> None:
            self._rank.number = number
            model = nn.Linear(6, 5)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            with gt.Recorder(model, self.path, window_steps=1, entry_steps=1, on_error="warn") as ledger:
                for step in range(STEPS):
                    for parameter in model.parameters():
                        parameter.grad = torch.ones_like(parameter)
                    if self._together.wait() == 0:
                        self.fails = step in fails_at
                    self._together.wait()
                    ledger.observe(optimizer)
                    assert ledger._stream is not None
                    ledger._stream.drain(merged=True)
                    if self.fails and number == 0:
                        meanwhile()

        def guarded(number: int) -> None:
            try:
                live(number)
            except BaseException as error:
                errors.append(error)
                self._together.abort()

        ranks = [threading.Thread(target=guarded, args=(number,)) for number in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert errors == []

    def check(self) -> gt.Ledger:
        ledger = gt.Ledger.open(self.path)
        assert ledger.steps == STEPS
        for record in ledger.values():
            np.testing.assert_array_equal(record.events, np.full(record.shape, STEPS))
            np.testing.assert_array_equal(record.grad_sum, np.full(record.shape, float(STEPS)))
        return ledger


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoRanks:
    return TwoRanks(tmp_path / "run", monkeypatch)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_cannot_write_is_written_later_and_meanwhile_no_remains_pile_up(
    ranks: TwoRanks, rank: int, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[int] = []

    def look() -> None:
        committed = len(list((ranks.path / "commits").glob("0*.json")))
        left.append(len([one for one in (ranks.path / "entries").iterdir() if one.is_dir()]) - committed)

    ranks.failing(PartWriter, "write_entry", rank=rank)
    ranks.train(range(9, 13), look)
    ledger = ranks.check()
    assert [(one.begin, one.end) for one in ledger.entries if one.details.get("failed_commits")] == [(9, 14)]
    assert max(left) <= 1
    assert caplog.text.count("no space left") == 2


def test_after_a_merge_that_could_not_be_undone_the_entries_of_all_ranks_are_kept(ranks: TwoRanks) -> None:
    ranks.failing(writer, "write_merged")
    ranks.failing(LedgerWriter, "_settle")
    # At the end of step 9 entries are joined, and the commit after it succeeds.
    ranks.train(range(9, 10))
    assert all("failed_commits" not in one.details for one in ranks.check().entries)
