"""What on_error promises: a run that stops with one error, or goes on and catches up, and loses nothing."""

from __future__ import annotations

import errno
import logging
import os
import uuid
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.errors import InvalidValueError, LedgerBusyError, LedgerExistsError, StorageError
from gradtrace.ledger.local_storage import LocalStorage
from gradtrace.ledger.object_storage import ObjectStorage
from gradtrace.recorder import stream
from gradtrace.recorder.continuation import Checkpoint, continuation
from gradtrace.recorder.entry import OpenEntry

Loop = Callable[[nn.Module], Any]


class Storage:
    """Where the ledger of a test lies, and whether writing there fails just now."""

    def __init__(self, kind: str, tmp_path: Path, patch: pytest.MonkeyPatch, s3: Any) -> None:
        self.fails = False
        self.options = None
        if kind == "s3":
            self.path, self.options = f"s3://{s3.bucket()}/run", s3.options(patience=0.1)
            s3.fault = lambda method, path: 500 if self.fails and method != "GET" else None
        elif kind == "memory":
            self.path = f"memory://{uuid.uuid4().hex}/run"
            patch.setattr(
                ObjectStorage,
                "_put",
                self._failing(ObjectStorage._put, lambda: StorageError("writing failed: full")),
            )
        else:
            self.path = str(tmp_path / "run")
            patch.setattr(
                os, "fsync", self._failing(lambda descriptor: None, partial(OSError, errno.ENOSPC, "Full"))
            )

    def _failing(self, real: Callable[..., Any], error: Callable[[], OSError]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self.fails:
                raise error()
            return real(*arguments)

        return call


@pytest.fixture(params=["disk", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    s3 = request.getfixturevalue("s3") if request.param == "s3" else None
    return Storage(request.param, tmp_path, monkeypatch, s3)


class Run:
    """A model that trains under a recorder, windows of 2 steps and entries of 4, beside the oracle."""

    def __init__(self, storage: Storage, loop: Loop, **options: Any) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(5, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
        self.loop = loop(self.model)
        self.storage = storage
        self.recorder = gt.Recorder(
            self.model,
            storage.path,
            window_steps=2,
            entry_steps=4,
            storage_options=storage.options,
            **options,
        )

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            x = torch.randn(6, 5)
            x[:, 2] = 0.0
            self.model(x).square().sum().backward()
            self.recorder.observe(self.optimizer)
            self.loop.observe()
            self.optimizer.step()

    def settle(self) -> None:
        """Wait for the disk, as a slow training would."""
        assert self.recorder._stream is not None
        self.recorder._stream.drain()

    @property
    def ledger(self) -> gt.Ledger:
        return gt.Ledger.open(self.storage.path, storage_options=self.storage.options)


def test_a_run_goes_on_and_nothing_is_lost(
    storage: Storage, gradient_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gradtrace")
    run = Run(storage, gradient_loop, on_error="warn")
    run.train(4)
    run.settle()
    storage.fails = True
    for _ in range(3):
        run.train(4)
        run.settle()
    assert run.recorder.committed == run.ledger.steps == 4
    storage.fails = False
    run.train(5)
    run.recorder.close()
    ledger = run.ledger
    run.loop.check(ledger)
    assert ledger.steps == 21
    assert [entry.end for entry in ledger.entries] == [4, 20, 21]
    assert [entry.windows for entry in ledger.entries] == [2, 8, 1]
    assert [entry.details.get("failed_commits", 0) for entry in ledger.entries] == [0, 3, 0]
    said = [(record.levelname, record.getMessage()) for record in caplog.records if "outage" in record.name]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    assert "after step 4" in said[0][1]
    assert "kept in memory" in said[0][1]
    assert "up to step 20" in said[1][1]


def test_by_default_it_stops_with_one_error_and_what_was_committed_stays(
    storage: Storage, gradient_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(storage, gradient_loop)
    run.train(4)
    run.settle()
    storage.fails = True
    with pytest.raises(StorageError, match="failed: ") as caught:
        run.train(400)
    with pytest.raises(StorageError) as again:
        run.recorder.close()
    assert again.value is caught.value
    storage.fails = False
    assert run.ledger.steps == 4
    assert caplog.records == []


def test_at_the_end_a_warning_says_what_is_missing(
    storage: Storage, gradient_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(storage, gradient_loop, on_error="warn")
    run.train(8)
    run.settle()
    storage.fails = True
    run.train(7)
    run.recorder.close()
    storage.fails = False
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2
    assert "ends at step 8 of 15" in said[1]
    assert run.recorder.commit() == run.ledger.steps == 8


def test_a_checkpoint_meanwhile_notes_the_last_durable_step(
    storage: Storage, gradient_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(storage, gradient_loop, on_error="warn")
    run.train(6)
    assert run.recorder.commit() == 6
    storage.fails = True
    run.train(3)
    assert run.recorder.commit() == 6
    assert run.recorder.commit() == 6
    assert "ends at step 6: resuming from a checkpoint at step 9 leaves a gap" in caplog.text
    storage.fails = False
    assert run.recorder.commit() == run.ledger.steps == 9
    run.train(1)
    run.recorder.close()
    run.loop.check(run.ledger)


def test_a_checkpoint_saved_before_anything_could_be_committed_is_resumed_from(
    tmp_path: Path, gradient_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage("disk", tmp_path, monkeypatch, None)
    run = Run(storage, gradient_loop, on_error="warn")
    run.train(1)
    run.settle()
    storage.fails = True
    assert run.recorder.commit() == 0
    run.recorder.close()
    storage.fails = False
    note = Checkpoint(str(run.recorder.run_id), 0)
    mode, resume_at = continuation(storage.path, None, [note], storage.options)
    assert (mode, resume_at) == ("append", 0)
    again = Run(storage, gradient_loop, mode=mode, resume_at=resume_at)
    again.train(5)
    again.recorder.close()
    again.loop.check(again.ledger)


def test_a_checkpoint_meanwhile_stays_resumable_when_its_entry_is_joined_and_merged_later(
    tmp_path: Path, gradient_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage("disk", tmp_path, monkeypatch, None)
    run = Run(storage, gradient_loop, on_error="warn")
    run.train(12)
    run.settle()
    storage.fails = True
    run.train(3)
    assert run.recorder.commit() == 12
    storage.fails = False
    run.train(125)
    run.recorder.close()
    ends = [entry.end for entry in run.ledger.entries]
    assert 12 in ends
    assert not {4, 8} & set(ends)
    assert [entry.begin for entry in run.ledger.entries if "follows_checkpoint" in entry.details] == [12]
    run.loop.check(run.ledger)


def test_a_commit_that_landed_although_it_failed_is_not_counted_twice(
    tmp_path: Path, gradient_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage("disk", tmp_path, monkeypatch, None)
    run = Run(storage, gradient_loop, on_error="warn")
    run.train(4)
    run.settle()
    real = LocalStorage.put

    def put(self: LocalStorage, key: str, data: bytes) -> None:
        real(self, key, data)
        if key.startswith("commits/") and storage.fails:
            raise StorageError("the answer got lost")

    monkeypatch.setattr(LocalStorage, "put", put)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    storage.fails = True
    run.train(4)
    run.settle()
    assert run.ledger.steps == 8
    storage.fails = False
    run.train(4)
    run.recorder.close()
    run.loop.check(run.ledger)
    assert [(entry.end, entry.generation) for entry in run.ledger.entries] == [(4, 0), (12, 1)]


def test_memory_stays_bounded_while_nothing_can_be_written(
    storage: Storage, gradient_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = [0]

    class Counted(OpenEntry):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            alive.add(self)
            most[0] = max(most[0], len(alive))

    monkeypatch.setattr(stream, "OpenEntry", Counted)
    run = Run(storage, gradient_loop, on_error="warn")
    for fails in (False, True, True, True, False, True, False):
        storage.fails = fails
        run.train(4)
        run.settle()
    run.recorder.close()
    run.loop.check(run.ledger)
    assert most[0] == 2


def test_what_is_wrong_before_the_first_step_is_an_error_all_the_same(
    storage: Storage, gradient_loop: Loop
) -> None:
    storage.fails = True
    run = Run(storage, gradient_loop, on_error="warn")
    with pytest.raises(StorageError):
        run.train(1)
    storage.fails = False
    run.train(1)
    run.recorder.close()
    with pytest.raises(LedgerExistsError):
        Run(storage, gradient_loop, on_error="warn")


@pytest.mark.parametrize("policy", ["ignore", "", None, True])
def test_a_policy_that_is_none_is_refused(policy: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="on_error"):
        gt.Recorder(nn.Linear(2, 2), tmp_path / "run", on_error=policy)


@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), LedgerBusyError("another run took it over")])
def test_what_is_no_failure_of_the_storage_is_always_raised(
    tmp_path: Path, gradient_loop: Loop, monkeypatch: pytest.MonkeyPatch, error: Exception, on_error: Any
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    run = Run(Storage("disk", tmp_path, monkeypatch, None), gradient_loop, on_error=on_error)
    run.train(4)
    run.settle()
    monkeypatch.setattr(LocalStorage, "write", fail)
    with pytest.raises(type(error)):
        run.train(400)
    with pytest.raises(type(error)):
        run.recorder.close()
    assert run.ledger.steps == 4


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_what_cannot_be_read_to_be_merged_follows_the_policy_and_stays(
    tmp_path: Path, gradient_loop: Loop, monkeypatch: pytest.MonkeyPatch, on_error: Any
) -> None:
    storage = Storage("disk", tmp_path, monkeypatch, None)
    run = Run(storage, gradient_loop, on_error=on_error)
    run.train(4)
    run.settle()

    def unreadable(self: LocalStorage, key: str) -> None:
        raise StorageError(f"reading {key} failed: Input/output error")

    monkeypatch.setattr(stream, "_GRACE", 3600.0)  # no entry grows longer because this machine is busy
    monkeypatch.setattr(LocalStorage, "open", unreadable)
    if on_error == "raise":
        with pytest.raises(StorageError, match="Input/output"):
            run.train(400)
        with pytest.raises(StorageError, match="Input/output"):
            run.recorder.close()
    else:
        run.train(40)
        run.recorder.close()
    monkeypatch.undo()
    ledger = run.ledger
    assert ledger.steps >= 20
    assert {entry.end - entry.begin for entry in ledger.entries} == {4}
    if on_error == "warn":
        run.loop.check(ledger)
