"""Dense, dense with the same mask, and decomposed: latency measured in turns, parameters, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mnist import digits, model, trained, validate

import gradtrace as gt
from gradtrace.report.latency import interleaved
from gradtrace.report.table import Table

__all__ = ["BATCHES", "side_by_side", "side_by_side_table"]

BATCHES = (1, 32, 512)


def side_by_side(run: Path, plan: gt.Plan) -> dict[str, dict[str, Any]]:
    """Model -> its figures, for what convert.py made of one run."""
    dense = trained(run)
    masked = gt.apply_mask_(deepcopy(dense), plan)
    decomposed = gt.load(model(), run / "converted").eval()
    nets = {"dense": dense, "dense, masked": masked, "decomposed": decomposed}
    facts: dict[str, dict[str, Any]] = {
        name: {
            "accuracy": validate(net),
            "parameters": sum(p.numel() for p in net.parameters()),
            "nonzero": sum(int((p != 0).sum()) for p in net.parameters()),
        }
        for name, net in nets.items()
    }
    images = digits().test_images
    for size in BATCHES:
        for name, latency in interleaved(nets, images[:size]).items():
            facts[name][f"latency at batch {size}"] = asdict(latency)
    return facts


def side_by_side_table(plan: gt.Plan, facts: Mapping[str, Mapping[str, Any]]) -> Table:
    """The same figures for people."""
    rows = tuple(
        (
            name,
            f"{at['accuracy']:.1%}",
            f"{at['parameters']:,}",
            *(f"{at[f'latency at batch {size}']['median'] * 1e3:.3f}" for size in BATCHES),
        )
        for name, at in facts.items()
    )
    columns = ("model", "accuracy", "parameters", *(f"ms at batch {size}" for size in BATCHES))
    note = (
        f"Medians of interleaved calls; threads: {torch.get_num_threads()}; float32, CPU. "
        f"The plan was timed for {plan.provenance.get('tokens')} images."
    )
    return Table("Dense beside decomposed", columns, rows, note)
