"""The evidence of an open entry's watched steps on the host, until it is committed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gradtrace.errors import StateError
from gradtrace.ledger.format import KNOWN, Layout
from gradtrace.recorder.below.step_evidence import InputPart, ParameterPart, StepEvidence

__all__ = ["EntrySums"]

_MOST = 2**32 - 1  # what a count on disk can hold


class EntrySums:
    """Sums over watched steps of what this rank records; the counts are those of all ranks, on each.

    A step that the scaler skips adds nothing. What is not finite for a parameter, or for a module's inputs,
    adds nothing there and is not counted.

    Args:
        accumulators: those below the step that the ledger holds.
        layout: the ledger's.
        rank: this rank's number.

    Attributes:
        arrays: the sums, by accumulator.
    """

    def __init__(self, accumulators: Iterable[str], layout: Layout, rank: int) -> None:
        self._layout, self._rank = layout, rank
        self.arrays = {name: np.zeros(layout.size(rank, name), KNOWN[name]) for name in accumulators}
        self._own = [name for name in self.arrays if not name.startswith("input_")]
        self._moments = [name for name in self.arrays if name.startswith("input_")]
        self._index = {info.name: number for number, info in enumerate(layout.parameters)}
        self._modules = {info.module: number for number, info in enumerate(layout.inputs)}
        parameters, inputs = len(layout.parameters), len(layout.inputs)
        self._counts = {name: [0] * parameters for name in ("steps", "positions", "samples")}
        self._input_counts = {name: [0] * inputs for name in ("steps", "positions")}
        self._fallen: dict[str, str] = {}

    def add(self, evidence: StepEvidence) -> None:
        """Add one watched step, once its copies are complete.

        Raises:
            StateError: a count would not fit the ledger any more.
        """
        evidence.wait()
        self._fallen |= {
            str(self._index[name]): reason for name, reason in evidence.fallen.items() if name in self._index
        }
        if evidence.skip is not None and float(evidence.skip):
            return
        arrays = {name: array.numpy() for name, array in evidence.arrays.items()}
        square = float(evidence.factor) ** 2
        for part in evidence.parameters:
            if part.name in self._index:
                self._add_parameter(part, arrays, square)
        for inputs in evidence.inputs:
            if inputs.info.module in self._modules:
                self._add_inputs(inputs, arrays)

    def count(self, later: EntrySums) -> None:
        """Add the counts of later watched steps of the same layout; their arrays are added elsewhere."""
        for mine, theirs in ((self._counts, later._counts), (self._input_counts, later._input_counts)):
            for name, counts in theirs.items():
                mine[name] = [sum(pair) for pair in zip(mine[name], counts, strict=True)]
        self._fallen |= later._fallen

    def details(self) -> dict[str, Any]:
        """The member `watched` of the commit's details."""
        watched = {"counts": self._counts, "inputs": self._input_counts, "fallen": self._fallen}
        return {"watched": watched}

    def _add_parameter(
        self, part: ParameterPart, arrays: dict[str, np.ndarray[Any, Any]], square: float
    ) -> None:
        found = {name: arrays[name][part.offset : part.offset + part.size] for name in self._own}
        if not all(np.isfinite(one).all() for one in found.values()):
            return
        number = self._index[part.name]
        counts = {"steps": 1, "positions": part.positions, "samples": part.samples}
        for name, count in counts.items():
            self._counts[name][number] += count
            if self._counts[name][number] > _MOST:
                raise StateError(
                    f"{name} of {part.name!r} in one entry",
                    expected=f"at most {_MOST:,}",
                    got=f"{self._counts[name][number]:,}",
                    remedy="make entries shorter with entry_steps=",
                )
        shape = self._layout.parameters[number].shape
        for rank, piece in self._layout.pieces(number):
            if rank != self._rank:
                continue
            for name, one in found.items():
                own = one if piece.shape == shape else one.reshape(shape)[piece.box].reshape(-1)
                out = self.arrays[name][piece.offset : piece.offset + piece.size]
                np.add(out, own * square if name.endswith("sumsq") else own, out=out, casting="unsafe")

    def _add_inputs(self, part: InputPart, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        number, info = self._modules[part.info.module], part.info
        found = {
            name: arrays[name][part.offsets[name] : part.offsets[name] + info.length(name)]
            for name in self._moments
        }
        if not all(np.isfinite(one).all() for one in found.values()):
            return
        self._input_counts["steps"][number] += 1
        self._input_counts["positions"][number] += part.positions
        if self._rank == 0:
            for name, one in found.items():
                offset, length = self._layout.input_range(number, name)
                np.add(
                    self.arrays[name][offset : offset + length],
                    one,
                    out=self.arrays[name][offset : offset + length],
                    casting="unsafe",
                )
