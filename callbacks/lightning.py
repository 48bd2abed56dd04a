"""The Lightning callback: records a training run into a ledger."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from typing_extensions import override

from gradtrace.errors import GradtraceError, UnsupportedError
from gradtrace.ledger.creation import check_destination
from gradtrace.ledger.location import StorageOptions, storage_at
from gradtrace.ledger.reader import Ledger
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
from gradtrace.recorder.updates import refuse_optimizer

__all__ = ["GradientLedger", "planned_steps", "refuse_strategy"]


class GradientLedger(Callback):
    """Streams per-parameter gradient events of a `fit` into a ledger at `path`.

    `Trainer(callbacks=[GradientLedger("runs/mnist.ledger.zarr")])` is all that is needed. The share of
    dependencies never supported goes to the progress bar and to every logger when an entry is committed,
    and a summary is printed when training ends. Saving a checkpoint commits; resuming from it goes on at its
    step, and what was recorded after it is void. A second `fit` of the same model goes on in the same ledger;
    one of another model needs a ledger of its own. `fast_dev_run` records into a temporary folder (on
    several nodes, nowhere). Under manual optimization a gradient is recorded as it is when its optimizer
    steps: clipped, where `training_step` has clipped it.

    Under DDP each rank records its share of the parameters, under ModelParallelStrategy (FSDP2, tensor
    parallel) what it holds of them; all write to the one `path`, on storage that they share. An error may
    come to one rank alone: nothing more is committed then, and a checkpoint saved meanwhile notes the last
    commit.

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
        UnsupportedError: for strategies, optimizers and parameters without a usable gradient, by name.
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
        Selection.of(include, exclude)
        storage_at(path, storage_options)
        self.path = os.fspath(path)
        self._mode, self._storage_options = mode, storage_options
        self._settings: dict[str, Any] = {
            "include": include,
            "exclude": exclude,
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
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._model: LightningModule | None = None  # what the recorder records
        self._written: LightningModule | None = None  # whose ledger this callback itself has written
        self._resume: dict[str, Any] | None = None
        self._fitting = False
        self._reported = 0
        self._around: BaseException | None = None  # what the caller of `fit` is handling

    @property
    def summary(self) -> Summary | None:
        """What the recording amounts to so far; None before the first `fit`."""
        return None if self._recorder is None else self._recorder.summary()

    def read(self) -> Ledger | None:
        """Commit what is recorded so far and open it; several ranks must all ask. None where nothing is."""
        if self._recorder is None or self._recorder.commit() == 0:
            return None
        return Ledger.open(self._recorder.path, storage_options=self._storage_options)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        refuse_strategy(trainer)
        if not _dry(trainer):
            # Only what is foreign can be refused yet: an explicit ckpt_path is not known here, and with it a
            # ledger of ours may be the one to go on with.
            check_destination(self.path, "append", self._storage_options)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A sharded model's checkpoint is loaded only after this: there the recorder is the first to know.
        later = trainer.strategy.restore_checkpoint_after_setup
        resumes = self._resume is not None or self._written is pl_module or later
        if not _dry(trainer) and not resumes:
            check_destination(self.path, self._mode, self._storage_options)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # `test` and `validate` load callback state too, and must not void anything at a later `fit`.
        self._resume = dict(state_dict) if self._fitting else None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            refuse_optimizer(optimizer)
        self._reported, self._model, self._around = 0, pl_module, sys.exception()
        together = trainer.world_size > 1 and not isinstance(trainer.strategy, SingleDeviceStrategy)
        if _dry(trainer):
            if trainer.num_nodes == 1:
                path = self._scratch_path(trainer)
                self._recorder = Recorder(pl_module, path, together=together, **self._settings)
            return
        mode, resume_at = self._continuation(pl_module)
        self._recorder = Recorder(
            pl_module,
            self.path,
            mode=mode,
            resume_at=resume_at,
            storage_options=self._storage_options,
            together=together,
            planned_steps=planned_steps(trainer),
            **self._settings,
        )

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._recorder is not None:
            plugin = trainer.precision_plugin
            scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
            begins = self._recorder.needs is None
            self._recorder.observe(optimizer, scaler=scaler)
            if begins and self._recorder.needs is not None:
                rank_zero_info(f"ledger {self._recorder.path}: needs {self._recorder.needs}")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._recorder is None or not trainer.is_global_zero:
            return
        summary = self._recorder.summary()
        if summary.steps > self._reported:
            self._reported = summary.steps
            pl_module.log("never_supported", summary.never_supported, prog_bar=True, logger=False)
            self._send(trainer, summary)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._recorder is None or self._recorder.path != self.path:  # a fast_dev_run leaves none
            return {}
        if self._recorder.ranks > 1 and sys.exception() is not self._around:
            # It may have come to this rank alone, for which no other would meet it to commit.
            steps = self._recorder.committed
            warnings.warn(
                "a checkpoint is saved while an error is handled: nothing is committed to the ledger "
                f"{self.path}, and resuming from it goes on after the last commit, at step {steps}",
                stacklevel=2,
            )
        else:
            steps = self._recorder.commit()
        return {"steps": steps, "run_id": self._recorder.run_id}

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recorder is None:
            return
        self._close()
        summary = self._recorder.summary()
        if summary.steps:
            if trainer.is_global_zero:
                self._send(trainer, summary)
            rank_zero_info(str(summary))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._close(failed=True)
        except GradtraceError as failure:
            # What stopped the training is what the user must see; the ledger's own trouble goes beside it.
            if failure is not exception:
                exception.add_note(f"and the ledger could not be closed: {failure}")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After a fit that ended well, it is closed already.
        self._close(failed=True)

    def _scratch_path(self, trainer: Trainer) -> str:
        if trainer.is_global_zero:
            self._scratch = tempfile.TemporaryDirectory(prefix="gradtrace-")
        folder: str = trainer.strategy.broadcast(self._scratch.name if self._scratch else "")
        return os.path.join(folder, "dev.ledger.zarr")

    def _continuation(self, pl_module: LightningModule) -> tuple[Mode, int | None]:
        """How to open the ledger: as asked, or going on after a checkpoint or an earlier `fit`."""
        state, self._resume = self._resume, None
        if state is None or state.get("run_id") is None:
            return ("append", None) if self._written is pl_module else (self._mode, None)
        checkpoint = Checkpoint(state["run_id"], state["steps"])
        return continuation(self.path, self._mode, [checkpoint], self._storage_options)

    def _send(self, trainer: Trainer, summary: Summary) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(summary.metrics(), step=trainer.global_step)

    def _close(self, *, failed: bool = False) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.close(failed=failed)
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()
                self._scratch = None
            elif self._recorder.run_id is not None and self._recorder.path == self.path:
                self._written = self._model


def _dry(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def planned_steps(trainer: Trainer) -> int | None:
    """Optimizer steps that the whole training is to have; None if that is not known."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 1 <= steps < float("inf") else None


def refuse_strategy(trainer: Trainer) -> None:
    """Raise an UnsupportedError that names a strategy under which parameters are not what they seem."""
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        raise UnsupportedError(
            f"strategy {type(strategy).__name__}",
            expected="one device, DDP or ModelParallelStrategy, where p.grad is a parameter's own gradient",
            remedy="shard with ModelParallelStrategy (FSDP2), use strategy='ddp', or leave the callback out",
        )
