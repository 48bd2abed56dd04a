"""One rank of a training, in a process of its own: `training.py STORE RANK RANKS KIND FOLDER [resume]`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import gradtrace as gt

INPUTS, HIDDEN, STEPS, ROWS = 41, 300, 10, 8
# From this step on a run is resumed; by then so many steps were recorded, two a step from step 5 on.
RESUME, RESUMED = 7, 9


class Net(nn.Module):
    """12,907 weights; the last two layers have fewer rows than there are ranks, or one more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(INPUTS, HIDDEN)
        self.narrow = nn.Linear(HIDDEN, 1)
        self.last = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor, only: slice) -> torch.Tensor:
        hidden = self.wide(x).relu()
        mask = torch.zeros(HIDDEN)
        mask[only] = 1.0
        # Under tensor parallelism a rank sees its part of the hidden units only.
        first = distributed.get_rank() * hidden.shape[-1] if hidden.shape[-1] < HIDDEN else 0
        out: torch.Tensor = self.last(self.narrow(hidden * mask[first : first + hidden.shape[-1]]))
        return out


def spread(kind: str, ranks: int) -> nn.Module:
    """The model as that kind of training wants it."""
    model = Net()
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (ranks,))
        fully_shard(model.wide, mesh=mesh)
        fully_shard(model, mesh=mesh)
    if kind == "tp":
        mesh = init_device_mesh("cpu", (ranks,))
        parallelize_module(model, mesh, {"wide": ColwiseParallel(), "narrow": RowwiseParallel()})
    return model


def loss_of(model: nn.Module, step: int, part: slice) -> torch.Tensor:
    """The loss at that step, on this rank's part of its batch."""
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, INPUTS, generator=draw).relu()
    x[:, step % 7] = 0.0
    y = torch.randint(0, 3, (ROWS,), generator=draw)
    if step == 3:
        x = torch.zeros_like(x)  # no event in the first weight at all
    only = slice(0, 1) if step == 4 else slice(0, HIDDEN)  # events in its first row alone
    return nn.functional.cross_entropy(model(x[part], only), y[part])


def record(kind: str, ranks: int, path: Path, lr: float, start: int = 0, scaler: Any = None) -> None:
    """Record the steps from `start` on; the last layer joins in at step 5 with an optimizer of its own."""
    model = spread(kind, ranks)
    bare: Any = model.module if kind == "ddp" else model
    first = torch.optim.SGD([*bare.wide.parameters(), *bare.narrow.parameters()], lr=lr)
    second = torch.optim.AdamW(bare.last.parameters(), lr=lr)
    rank = distributed.get_rank() if ranks > 1 else 0
    part = slice(rank, None, ranks) if kind in ("ddp", "fsdp") else slice(None)
    mode: Any = "append" if start else None
    with gt.Recorder(
        model,
        path,
        window_steps=2,
        entry_steps=4,
        mode=mode,
        resume_at=RESUMED if start else None,
        decoys=True,
        movement=True,
    ) as recorder:
        for step in range(start, STEPS):
            optimizers = [first] if step < 5 else [first, second]
            loss: Any = loss_of(model, step, part)
            if scaler:
                loss = scaler.scale(loss * float("inf") if step == 6 else loss)
            loss.backward()
            for optimizer in optimizers:
                recorder.observe(optimizer, scaler=scaler)
                if scaler:
                    scaler.step(optimizer)
                else:
                    optimizer.step()
            if scaler:
                scaler.update()
            model.zero_grad()
            if step == RESUME - 1:
                assert recorder.commit() == recorder.step == recorder.committed
    summary = recorder.summary()
    print(f"never supported: {summary.never_supported:.6f} of {summary.dependencies}")


def main() -> None:
    store, rank, ranks, kind, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path = Path(folder)
    if ranks > 1:
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    if len(sys.argv) > 6:
        record(kind, ranks, path, lr=0.0, start=RESUME)
    else:
        record(kind, ranks, path / "still", lr=0.0)
        record(kind, ranks, path / "moving", lr=0.05)
        record(kind, ranks, path / "scaled", lr=0.0, scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
    if ranks > 1:
        # A rank that leaves while gloo's threads still run may be aborted by the C++ runtime.
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
