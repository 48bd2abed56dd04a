"""Who is recorded: the parameters that train, what this rank records of them, their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer

from gradtrace.errors import UnsupportedError
from gradtrace.ledger.format import Piece
from gradtrace.recorder.committing import RankLayout
from gradtrace.recorder.parameters import Candidate, Selection, candidates, check_recordable
from gradtrace.recorder.shards import box_of, local_part
from gradtrace.recorder.shares import Box
from gradtrace.recorder.updates import GroupStep, StepRecord, kind_of, settings_of
from gradtrace.recorder.window import one_device

__all__ = ["Roster"]


class Roster:
    """The parameters of `model` that `selection` lets in; those that train have a slot, alike on all ranks.

    Attributes:
        offsets: where the flat range begins that this rank has for each slot; 0 where it has none.
        device: where the recorded parameters are, once a layout has begun.

    Raises:
        InvalidValueError: a pattern matches nothing, or nothing is left to record.
        UnsupportedError: the gradient of a parameter that trains cannot be recorded; it is named.
    """

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        self._model, self._selection = model, selection
        self._candidates = self._look()
        for one in self._candidates.values():
            if one.parameter.requires_grad:
                check_recordable(one)
        self._foreign: dict[int, nn.Parameter] = {}  # kept alive, so that an id is never used twice
        self._recorded: list[Candidate] = []
        self._boxes: list[Box] = []
        self._pieces: list[Piece | None] = []
        self._slots: dict[int, int] = {}
        self.offsets: list[int] = []
        self.device = torch.device("cpu")

    @property
    def candidates(self) -> list[Candidate]:
        """The parameters that the selection lets in, frozen ones too, in the model's order."""
        return list(self._candidates.values())

    def admits(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether a parameter is among these that trains and has no slot yet: a new layout must begin."""
        new = False
        for parameter in parameters:
            key = id(parameter)
            if key in self._slots or key in self._foreign or not parameter.requires_grad:
                continue
            if key not in self._candidates:
                # The model may have been given new Parameter objects since it was last looked through.
                self._candidates = self._look()
            if key in self._candidates:
                check_recordable(self._candidates[key])
                new = True
            else:
                self._foreign[key] = parameter
        return new

    def described(self) -> dict[str, Any]:
        """What every parameter that trains or has had a slot is, and what this rank holds of it, as JSON.

        Raises:
            UnsupportedError: they are spread over several devices, or sharded in a way that has no box.
        """
        known = {one.info.name for one in self._recorded}
        self._recorded = [
            one for one in self._candidates.values() if one.parameter.requires_grad or one.info.name in known
        ]
        self.device = one_device([one.parameter for one in self._recorded])
        self._boxes = [box_of(one.info.name, one.parameter) for one in self._recorded]
        return {
            "parameters": [one.info.to_json() for one in self._recorded],
            "boxes": [[list(box.start), list(box.shape)] for box in self._boxes],
        }

    def enlist(self, own: RankLayout) -> npt.NDArray[np.float32]:
        """Take the slots and the shares of a layout of what was described; return its weights, flat."""
        self._slots = {id(one.parameter): slot for slot, one in enumerate(self._recorded)}
        self._pieces = [None] * len(self._recorded)
        self.offsets = [0] * len(self._recorded)
        weights = [torch.empty(0)]
        for piece in own.layout.ranks[own.rank]:
            slot = piece.parameter
            self._pieces[slot], self.offsets[slot] = piece, piece.offset
            part = self._share(slot, piece, self._recorded[slot].parameter.detach())
            weights.append(part.reshape(-1).float().cpu())
        return torch.cat(weights).numpy()

    def forget(self) -> None:
        """Take all slots back: the layout that gave them did not come to be."""
        self._slots = {}

    def read(self, optimizer: Optimizer, number: int) -> tuple[StepRecord, list[torch.Tensor], list[int]]:
        """What `optimizer`, the run's `number`-th, is about to apply: the step, its gradients, their slots.

        The gradients are this rank's shares only.

        Raises:
            UnsupportedError: a gradient is sparse, or placed otherwise than its parameter.
        """
        grads: list[torch.Tensor] = []
        slots: list[int] = []
        missing: list[int] = []
        groups: list[GroupStep] = []
        kind = kind_of(optimizer)
        for group in optimizer.param_groups:
            members: list[int] = []
            for parameter in group["params"]:
                slot = self._slots.get(id(parameter))
                if slot is None:
                    continue
                members.append(slot)
                grad = parameter.grad
                if grad is None:
                    missing.append(slot)
                    continue
                if grad.is_sparse:
                    name = self._recorded[slot].info.name
                    raise UnsupportedError(
                        f"parameter {name!r} has a sparse gradient",
                        expected="dense gradients",
                        remedy=f"exclude={name!r}",
                    )
                piece = self._pieces[slot]
                if piece is not None:
                    grads.append(self._share(slot, piece, grad))
                    slots.append(slot)
            if members:
                groups.append(GroupStep(number, kind, tuple(members), settings_of(group)))
        return StepRecord(tuple(groups), tuple(missing)), grads, slots

    def weights(self, slots: Sequence[int]) -> list[torch.Tensor]:
        """The weights of these slots as they are now: this rank's shares only."""
        return [
            self._share(slot, piece, self._recorded[slot].parameter.detach())
            for slot in slots
            if (piece := self._pieces[slot]) is not None
        ]

    def _share(self, slot: int, piece: Piece, tensor: torch.Tensor) -> torch.Tensor:
        """What this rank records of a tensor that is placed like the parameter in this slot."""
        one, box = self._recorded[slot], self._boxes[slot]
        local = local_part(one.info.name, one.parameter, tensor)
        if piece.shape == box.shape:
            return local
        return local.narrow(0, piece.start[0] - box.start[0], piece.shape[0])

    def _look(self) -> dict[int, Candidate]:
        return {id(one.parameter): one for one in candidates(self._model, self._selection)}
