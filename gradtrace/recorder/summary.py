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
        blocked_seconds: part of it spent waiting for the writer's thread as windows closed, in seconds.
            Waiting for the commit of a checkpoint is not in it.
        run_seconds: time since recording began, in seconds.
        windows: windows closed since then.
    """

    path: str
    steps: int
    parameters: Mapping[str, tuple[int, int]]
    observe_seconds: float
    blocked_seconds: float
    run_seconds: float = 0.0
    windows: int = 0

    @property
    def blocked(self) -> float:
        """Share of the run that the training thread spent waiting for the writer's thread."""
        return self.blocked_seconds / self.run_seconds if self.run_seconds else 0.0

    @property
    def dependencies(self) -> int:
        """How many dependencies are recorded."""
        return sum(size for _, size in self.parameters.values())

    @property
    def never_supported(self) -> float:
        """Share of all recorded dependencies that had no event; 0 when nothing is committed yet."""
        return sum(never for never, _ in self.parameters.values()) / max(1, self.dependencies)

    def metrics(self, prefix: str = "ledger") -> dict[str, float]:
        """Scalars for a logger: shares never supported, overall and per parameter, and of the run blocked."""
        scalars = {
            f"{prefix}/never_supported": self.never_supported,
            f"{prefix}/blocked": self.blocked,
            f"{prefix}/blocked_seconds_per_window": self.blocked_seconds / max(1, self.windows),
        }
        for name, (never, size) in self.parameters.items():
            scalars[f"{prefix}/never_supported/{name}"] = never / max(1, size)
        return scalars

    def __str__(self) -> str:
        head = (
            f"ledger {self.path}: {self.steps:,} steps of {self.dependencies:,} dependencies, "
            f"{self.never_supported:.2%} never supported; "
            f"{self.observe_seconds:.2f} s on the training thread, "
            f"{self.blocked_seconds:.2f} s of it waiting ({self.blocked:.2%} of the run)"
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
