"""What a recording amounts to, in numbers and in a few lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Summary"]


@dataclass(frozen=True)
class Summary:
    """State of a recording at its last commit.

    Attributes:
        path: the ledger.
        steps: recorded optimizer steps, committed ones.
        parameters: per parameter, (dependencies without a single event, dependencies).
        observe_seconds: time the training thread spent inside `observe`, in seconds.
        blocked_seconds: part of it spent waiting for the writer's thread, in seconds.
    """

    path: str
    steps: int
    parameters: Mapping[str, tuple[int, int]]
    observe_seconds: float
    blocked_seconds: float

    @property
    def dependencies(self) -> int:
        """How many dependencies are recorded."""
        return sum(size for _, size in self.parameters.values())

    @property
    def never_supported(self) -> float:
        """Share of all recorded dependencies that had no event; 0 when nothing is committed yet."""
        return sum(never for never, _ in self.parameters.values()) / max(1, self.dependencies)

    def metrics(self, prefix: str = "ledger") -> dict[str, float]:
        """Scalars for a logger: the share of never supported dependencies, overall and per parameter."""
        scalars = {f"{prefix}/never_supported": self.never_supported}
        for name, (never, size) in self.parameters.items():
            scalars[f"{prefix}/never_supported/{name}"] = never / max(1, size)
        return scalars

    def __str__(self) -> str:
        head = (
            f"ledger {self.path}: {self.steps:,} steps of {self.dependencies:,} dependencies, "
            f"{self.never_supported:.2%} never supported; "
            f"{self.observe_seconds:.2f} s on the training thread, {self.blocked_seconds:.2f} s of it waiting"
        )
        worst = sorted(
            self.parameters.items(), key=lambda item: item[1][0] / max(1, item[1][1]), reverse=True
        )
        shown = [(name, never, size) for name, (never, size) in worst if never][:8]
        width = max((len(name) for name, _, _ in shown), default=0)
        lines = [
            f"  {name:<{width}}  {never:>12,} of {size:>12,}  {never / size:7.2%}"
            for name, never, size in shown
        ]
        return "\n".join([head, *lines])
