"""Closed windows become entries off the training thread: one thread adds them up, one writes them to disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from gradtrace.errors import GradtraceError, RankLostError
from gradtrace.recorder.background import Background
from gradtrace.recorder.below.entry_sums import EntrySums
from gradtrace.recorder.below.step_evidence import StepEvidence
from gradtrace.recorder.committing import Committing, RankLayout
from gradtrace.recorder.decoys import Decoys
from gradtrace.recorder.entry import OpenEntry
from gradtrace.recorder.interrupts import held_back
from gradtrace.recorder.outage import Outage
from gradtrace.recorder.settings import OnError
from gradtrace.recorder.updates import StepRecord
from gradtrace.recorder.window import DeviceWindow, HostWindow

__all__ = ["BeginLayout", "ClosedWindow", "Cut", "Stream", "WatchedStep"]


# The disk may hold the training thread up for a hundredth of the run, or for two seconds of a short one.
_SHARE, _GRACE = 0.01, 2.0


@dataclass(frozen=True, eq=False)
class BeginLayout:
    """From step `begin` on, windows follow the layout `own`; `opening` is its flat float32 opening balance.

    `supported` marks, flat, the dependencies already known to have had an event. Both are this rank's share.
    `below` names the accumulators of evidence below the step, `on_request` those of ON_REQUEST.
    """

    begin: int
    own: RankLayout
    opening: npt.NDArray[np.float32]
    supported: npt.NDArray[np.bool_]
    below: tuple[str, ...] = ()
    on_request: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class WatchedStep:
    """The evidence below the last step of the window that is open; it comes before the end of that window."""

    evidence: StepEvidence


@dataclass(frozen=True, eq=False)
class ClosedWindow:
    """A window that ends before step `end`, with one record a step; `home` takes its buffers back.

    Its sums were taken at `stride`; see `recorder.sampling`.
    """

    window: HostWindow
    home: DeviceWindow
    end: int
    records: Sequence[StepRecord]
    stride: int = 1


@dataclass(frozen=True)
class Cut:
    """Commit the open entry here.

    Where the entry before is still being written, a cut waits for it. One with a `home` waits only until the
    training thread, in want of buffers there, has been held up for too long: then it is passed over. So on a
    disk slower than the training entries grow longer, and the commit says how many cuts it passed. Rank 0
    decides that for all ranks. Where a checkpoint is to be saved, the step stays resumable: see `merge`.
    """

    home: DeviceWindow | None = None
    checkpoint: bool = False


class Stream:
    """Runs tasks in order on its own thread; the first failure is kept and raised on the caller's thread.

    Holds at most two entries in memory, 28 bytes a dependency each: the open one and the one being written.

    Args:
        committing: puts entries into the ledger.
        end: committed steps so far.
        merge: whether to join older entries after each commit, and those of an earlier life at the beginning.
        on_error: "warn" joins an entry that cannot be written back into the open one, and tries again at the
            next cut; "raise" keeps that failure too.
    """

    def __init__(self, committing: Committing, end: int, *, merge: bool, on_error: OnError = "raise") -> None:
        self._committing, self._merges = committing, merge
        self._checkpoint_at = end  # going on from there is as good as a checkpoint
        self._below: tuple[str, ...] = ()
        self._on_request: tuple[str, ...] = ()
        self._tasks: queue.Queue[BeginLayout | ClosedWindow | WatchedStep | Cut | None] = queue.Queue()
        self._failure: BaseException | None = None
        self._own: RankLayout | None = None
        self._open: OpenEntry | None = None
        self._passed = 0
        self._supported: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._lock = threading.Lock()
        self._shares: tuple[int, dict[str, tuple[int, int]]] = (end, {})
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="gradtrace-disk")
        self._writing: Future[GradtraceError | None] | None = None  # a failure that the run goes on after
        self._merging: Future[None] | None = None
        self._written: OpenEntry | None = None  # the entry that `_writing` is about
        self.background = Background()
        self.outage = Outage(on_error, lambda: self.never_supported()[0])
        self._began = perf_counter()
        self._thread = threading.Thread(target=self._run, name="gradtrace-ledger", daemon=True)
        self._thread.start()

    def submit(self, task: BeginLayout | ClosedWindow | WatchedStep | Cut) -> None:
        """Queue a task; never raises, or the buffers of a closed window would be lost and waited for."""
        with held_back():  # a queue that is interrupted may count a task that it does not have
            self._tasks.put(task)

    def check(self) -> None:
        """Raise what a task failed with, if one did."""
        for task in (self._writing, self._merging):
            if self._failure is None and task is not None and task.done():
                self._failure = task.exception()
        if self._failure is not None:
            raise self._failure

    def drain(self, *, merged: bool = False) -> None:
        """Wait until all that is queued is durable, with `merged` also merged; raise what failed.

        Afterwards `is_behind` says whether a failure was tolerated.
        """
        self._tasks.join()
        waited: list[Future[Any] | None] = [self._writing, self._merging if merged else None]
        wait([task for task in waited if task is not None])
        self.check()

    @property
    def is_behind(self) -> bool:
        """Whether the last entry could not be written; asked after `drain`."""
        return self._writing is not None and self._writing.result() is not None

    def stop(self) -> None:
        """End both threads after what is queued and release the ledger; never raises."""
        self._tasks.put(None)
        self._thread.join()
        self._disk.shutdown()
        self._committing.release()

    def abandon(self) -> None:
        """Commit nothing more: whatever is queued is dropped, and no rank is waited for."""
        if self._failure is None:
            self._failure = RankLostError("the recording ended after an error, without its last steps")
        self._committing.leave()

    def part(self) -> None:
        """Wait until all ranks know of the last commit: no rank may need this one any more."""
        self._committing.part()

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

    def _do(self, task: BeginLayout | ClosedWindow | WatchedStep | Cut) -> None:
        if isinstance(task, BeginLayout):
            self._cut(None)
            if self._writing is not None and (failure := self._writing.result()) is not None:
                raise failure
            if self._merging is not None:
                self._merging.result()
            self._committing.begin(task.own, task.opening)
            self._own, self._supported = task.own, task.supported
            self._below, self._on_request = task.below, task.on_request
            self._open = self._new_entry(task.begin, task.own)
            # The life before may have been killed between a commit and its merge.
            self._merge_after(None)
        elif isinstance(task, Cut):
            self._cut(task.home)
            if task.checkpoint and self._open is not None:
                failed = self._finish_writing()
                self._checkpoint_at = self._open.begin if failed is None else failed.begin
        elif isinstance(task, WatchedStep):
            assert self._open is not None, "a step came before its layout"
            assert self._open.below is not None, "a watched step where none is recorded"
            self._open.below.add(task.evidence)
        else:
            assert self._open is not None, "a window came before its layout"
            task.window.wait()
            with self.background.timing("window"):
                self._open.add(task.window, task.end, task.records, task.stride)

    def _cut(self, home: DeviceWindow | None) -> None:
        entry, own = self._open, self._own
        if entry is None or own is None or (entry.windows == 0 and not self._awaits_failed(home)):
            return
        if home is not None and not self._committing.agree(lambda: self._disk_keeps_up(home)):
            self._passed += 1
            return
        if (failed := self._finish_writing()) is not None:
            failed.extend(entry)
            entry = self._open = failed
        self._written = entry
        entry.follows_checkpoint |= 0 < entry.begin == self._checkpoint_at
        self._writing = self._disk.submit(self._write, entry, own, self._passed, self._supported)
        self._merge_after(self._writing)
        self._passed = 0
        self._open = self._new_entry(entry.end, own)

    def _new_entry(self, begin: int, own: RankLayout) -> OpenEntry:
        below = EntrySums(self._below, own.layout, own.rank) if self._below else None
        decoys = Decoys(own.layout, own.rank) if "decoy_sum" in self._on_request else None
        products = "grad_weight" in self._on_request
        return OpenEntry(begin, own.size, below, decoys=decoys, products=products)

    def _merge_after(self, writing: Future[GradtraceError | None] | None) -> None:
        if self._merges:
            # A future of its own: a checkpoint waits for its entry, not for what is joined because of it.
            self._merging = self._disk.submit(self._merge, writing)

    def _merge(self, writing: Future[GradtraceError | None] | None) -> None:
        if writing is not None and (writing.exception() or writing.result()):
            return
        try:
            with self.background.timing("merge"):
                self._committing.merge()
        except GradtraceError as failure:
            # The next commit says what is wrong; until then nothing but room is lost.
            if not self.outage.tolerates(failure):
                # Said here: the next merge may take this one's place before anybody asks how it ended.
                self._failure = failure
                raise

    def _disk_keeps_up(self, home: DeviceWindow) -> bool:
        while self._writing is not None and not self._writing.done():
            wait([self._writing], timeout=0.01)
            allowed = _GRACE + _SHARE * (perf_counter() - self._began)
            if home.waits and home.blocked > allowed:
                return False
        return True

    def _awaits_failed(self, home: DeviceWindow | None) -> bool:
        return home is None and self._finish_writing() is not None

    def _finish_writing(self) -> OpenEntry | None:
        """Return the entry whose writing failed, if the run goes on all the same."""
        failure = None if self._writing is None else self._writing.result()
        return None if failure is None else self._written

    def _write(
        self, entry: OpenEntry, own: RankLayout, passed: int, supported: npt.NDArray[np.bool_]
    ) -> GradtraceError | None:
        now = np.logical_or(supported, entry.arrays["events"])
        tallies = {"passed_cuts": passed, "failed_commits": self.outage.failures}
        try:
            with self.background.timing("commit"):
                counts = self._committing.commit(entry, own, tallies, now)
        except GradtraceError as failure:
            if not self.outage.passes(failure):
                raise
            return failure
        supported[:] = now
        shares = {
            info.name: (info.size - count, info.size)
            for info, count in zip(own.layout.parameters, counts, strict=True)
        }
        with self._lock:
            self._shares = (entry.end, shares)
        self._written = None  # or its arrays would be kept for nothing
        self.outage.worked()
        return None
