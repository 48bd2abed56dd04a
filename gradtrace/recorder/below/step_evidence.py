"""What one sampled step found below it, on its way to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gradtrace.ledger.format import InputInfo

__all__ = ["InputPart", "ParameterPart", "StepEvidence", "to_host"]


@dataclass(frozen=True)
class ParameterPart:
    """Where a parameter lies in the flat arrays of a sampled step, and what was added there."""

    name: str
    offset: int
    size: int
    positions: int
    samples: int


@dataclass(frozen=True)
class InputPart:
    """Where a module's input moments lie in the flat arrays, by accumulator, and over how many positions."""

    info: InputInfo
    offsets: Mapping[str, int]
    positions: int


@dataclass(frozen=True, eq=False)
class StepEvidence:
    """The sums of a sampled step, on the host once `wait` has returned.

    Attributes:
        arrays: by accumulator, flat; in the scale of the loss that was walked backward.
        parameters: the parts of them that count in this step.
        inputs: the parts of the input moments that count.
        factor: contributions times this add up to the gradient that is recorded: 1 / (loss scale * ranks).
        skip: not zero where the loss scaler skips the step; None without a scaler.
        fallen: names of the parameters that have evidence of steps only, with the reason.
        ready: the CUDA event after which the copies are complete; None on the CPU.
    """

    arrays: Mapping[str, torch.Tensor]
    parameters: tuple[ParameterPart, ...]
    inputs: tuple[InputPart, ...]
    factor: float | torch.Tensor
    skip: torch.Tensor | None
    fallen: Mapping[str, str]
    ready: torch.cuda.Event | None

    def wait(self) -> None:
        """Block the calling thread until the copies from the device are complete."""
        if self.ready is not None:
            self.ready.synchronize()


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the host; from a GPU, the copy into pinned memory has only been begun."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
