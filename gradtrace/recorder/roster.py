"""Who is recorded: the parameters that train, their places in the flat arrays, their gradients."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim import Optimizer

from gradtrace.errors import UnsupportedError
from gradtrace.ledger.format import Layout
from gradtrace.recorder.parameters import Candidate, Selection, candidates, check_recordable
from gradtrace.recorder.updates import GroupStep, StepRecord, kind_of, settings_of
from gradtrace.recorder.window import one_device

__all__ = ["Roster"]


class Roster:
    """The parameters of `model` that `selection` lets in; those that train have a slot and a flat offset.

    Attributes:
        offsets: where each slot's flat range begins.
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
        self._slots: dict[int, int] = {}
        self.offsets: list[int] = []
        self.device = torch.device("cpu")

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

    def begin_layout(self) -> tuple[Layout, npt.NDArray[np.float32]]:
        """Give a slot to every parameter that trains or has had one; return the layout and the flat weights.

        Raises:
            UnsupportedError: they are spread over several devices.
        """
        known = {one.info.name for one in self._recorded}
        self._recorded = [
            one for one in self._candidates.values() if one.parameter.requires_grad or one.info.name in known
        ]
        parameters = [one.parameter for one in self._recorded]
        self.device = one_device(parameters)
        layout = Layout.whole(tuple(one.info for one in self._recorded))
        weights = torch.cat([parameter.detach().reshape(-1).float() for parameter in parameters])
        self._slots = {id(parameter): slot for slot, parameter in enumerate(parameters)}
        self.offsets = [piece.offset for piece in layout.ranks[0]]
        return layout, weights.cpu().numpy()

    def forget(self) -> None:
        """Take all slots back: the layout that gave them did not come to be."""
        self._slots = {}

    def read(self, optimizer: Optimizer, number: int) -> tuple[StepRecord, list[torch.Tensor], list[int]]:
        """What `optimizer`, the run's `number`-th, is about to apply: the step, its gradients, their slots.

        Raises:
            UnsupportedError: a gradient is sparse.
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
                grads.append(grad)
                slots.append(slot)
            if members:
                groups.append(GroupStep(number, kind, tuple(members), settings_of(group)))
        return StepRecord(tuple(groups), tuple(missing)), grads, slots

    def _look(self) -> dict[int, Candidate]:
        return {id(one.parameter): one for one in candidates(self._model, self._selection)}
