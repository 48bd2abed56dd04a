"""The same training under Lightning, with GradientLedger and ModelCheckpoint as people use them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from replayed_steps import STEPS, loss_of, new_model, prepare
from torch.utils.data import DataLoader, TensorDataset

from gradtrace.callbacks import GradientLedger

__all__ = ["train"]


class _Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = new_model()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        # A run resumed in mid-epoch sees the epoch's first batches again: the step decides, not the batch.
        prepare(self.net, self.trainer.optimizers[0], self.global_step)
        return loss_of(self.net, self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class _Telling(GradientLedger):
    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        super().__init__(path, window_steps=2, entry_steps=4, mode="overwrite")
        self._tell = tell

    @property
    def state_key(self) -> str:
        return "GradientLedger"

    def on_before_optimizer_step(self, *args: Any) -> None:
        super().on_before_optimizer_step(*args)
        self._tell("training")

    def state_dict(self) -> dict[str, Any]:
        self._tell("committing")
        state = super().state_dict()
        self._tell(f"committed {state['steps']}")
        self._tell("saving")
        return state


def train(folder: Path, tell: Callable[[str], None]) -> None:
    """Train to the end; `tell` what is being done, and every commit that was announced."""
    warnings.simplefilter("ignore")
    checkpoints = sorted(folder.glob("step=*.ckpt"))
    keeper = ModelCheckpoint(folder, filename="{step:04d}", every_n_train_steps=6, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[_Telling(folder / "run.ledger.zarr", tell), keeper],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(TensorDataset(torch.arange(15)), batch_size=1)
    tell("opening")
    trainer.fit(_Model(), batches, ckpt_path=checkpoints[-1] if checkpoints else None, weights_only=True)
    tell(f"committed {STEPS}")
