"""How far an annealing has come: the mask of each stage follows from the one before and from the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from gradtrace.annealing.blocks import Labels, blocks_of, filled, squeezed
from gradtrace.annealing.cross_blocks import coclustered
from gradtrace.annealing.mlp import Mlp
from gradtrace.annealing.neurons import best_neurons
from gradtrace.annealing.schedule import Schedule
from gradtrace.annealing.target import Target
from gradtrace.errors import MismatchError
from gradtrace.evidence.select import select

__all__ = ["EXTRA", "Progress"]

Array: TypeAlias = NDArray[np.float64]

EXTRA = 0.5  # of the stages: how many more a squeeze may take whose blocks have not fallen apart at its end
_FURTHER = 0.85


@dataclass
class Progress:
    """Stage, mask and, towards blocks, what is known of them. Needs no framework and no model.

    Attributes:
        stage: the last one that was gone through; 0 before the first.
        masks: parameter name -> bool array, empty before the first stage. Later ones lie within earlier ones,
            but for the blocks once they are found, in which everything is kept.
        labels: of each MLP, the block of every unit of every level; empty until the blocks are found.
        how: how they were: "components", or "coclusters" where they did not fall apart of themselves.
    """

    target: Target
    schedule: Schedule
    names: tuple[str, ...]
    mlps: tuple[Mlp, ...] = ()
    stage: int = 0
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    labels: tuple[Labels, ...] = ()
    how: str = ""
    _reference: dict[str, NDArray[np.float16]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The stage after which nothing changes."""
        extra = round(EXTRA * self.schedule.stages) if self.target.structure == "blocks" else 0
        return self.schedule.stages + extra

    @property
    def done(self) -> bool:
        """Whether the mask is final."""
        return bool(self.labels) if self.target.structure == "blocks" else self.stage >= self.last

    def due(self, step: int) -> bool:
        """Whether a stage is due once `step` optimizer steps are done."""
        return not self.done and min(self.schedule.stage_at(step), self.last) > self.stage

    @property
    def density(self) -> float:
        """The density of this stage; past the schedule's end of blocks that hold together it goes further."""
        over = max(0, self.stage - self.schedule.stages)
        return float(self.schedule.density_of(self.stage) * _FURTHER**over)

    def advance(self, step: int, scores: Mapping[str, Array]) -> None:
        """Go through the stage that is due; `scores` of `names`, larger = better supported."""
        own = {name: np.asarray(scores[name], np.float64) for name in self.names}
        if self.target.structure == "blocks" and not self._reference:
            for name, score in own.items():
                size = np.sqrt(np.maximum(score, 0))  # of a score quadratic in the weight, as most are
                self._reference[name] = (size / (size.max() or 1.0)).astype(np.float16)
        self.stage = min(self.schedule.stage_at(step), self.last)
        for name, kept in self.masks.items():
            # What was dropped stays dropped, whatever a criterion says of a weight of zero.
            least, most = float(own[name].min()), float(own[name].max())
            own[name] = np.where(kept, own[name], least - ((most - least) or 1.0))
        if self.target.of_mlps:
            pick = best_neurons if self.target.structure == "neuron" else squeezed
            found = [pick(mlp, own, self.density) for mlp in self.mlps]
            masks = {name: kept for one in found for name, kept in one.items()}
        else:
            masks = dict(select(own, density=self.density, granularity=self.target.structure))
        # Whole units come only near to a density, and the next stage might ask for one more than are left.
        self.masks = {name: kept & self.masks.get(name, kept) for name, kept in masks.items()}
        if self.target.structure == "blocks" and self.stage >= self.schedule.stages:
            self._look_for_blocks(own)

    def _look_for_blocks(self, scores: Mapping[str, Array]) -> None:
        assert self.target.blocks is not None
        count = self.target.blocks
        found = [blocks_of(mlp, self.masks, self._reference, count) for mlp in self.mlps]
        if any(labels is None for labels in found) and self.stage < self.last:
            return
        self.how = "components" if all(labels is not None for labels in found) else "coclusters"
        kept = {name: np.where(self.masks[name], np.maximum(scores[name], 0), 0) for name in self.names}
        self.labels = tuple(
            coclustered(mlp, kept, count) if labels is None else labels
            for mlp, labels in zip(self.mlps, found, strict=True)
        )
        self.masks = {
            name: inside
            for mlp, labels in zip(self.mlps, self.labels, strict=True)
            for name, inside in filled(mlp, labels).items()
        }
        self._reference = {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, masks packed into bits; a copy."""
        return {
            "stage": self.stage,
            "masks": {name: torch.from_numpy(np.packbits(kept)) for name, kept in self.masks.items()},
            "shapes": {name: list(kept.shape) for name, kept in self.masks.items()},
            "labels": [[torch.from_numpy(level.copy()) for level in one] for one in self.labels],
            "how": self.how,
            "reference": {name: torch.from_numpy(one.copy()) for name, one in self._reference.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be where that one was. Raises MismatchError for a state of another model or target."""
        odd = sorted(set(state["masks"]) ^ set(self.names)) if state["masks"] else []
        if odd or (state["labels"] and len(state["labels"]) != len(self.mlps)):
            raise MismatchError(
                "the checkpoint annealed other parameters",
                expected=", ".join(self.names[:3]),
                got=", ".join(odd[:3]),
                remedy="resume with the same model and the same target, or leave the callback's state out",
            )
        self.stage, self.how = int(state["stage"]), str(state["how"])
        self.masks = {
            name: np.unpackbits(bits.numpy(), count=int(np.prod(state["shapes"][name])))
            .astype(np.bool_)
            .reshape(state["shapes"][name])
            for name, bits in state["masks"].items()
        }
        self.labels = tuple(tuple(level.numpy().copy() for level in one) for one in state["labels"])
        self._reference = {name: one.numpy().copy() for name, one in state["reference"].items()}
