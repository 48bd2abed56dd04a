"""One seed of the comparison: a training, its masks, and what it takes to go on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import byte_model
import language
import numpy as np
import torch
from recovered.cost import HEADS, equal_width, multiplications, seconds_of
from recovered.groups import similar_groups
from recovered.training import went_on
from tasks.byte_text import BYTE_TEXT
from tasks.training import read_run
from torch import nn

import gradtrace as gt
from gradtrace.annealing.annealing import Annealing
from gradtrace.annealing.masking import Masking
from gradtrace.annealing.schedule import Schedule
from gradtrace.annealing.target import Target

__all__ = ["SCRATCH", "WAYS", "Comparison", "Way"]

STAGES, ANNEALED_BY = 20, 0.25  # where it goes in stages: by that share of the steps
BATCHES = 8  # of training text, to compensate with
TIMED = 10.0  # seconds of timing


class Way(NamedTuple):
    """How a masked model is trained on: outputs of a group, 0 = 64 in natural order."""

    similar: int = 0
    taught: bool = False
    staged: bool = False


WAYS = {
    "recovered": Way(),
    "staged": Way(staged=True),
    "similar": Way(similar=16, taught=True),
}
SCRATCH = "from-scratch"


class Comparison:
    """One seed: its training, and what it takes to go on from there."""

    def __init__(self, seed: int, folder: Path, recovery: int, lr: float, density: float) -> None:
        self.seed, self.recovery, self.lr, self.density = seed, recovery, lr, density
        net, self.ledger = read_run(BYTE_TEXT, folder)
        assert isinstance(net, byte_model.ByteModel)
        self.net = net
        self.linear = [
            f"{name}.weight" for name, one in self.net.named_modules() if isinstance(one, nn.Linear)
        ]

    @cached_property
    def scores(self) -> dict[str, Any]:
        found = gt.score(self.ledger, self.net)
        return {name: found[name] for name in self.linear}

    def mask(self, way: Way) -> gt.Mask:
        if not way.similar:
            return gt.select(self.scores, density=self.density, granularity="rows")
        kept = {
            name: similar_groups(np.asarray(score, np.float64), way.similar, self.density)
            for name, score in self.scores.items()
        }
        return gt.Mask(kept, {"row_groups": way.similar})

    def compensated(self, mask: gt.Mask) -> nn.Module:
        given = byte_model.batches(self.seed + 2000, BATCHES, language.BATCH)
        return gt.compensate_(deepcopy(self.net), mask, (batch[:, :-1] for batch in given))

    def went(self, way: Way, on_step: Callable[[], object]) -> dict[str, Any]:
        """Held-out losses: as masked, in one shot, and while it is trained on."""
        batches = byte_model.batches(self.seed + 5000, self.recovery, language.BATCH)
        on = partial(went_on, batches=batches, steps=self.recovery, lr=self.lr, on_step=on_step)
        if way.staged:
            net = deepcopy(self.net)
            end = max(STAGES, round(ANNEALED_BY * self.recovery))
            annealing = Annealing(net, Target("rows", self.density), Schedule(0, end, STAGES, self.density))
            looks = on(net, masking=annealing, ledger=self.ledger)
            assert annealing.mask is not None
            return {"looks": looks, "density": annealing.mask.density}
        mask = self.mask(way)
        masked = byte_model.held_out(gt.apply_mask_(deepcopy(self.net), mask).eval())[0]
        kept = self.compensated(mask)
        masking = Masking(kept, mask)
        masking.apply_()
        looks = on(kept, masking=masking, teacher=self.net if way.taught else None)
        return {"masked": masked, "looks": looks, "density": mask.density}

    @property
    def width(self) -> int:
        """Of the dense model whose token costs as many multiplications."""
        return equal_width(self.net, self.density)

    def narrow(self) -> byte_model.ByteModel:
        torch.manual_seed(self.seed)
        return byte_model.ByteModel(self.width, len(self.net.blocks), HEADS)

    def from_scratch(self, on_step: Callable[[], object]) -> dict[str, Any]:
        net, steps = self.narrow(), self.ledger.steps + self.recovery
        given = byte_model.batches(self.seed, steps, language.BATCH)
        return {"width": self.width, "looks": went_on(net, given, steps, language.LR, on_step)}

    def multiplications(self, densities: Mapping[str, float]) -> dict[str, int]:
        """Of one token: dense, at each of these densities, and narrow."""
        masked = {name: multiplications(self.net, density) for name, density in densities.items()}
        return {"dense": multiplications(self.net), **masked, SCRATCH: multiplications(self.narrow())}

    def seconds(self, sequences: int) -> dict[str, float]:
        """Of one pass over so many full contexts: dense, converted by each mask, narrow."""
        nets: dict[str, nn.Module] = {"dense": self.net, SCRATCH: self.narrow()}
        for name in ("recovered", "similar"):
            mask, tokens = self.mask(WAYS[name]), sequences * byte_model.CONTEXT
            plan = gt.plan(self.net, mask, tokens=tokens, refuse=False)
            nets[name] = gt.convert_(deepcopy(self.net), plan)
        found = seconds_of(nets, sequences, TIMED)
        return found | {"staged": found["recovered"]}
