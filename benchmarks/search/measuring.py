"""Measures what the masks of one trained model are worth, each kept in a file as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from search.setting import CALIBRATED, Setting
from tasks.task import PRUNED, Task
from tasks.training import read_run
from torch import Tensor, nn

import gradtrace as gt
from gradtrace.evidence.whole_file import write_whole

__all__ = ["DENSE", "DENSITIES", "Measure", "measured", "moments_of"]

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
DENSE = "dense"
CALIBRATION_BATCHES = 20


@dataclass(frozen=True)
class Measure:
    """Held-out loss and accuracy of the model under one setting's mask at one density."""

    setting: str
    kind: str
    density: float
    loss: float
    accuracy: float | None


def measured(
    task: Task, seed: int, folder: Path, settings: Iterable[Setting], on_setting: Callable[[], object]
) -> tuple[list[Measure], dict[str, str]]:
    """Every measure of the run in `folder`, and what each setting left out says of why.

    One shot: what a mask drops is zeroed, nothing is trained or compensated. Measures are appended, one line
    of JSON each, to measures.jsonl; those that are there are not taken again.
    """
    net, ledger = read_run(task, folder)
    path = folder / "measures.jsonl"
    found = _read(path)
    known = {(one.setting, one.density) for one in found}
    left_out: dict[str, str] = {}
    moments: dict[str, Tensor] = {}
    with path.open("a") as file:

        def keep(label: str, kind: str, density: float, asked: nn.Module) -> None:
            quality = task.validate(asked)
            one = Measure(label, kind, density, quality.loss, quality.accuracy)
            file.write(json.dumps(vars(one)) + "\n")
            file.flush()
            found.append(one)

        if (DENSE, 1.0) not in known:
            keep(DENSE, DENSE, 1.0, net)
        for setting in settings:
            missing = [one for one in DENSITIES if (setting.label, one) not in known]
            if missing:
                if not moments and (CALIBRATED in dict(setting.options).values()):
                    moments = moments_of(task, seed, net)
                try:
                    masks = _masks(setting, net, ledger, missing, moments)
                except gt.GradtraceError as error:
                    left_out[setting.label], masks = str(error), []
                for density, mask in zip(missing, masks, strict=False):
                    keep(setting.label, setting.kind, density, gt.apply_mask_(deepcopy(net), mask))
            on_setting()
    return found, left_out


def _masks(
    setting: Setting, net: nn.Module, ledger: gt.Ledger, densities: list[float], moments: dict[str, Tensor]
) -> list[gt.Mask]:
    options = {name: moments if value == CALIBRATED else value for name, value in setting.options}
    scores = gt.score(_part(ledger, setting.span), net, by=setting.by, **options)
    return [gt.select(scores, density=density, scope=setting.scope) for density in densities]


def _part(ledger: gt.Ledger, span: str) -> gt.Ledger:
    middle = min((entry.end for entry in ledger.entries), key=lambda end: abs(2 * end - ledger.steps))
    if span == "all":
        return ledger
    return ledger.between(end=middle) if span == "first" else ledger.between(middle)


def moments_of(task: Task, seed: int, net: nn.Module) -> dict[str, Tensor]:
    """Weight name -> summed squares of each input (channel) of its layer, over training batches."""
    sums: dict[str, Tensor] = {}

    def watching(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channel = 1 if isinstance(module, nn.Conv2d) else inputs[0].ndim - 1
            others = [axis for axis in range(inputs[0].ndim) if axis != channel]
            sums[name] = sums.get(name, torch.zeros(())) + (inputs[0] ** 2).sum(others)

        return watch

    hooks = [
        module.register_forward_pre_hook(watching(f"{name}.weight"))
        for name, module in net.named_modules()
        if isinstance(module, PRUNED)
    ]
    with torch.no_grad():
        for batch in task.batches(seed, CALIBRATION_BATCHES):
            task.loss(net, batch)
    for hook in hooks:
        hook.remove()
    return sums


def _read(path: Path) -> list[Measure]:
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        # It was being written when the search was interrupted, and the next one would follow on it.
        lines.pop()
        write_whole(path, "".join(lines).encode(), "measures")
    whole: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [Measure(**one) for one in whole]
