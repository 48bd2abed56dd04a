"""The input moments of one layer on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradtrace.recorder.below.contribution import InputMoments
from gradtrace.recorder.below.wanted import Wanted

__all__ = ["InputSums"]


@dataclass(eq=False)
class InputSums:
    """Sums over the positions of one layer.

    Attributes:
        arrays: input_sum and input_sumsq (J,), input_gram (G, J / G, J / G); those that are wanted
            and offered.
        positions: how many were added.
    """

    arrays: dict[str, torch.Tensor]
    positions: int = 0

    @classmethod
    def like(
        cls, use: InputMoments, wanted: Wanted, *, dtype: torch.dtype, device: torch.device
    ) -> InputSums:
        """Zeros for a layer that is used like this."""
        shapes: dict[str, tuple[int, ...]] = {"input_sum": (use.inputs,), "input_sumsq": (use.inputs,)}
        if groups := use.gram_groups:
            shapes["input_gram"] = (groups, use.inputs // groups, use.inputs // groups)
        return cls(
            {
                name: torch.zeros(shapes[name], dtype=dtype, device=device)
                for name in wanted.moments
                if name in shapes
            }
        )

    def add(self, use: InputMoments) -> None:
        """Add the inputs of one use."""
        self.positions += use.positions
        if "input_sum" in self.arrays:
            use.add_input_sum(self.arrays["input_sum"])
            use.add_input_sumsq(self.arrays["input_sumsq"])
        if "input_gram" in self.arrays:
            use.add_input_gram(self.arrays["input_gram"])
