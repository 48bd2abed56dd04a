"""One of two ranks that go on from their checkpoint: `... STORE RANK 2 FOLDER [VICTIM OPERATION]`."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import gradtrace as gt
from gradtrace.recorder import meeting, stream

STEPS, CHECKPOINT_EVERY = 24, 6
_OPERATIONS = ("fsync", "link", "mkdir", "rename", "replace", "unlink")


def kill_at(operation: int) -> None:
    """Die by SIGKILL at this one of the process's operations on the disk below the ledger."""
    done = 0

    def deadly(real: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return run

    for name in _OPERATIONS:
        setattr(os, name, deadly(getattr(os, name)))


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def main() -> None:
    store, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[4])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    stream._GRACE, meeting.PATIENCE = 3600.0, 3.0
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Linear(17, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = 0
    for checkpoint in sorted(folder.glob("step=*.ckpt")):
        state = torch.load(checkpoint, weights_only=True)
        start, _ = state["step"], model.load_state_dict(state["model"])
    if len(sys.argv) > 5 and int(sys.argv[5]) == rank:
        kill_at(int(sys.argv[6]))
    mode: Any = "append"
    with gt.Recorder(
        model, folder / "run", window_steps=2, entry_steps=4, mode=mode, resume_at=start, together=True
    ) as recorder:
        announced = 0
        for step in range(start, STEPS):
            # All ranks see the whole batch: no collective that would end the survivor before the ledger does.
            draw = torch.Generator().manual_seed(step)
            loss: Any = model(torch.randn(8, 17, generator=draw).relu()).square().sum()
            optimizer.zero_grad()
            loss.backward()
            recorder.observe(optimizer)
            optimizer.step()
            if (committed := recorder.committed) > announced:
                tell(f"committed {(announced := committed)}")
            if (step + 1) % CHECKPOINT_EVERY == 0:
                tell(f"committed {(announced := recorder.commit())}")
                if rank == 0:
                    state = {"step": step + 1, "model": model.state_dict()}
                    torch.save(state, folder / "temporary")
                    os.replace(folder / "temporary", folder / f"step={step + 1:04}.ckpt")
    tell(f"committed {recorder.committed}")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
