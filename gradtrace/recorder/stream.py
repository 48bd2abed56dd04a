"""The one thread that adds closed windows to the open entry and commits entries, off the training thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradtrace.ledger.format import Layout
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder.entry import OpenEntry
from gradtrace.recorder.updates import StepRecord
from gradtrace.recorder.window import DeviceWindow, HostWindow

__all__ = ["BeginLayout", "ClosedWindow", "Cut", "Stream"]


@dataclass(frozen=True, eq=False)
class BeginLayout:
    """From step `begin` on, windows follow `layout`; `opening` is its flat float32 opening balance.

    `supported` marks, flat, the dependencies already known to have had an event.
    """

    begin: int
    layout: Layout
    opening: npt.NDArray[np.float32]
    supported: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ClosedWindow:
    """A window that ends before step `end`, with one record a step; `home` takes its buffers back."""

    window: HostWindow
    home: DeviceWindow
    end: int
    records: Sequence[StepRecord]


@dataclass(frozen=True)
class Cut:
    """Commit the open entry here."""


class Stream:
    """Runs tasks in order on its own thread; the first failure is kept and raised on the caller's thread."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self._tasks: queue.Queue[BeginLayout | ClosedWindow | Cut | None] = queue.Queue()
        self._failure: BaseException | None = None
        self._open: OpenEntry | None = None
        self._supported: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._lock = threading.Lock()
        self._shares: tuple[int, dict[str, tuple[int, int]]] = (0, {})
        self._thread = threading.Thread(target=self._run, name="gradtrace-ledger", daemon=True)
        self._thread.start()

    def submit(self, task: BeginLayout | ClosedWindow | Cut) -> None:
        """Queue a task; raises what an earlier task failed with."""
        self.check()
        self._tasks.put(task)

    def check(self) -> None:
        """Raise what a task failed with, if one did."""
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        """Wait until everything queued is done, then raise if anything failed."""
        self._tasks.join()
        self.check()

    def stop(self) -> None:
        """End the thread after what is queued; never raises."""
        self._tasks.put(None)
        self._thread.join()

    def never_supported(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """Up to the last commit: its end, and per parameter (never supported, all) dependencies."""
        with self._lock:
            return self._shares

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                # After a failure the queue is still emptied: the training thread may be waiting for buffers.
                if self._failure is None:
                    self._do(task)
            except BaseException as failure:
                self._failure = failure
            finally:
                if isinstance(task, ClosedWindow):
                    task.home.release(task.window)
                self._tasks.task_done()

    def _do(self, task: BeginLayout | ClosedWindow | Cut) -> None:
        if isinstance(task, BeginLayout):
            self._commit()
            number = self._writer.add_layout(task.layout, [task.opening])
            self._open = OpenEntry(task.begin, number, task.layout)
            self._supported = task.supported
        elif isinstance(task, Cut):
            self._commit()
        else:
            assert self._open is not None, "a window came before its layout"
            task.window.wait()
            self._open.add(task.window, task.end, task.records)

    def _commit(self) -> None:
        entry = self._open
        if entry is None or entry.windows == 0:
            return
        self._writer.commit_entry(
            entry.begin,
            entry.end,
            layout=entry.number,
            windows=entry.windows,
            arrays=entry.arrays,
            details=entry.details(),
        )
        np.logical_or(self._supported, entry.arrays["events"], out=self._supported)
        shares = {}
        for piece in entry.layout.ranks[0]:
            info = entry.layout.parameters[piece.parameter]
            had = np.count_nonzero(self._supported[piece.offset : piece.offset + info.size])
            shares[info.name] = (info.size - int(had), info.size)
        with self._lock:
            self._shares = (entry.end, shares)
        self._open = OpenEntry(entry.end, entry.number, entry.layout)
