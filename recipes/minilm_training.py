"""Fine-tunes MiniLM."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from function_text import Split
from minilm_classifier import MiniLM, tensors
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["BATCH", "fit"]

BATCH = 32


def fit(
    net: MiniLM, split: Split, seed: int, epochs: int, callbacks: Sequence[pl.Callback] = (), more: int = 0
) -> None:
    """Train on the CPU, quietly, for some epochs and `more` steps; `seed` decides the order of the texts.

    Sets `net.steps` for the schedule.
    """
    tokens, labels = tensors(split.train, split.labels)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(tokens, labels), BATCH, shuffle=True, generator=order)
    net.steps = epochs * len(loader) + more
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Neither says anything about this training.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        trainer = pl.Trainer(
            accelerator="cpu",
            precision="bf16-mixed",  # twice as fast as float32 where the processor has it
            max_epochs=-1,
            max_steps=net.steps,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(net, loader)
    if trainer.interrupted:
        raise KeyboardInterrupt
