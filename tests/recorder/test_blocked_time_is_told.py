from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder import stream
from gradtrace.recorder.summary import Summary


def test_metrics_and_text_tell_the_share_of_the_run_and_the_time_a_window() -> None:
    summary = Summary("run", 8, {"w": (1, 4)}, 3.0, 0.5, 20.0, 4)
    assert summary.blocked == 0.025
    assert summary.metrics()["ledger/blocked"] == 0.025
    assert summary.metrics()["ledger/blocked_seconds_per_window"] == 0.125
    assert "0.50 s of it waiting (2.50% of the run)" in str(summary)


def test_before_the_first_step_nothing_is_blocked(tmp_path: Path) -> None:
    summary = gt.Recorder(nn.Linear(2, 1), tmp_path / "run").summary()
    assert summary.metrics()["ledger/blocked"] == summary.metrics()["ledger/blocked_seconds_per_window"] == 0


def test_waiting_for_a_slow_disk_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = LedgerWriter.commit_entry

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return written(*args, **kwargs)

    monkeypatch.setattr(LedgerWriter, "commit_entry", slow)
    monkeypatch.setattr(stream, "_GRACE", 3600.0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gt.Recorder(model, tmp_path / "run", window_steps=1, entry_steps=1) as recorder:
        for _ in range(8):
            model(torch.ones(2)).sum().backward()
            recorder.observe(optimizer)
    summary = recorder.summary()
    assert summary.windows == 8
    assert 0.2 < summary.blocked_seconds < summary.run_seconds
    assert summary.blocked == summary.blocked_seconds / summary.run_seconds
