"""Evidence below the step in the trainers that people use: nothing falls back that should not."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import gradtrace as gt
from gradtrace.callbacks import GradientLedger, HFGradientLedger
from gradtrace.recorder.below.watched_steps import is_watched

BELOW: Any = {
    "below": ("positions", "samples", "inputs"),
    "below_every": 2,
    "window_steps": 2,
    "entry_steps": 4,
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is fetched; what the trainers warn about among themselves is theirs."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        for module in ("accelerate", "lightning", "torch", "transformers"):
            warnings.filterwarnings("ignore", module=rf"{module}\b")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


class Model(LightningModule):
    def __init__(self, optimizers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net: Any = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.count, self.automatic_optimization = optimizers, optimizers == 1

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return None

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        parts = [self.net] if self.count == 1 else [self.net[0], self.net[2]]
        return [torch.optim.SGD(part.parameters(), lr=1e-2) for part in parts]


@pytest.mark.parametrize(
    ("optimizers", "settings"),
    [
        (1, {}),
        (1, {"accumulate_grad_batches": 3}),
        (1, {"gradient_clip_val": 1e-3}),
        (1, {"precision": "bf16-mixed"}),
        (2, {}),
    ],
    ids=["plain", "accumulating", "clipping", "bf16", "two optimizers"],
)
def test_lightning(
    tmp_path: Path, optimizers: int, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4)
    trainer = LightningTrainer(
        accelerator="cpu",
        max_epochs=2,
        val_check_interval=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradientLedger(tmp_path / "run", **BELOW)],
        **settings,
    )
    trainer.fit(Model(optimizers), data, data)
    assert [
        record
        for record in caplog.records
        if record.levelno >= logging.WARNING and "gradtrace" in record.name
    ] == []
    ledger = gt.Ledger.open(tmp_path / "run")
    for name in ledger:
        record = ledger[name]
        assert record.watched_steps > 0
        assert (
            record.positions
            == record.samples
            == record.watched_steps * 4 * settings.get("accumulate_grad_batches", 1)
        )
        assert record.position_sumsq.any()
    if optimizers == 1:
        drawn = sum(is_watched(step, 2) for step in range(ledger.steps))
        assert ledger["net.0.weight"].watched_steps == drawn
    assert set(ledger.inputs) == {"net.0", "net.2"}


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_tied_gpt2_with_checkpointing_in_the_trainer(
    tmp_path: Path, checkpointing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=13, n_positions=7, n_embd=6, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    rows = torch.randint(0, 11, (32, 6), generator=torch.Generator().manual_seed(2)).tolist()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=8,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=checkpointing,
        max_grad_norm=1e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    data: Any = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(
        model, arguments, train_dataset=data, callbacks=[HFGradientLedger(tmp_path / "run", **BELOW)]
    ).train()
    ours = [record.message for record in caplog.records if record.name.startswith("gradtrace")]
    assert [message for message in ours if "only for" in message] == []
    ledger = gt.Ledger.open(tmp_path / "run")
    steps = sum(is_watched(step, 2) for step in range(8))
    assert {ledger[name].watched_steps for name in ledger} == {steps}
    embedding = ledger["transformer.wte.weight"]
    assert embedding.positions == 2 * steps * 24  # looked up, and multiplied by in the head
    assert ledger["transformer.h.0.attn.c_attn.weight"].positions == steps * 24
    counts = ledger.inputs["transformer.wte"].sum
    assert counts.sum() == steps * 24
    assert (counts[11:] == 0).all()
