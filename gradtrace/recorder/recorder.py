"""The recorder: observes gradients before each optimizer step and streams their sums into a ledger."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradtrace.errors import InvalidValueError, StateError, UnsupportedError
from gradtrace.kernels.accumulate import accumulate_
from gradtrace.kernels.accumulate_products import accumulate_products_
from gradtrace.ledger.creation import check_destination
from gradtrace.ledger.format import Layout
from gradtrace.ledger.location import StorageOptions
from gradtrace.ledger.part import PartWriter
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder.beginning import agreed_layout, known_support, open_writer
from gradtrace.recorder.below.wanted import Word, check_below
from gradtrace.recorder.below.watched_steps import WatchedSteps
from gradtrace.recorder.budget import Budget, check_overhead
from gradtrace.recorder.committing import Committing, RankLayout
from gradtrace.recorder.interrupts import held_back
from gradtrace.recorder.needs import Needs, needs_of
from gradtrace.recorder.parameters import Selection
from gradtrace.recorder.ranks import meeting_for
from gradtrace.recorder.room import Room, check_room, room_at
from gradtrace.recorder.roster import Roster
from gradtrace.recorder.rounds import Rounds
from gradtrace.recorder.scaling import scale_and_skip
from gradtrace.recorder.settings import (
    Mode,
    OnError,
    check_on_error,
    check_planned_steps,
    check_settings,
    check_switch,
)
from gradtrace.recorder.stream import BeginLayout, ClosedWindow, Cut, Stream, WatchedStep
from gradtrace.recorder.summary import Summary
from gradtrace.recorder.updates import StepRecord, refuse_optimizer
from gradtrace.recorder.window import DeviceWindow
from gradtrace.recorder.wrappers import bare_optimizer

__all__ = ["Recorder"]

_PATIENCE = 10  # steps without any gradient before that is an error


class Recorder:
    """Streams gradient sums of a model into a ledger; call `observe(optimizer)` before `optimizer.step()`.

    A step is one call of `observe`. Per dependency with gradient g it sums g, g^2, [|g| > threshold] and
    sign(g) over the steps, and over windows the squares and signs of window sums. Nothing is written before
    the first step.

    Usable as a context manager; leaving it commits what was recorded, on a single rank also after an error.

    Args:
        model: the module whose parameters are recorded; compiled, DDP and Fabric ones keep their names.
        path: where the ledger will be; must not exist unless `mode` says so. Also s3://bucket/name, gs://
            and az:// (extra `cloud`).
        include: glob patterns over parameter names; a tied parameter has several names.
        exclude: glob patterns; what they match is not recorded.
        window_steps: steps in a window, the unit of batch means; 1 to 32767.
        entry_steps: steps in an entry, the unit of what is committed; a multiple of `window_steps`.
        threshold: an event is |g| > threshold.
        mode: "append" goes on in an existing ledger, "overwrite" replaces one.
        resume_at: with mode="append", first void every step from this one on.
        storage_options: how to reach an object store, such as `region` or `endpoint`; what is not given comes
            from the environment. Never written or shown.
        together: whether the processes of torch.distributed record one model together, each its share; None:
            if the model is in DDP or holds DTensors (FSDP2, tensor parallel). Then all of them must make the
            Recorder, observe, commit and close at the same steps, with one path on storage that they share.
        below: evidence below the step, in watched steps only: "positions" and "samples" (what single tokens
            or pixels, and whole samples, contribute: squares and support), "inputs" (sums and sums of squares
            of every layer's inputs) and "gram" (their Gram matrices).
        below_every: one step of this many, a power of two, is watched, drawn at random from its number; with
            `overhead`, fewer where that takes too long.
        decoys: also sum window sums with random signs, 4 bytes more a dependency and entry: `drift` of those
            must find nothing, and `gradtrace.evidence.calibration` says whether that is so in this run.
        movement: also sum g w, for the criterion `movement`: 4 bytes more a dependency in each window and
            entry, and another pass over gradients and weights in each step.
        overhead: share of a step that recording may take, e.g. 0.01; None: whatever it takes. Where it takes
            more, sums are taken on some steps only, drawn at random and weighted, so that they stay unbiased;
            `events` count every step all the same. What is drawn depends on how fast the machine is: such a
            run, resumed or repeated, need not leave the same sums.
        merge: whether older entries are merged as the run goes on, the wider the older they are, so that T of
            them become O(log T); never across a step where `commit` was called, which stays resumable.
        planned_steps: how many steps the ledger is to hold in the end, if that is known: to say beforehand
            what it will need.
        on_error: what to do when the disk or the object store fails after the first step: "raise" an error at
            the next step, or "warn" once and go on. Then the open entry grows, in memory that does not, until
            an entry can be written again; at worst its steps are missing at the end, and a warning says so.

    Attributes:
        needs: what the recording needs on disk, host and device, as logged before the first step; on rank 0.
        step: steps recorded so far, those of earlier runs in the same ledger among them.

    Raises:
        LedgerExistsError: `path` exists and `mode` does not allow it.
        InvalidValueError: a setting is out of range, or a pattern matches nothing.
        MismatchError: at the first step, the ledger to go on with is of a model of other shapes.
        UnsupportedError: a parameter's gradient cannot be recorded, or a module ties samples together whose
            evidence is asked for; it is named.
        StorageError, StateError: at the first step, the disk or the memory has certainly no room for it.
        RankLostError: at a step, another rank did not come to where all must meet.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        *,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        window_steps: int = 32,
        entry_steps: int = 512,
        threshold: float = 0.0,
        mode: Mode = None,
        resume_at: int | None = None,
        storage_options: StorageOptions = None,
        together: bool | None = None,
        below: Word | Sequence[Word] = (),
        below_every: int = 16,
        decoys: bool = False,
        movement: bool = False,
        overhead: float | None = None,
        merge: bool = True,
        on_error: OnError = "raise",
        planned_steps: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidValueError("model", expected="an nn.Module", got=type(model).__name__)
        check_settings(window_steps, entry_steps, threshold, mode)
        check_overhead(overhead)
        check_on_error(on_error)
        check_switch("merge", merge)
        check_switch("decoys", decoys)
        check_switch("movement", movement)
        check_planned_steps(planned_steps)
        if resume_at is not None and mode != "append":
            raise InvalidValueError("resume_at", expected='mode="append"', got=f"mode={mode!r}")
        check_destination(path, mode, storage_options)
        self.path = os.fspath(path)
        selection = Selection.of(include, exclude)
        self._settings = {
            "window_steps": window_steps,
            "entry_steps": entry_steps,
            "threshold": float(threshold),
            "include": list(selection.include),
            "exclude": list(selection.exclude),
        } | ({} if overhead is None else {"overhead": float(overhead)})
        self._window_steps, self._entry_steps, self._threshold = window_steps, entry_steps, float(threshold)
        self._mode, self._resume_at, self._storage_options = mode, resume_at, storage_options
        self._merge, self._planned_steps = merge, planned_steps
        self.needs: Needs | None = None
        self._look_for_room: Callable[[str, torch.device], Room] = room_at
        self._on_error = on_error
        self._roster = Roster(model, selection)
        self._meeting = meeting_for(model, together)
        self._below: WatchedSteps | None = None
        if wanted := check_below(below, below_every):
            self._settings |= {"below": list(wanted.words), "below_every": below_every}
            self._below = WatchedSteps(
                model, self._roster.candidates, wanted, below_every, self._meeting.size
            )
        self._on_request = ("decoy_sum",) * decoys + ("grad_weight",) * movement
        self._settings |= {"decoys": True} if decoys else {}
        self._settings |= {"movement": True} if movement else {}
        self._budget = Budget(overhead, window_steps, 0 if self._below is None else below_every)
        if self._below is not None:
            self._below.every = self._budget.every
        self._beginning = Rounds(self._meeting, "a beginning")
        self._optimizers: dict[int, tuple[int, Optimizer]] = {}
        self._writer: LedgerWriter | None = None  # on rank 0
        self._run_id: str | None = None
        self._stream: Stream | None = None
        self._window: DeviceWindow | None = None
        self._records: list[StepRecord] = []
        self._striding = Rounds(self._meeting, "a stride")
        self._barren = 0
        self._closed = False
        self._released = False
        self._observe_seconds = 0.0
        self._blocked_seconds = 0.0
        self._windows = 0
        self._began: float | None = None
        self.step = 0

    @property
    def run_id(self) -> str | None:
        """Identity of the run in the ledger; None before the first step."""
        return self._run_id

    @property
    def ranks(self) -> int:
        """How many processes record together."""
        return self._meeting.size

    @property
    def committed(self) -> int:
        """Steps of the ledger that are committed; 0 before the first step."""
        return 0 if self._stream is None else self._stream.never_supported()[0]

    @torch.no_grad()
    def observe(self, optimizer: Optimizer, *, scaler: GradScaler | None = None) -> None:
        """Record the gradients that `optimizer` is about to apply; call it before each `optimizer.step()`.

        Call it before clipping, to record true gradients. With an fp16 `scaler`, before or after
        `scaler.unscale_(optimizer)`: what is recorded is unscaled, and a step that the scaler will skip is
        counted as skipped and adds nothing. Inside the wrapper of accelerate or Fabric, an optimizer
        brings its scaler along.

        Raises:
            StateError: the recorder is closed.
            UnsupportedError: a gradient is sparse, the optimizer takes several gradients a step, or no
                gradient was there in ten steps running.
        """
        began = perf_counter()
        self._began = self._began or began
        optimizer, own_scaler = bare_optimizer(optimizer)
        scaler = scaler or own_scaler
        if self._closed:
            raise StateError("observe after close", remedy="make a new Recorder with mode='append'")
        if id(optimizer) not in self._optimizers:
            refuse_optimizer(optimizer)
            self._optimizers[id(optimizer)] = (len(self._optimizers), optimizer)
        if self._roster.admits(
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ):
            try:
                self._begin_layout()
            except BaseException:
                self._roster.forget()  # so that the next step tries again, and fails with the same words
                raise
        record, grads, slots = self._roster.read(optimizer, self._optimizers[id(optimizer)][0])
        self._watch_for_barren_steps(record)
        window, stream = self._require()
        stream.check()
        scale, skip = scale_and_skip(optimizer, scaler, window.device)
        if self.step % self._window_steps == 0:
            self._close_window()  # where an interrupt kept the last step from doing so
        evidence = None if self._below is None else self._below.take(self.step, optimizer, scaler, skip)
        buffers = window.open()
        flags = buffers.flags[len(self._records)]
        weight = self._budget.weight(self.step)
        # Counted first: an interrupt in the middle must not leave events of a step that nobody counts.
        self.step += 1
        self._records.append(record)
        with self._budget.measuring(began, weight, window.device, watched=evidence is not None):
            accumulate_(
                buffers.totals,
                flags,
                grads,
                slots,
                self._roster.offsets,
                threshold=self._threshold,
                scale=scale,
                skip=skip,
                weight=weight,
            )
            if buffers.grad_weight is not None:
                accumulate_products_(
                    buffers.grad_weight,
                    grads,
                    self._roster.weights(slots),
                    [self._roster.offsets[slot] for slot in slots],
                    scale=scale,
                    skip=skip,
                    weight=weight,
                )
        if evidence is not None:
            stream.submit(WatchedStep(evidence))
        if self.step % self._window_steps == 0:
            self._close_window()
            if self._budget.learning or self.step % self._entry_steps == 0:
                stream.submit(Cut(window))
                self._choose_stride()
        if self._below is not None:
            self._below.begin(self.step)
        self._observe_seconds += perf_counter() - began

    def commit(self) -> int:
        """Close the window and the entry here, wait until they are durable, and return the step count.

        Several ranks must all call it. After `close`, and where on_error="warn" lets a failure pass, it
        returns the steps that are committed.
        """
        if self._stream is not None:
            if self._released:
                return self.committed
            self._close_window()
            self._stream.submit(Cut(checkpoint=True))
            self._stream.drain()
            if self._stream.is_behind:
                if not self._closed:
                    self._stream.outage.warn_checkpoint(self.step)
                return self.committed
        return self.step

    def close(self, *, failed: bool = False) -> None:
        """Commit what is recorded and release the ledger; closing twice does nothing.

        Args:
            failed: an error ends the recording. Then several ranks commit nothing more, because it may have
                come to one of them alone, for which the others would wait.
        """
        if self._closed:
            return
        self._closed = True
        if self._below is not None:
            self._below.close()
        try:
            if self._stream is None:
                if self._writer is not None:
                    self._writer.close()
            elif failed and self.ranks > 1:
                self._stream.abandon()
            else:
                self._finish(self._stream)
        finally:
            self._released = True
            if self._stream is not None:
                self._stream.stop()
            self._window = None

    def _finish(self, stream: Stream) -> None:
        try:
            self.commit()
            stream.drain(merged=True)
        except BaseException:
            stream.abandon()
            raise
        stream.part()
        if stream.is_behind:
            stream.outage.warn_end(self.step)

    def summary(self) -> Summary:
        """What is committed so far; cheap enough to ask after every step."""
        steps, parameters = self._stream.never_supported() if self._stream is not None else (0, {})
        return Summary(
            self.path,
            steps,
            parameters,
            self._observe_seconds,
            self._blocked_seconds,
            0.0 if self._began is None else perf_counter() - self._began,
            self._windows,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _begin_layout(self) -> None:
        if self._stream is not None:
            self._close_window()
            self._stream.submit(Cut())
            self._stream.drain(merged=True)
        if self._below is not None:
            self._below.look_again(self._roster.candidates)
        agreed = self._beginning.hold(self._describe, self._decide_layout)
        layout = Layout.from_json(agreed["layout"])
        own = RankLayout(layout, agreed["number"], self._meeting.rank)
        if self._stream is None:
            self._run_id, self.step = agreed["run"], agreed["end"]
            part = PartWriter(self.path, self._meeting.rank, self._storage_options)
            committing = Committing(self._meeting, self._writer, part)
            self._stream = Stream(committing, self.step, merge=self._merge, on_error=self._on_error)
        opening = self._roster.enlist(own)
        known: list[npt.NDArray[np.bool_]] = []
        look = partial(known_support, self.path, agreed["run"], own, self._storage_options)
        self._beginning.hold(lambda: known.append(look()), lambda _: None)
        below = () if self._below is None else self._below.accumulators
        self._stream.submit(BeginLayout(self.step, own, opening, known[0], below, self._on_request))
        self._window = DeviceWindow(
            own.size,
            self._window_steps,
            len(layout.parameters),
            self._roster.device,
            products="grad_weight" in self._on_request,
        )

    def _describe(self) -> dict[str, Any]:
        described = self._roster.described()
        return described | {"room": asdict(self._look_for_room(self.path, self._roster.device))}

    def _decide_layout(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        layout = agreed_layout(parts)
        if self._below is not None:
            names = {info.name for info in layout.parameters}
            layout = replace(layout, inputs=tuple(self._below.inputs(names)))
        if self._writer is None:
            needs = needs_of(
                layout,
                () if self._below is None else self._below.accumulators,
                window_steps=self._window_steps,
                entry_steps=self._entry_steps,
                planned_steps=self._planned_steps,
                merge=self._merge,
                on_cuda=self._roster.device.type == "cuda",
                on_request=self._on_request,
            )
            check_room(needs, [Room(**part["room"]) for part in parts], self.path)
            self.needs = needs
            self._writer = open_writer(
                self.path,
                self._mode,
                self._resume_at,
                self._settings,
                self._storage_options,
                (*(() if self._below is None else self._below.accumulators), *self._on_request),
            )
        writer = self._writer
        return {
            "layout": layout.to_json(),
            "number": writer.next_layout,
            "run": writer.run_id,
            "end": writer.end,
        }

    def _choose_stride(self) -> None:
        # Without overhead= there is nothing to choose, and no rank need wait for another.
        if "overhead" in self._settings:
            assert self._stream is not None
            self._budget.background = self._stream.background.seconds_a_step(
                self._window_steps, self._entry_steps
            )
            self._budget.begin_entry(*self._striding.hold(self._budget.brought, self._budget.agreed))
            if self._below is not None:
                self._below.every = self._budget.every

    def _watch_for_barren_steps(self, record: StepRecord) -> None:
        some = len(record.missing) < sum(len(group.slots) for group in record.groups)
        self._barren = 0 if some else self._barren + 1
        if self._barren == _PATIENCE:
            raise UnsupportedError(
                f"no recorded parameter had a gradient in {_PATIENCE} steps",
                expected="p.grad to be there before optimizer.step()",
                got="None for all",
                remedy="call observe() after backward() and before zero_grad(); optimizers that step inside "
                "backward leave no gradient to record",
            )

    def _require(self) -> tuple[DeviceWindow, Stream]:
        if self._window is None or self._stream is None:
            raise StateError(
                "observe",
                expected="an optimizer that holds parameters of the recorded model",
                got="none of its parameters are recorded",
                remedy="pass the model that this optimizer trains, or widen include=",
            )
        return self._window, self._stream

    def _close_window(self) -> None:
        if not self._records:
            return
        window, stream = self._require()
        # Buffers that are swapped and not handed on would be waited for in vain.
        with held_back() as interrupted:
            began = perf_counter()
            closed = window.close(interrupted)
            self._blocked_seconds += perf_counter() - began
            self._windows += 1
            stream.submit(ClosedWindow(closed, window, self.step, self._records, self._budget.stride))
            self._records = []
