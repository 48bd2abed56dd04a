"""The recorder: observes gradients before each optimizer step and streams their sums into a ledger."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradtrace.errors import (
    EmptyLedgerError,
    InvalidValueError,
    MismatchError,
    StateError,
    UnsupportedError,
)
from gradtrace.kernels.accumulate import accumulate_
from gradtrace.ledger.creation import check_destination, holds_nothing
from gradtrace.ledger.format import Layout
from gradtrace.ledger.reader import Ledger
from gradtrace.ledger.writer import LedgerWriter
from gradtrace.recorder.continuation import Mode
from gradtrace.recorder.parameters import Candidate, Selection, candidates, check_recordable
from gradtrace.recorder.scaling import scale_and_skip
from gradtrace.recorder.stream import BeginLayout, ClosedWindow, Cut, Stream
from gradtrace.recorder.summary import Summary
from gradtrace.recorder.updates import GroupStep, StepRecord, kind_of, refuse_optimizer, settings_of
from gradtrace.recorder.window import DeviceWindow, one_device
from gradtrace.recorder.wrappers import bare_optimizer

__all__ = ["Mode", "Recorder", "check_settings"]

_PATIENCE = 10  # steps without any gradient before that is an error


class Recorder:
    """Streams gradient sums of a model into a ledger; call `observe(optimizer)` before `optimizer.step()`.

    A step is one call of `observe`. Per dependency with gradient g it sums g, g^2, [|g| > threshold] and
    sign(g) over the steps, and over windows the squares and signs of window sums. Nothing is written before
    the first step.

    Usable as a context manager; leaving it commits what was recorded, also after an error.

    Args:
        model: the module whose parameters are recorded; compiled, DDP and Fabric ones keep their names.
        path: where the ledger will be; must not exist unless `mode` says so.
        include: glob patterns over parameter names; a tied parameter has several names.
        exclude: glob patterns; what they match is not recorded.
        window_steps: steps in a window, the unit of batch means; 1 to 32767.
        entry_steps: steps in an entry, the unit of what is committed; a multiple of `window_steps`.
        threshold: an event is |g| > threshold.
        mode: "append" goes on in an existing ledger, "overwrite" replaces one.
        resume_at: with mode="append", first void every step from this one on.

    Raises:
        LedgerExistsError: `path` exists and `mode` does not allow it.
        InvalidValueError: a setting is out of range, or a pattern matches nothing.
        MismatchError: at the first step, the ledger to go on with is of a model of other shapes.
        UnsupportedError: a parameter's gradient cannot be recorded; it is named.
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
    ) -> None:
        check_settings(window_steps, entry_steps, threshold, mode)
        if resume_at is not None and mode != "append":
            raise InvalidValueError("resume_at", expected='mode="append"', got=f"mode={mode!r}")
        self.path = os.fspath(path)
        check_destination(self.path, mode)
        self._model = model
        self._selection = Selection.of(include, exclude)
        self._settings = {
            "window_steps": window_steps,
            "entry_steps": entry_steps,
            "threshold": float(threshold),
            "include": list(self._selection.include),
            "exclude": list(self._selection.exclude),
        }
        self._window_steps, self._entry_steps, self._threshold = window_steps, entry_steps, float(threshold)
        self._mode, self._resume_at = mode, resume_at
        self._candidates = _by_identity(model, self._selection)
        for one in self._candidates.values():
            if one.parameter.requires_grad:
                check_recordable(one)
        self._foreign: dict[int, nn.Parameter] = {}  # kept alive, so that an id is never used twice
        self._recorded: list[Candidate] = []
        self._slots: dict[int, int] = {}
        self._offsets: list[int] = []
        self._optimizers: dict[int, tuple[int, Optimizer]] = {}
        self._writer: LedgerWriter | None = None
        self._stream: Stream | None = None
        self._window: DeviceWindow | None = None
        self._records: list[StepRecord] = []
        self._barren = 0
        self._closed = False
        self._released = False
        self._observe_seconds = 0.0
        self._blocked_seconds = 0.0
        self.step = 0

    @property
    def run_id(self) -> str | None:
        """Identity of the run in the ledger; None before the first step."""
        return None if self._writer is None else self._writer.run_id

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
        optimizer, own_scaler = bare_optimizer(optimizer)
        scaler = scaler or own_scaler
        if self._closed:
            raise StateError("observe after close", remedy="make a new Recorder with mode='append'")
        if id(optimizer) not in self._optimizers:
            refuse_optimizer(optimizer)
            self._optimizers[id(optimizer)] = (len(self._optimizers), optimizer)
        self._admit(parameter for group in optimizer.param_groups for parameter in group["params"])
        record, grads, slots = self._read(optimizer)
        self._watch_for_barren_steps(bool(grads))
        window, stream = self._require()
        stream.check()
        scale, skip = scale_and_skip(optimizer, scaler, window.device)
        if self.step % self._window_steps == 0:
            self._close_window()  # where an interrupt kept the last step from doing so
        buffers = window.open()
        flags = buffers.flags[len(self._records)]
        # Counted first: an interrupt in the middle must not leave events of a step that nobody counts.
        self._records.append(record)
        self.step += 1
        accumulate_(
            buffers.totals,
            flags,
            grads,
            slots,
            self._offsets,
            threshold=self._threshold,
            scale=scale,
            skip=skip,
        )
        if self.step % self._window_steps == 0:
            self._close_window()
        if self.step % self._entry_steps == 0:
            stream.submit(Cut(window))
        self._observe_seconds += perf_counter() - began

    def commit(self) -> int:
        """Close the window and the entry here, wait until they are durable, and return the step count."""
        if self._stream is not None and not self._released:
            self._close_window()
            self._stream.submit(Cut())
            self._stream.drain()
        return self.step

    def close(self) -> None:
        """Commit what is recorded and release the ledger; closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._stream is None or self._writer is None:
            return
        try:
            self.commit()
        finally:
            self._released = True
            self._stream.stop()
            self._writer.close()
            self._window = None

    def summary(self) -> Summary:
        """What is committed so far; cheap enough to ask after every step."""
        steps, parameters = self._stream.never_supported() if self._stream is not None else (0, {})
        return Summary(self.path, steps, parameters, self._observe_seconds, self._blocked_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admit(self, parameters: Iterable[nn.Parameter]) -> None:
        """Begin the first layout, or a wider one when a parameter trains that did not before."""
        new = False
        for parameter in parameters:
            key = id(parameter)
            if key in self._slots or key in self._foreign or not parameter.requires_grad:
                continue
            if key not in self._candidates:
                # The model may have been given new Parameter objects since it was last looked through.
                self._candidates = _by_identity(self._model, self._selection)
            if key in self._candidates:
                check_recordable(self._candidates[key])
                new = True
            else:
                self._foreign[key] = parameter
        if new:
            self._begin_layout()

    def _begin_layout(self) -> None:
        known = {one.info.name for one in self._recorded}
        self._recorded = [
            one for one in self._candidates.values() if one.parameter.requires_grad or one.info.name in known
        ]
        parameters = [one.parameter for one in self._recorded]
        device = one_device(parameters)
        layout = Layout.whole(tuple(one.info for one in self._recorded))
        opening = (
            torch.cat([parameter.detach().reshape(-1).float() for parameter in parameters]).cpu().numpy()
        )
        if self._stream is None:
            self._start()
        else:
            self._close_window()
            self._stream.submit(Cut())
        assert self._stream is not None
        self._stream.submit(BeginLayout(self.step, layout, opening, self._known_support(layout)))
        self._slots = {id(parameter): slot for slot, parameter in enumerate(parameters)}
        self._offsets = [piece.offset for piece in layout.ranks[0]]
        self._window = DeviceWindow(layout.size(0), self._window_steps, len(parameters), device)

    def _start(self) -> None:
        if self._mode == "append" and not holds_nothing(self.path):
            writer = LedgerWriter.reopen(self.path)
            try:
                if self._resume_at is not None:
                    writer.void(self._resume_at)
            except BaseException:
                writer.close()
                raise
        else:
            writer = LedgerWriter.create(
                self.path, settings=self._settings, overwrite=self._mode == "overwrite"
            )
        self._writer = writer
        self.step = writer.end
        self._stream = Stream(writer)

    def _known_support(self, layout: Layout) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which dependencies already had an event, by what the ledger holds.

        Raises:
            MismatchError: the ledger knows a parameter of this name in another shape: it is another model's.
        """
        supported = np.zeros(layout.size(0), np.bool_)
        assert self._stream is not None
        self._stream.drain()
        try:
            ledger = Ledger.open(self.path)
        except EmptyLedgerError:
            return supported
        for piece in layout.ranks[0]:
            info = layout.parameters[piece.parameter]
            if info.name not in ledger:
                continue
            if ledger[info.name].shape != info.shape:
                raise MismatchError(
                    f"parameter {info.name!r} has another shape than in the ledger {self.path!r}",
                    expected=str(ledger[info.name].shape),
                    got=str(info.shape),
                    remedy="pass the model that this ledger recorded, or record this one at another path",
                )
            supported[piece.offset : piece.offset + info.size] = ledger[info.name].events.reshape(-1) > 0
        return supported

    def _read(self, optimizer: Optimizer) -> tuple[StepRecord, list[torch.Tensor], list[int]]:
        number = self._optimizers[id(optimizer)][0]
        grads: list[torch.Tensor] = []
        slots: list[int] = []
        missing: list[int] = []
        groups: list[GroupStep] = []
        kind = kind_of(optimizer)
        for group in optimizer.param_groups:
            members: list[int] = []
            for parameter in group["params"]:
                slot = self._slots.get(id(parameter))
                if slot is None:
                    continue
                members.append(slot)
                grad = parameter.grad
                if grad is None:
                    missing.append(slot)
                    continue
                if grad.is_sparse:
                    name = self._recorded[slot].info.name
                    raise UnsupportedError(
                        f"parameter {name!r} has a sparse gradient",
                        expected="dense gradients",
                        remedy=f"exclude={name!r}",
                    )
                grads.append(grad)
                slots.append(slot)
            if members:
                groups.append(GroupStep(number, kind, tuple(members), settings_of(group)))
        return StepRecord(tuple(groups), tuple(missing)), grads, slots

    def _watch_for_barren_steps(self, any_gradient: bool) -> None:
        self._barren = 0 if any_gradient else self._barren + 1
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
        began = perf_counter()
        closed = window.close()
        self._blocked_seconds += perf_counter() - began
        stream.submit(ClosedWindow(closed, window, self.step, self._records))
        self._records = []


def _by_identity(model: nn.Module, selection: Selection) -> dict[int, Candidate]:
    return {id(one.parameter): one for one in candidates(model, selection)}


def check_settings(window_steps: int, entry_steps: int, threshold: float, mode: str | None) -> None:
    """Raise an InvalidValueError for settings that no recorder could follow."""
    if not 1 <= window_steps <= 32767:
        raise InvalidValueError("window_steps", expected="1 to 32767", got=repr(window_steps))
    if entry_steps < window_steps or entry_steps % window_steps:
        raise InvalidValueError(
            "entry_steps",
            expected=f"a multiple of window_steps={window_steps}",
            got=repr(entry_steps),
            remedy=f"e.g. entry_steps={window_steps * 16}",
        )
    if not (threshold >= 0.0 and threshold != float("inf")):
        raise InvalidValueError("threshold", expected="a finite number >= 0", got=repr(threshold))
    if mode not in (None, "append", "overwrite"):
        raise InvalidValueError("mode", expected='None, "append" or "overwrite"', got=repr(mode))
