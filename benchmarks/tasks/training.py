"""Trains a task with the ledger on and keeps what came of it; what is there is not trained again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tasks.task import Task, pruned_names
from torch import nn

import gradtrace as gt
from gradtrace.convert.weights_file import read_weights
from gradtrace.errors import InvalidValueError
from gradtrace.evidence.whole_file import write_whole
from gradtrace.recorder.below.wanted import Word

__all__ = ["ENTRIES", "read_run", "trained"]

ENTRIES = 8
WINDOW = 25
BELOW: tuple[Word, ...] = ("positions", "samples", "inputs")


def trained(task: Task, seed: int, folder: Path, steps: int, on_step: Callable[[], object]) -> None:
    """Leave a ledger, weights.safetensors and, last of all, run.json in `folder`.

    The ledger has the masked weights only, in ENTRIES entries of equal length if `steps` divides. Raises
    InvalidValueError where `folder` holds a training with other settings.
    """
    facts = {"task": task.name, "seed": seed, "steps": steps}
    if (folder / "run.json").is_file():
        found = json.loads((folder / "run.json").read_text())
        if {key: found.get(key) for key in facts} != facts:
            raise InvalidValueError(
                f"training in {folder}",
                expected=str(facts),
                got=str(found),
                remedy="pass another folder, or remove this one",
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net = task.model()
    optimizer = task.optimizer(net)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: task.rate(step, steps))
    window = max(1, min(WINDOW, steps // ENTRIES))
    with gt.Recorder(
        net,
        folder / "ledger.zarr",
        include=pruned_names(net),
        window_steps=window,
        entry_steps=window * max(1, steps // (ENTRIES * window)),
        mode="overwrite",
        below=BELOW,
    ) as recorder:
        for batch in task.batches(seed, steps):
            task.loss(net, batch).backward()  # type: ignore[no-untyped-call]
            recorder.observe(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            on_step()
    save_file(net.state_dict(), folder / "weights.safetensors")
    write_whole(
        folder / "run.json", (json.dumps(facts | {"torch": torch.__version__}) + "\n").encode(), "run"
    )


def read_run(task: Task, folder: Path) -> tuple[nn.Module, gt.Ledger]:
    """What `trained` left: the model with its final weights, ready to be asked, and the ledger."""
    net = task.model()
    net.load_state_dict(read_weights(folder / "weights.safetensors"))
    return net.eval(), gt.Ledger.open(folder / "ledger.zarr")
