"""One case study: its models trained or found, measured beside one another, and written to a file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case_contenders import contenders
from case_evidence import evidence, expectations
from case_figures import rows_of, table
from case_machine import machine
from numpy.typing import NDArray
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.evidence.whole_file import write_whole
from gradtrace.report.terminal import terminal

__all__ = ["Case", "Settings", "study"]


@dataclass(frozen=True)
class Case:
    """What differs from one study to the next.

    Attributes:
        name: for people; the rows of its table belong to it.
        items, each: what is counted, and how many of it one sample has ("bytes", 128).
        tokens: rows of input that a linear layer gets from one sample.
        measure, lower_is_better: what `judged` says.
        fresh: name of a model ("dense", "equal cost") -> that model with any weights. Picklable.
        train: (name, seed, path) -> that model, trained, with a ledger at the path unless that is None.
        training: what decides about `train`; what was trained with other settings is trained again.
        batches: (seed, steps) -> batches to recover on. loss: of one of them.
        judged: model -> figure of each held-out sample (N,); their mean is the quality.
        example: number of samples -> what the model takes.
        layers: whether a linear layer of that name is to be decomposed.
        facts: whatever else belongs into the file, such as simpler baselines.
    """

    name: str
    items: str
    each: int
    tokens: int
    measure: str
    lower_is_better: bool
    fresh: Callable[[str], nn.Module]
    train: Callable[[str, int, Path | None], nn.Module]
    training: Mapping[str, Any]
    batches: Callable[[int, int], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    judged: Callable[[nn.Module], NDArray[np.float64]]
    example: Callable[[int], Tensor]
    layers: Callable[[str], bool]
    facts: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Settings:
    """`density` of each decomposed layer's weights is kept, then trained for `recovery` steps at `rate`."""

    seeds: tuple[int, ...]
    density: float
    recovery: int
    rate: float
    batch: int  # that plans are timed for
    rounds: int
    price: float  # of an hour of this machine
    loaded: bool


def study(case: Case, settings: Settings, run: Path, out: Path, measure: bool = True) -> None:
    """Train what is not in `run` yet, measure all of it in turns, print a table and write `out`."""
    console = terminal()
    found: list[dict[str, nn.Module]] = []
    learned = []
    for seed in settings.seeds:
        folder = run / f"seed-{seed}"
        found.append(contenders(case, settings, seed, folder))
        ledger = gt.Ledger.open(folder / "ledger.zarr")
        learned.append(evidence(case, found[-1]["dense"], ledger, folder))
    if not measure:
        return
    rows = rows_of(case, settings, found, run)
    table(case, settings, rows).print(console)
    ledger = gt.Ledger.open(run / f"seed-{settings.seeds[0]}" / "ledger.zarr")
    result = {
        "case": case.name,
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": machine() | {"threads": torch.get_num_threads(), "loaded": settings.loaded},
        "versions": {name: version(name) for name in ("gradtrace", "torch", "lightning")},
        "settings": vars(settings),
        "training": dict(case.training),
        "measure": case.measure,
        "items": case.items,
        "facts": dict(case.facts()),
        "rows": rows,
        "learned": learned,
        "estimate": expectations(case, settings, found[0]["dense"], ledger),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), "results")
    console.print(f"Written to {out}; the models are in {run}.")
