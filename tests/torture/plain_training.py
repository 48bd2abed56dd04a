"""A plain loop with a Recorder that goes on from its newest checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from replayed_steps import STEPS, loss_of, new_model, prepare

import gradtrace as gt

__all__ = ["train"]

CHECKPOINT_EVERY = 6


def train(folder: Path, tell: Callable[[str], None], entry_steps: int = 4) -> None:
    """Train to the end; `tell` what is being done, and every commit that was announced."""
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters())
    start = 0
    for checkpoint in sorted(folder.glob("step=*.ckpt")):
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
    if start:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    recorder = gt.Recorder(
        model,
        folder / "run.ledger.zarr",
        window_steps=2,
        entry_steps=entry_steps,
        mode="append",
        resume_at=start,
    )
    announced = 0
    for step in range(start, STEPS):
        prepare(model, optimizer, step)
        optimizer.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        tell("opening" if step == start else "training")
        recorder.observe(optimizer)
        tell("training")
        optimizer.step()
        if (committed := recorder.summary().steps) > announced:
            tell(f"committed {(announced := committed)}")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            tell("committing")
            tell(f"committed {(announced := recorder.commit())}")
            tell("saving")
            _save(
                {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()},
                folder / f"step={step + 1:04}.ckpt",
            )
            tell("training")
    tell("closing")
    recorder.close()
    tell(f"committed {recorder.step}")


def _save(state: dict[str, object], path: Path) -> None:
    temporary = path.with_suffix(".temporary")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
