"""A fit by Lightning: `lightning_training.py STORE RANK RANKS FOLDER STRATEGY KIND`.

KIND is whole, resumed or failing. With "-" for STORE Lightning starts the other rank itself.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from gradtrace.callbacks import GradientLedger

STEPS, CHECKPOINT_AT, FAILS_AT = 10, 6, 9


class Steps(torch.utils.data.Dataset[int]):
    """What a batch holds follows from the step: a run resumed in mid-epoch sees other batches."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        return index


class Model(LightningModule):
    def __init__(self, fails: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 1), nn.Linear(1, 3))
        self.fails = fails

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.fails and self.global_step == FAILS_AT and self.global_rank == 1:
            raise RuntimeError("this rank alone fails")
        draw = torch.Generator().manual_seed(self.global_step)
        x, y = torch.randn(8, 7, generator=draw).relu(), torch.randint(0, 3, (8,), generator=draw)
        part = slice(self.global_rank, None, self.trainer.world_size)
        return nn.functional.cross_entropy(self.net(x[part]), y[part])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class SaveOnError(Callback):
    """On the failing rank alone, before the ledger hears of it; `save_checkpoint` would wait for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.global_rank == 1:
            torch.save(trainer._checkpoint_connector.dump_checkpoint(False), self.folder / "error.ckpt")


def main() -> None:
    store, rank, ranks, where, strategy, kind = sys.argv[1:]
    folder = Path(where)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outside = store != "-" and int(ranks) > 1
    if outside:
        # Lightning takes ranks that someone else started by this variable, and a process group that is there.
        os.environ["LOCAL_RANK"] = rank
        distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(ranks)
        )
    chosen: Any = {
        "ddp": {"strategy": "ddp", "devices": 2},
        "fsdp": {
            "strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
            "devices": 2,
        },
        "one": {"devices": 1},
    }[strategy]
    keeper = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=CHECKPOINT_AT, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            SaveOnError(folder),
            GradientLedger(folder / "run", window_steps=2, entry_steps=4),
            keeper,
        ],
        **chosen,
    )
    checkpoint = folder / f"step={CHECKPOINT_AT}.ckpt" if kind == "resumed" else None
    batches = torch.utils.data.DataLoader(Steps(), batch_size=1)
    trainer.fit(Model(kind == "failing"), batches, ckpt_path=checkpoint, weights_only=True)
    if outside:
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
