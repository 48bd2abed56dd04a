"""The Lightning callback that anneals a model to a structure during the last part of its training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from gradtrace.annealing.annealing import Annealing
from gradtrace.annealing.mlp import MlpNames
from gradtrace.annealing.schedule import Schedule, Shape, step_of
from gradtrace.annealing.target import Target
from gradtrace.callbacks.lightning import GradientLedger, planned_steps, refuse_strategy
from gradtrace.evidence.mask import Mask
from gradtrace.evidence.whole_file import checked_path
from gradtrace.ledger.reader import Ledger

__all__ = ["StructuralAnnealing"]


class StructuralAnnealing(Callback):
    """Drops, in stages, what the structure does not need, while the rest trains on to make up for it.

    `Trainer(callbacks=[GradientLedger(path), StructuralAnnealing("rows", density=0.3)])`: what goes is
    decided by the ledger as it stands at each stage; without a GradientLedger, by magnitude. Masks are held
    on weights and optimizer state after every optimizer step, alike on all ranks. When the fit is over,
    `mask` is for `gradtrace.plan` and `convert_`. A checkpoint holds where it stands, and resuming goes on.

    Towards blocks it squeezes past the target until the blocks fall apart, fills them up again, and the rest
    of the training recovers.

    Args:
        structure: "element", "tile", "rows", "neuron" or "blocks".
        density: share kept, but for blocks.
        blocks: of structure "blocks", how many independent parts each MLP is to have.
        begin: the last step before annealing: a share of the training (float) or a number of steps (int).
        end: the step at which the density is reached, likewise; what follows is recovery.
        stages: how many times something is dropped. With a ledger, each stage commits an entry.
        shape: "cubic" or "linear", how density falls.
        by: criterion; left out: the default one with a ledger, else "magnitude".
        l1: shrinks the weights while it anneals; left out: lightly for blocks.
        group_lasso: shrinks the weights between blocks-to-be, together.
        mlps: names of the layers of each MLP, e.g. [("up", "down")]; left out: found by make and names.
        path: where the mask goes when training ends, as safetensors.

    Raises:
        InvalidValueError: a setting is out of range; at the start of training, there is nothing to anneal, or
            a share is given of a training whose length is not known.
        UnsupportedError: a strategy that hides the parameters, by name.
        StateError: at a stage, a score that cannot be had; on every rank.
    """

    def __init__(
        self,
        structure: str = "rows",
        *,
        density: float | None = None,
        blocks: int | None = None,
        begin: float = 0.5,
        end: float = 0.8,
        stages: int = 20,
        shape: Shape = "cubic",
        by: str | None = None,
        l1: float | None = None,
        group_lasso: float = 0.0,
        mlps: Iterable[MlpNames] | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.target = Target(structure, density, blocks, by, l1, group_lasso)
        # With a length of its own for the check of what needs none; the training's is known when it starts.
        first, last = (step_of(name, value, 10**9) for name, value in (("begin", begin), ("end", end)))
        if isinstance(begin, int) == isinstance(end, int):
            Schedule(first, last, min(stages, last - first) if last > first else stages, 1.0, shape)
        self._begin, self._end, self._stages, self._shape = begin, end, stages, shape
        self._mlps = None if mlps is None else tuple(mlps)
        self._path = None if path is None else checked_path(path, "mask path")
        self._annealing: Annealing | None = None
        self._model: LightningModule | None = None
        self._resume: dict[str, Any] | None = None
        self._fitting = False

    @property
    def annealing(self) -> Annealing | None:
        """Where it stands; None before the first `fit`."""
        return self._annealing

    @property
    def mask(self) -> Mask | None:
        """What is kept so far, with how it came about; None before the first stage."""
        return None if self._annealing is None else self._annealing.mask

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fitting = stage == "fit"
        if self._fitting:
            refuse_strategy(trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = dict(state_dict) if self._fitting and state_dict else None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._resume is None and self._annealing is not None and self._model is pl_module:
            self._resume = self._annealing.state_dict()  # a second fit of the same model
        steps = planned_steps(trainer)
        first, last = (
            step_of(name, value, steps) for name, value in (("begin", self._begin), ("end", self._end))
        )
        self._annealing = Annealing(
            pl_module,
            self.target,
            Schedule(first, last, self._stages, self.target.final, self._shape),
            mlps=self._mlps,
            broadcast=trainer.strategy.broadcast,
            decides=trainer.is_global_zero,
        )
        self._model = pl_module
        if self._resume is not None:
            self._annealing.load_state_dict(self._resume)
            self._resume = None
        self._annealing.hold(trainer.optimizers, trainer.global_step)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        annealing = self._annealing
        if annealing is None or not annealing.step(trainer.global_step, lambda: _live(trainer)):
            return
        for logger in trainer.loggers:
            assert annealing.mask is not None
            logger.log_metrics({"annealed_density": annealing.mask.density}, step=trainer.global_step)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._annealing is None else self._annealing.state_dict()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        annealing = self._annealing
        if annealing is None:
            return
        annealing.release()
        if not annealing.progress.done:
            warnings.warn(
                f"training ended at step {trainer.global_step}, before annealing did: stage "
                f"{annealing.progress.stage} of {annealing.progress.schedule.stages}",
                stacklevel=2,
            )
        mask = annealing.mask
        if mask is None:
            return
        rank_zero_info(f"annealed towards {self.target.structure}: density {mask.density:.4g}")
        if self._path is not None and trainer.is_global_zero:
            mask.save(self._path)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._annealing is not None:
            self._annealing.release()


def _live(trainer: Trainer) -> Ledger | None:
    """The ledger of this very training, with all that is recorded; all ranks ask."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientLedger):
            return callback.read()
    return None
