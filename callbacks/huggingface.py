"""The Hugging Face callback: records a run of transformers.Trainer into a ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from typing_extensions import override

from gradtrace.callbacks.huggingface_trainer import (
    Undo,
    before_clipping,
    before_saving,
    calling_trainer,
    on_error,
    refuse_trainer,
)
from gradtrace.errors import GradtraceError, InvalidValueError, UnsupportedError
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.recorder.below.wanted import Word, check_below
from gradtrace.recorder.budget import check_overhead
from gradtrace.recorder.continuation import Checkpoint, continuation
from gradtrace.recorder.parameters import Selection
from gradtrace.recorder.recorder import Recorder
from gradtrace.recorder.settings import (
    Mode,
    OnError,
    check_on_error,
    check_settings,
    check_switch,
)
from gradtrace.recorder.summary import Summary

__all__ = ["HFGradientLedger"]

_PER_PARAMETER = "ledger/never_supported/"


class HFGradientLedger(TrainerCallback, ExportableState):
    """Streams per-parameter gradient events of `Trainer.train` into a ledger at `path`.

    `Trainer(..., callbacks=[HFGradientLedger("runs/lm.ledger.zarr")])` is all that is needed. Gradients are
    recorded once per optimizer step, before clipping and unscaled. The share of dependencies never supported
    goes to the Trainer's log when an entry is committed (per parameter too, which the console leaves out),
    and a summary is printed when training ends. Saving a checkpoint commits and notes the step in its
    trainer_state.json; resuming from it goes on at that step, and what was recorded after it is void. A
    second `train` of the same trainer goes on in the same ledger. What stops an epoch, an interrupt too,
    leaves everything before it committed. Under DDP each rank records its share of the parameters, all in
    the one `path` on storage that they share; what stops an epoch there leaves the entries before it.

    With `restore_callback_states_from_checkpoint=True` the Trainer builds this callback anew from what the
    checkpoint says, `path` included: as for any callback, only for checkpoints that you trust. Then what
    reaches an object store comes from the environment: no checkpoint keeps `storage_options`.

    Args:
        path: where the ledger will be; nothing is created before the first optimizer step.
        include: glob patterns over parameter names.
        exclude: glob patterns; what they match is not recorded.
        window_steps: steps in a window, the unit of batch means; 1 to 32767.
        entry_steps: steps in an entry, the unit of what is committed; a multiple of `window_steps`.
        threshold: an event is |g| > threshold.
        overhead: share of a step that recording may take, e.g. 0.01; see `Recorder`. None: whatever it takes.
        merge: whether older entries are merged as the run goes on, never across a checkpoint's step.
        mode: what to do where a ledger exists: None refuses, "append" goes on in it, "overwrite" replaces it.
        storage_options: how to reach an object store; see `Recorder`.
        on_error: what to do when the storage fails during training: "raise", or "warn"; see `Recorder`.
        below: evidence below the step: any of "positions", "samples", "inputs" and "gram"; see `Recorder`.
        below_every: one step of this many, a power of two, is watched for it.
        decoys: also sum window sums with random signs, to check tests on this very run; see `Recorder`.
        movement: also sum products with the weights, for the criterion `movement`; see `Recorder`.

    Raises:
        LedgerExistsError: before training starts, when the path exists and `mode` does not allow it.
        UnsupportedError: for set-ups, optimizers and parameters without a usable gradient, by name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        window_steps: int = 32,
        entry_steps: int = 512,
        threshold: float = 0.0,
        overhead: float | None = None,
        merge: bool = True,
        mode: Mode = None,
        storage_options: StorageOptions = None,
        on_error: OnError = "raise",
        below: Word | Sequence[Word] = (),
        below_every: int = 16,
        decoys: bool = False,
        movement: bool = False,
    ) -> None:
        check_settings(window_steps, entry_steps, threshold, mode)
        check_overhead(overhead)
        check_on_error(on_error)
        check_switch("merge", merge)
        check_switch("decoys", decoys)
        check_switch("movement", movement)
        wanted = check_below(below, below_every)
        selection = Selection.of(include, exclude)
        storage_at(path, storage_options)
        self.path = os.fspath(path)
        self.checkpoint: dict[str, Any] | None = None  # set by the Trainer when it restores callback states
        self._mode, self._storage_options = mode, storage_options
        self._settings: dict[str, Any] = {
            "include": list(selection.include),
            "exclude": list(selection.exclude),
            "window_steps": window_steps,
            "entry_steps": entry_steps,
            "threshold": threshold,
            "overhead": overhead,
            "merge": merge,
            "on_error": on_error,
            "below": list(wanted.words),
            "below_every": below_every,
            "decoys": decoys,
            "movement": movement,
        }
        self._recorder: Recorder | None = None
        self._trainer: Trainer | None = None  # while it trains
        self._undo: list[Undo] = []
        self._observed = False
        self._model: nn.Module | None = None  # what the recorder records
        self._written: nn.Module | None = None  # the model whose ledger this callback itself has written
        self._reported = 0

    @property
    def summary(self) -> Summary | None:
        """What the recording amounts to so far; None before the first `train`."""
        return None if self._recorder is None else self._recorder.summary()

    def close(self, *, failed: bool = False) -> None:
        """Commit what is recorded and release the ledger; `train` does this itself, also when it fails.

        After an error (`failed`), several ranks commit nothing more.
        """
        self._trainer = None
        while self._undo:
            self._undo.pop()()
        if self._recorder is not None:
            try:
                self._recorder.close(failed=failed)
            finally:
                if self._recorder.run_id is not None:
                    self._written = self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(failed=error[:1] != (None,))

    @override
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.close()
        trainer = calling_trainer()
        refuse_trainer(trainer)
        assert model is not None, "the Trainer hands its model to every event"
        # Not a resumed run: what the state holds then is this callback's own note of an earlier `train`.
        checkpoints = self._checkpoints(state) if state.global_step else []
        mode, resume_at = continuation(self.path, self._mode, checkpoints, self._storage_options)
        if not checkpoints and self._written is model:
            mode = "append"
        if isinstance(state.stateful_callbacks, dict):
            # The Trainer cannot save again after resuming from a checkpoint made without this callback.
            state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._recorder = Recorder(
            model,
            self.path,
            mode=mode,
            resume_at=resume_at,
            storage_options=self._storage_options,
            together=trainer.accelerator.num_processes > 1,
            planned_steps=state.max_steps if state.max_steps > 0 else None,
            **self._settings,
        )
        self._trainer, self._model, self._observed, self._reported = trainer, model, False, 0
        self._undo = [
            before_clipping(trainer, self._observe),
            before_saving(trainer, self._commit),
            on_error(trainer, self._fail),
        ]

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer is not None and not self._observed:
            if (args.max_grad_norm or 0.0) > 0.0:
                raise UnsupportedError(
                    f"{type(self._trainer).__name__} clips gradients its own way",
                    expected="clipping by trainer.accelerator.clip_grad_norm_, where gradients are read",
                    remedy="clip that way, or pass max_grad_norm=0",
                )
            self._observe()
        self._observed = False

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Logging takes should_log back, which is meant for the Trainer's own log of this step.
        should_log = control.should_log
        self._report()
        control.should_log = should_log

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._trainer is None or self._recorder is None or logs is None:
            return
        # The loggers come before this callback and have them; the console comes after it, and has a line.
        for name in [name for name in logs if name.startswith(_PER_PARAMETER)]:
            del logs[name]
        if "train_loss" in logs:
            # The Trainer's last log: at on_train_end, its loggers have already closed theirs.
            self._recorder.commit()
            self._report()

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer is None or self._recorder is None:
            return
        self.close()
        summary = self._recorder.summary()
        if summary.steps and state.is_world_process_zero:
            print(summary)

    @override
    def state(self) -> dict[str, Any]:
        """Commit, and say how far the ledger is: what a checkpoint keeps in its trainer_state.json."""
        noted = None
        if self._recorder is not None:
            # Only one rank comes here; all of them committed before they began to save.
            alone = self._recorder.ranks == 1
            steps = self._recorder.commit() if alone else self._recorder.committed
            if self._recorder.run_id is not None:
                noted = {"run_id": self._recorder.run_id, "steps": steps}
        # `mode` is left out: a file must not be what allows a ledger to be replaced; and `storage_options`,
        # which may hold credentials.
        return {"args": {"path": self.path, **self._settings}, "attributes": {"checkpoint": noted}}

    def _observe(self) -> None:
        if self._trainer is not None and self._recorder is not None and not self._observed:
            optimizer = self._trainer.optimizer
            assert optimizer is not None, "gradients are about to be clipped for it"
            begins = self._recorder.needs is None
            self._recorder.observe(optimizer)
            if begins and self._recorder.needs is not None:
                print(f"ledger {self.path}: needs {self._recorder.needs}")
            self._observed = True

    def _commit(self) -> None:
        if self._recorder is not None:
            self._recorder.commit()

    def _report(self) -> None:
        if self._trainer is None or self._recorder is None or not self._trainer.is_world_process_zero():
            return
        summary = self._recorder.summary()
        if summary.steps > self._reported:
            self._reported = summary.steps
            self._trainer.log(summary.metrics())

    def _checkpoints(self, state: TrainerState) -> list[Checkpoint]:
        """The notes in a resumed state; the Trainer keeps a growing list where it has several ledgers."""
        stored: Any = state.stateful_callbacks or {}
        try:
            kept = stored.get(type(self).__name__, [])
            notes = [one["attributes"]["checkpoint"] for one in (kept if isinstance(kept, list) else [kept])]
            return [Checkpoint(note["run_id"], note["steps"]) for note in notes if note is not None]
        except (AttributeError, KeyError, TypeError) as error:
            raise InvalidValueError(
                "the checkpoint's trainer_state.json",
                expected=f"what {type(self).__name__} wrote there",
                got=f"{type(error).__name__}: {error}",
                remedy="resume from a checkpoint that was not altered",
            ) from error

    def _fail(self, error: BaseException) -> None:
        try:
            self.close(failed=True)
        except GradtraceError as failure:
            # What stopped the training is what the user must see; the ledger's own trouble goes beside it.
            if failure is not error:
                error.add_note(f"and the ledger could not be closed: {failure}")
