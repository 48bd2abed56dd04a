"""One rank of two that meet trouble: `troubles.py STORE RANK 2 FOLDER` tells in JSON how each ended."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import gradtrace as gt
from gradtrace.errors import GradtraceError, StorageError
from gradtrace.ledger.part import PartWriter
from gradtrace.recorder import meeting, stream
from gradtrace.recorder.budget import Budget

SMALL: Any = {"window_steps": 2, "entry_steps": 4, "together": True}


class Loop:
    """A model that all ranks hold alike, and its gradients: those of the step, the same on every rank."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(6, 5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)

    def observe(self, recorder: gt.Recorder, steps: int = 1) -> None:
        for _ in range(steps):
            for parameter in self.model.parameters():
                parameter.grad = torch.ones_like(parameter)
            recorder.observe(self.optimizer)


def unshared(rank: int, folder: Path) -> None:
    loop = Loop()
    with gt.Recorder(loop.model, folder / f"path-{rank}", **SMALL) as recorder:
        loop.observe(recorder)


def unlike(rank: int, folder: Path) -> None:
    loop = Loop()
    with gt.Recorder(loop.model, folder / "unlike", exclude=() if rank else "bias", **SMALL) as recorder:
        loop.observe(recorder)


def existing(rank: int, folder: Path) -> None:
    (folder / "existing").mkdir(exist_ok=True)
    (folder / "existing" / "other.txt").touch()
    loop = Loop()
    with gt.Recorder(loop.model, folder / "existing", **SMALL) as recorder:
        loop.observe(recorder)


def failing_disk(rank: int, folder: Path) -> None:
    write = PartWriter.write_entry

    def fail(self: PartWriter, begin: int, *rest: Any) -> Any:
        if begin == 8 and rank == 1:
            raise StorageError("no space left for this rank")
        return write(self, begin, *rest)

    PartWriter.write_entry = fail  # type: ignore
    loop = Loop()
    try:
        with gt.Recorder(loop.model, folder / "failing", **SMALL) as recorder:
            loop.observe(recorder, steps=10)
            recorder.commit()
            loop.observe(recorder, steps=10)
            recorder.commit()
    finally:
        PartWriter.write_entry = write  # type: ignore


def late(rank: int, folder: Path) -> None:
    meeting.PATIENCE = 2.0
    loop = Loop()
    with gt.Recorder(loop.model, folder / "late", **SMALL) as recorder:
        loop.observe(recorder, steps=9)
        recorder.commit()
        if rank:
            loop.observe(recorder)
            time.sleep(4)
            raise GradtraceError("this rank went elsewhere")
        loop.observe(recorder)
        recorder.commit()


def alone_in_error(rank: int, folder: Path) -> None:
    loop = Loop()
    # A merge would be under way on one rank when the error comes to the other.
    recorder = gt.Recorder(loop.model, folder / "error", merge=False, **SMALL)
    loop.observe(recorder, steps=6)
    recorder.commit()
    loop.observe(recorder)  # less than an entry: nothing is under way when the error comes
    recorder.close(failed=True)
    assert recorder.commit() == recorder.committed
    raise GradtraceError(f"committed {recorder.committed} of {recorder.step}")


def slow_disk(rank: int, folder: Path) -> None:
    """Rank 1 writes slowly, and rank 0 decides which cuts all ranks pass over."""
    write = PartWriter.write_entry

    def slowly(self: PartWriter, *arguments: Any) -> Any:
        time.sleep(0.2 * rank)
        return write(self, *arguments)

    PartWriter.write_entry = slowly  # type: ignore
    stream._GRACE = stream._SHARE = 0.0
    loop = Loop()
    with gt.Recorder(loop.model, folder / "slow", **SMALL) as recorder:
        loop.observe(recorder, steps=60)


def slow_processor(rank: int, folder: Path) -> None:
    """Recording takes a tenth of a step on rank 1, and next to nothing on rank 0."""
    measured = Budget._measured
    Budget._measured = lambda self: (0.001, 0.1 if rank else 0.002, 1.0)  # type: ignore
    loop = Loop()
    try:
        with gt.Recorder(loop.model, folder / "unlike-speed", overhead=0.02, merge=False, **SMALL) as ledger:
            loop.observe(ledger, steps=12)
    finally:
        Budget._measured = measured  # type: ignore


TROUBLES: dict[str, Callable[[int, Path], None]] = {
    "unshared": unshared,
    "unlike": unlike,
    "existing": existing,
    "failing disk": failing_disk,
    "alone in error": alone_in_error,
    "slow processor": slow_processor,
    "slow disk": slow_disk,
    "late": late,
}


def main() -> None:
    store, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[4])
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, trouble in TROUBLES.items():
        distributed.barrier()
        began = time.monotonic()
        told = ["", ""]
        try:
            trouble(rank, folder)
        except GradtraceError as error:
            told = [type(error).__name__, error.message]
        print(json.dumps([name, *told, time.monotonic() - began]), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
