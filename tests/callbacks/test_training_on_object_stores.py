"""Whole Lightning runs whose ledger lies on an object store."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import gradtrace as gt
from gradtrace.callbacks import GradientLedger

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:Checkpoint directory", "ignore:.*LeafSpec.*:FutureWarning"
)


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(6, 2)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, callback: GradientLedger, epochs: int, resume: str | None = None) -> None:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=[callback, ModelCheckpoint(folder / "checkpoints", save_last=True)],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(TensorDataset(x), batch_size=4), ckpt_path=resume)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_run_and_its_resumption_equal_one_on_the_disk(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, options = f"memory://{uuid.uuid4().hex}/run.ledger.zarr", None
    if kind == "s3":
        s3 = request.getfixturevalue("s3")
        path, options = f"s3://{s3.bucket()}/run.ledger.zarr", s3.options()
    steps: dict[str, Any] = {"window_steps": 2, "entry_steps": 4}
    fit(tmp_path, GradientLedger(path, storage_options=options, **steps), 1)
    resume = str(tmp_path / "checkpoints" / "last.ckpt")
    fit(tmp_path, GradientLedger(path, storage_options=options, **steps), 2, resume)
    fit(tmp_path / "whole", GradientLedger(tmp_path / "run", **steps), 2)
    mine = gt.Ledger.open(path, storage_options=options)
    whole = gt.Ledger.open(tmp_path / "run")
    assert mine.steps == whole.steps == 16
    for name, record in whole.items():
        for accumulator in whole.accumulators:
            np.testing.assert_array_equal(getattr(mine[name], accumulator), getattr(record, accumulator))
    if options is not None:
        noted = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
        assert options["secret_access_key"].encode() not in noted
