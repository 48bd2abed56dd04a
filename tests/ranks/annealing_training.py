"""A fit that anneals: `annealing_training.py STORE RANK RANKS FOLDER STRATEGY STRUCTURE`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from gradtrace.annealing.masking import local, local_part_of
from gradtrace.callbacks import GradientLedger, StructuralAnnealing


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3))

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        draw = torch.Generator().manual_seed(10 * self.global_step + self.global_rank)
        x, y = torch.randn(8, 7, generator=draw), torch.randint(0, 3, (8,), generator=draw)
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main() -> None:
    store, rank, ranks, where, strategy, structure = sys.argv[1:]
    folder = Path(where)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Lightning takes ranks that someone else started by this variable, and a process group that is there.
    os.environ["LOCAL_RANK"] = rank
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(ranks)
    )
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    target: Any = {"blocks": 2, "group_lasso": 0.01} if structure == "blocks" else {"density": 0.4}
    annealing = StructuralAnnealing(
        structure, **target, begin=2, end=10, stages=4, path=folder / "mask.safetensors"
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp" if strategy == "ddp" else sharded,
        max_steps=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradientLedger(folder / "run", window_steps=2, entry_steps=4), annealing],
    )
    model = Model()
    trainer.fit(model, torch.utils.data.DataLoader(range(1000), batch_size=1))  # type: ignore[arg-type]
    assert annealing.mask is not None
    annealing.mask.save(folder / f"rank-{rank}.safetensors")
    for name, parameter in model.named_parameters():
        if name not in annealing.mask:
            continue
        gone = local_part_of(name, parameter, ~annealing.mask[name])
        assert (local(parameter.detach())[gone] == 0).all(), name
        for what in ("exp_avg", "exp_avg_sq"):
            assert (local(trainer.optimizers[0].state[parameter][what])[gone] == 0).all(), (name, what)
        # Of blocks that are filled up, a hidden unit that no sample activates stays at zero.
        alive = (local(parameter.detach())[~gone] != 0).double().mean()
        assert alive == 1 or (structure == "blocks" and alive > 0.5), name
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
