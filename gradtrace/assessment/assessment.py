"""What is found out about a run: of each layer, of each embedding, and of all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gradtrace.errors import UnknownNameError

__all__ = ["HARDLY", "Assessment", "LayerAssessment", "TimedBy", "TokenUse"]

TimedBy: TypeAlias = Literal["weights", "cost model"]

HARDLY = 0.01
"""A layer that moved by less than this share of what it began with hardly moved."""


@dataclass(frozen=True)
class LayerAssessment:
    """One weight of at least two dimensions; indices are of its outputs and inputs, counted from 0.

    Attributes:
        name: the parameter.
        shape: as in the ledger.
        never_supported: dependencies without a single event.
        confirmed: those whose drift was confirmed; None where that cannot be told.
        outputs, inputs: how many it has; of a convolution, channels.
        dead_outputs: neurons without any event; dead_inputs: inputs without any.
        silent_outputs: neurons with events, but none in the last entry; empty where there is one entry only.
        heads: attention heads, 0 where none are known; dead_heads: those whose values had no event.
        moved: length of its way, decay apart, in shares of the opening balance's; None where unknown.
        blocks: exact blocks that the supported dependencies fall into; 0 where there are none.
        runs: share of the dense product that is computed if each block runs alone.
        time: predicted share of a call's products.
    """

    name: str
    shape: tuple[int, ...]
    never_supported: int
    confirmed: int | None
    outputs: int
    inputs: int
    dead_outputs: tuple[int, ...]
    dead_inputs: tuple[int, ...]
    silent_outputs: tuple[int, ...]
    heads: int
    dead_heads: tuple[int, ...]
    moved: float | None
    blocks: int
    runs: float
    time: float

    @property
    def dependencies(self) -> int:
        """Its elements."""
        size = 1
        for side in self.shape:
            size *= side
        return size

    @property
    def hardly_moved(self) -> bool:
        """Whether it is known to have moved by less than HARDLY."""
        return self.moved is not None and self.moved < HARDLY

    @property
    def decomposes(self) -> bool:
        """Whether what was supported, run block by block, is less than nine tenths of the dense product."""
        return self.runs < 0.9

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {key: list(one) if isinstance(one, tuple) else one for key, one in vars(self).items()} | {
            "dependencies": self.dependencies,
            "hardly_moved": self.hardly_moved,
            "decomposes": self.decomposes,
        }


@dataclass(frozen=True)
class TokenUse:
    """Rows of one embedding: how many there are, were never used, and in less than 1% of the steps.

    `refused`: why that cannot be told, and empty where it can.
    """

    name: str
    rows: int
    never: int
    rarely: int
    refused: str = ""


@dataclass(frozen=True)
class Assessment:
    """All layers by name in the ledger's order, all embeddings, and what the figures rest on.

    `partial`: the ledger is a part of its run, so what had no event here may have had some. `q`: the false
    discovery rate of what is confirmed. `timed_by`: what predicts the share of time.
    """

    path: str
    run_id: str
    steps: int
    partial: bool
    q: float
    timed_by: TimedBy
    layers: Mapping[str, LayerAssessment]
    tokens: tuple[TokenUse, ...]

    def __getitem__(self, name: str) -> LayerAssessment:
        if name not in self.layers:
            raise UnknownNameError(f"no layer {name!r} in this assessment", expected=", ".join(self.layers))
        return self.layers[name]

    @property
    def dependencies(self) -> int:
        """Of all layers."""
        return sum(layer.dependencies for layer in self.layers.values())

    @property
    def never_supported(self) -> float:
        """Share of all layers' dependencies without a single event."""
        return sum(layer.never_supported for layer in self.layers.values()) / max(1, self.dependencies)

    @property
    def not_confirmed(self) -> float | None:
        """Share of the dependencies whose drift was not confirmed; None where one layer's is unknown."""
        counts = [layer.confirmed for layer in self.layers.values()]
        known = [count for count in counts if count is not None]
        return 1 - sum(known) / max(1, self.dependencies) if len(known) == len(counts) else None

    @property
    def runs(self) -> float:
        """Share of the time of all products that is left if every layer runs block by block."""
        return sum(layer.time * layer.runs for layer in self.layers.values())

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "ledger": self.path,
            "run_id": self.run_id,
            "steps": self.steps,
            "partial": self.partial,
            "q": self.q,
            "timed_by": self.timed_by,
            "dependencies": self.dependencies,
            "never_supported": self.never_supported,
            "not_confirmed": self.not_confirmed,
            "runs": self.runs,
            "layers": [layer.to_json() for layer in self.layers.values()],
            "embeddings": [dict(vars(one)) for one in self.tokens],
        }
