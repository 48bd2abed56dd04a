"""How much a setting loses against the best statistic-based one, paired over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from search.measuring import DENSE, DENSITIES, Measure

__all__ = ["ALLOWED", "Cell", "Record", "cells_of", "increases_of", "records_of"]

# What issue and README promise of the default: the bound on its regret, in shares of the best's increase.
ALLOWED = 0.05
# Below this share of the dense loss an increase is held-out noise, and a ratio to it says nothing.
NOISE = 0.01

Increases = Mapping[tuple[str, float], NDArray[np.float64]]


@dataclass(frozen=True)
class Cell:
    """One setting on one task at one density, over the seeds.

    `increase`: its mean loss increase over dense; `best`: the statistic-based setting with the smallest mean
    increase there, `best_increase`. `regret`: mean of the paired difference to it, negative = better;
    `bound`: the upper end of its one-sided 95% t-interval (infinite for one seed). `dense`: mean dense loss.
    """

    task: str
    setting: str
    density: float
    seeds: int
    increase: float
    best: str
    best_increase: float
    regret: float
    bound: float
    dense: float

    @property
    def relative(self) -> float:
        """Regret in shares of the best's increase, or of NOISE of the dense loss where that is more."""
        return self.regret / max(self.best_increase, NOISE * self.dense)

    @property
    def holds(self) -> bool:
        """Whether the bound is within what is allowed."""
        return self.bound <= ALLOWED * max(self.best_increase, 0.0)


@dataclass(frozen=True)
class Record:
    """A setting over tasks and densities: relative regrets, how often it is better, how often it holds."""

    setting: str
    kind: str
    worst: float
    middle: float
    better: int
    holds: int
    cells: int


def increases_of(runs: Sequence[Sequence[Measure]]) -> Increases:
    """(setting, density) -> loss increase over dense per run, for what was measured in every run."""
    found: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        dense = next(one.loss for one in run if one.setting == DENSE)
        for one in run:
            found.setdefault((one.setting, one.density), []).append(one.loss - dense)
    return {key: np.array(values) for key, values in found.items() if len(values) == len(runs)}


def cells_of(task: str, increases: Increases, kinds: Mapping[str, str], dense: float) -> list[Cell]:
    """Every setting beside the best statistic-based one, at every density; `dense`: mean dense loss."""
    cells = []
    for density in DENSITIES:
        at = {name: values for (name, where), values in increases.items() if where == density}
        rivals = [name for name in at if kinds[name] == "statistic"]
        if not rivals:
            continue
        best = min(rivals, key=lambda name: float(at[name].mean()))
        for name, values in at.items():
            regrets, seeds = values - at[best], len(values)
            bound = float("inf")
            if seeds > 1:
                bound = float(
                    regrets.mean() + stats.t.ppf(0.95, seeds - 1) * regrets.std(ddof=1) / np.sqrt(seeds)
                )
            cells.append(
                Cell(
                    task,
                    name,
                    density,
                    seeds,
                    float(values.mean()),
                    best,
                    float(at[best].mean()),
                    float(regrets.mean()),
                    bound,
                    dense,
                )
            )
    return cells


def records_of(cells: Sequence[Cell], kinds: Mapping[str, str]) -> list[Record]:
    """One record a setting that has a cell wherever any has one, smallest worst regret first."""
    everywhere = {(cell.task, cell.density) for cell in cells}
    records = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        own = [cell for cell in cells if cell.setting == setting]
        if {(cell.task, cell.density) for cell in own} == everywhere:
            relative = [cell.relative for cell in own]
            better, holds = sum(cell.regret < 0 for cell in own), sum(cell.holds for cell in own)
            records.append(
                Record(setting, kinds[setting], max(relative), median(relative), better, holds, len(own))
            )
    return sorted(records, key=lambda record: (record.worst, record.middle))
