"""Two real DDP processes: one ledger, of the gradients that the optimizer sees on every rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import gradtrace as gt

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from gradtrace.callbacks import GradientLedger


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Sums(Callback):
    total = 0.0

    def on_before_optimizer_step(self, trainer, module, optimizer):
        Sums.total = Sums.total + module.net[0].weight.grad.double().numpy().copy()


folder = sys.argv[1]
x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
x[:, 3] = 0
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
    callbacks=[Sums(), GradientLedger(folder + "/run", window_steps=2, entry_steps=4)],
)
trainer.fit(Model(), DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8))
np.save(f"{folder}/rank-{trainer.global_rank}.npy", Sums.total)
"""


def test_two_ddp_processes_record_one_ledger_of_the_averaged_gradients(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ledger = gt.Ledger.open(tmp_path / "run")
    sums = [np.load(tmp_path / f"rank-{rank}.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_allclose(ledger["net.0.weight"].grad_sum, sums[0], rtol=1e-5, atol=1e-6)
    assert ledger.steps == 8
    assert (ledger["net.0.weight"].events[:, 3] == 0).all()
    assert list(ledger) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
