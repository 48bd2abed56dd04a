"""Ctrl-C at the worst moments: the recording still ends, with every step that it counted."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradtrace as gt
from gradtrace.recorder.window import DeviceWindow, HostWindow

pytestmark = pytest.mark.skipif(os.name == "nt", reason="raises SIGINT in itself")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A suite begun in the background of a shell inherits SIGINT as ignored: nothing would interrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def step(tmp_path: Path) -> Callable[[], gt.Recorder]:
    """Take one more step, every gradient being one, in windows of 2 and entries of 4 steps."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recorder = gt.Recorder(model, tmp_path / "run", window_steps=2, entry_steps=4)

    def one() -> gt.Recorder:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        recorder.observe(optimizer)
        return recorder

    return one


def check(recorder: gt.Recorder, steps: int) -> None:
    ended = threading.Thread(target=recorder.close, daemon=True)
    ended.start()
    ended.join(60)
    assert not ended.is_alive(), "close waits for buffers that nobody has"
    ledger = gt.Ledger.open(recorder.path)
    assert ledger.steps == steps
    for record in ledger.values():
        assert record.steps == steps
        assert record.events.tolist() == torch.full(record.shape, steps).tolist()


@pytest.mark.parametrize(("owner", "name"), [(DeviceWindow, "_take"), (queue.Queue, "_put")])
def test_between_closing_a_window_and_queueing_it(
    step: Callable[[], gt.Recorder], monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    for _ in range(3):
        recorder = step()
    real: Callable[..., Any] = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        result = real(*arguments)
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            step()
    check(recorder, 4)


def test_while_it_waits_for_a_slow_disk(
    step: Callable[[], gt.Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    real = DeviceWindow.release

    def slow(self: DeviceWindow, window: HostWindow) -> None:
        assert going_on.wait(60)
        real(self, window)

    monkeypatch.setattr(DeviceWindow, "release", slow)
    for _ in range(3):
        recorder = step()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        step()
    timer.join()
    going_on.set()
    check(recorder, 4)
