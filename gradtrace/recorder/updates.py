"""What each optimizer did, step by step: the decay of an unsupported weight follows from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.optim import LBFGS, Optimizer

from gradtrace.errors import UnsupportedError

__all__ = ["GroupStep", "StepRecord", "kind_of", "refuse_optimizer", "run_lengths", "settings_of"]

Setting: TypeAlias = float | int | bool | str | list[float] | None


@dataclass(frozen=True)
class GroupStep:
    """One parameter group in one optimizer step: positions of its recorded parameters, and its settings."""

    optimizer: int
    kind: str
    slots: tuple[int, ...]
    settings: dict[str, Setting]


@dataclass(frozen=True)
class StepRecord:
    """The host's part of one recorded step: the groups that stepped and the positions without a gradient."""

    groups: tuple[GroupStep, ...]
    missing: tuple[int, ...]


def kind_of(optimizer: Optimizer) -> str:
    """`AdamW` for torch's own; a subclass may decay otherwise, so it keeps its full name."""
    kind = type(optimizer)
    return (
        kind.__name__
        if kind.__module__.startswith("torch.optim")
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def settings_of(group: dict[str, object]) -> dict[str, Setting]:
    """The plain numbers and words of a parameter group; a learning rate kept as a tensor is read once."""
    settings: dict[str, Setting] = {}
    for key, value in group.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            settings[key] = float(value)
        elif isinstance(value, float | int | bool | str) or value is None:
            settings[key] = value
        elif isinstance(value, tuple | list) and all(isinstance(one, float | int) for one in value):
            settings[key] = [float(one) for one in value]
    return settings


def refuse_optimizer(optimizer: Optimizer) -> None:
    """Raise for an optimizer whose step has no single gradient to record."""
    if isinstance(optimizer, LBFGS):
        raise UnsupportedError(
            "optimizer LBFGS evaluates several gradients in one step",
            expected="an optimizer with one gradient a step",
            remedy="train with Adam, AdamW or SGD, or leave the recorder out",
        )


def run_lengths(records: Sequence[StepRecord]) -> list[dict[str, object]]:
    """The `groups` of a commit: per optimizer and set of parameters, runs of steps with equal settings."""
    kinds: dict[tuple[int, tuple[int, ...]], str] = {}
    runs: dict[tuple[int, tuple[int, ...]], list[tuple[int, dict[str, Setting]]]] = {}
    for step in (step for record in records for step in record.groups):
        key = (step.optimizer, step.slots)
        kinds.setdefault(key, step.kind)
        known = runs.setdefault(key, [])
        if known and known[-1][1] == step.settings:
            known[-1] = (known[-1][0] + 1, step.settings)
        else:
            known.append((1, step.settings))
    return [
        {
            "optimizer": optimizer,
            "kind": kinds[optimizer, slots],
            "parameters": list(slots),
            "runs": [[steps, settings] for steps, settings in known],
        }
        for (optimizer, slots), known in runs.items()
    ]
